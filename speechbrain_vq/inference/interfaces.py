"""Load pretrained models, and choose their device and precision."""

import functools
import hashlib
import itertools
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import torch
from speechbrain.inference.interfaces import Pretrained
from speechbrain.utils.autocast import AMPConfig
from speechbrain.utils.run_opts import RunOptions

from speechbrain_vq.hub.download import download
from speechbrain_vq.hub.folder import commit_of, copy_folder
from speechbrain_vq.hub.load import load_folder
from speechbrain_vq.nnet.utils import keep_dtype

PRECISIONS = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}

if hasattr(os, "register_at_fork"):  # Not on Windows
    # The threads of a process do not come along with a fork of it, and work
    # for them would wait for ever. PyTorch's own workers do the same.
    os.register_at_fork(
        after_in_child=functools.partial(torch.set_num_threads, 1)
    )


class VQPretrained(Pretrained):
    """Base class of models that ``export_pretrained`` wrote.

    It is a module like others: it may be an entry of a Brain's ``modules``,
    where it moves along, is not trained, and stays in evaluation mode
    whatever ``train()`` says. Weights stay in fp32; ``half()`` and
    ``bfloat16()``, or ``run_opts={"eval_precision": "bf16"}``, let the
    convolutions and matrices compute in half precision (of the tokens of
    recorded speech, bf16 changed 0.4 % and fp16 0.06 %, on CPU), and an
    autocast from outside changes nothing.

    Arguments
    ---------
    modules : dict
        Modules by name, those of ``MODULES_NEEDED`` among them.
    hparams : dict
        Numbers by name, those of ``HPARAMS_NEEDED`` among them.
    run_opts : dict, optional
        ``device``, ``eval_precision`` (or ``precision``) and the others of
        SpeechBrain's ``RunOptions``.
    freeze_params : bool
        Whether the model is only used, and not trained further.

    Raises
    ------
    ValueError
        If a module or a number is missing, or there is no such device; the
        message names it.
    """

    def __init__(
        self,
        modules: dict[str, torch.nn.Module] | None = None,
        hparams: dict[str, Any] | None = None,
        run_opts: dict[str, Any] | None = None,
        freeze_params: bool = True,
    ):
        modules, hparams = modules or {}, hparams or {}
        _check_has(modules, self.MODULES_NEEDED, "modules", type(self))
        _check_has(hparams, self.HPARAMS_NEEDED, "keys", type(self))
        # By SpeechBrain's defaults, never by the yaml.
        run_opts = RunOptions.from_dictionary(
            {**RunOptions(), **(run_opts or {})}
        )
        check_device(run_opts["device"])
        # It is used for what it is, whatever the yaml calls so.
        hparams = {k: v for k, v in hparams.items() if k != "audio_normalizer"}
        super().__init__(modules, hparams, run_opts, freeze_params)
        names = {self.precision, self.eval_precision} - {"fp32"}
        self.compute_dtype = AMPConfig.from_name(
            names.pop() if names else "fp32"
        ).dtype
        self.frozen = freeze_params
        if freeze_params:
            self.eval()
        self.source = self.revision = None
        # Where its files are; whether its yaml describes it.
        self.location, self.described = None, False

    @classmethod
    def from_hparams(
        cls,
        source: str | pathlib.Path,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | pathlib.Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        savedir: str | pathlib.Path | None = None,
        run_opts: dict[str, Any] | None = None,
        trust_remote_code: bool = False,
        freeze_params: bool = True,
        *,
        subfolder: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> "VQPretrained":
        """Load what ``export_pretrained`` wrote, as data.

        Arguments
        ---------
        source : path or str
            A folder, or the id of a model on the Hub.
        revision, token, cache_dir, local_files_only, force_download, savedir, \
subfolder
            See ``speechbrain_vq.hub.download.download``.
        run_opts : dict, optional
            ``device``, ``eval_precision`` and the others of SpeechBrain's
            ``RunOptions``. The model's yaml sets none of them.
        trust_remote_code : bool
            Whether SpeechBrain's own loader reads the folder, which runs
            whatever the yaml asks for.
        freeze_params : bool
            Whether the model is only used, and not trained further.
        device : str or torch.device, optional
            The same as ``run_opts={"device": ...}``.
        dtype : str or torch.dtype, optional
            Precision to compute in, ``"fp32"``, ``"bf16"``, ``"fp16"`` or the
            type of PyTorch; the same as ``run_opts={"eval_precision": ...}``.
            Weights stay in fp32.
        overrides : mapping, optional
            Plain values in place of those of the yaml, nested as they are
            there, such as ``{"token_rate": 25.0}``.

        Returns
        -------
        VQPretrained
            The model, in evaluation mode.

        Raises
        ------
        FileNotFoundError
            If there is no such model, or one of its files is missing.
        ValueError
            If it cannot be used, or should not be.
        """
        folder = download(
            source,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
            savedir=savedir,
            subfolder=subfolder,
            trust_remote_code=trust_remote_code,
        )
        run_opts = _run_options(run_opts, device, dtype)
        hparams = load_folder(folder, overrides, trust_remote_code)
        model = cls(hparams["modules"], hparams, run_opts, freeze_params)
        model.source, model.revision = str(source), commit_of(folder)
        model.location, model.described = folder, not overrides
        return model

    @classmethod
    def from_pretrained(
        cls, source: str | pathlib.Path, **options: Any
    ) -> "VQPretrained":
        """Load a model, by the Hub's usual name of ``from_hparams``."""
        return cls.from_hparams(source, **options)

    def save_pretrained(self, folder: str | pathlib.Path) -> None:
        """Write the model, with the weights that it has now and all codebooks,
        to a folder that loads as the one did that it is from. Other files in
        the folder stay.

        Raises
        ------
        ValueError
            If the model was not loaded from a folder or the Hub, or was with
            ``overrides``, so that no yaml describes it.
        """
        if not self.described:
            raise ValueError(
                "No yaml describes this model, as it was put together in "
                "Python or loaded with overrides: load it with from_hparams "
                "and without overrides, or use export_pretrained."
            )
        copy_folder(self.location, folder, dict(self.mods.items()))

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Push what ``save_pretrained`` writes to the Hub, in one commit.

        Arguments
        ---------
        repo_id : str
            Repository on the Hub, ``organisation/name``.
        **options
            Options of ``speechbrain_vq.push_to_hub``, such as ``private``,
            ``token`` and ``create_pr``.

        Returns
        -------
        str
            Address of the commit or of the pull request.

        Raises
        ------
        HubError
            If the Hub refuses or cannot be reached.
        """
        # Only here does inference need what is above it, by its public name.
        import speechbrain_vq

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            paths = pathlib.Path(folder).iterdir()
            inner = [path.name for path in paths if path.is_dir()]
            return speechbrain_vq.push_to_hub(
                folder, repo_id, files=inner, update=True, **options
            )

    @property
    def fingerprint(self) -> str:
        """Hash of the weights, 16 characters."""
        digest = hashlib.sha256()
        for name, value in sorted(self.mods.state_dict().items()):
            # The flag is no weight, and not in older files.
            if torch.is_tensor(value) and not name.endswith(".in_warmup"):
                digest.update(name.encode())
                digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def compute_precision(self) -> str:
        """Precision of the computation: ``fp32``, ``bf16`` or ``fp16``."""
        return PRECISIONS.get(self.compute_dtype, "fp32")

    def autocast(self) -> torch.autocast:
        """Make the context of the model's own precision."""
        kind, dtype = torch.device(self.device).type, self.compute_dtype
        return torch.autocast(kind, dtype, enabled=dtype != torch.float32)

    def half(self) -> "VQPretrained":
        """Compute in fp16 from here on; weights stay in fp32."""
        self.compute_dtype = torch.float16
        return self

    def bfloat16(self) -> "VQPretrained":
        """Compute in bf16 from here on; weights stay in fp32."""
        self.compute_dtype = torch.bfloat16
        return self

    def float(self) -> "VQPretrained":
        """Compute in fp32 from here on."""
        self.compute_dtype = torch.float32
        return self

    def train(self, mode: bool = True) -> "VQPretrained":
        """Set the training mode, unless the model is frozen."""
        return super().train(mode and not self.frozen)

    def _apply(self, fn, recurse=True):
        # Features and quantizer are made for fp32, so `model.half()` of a
        # model around this one may move it, but not convert it.
        super()._apply(keep_dtype(fn), recurse)
        tensors = itertools.chain(self.parameters(), self.buffers())
        # SpeechBrain notes the device once; this one may move.
        self.device = str(next(tensors, torch.empty(0)).device)
        return self


def _run_options(run_opts, device, dtype):
    """Merge ``device`` and ``dtype`` into the run options."""
    options, named = dict(run_opts or {}), {}
    if device is not None:
        named["device"] = str(device)
    if dtype is not None:
        named["eval_precision"] = PRECISIONS.get(dtype, dtype)
        if named["eval_precision"] not in PRECISIONS.values():
            raise ValueError(
                f"dtype is {dtype!r}: give {', '.join(PRECISIONS.values())}."
            )
    default = RunOptions()
    for key, value in named.items():
        if options.get(key) not in (None, value, default[key]):
            raise ValueError(
                f"{key} is given twice, as {value!r} and in run_opts as "
                f"{options[key]!r}: leave one out."
            )
    return {**options, **named}


def check_device(device: str | torch.device | None) -> None:
    """Refuse a device that does not exist, before anything is moved there."""
    if device is None:
        return
    try:
        torch.empty(0, device=torch.device(device))
    # The latter where PyTorch was built without it.
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0].split(". ")[0]
        raise ValueError(
            f"The device '{device}' cannot be used here: {why}. Name another "
            "(cpu is always there), or none."
        ) from error


def _check_has(given, needed, kind, cls):
    missing = [name for name in needed if name not in given]
    if missing:
        raise ValueError(
            f"A {cls.__name__} needs the {kind} {', '.join(needed)}; "
            f"{', '.join(missing)} are missing, only "
            f"{', '.join(map(str, given)) or 'none'} given."
        )
