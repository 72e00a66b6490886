"""Load the weights of an exported model for SpeechBrain's own classes."""

import pathlib

import torch
from speechbrain.utils.fetching import (
    FetchConfig,
    FetchSource,
    LocalStrategy,
    fetch,
)
from speechbrain.utils.parameter_transfer import Pretrainer

from .folder import WEIGHTS, check_exists, load_weights, read_weights


class WeightsPretrainer(Pretrainer):
    """Load ``model.safetensors`` in SpeechBrain's ``from_hparams``.

    It is the ``pretrainer`` of an exported yaml. SpeechBrain's own class reads
    one pickle per module; this one reads a single file, which cannot contain
    code. SpeechBrain's ``fetch`` sends no token by default, so a private model
    requires ``fetch_config=FetchConfig(token=True)``.

    Arguments
    ---------
    modules : dict
        Modules to load, by the prefix of their weights' names.

    Example
    -------
    >>> pretrainer = WeightsPretrainer({"linear": torch.nn.Linear(2, 3)})
    >>> pretrainer.collect_files("results/model")  # doctest: +SKIP
    >>> pretrainer.load_collected()  # doctest: +SKIP
    """

    def __init__(self, modules: dict[str, torch.nn.Module]) -> None:
        super().__init__()
        self.modules = modules
        self.path = None

    def collect_files(
        self,
        default_source: str | pathlib.Path | FetchSource | None = None,
        local_strategy: LocalStrategy = LocalStrategy.SYMLINK,
        fetch_config: FetchConfig = FetchConfig(),  # noqa: B008
    ) -> dict[str, pathlib.Path]:
        """Fetch the weights, into ``collect_in`` if that is set. The arguments
        are those of SpeechBrain's ``Pretrainer``, but the source is required.
        """
        if default_source is None:
            raise ValueError(f"Give a default_source to fetch {WEIGHTS} from.")
        self.path = fetch(
            filename=WEIGHTS,
            source=default_source,
            savedir=self.collect_in,
            local_strategy=local_strategy,
            fetch_config=fetch_config,
        )
        return {WEIGHTS: self.path}

    def load_collected(self) -> None:
        """Load the weights into the modules. None may be missing or unknown."""
        path = self.path
        # Only the main process calls collect_files.
        if path is None and self.collect_in is not None:
            path = self.collect_in / WEIGHTS
        if path is None:
            raise ValueError("Call collect_files before load_collected.")
        check_exists(path)
        load_weights(self.modules, read_weights(path), path)
