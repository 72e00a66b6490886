"""Base class of pretrained models: loading, device and precision."""

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
from speechbrain_vq.hub.folder import HPARAMS, commit_of, copy_folder
from speechbrain_vq.hub.load import load_folder
from speechbrain_vq.nnet.utils import keep_dtype

PRECISIONS = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}

if hasattr(os, "register_at_fork"):  # Not on Windows
    # A forked child has no thread pool, so PyTorch operations that wait for its
    # threads would hang. PyTorch's data loader workers do the same.
    os.register_at_fork(
        after_in_child=functools.partial(torch.set_num_threads, 1)
    )


class HparamsError(ValueError):
    """Error for hyperparameters from which no model can be built."""


class VQPretrained(Pretrained):
    """Base class of models that ``export_pretrained`` wrote.

    It can be one of a Brain's ``modules``: it moves to the Brain's device, is
    not trained, and stays in evaluation mode after ``train()``.

    Weights stay in fp32. With ``half()``, ``bfloat16()`` or
    ``run_opts={"eval_precision": "bf16"}``, convolutions and matrix products
    run in half precision. On recorded speech, bf16 changed 0.4 % of the tokens
    and fp16 0.06 % (CPU). An enclosing autocast has no effect.

    Arguments
    ---------
    modules : dict
        Modules by name, including those of ``MODULES_NEEDED``.
    hparams : dict
        Hyperparameters by name, including those of ``HPARAMS_NEEDED``.
    run_opts : dict, optional
        ``device``, ``eval_precision`` (or ``precision``) and other options of
        SpeechBrain's ``RunOptions``.
    freeze_params : bool
        Whether to freeze the parameters and stay in evaluation mode.

    Raises
    ------
    ValueError
        If a module or hyperparameter is missing, or the device does not exist.
    """

    def __init__(
        self,
        modules: dict[str, torch.nn.Module] | None = None,
        hparams: dict[str, Any] | None = None,
        run_opts: dict[str, Any] | None = None,
        freeze_params: bool = True,
    ):
        modules, hparams = modules or {}, hparams or {}
        self._check_has("modules", self.MODULES_NEEDED, modules)
        self._check_has("keys", self.HPARAMS_NEEDED, hparams)
        # Pass SpeechBrain's defaults, as Pretrained would read the yaml's.
        options = {**RunOptions(), **(run_opts or {})}
        run_opts = RunOptions.from_dictionary(options)
        check_device(run_opts["device"])
        super().__init__(modules, hparams, run_opts, freeze_params)
        halves = {self.precision, self.eval_precision} - {"fp32"}
        name = halves.pop() if halves else "fp32"
        self.compute_dtype = AMPConfig.from_name(name).dtype
        self.frozen = freeze_params
        if freeze_params:
            self.eval()
        self.source = self.revision = None
        # Folder of the model's files, and whether its yaml describes the model.
        self.location, self.described = None, False

    @classmethod
    def _check_has(cls, kind, needed, given):
        missing = [name for name in needed if name not in given]
        if missing:
            raise HparamsError(
                f"A {cls.__name__} needs the {kind} {', '.join(needed)}. "
                f"Missing: {', '.join(missing)}. Given: "
                f"{', '.join(map(str, given)) or 'none'}."
            )

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
        """Load a model that ``export_pretrained`` wrote, without running code
        from its folder.

        Arguments
        ---------
        source : path or str
            Folder, or id of a model on the Hub.
        revision, token, cache_dir, local_files_only, force_download, savedir, \
subfolder
            See ``speechbrain_vq.hub.download.download``.
        run_opts, freeze_params
            See ``VQPretrained``. The model's yaml sets no run options.
        trust_remote_code : bool
            Whether to load the folder with SpeechBrain's own loader, which
            runs any code that the yaml names.
        device : str or torch.device, optional
            Shorthand for ``run_opts={"device": ...}``.
        dtype : str or torch.dtype, optional
            Precision of the computation: ``"fp32"``, ``"bf16"``, ``"fp16"`` or
            the PyTorch dtype. Shorthand for
            ``run_opts={"eval_precision": ...}``. Weights stay in fp32.
        overrides : mapping, optional
            Plain values that replace those of the yaml, nested as in the yaml,
            such as ``{"vocoder": "hifigan"}``.

        Returns
        -------
        VQPretrained
            The model, in evaluation mode.

        Raises
        ------
        FileNotFoundError
            If there is no such model, or one of its files is missing.
        ValueError
            If the model is invalid, or would run code.
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
        run_opts = dict(run_opts or {})
        if device is not None:
            run_opts["device"] = str(device)
        if dtype is not None:
            run_opts["eval_precision"] = PRECISIONS.get(dtype, dtype)
        hparams = load_folder(folder, overrides, trust_remote_code)
        try:
            model = cls(hparams["modules"], hparams, run_opts, freeze_params)
        except HparamsError as error:
            raise HparamsError(f"{folder / HPARAMS}: {error}") from error
        model.source, model.revision = str(source), commit_of(folder)
        model.location, model.described = folder, not overrides
        model._loaded_fingerprint = model.fingerprint
        return model

    @classmethod
    def from_pretrained(
        cls, source: str | pathlib.Path, **options: Any
    ) -> "VQPretrained":
        """Load a model; an alias of ``from_hparams``."""
        return cls.from_hparams(source, **options)

    def save_pretrained(self, folder: str | pathlib.Path) -> None:
        """Write the model, with its current weights and all codebooks, to a
        folder for ``from_hparams``. Other files in the folder are kept. If the
        weights have changed since they were loaded, the card with its results
        and examples is left out.

        Raises
        ------
        ValueError
            If no yaml describes the model, since it was built in Python or
            loaded with ``overrides``.
        FileExistsError
            If the folder is a file.
        """
        if not self.described:
            raise ValueError(
                "No yaml describes this model, since it was built in Python "
                "or loaded with overrides: load it with from_hparams without "
                "overrides, or use export_pretrained."
            )
        is_changed = self.fingerprint != self._loaded_fingerprint
        copy_folder(self.location, folder, dict(self.mods.items()), is_changed)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Push the output of ``save_pretrained`` to the Hub, in one commit.

        See ``speechbrain_vq.push_to_hub`` for the arguments, such as
        ``private``, ``token`` and ``create_pr``. Returns the URL of the commit
        or pull request."""
        # The only import from a higher layer, by its public name.
        import speechbrain_vq

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            files = [path.name for path in pathlib.Path(folder).iterdir()]
            return speechbrain_vq.push_to_hub(
                folder, repo_id, files=files, update=True, **options
            )

    @property
    def fingerprint(self) -> str:
        """Hash of the weights, 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for name, value in sorted(self.mods.state_dict().items()):
            # The warm-up flag is not a weight, and older files lack it.
            if torch.is_tensor(value) and not name.endswith(".in_warmup"):
                digest.update(name.encode())
                digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def compute_precision(self) -> str:
        """Precision of the computation: ``fp32``, ``bf16`` or ``fp16``."""
        return PRECISIONS.get(self.compute_dtype, "fp32")

    def autocast(self) -> torch.autocast:
        """Return an autocast context with the model's own precision."""
        kind, dtype = torch.device(self.device).type, self.compute_dtype
        return torch.autocast(kind, dtype, enabled=dtype != torch.float32)

    def half(self) -> "VQPretrained":
        """Compute in fp16 from now on; weights stay in fp32."""
        self.compute_dtype = torch.float16
        return self

    def bfloat16(self) -> "VQPretrained":
        """Compute in bf16 from now on; weights stay in fp32."""
        self.compute_dtype = torch.bfloat16
        return self

    def float(self) -> "VQPretrained":
        """Compute in fp32 from now on."""
        self.compute_dtype = torch.float32
        return self

    def train(self, mode: bool = True) -> "VQPretrained":
        """Set the training mode, unless the model is frozen."""
        return super().train(mode and not self.frozen)

    def _apply(self, fn, recurse=True):
        # Features and quantizer require fp32, so `half()` of an enclosing
        # module must not convert the weights. Moving them is allowed.
        super()._apply(keep_dtype(fn), recurse)
        tensors = itertools.chain(self.parameters(), self.buffers())
        # SpeechBrain sets the device only in the constructor.
        self.device = str(next(tensors, torch.empty(0)).device)
        return self


def check_device(device: str | torch.device | None) -> None:
    """Raise ValueError if a device does not exist."""
    if device is None:
        return
    try:
        torch.empty(0, device=torch.device(device))
    # PyTorch built without support for the device raises an AssertionError.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ValueError(
            f"The device '{device}' cannot be used here: {reason}. Choose "
            "another (cpu always works), or leave it out."
        ) from error
