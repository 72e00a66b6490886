"""What all pretrained models of the package share: how they are loaded, moved,
frozen, and in which precision they compute.

Authors
 * speechbrain_vq authors 2026
"""

import hashlib
import itertools
import json
import pathlib
from typing import Any

import torch
from speechbrain.inference.interfaces import Pretrained
from speechbrain.utils.autocast import AMPConfig

from speechbrain_vq.hub.download import download
from speechbrain_vq.hub.load import load_pretrained
from speechbrain_vq.hub.savedir import MARK
from speechbrain_vq.nnet.utils import keep_dtype


class VQPretrained(Pretrained):
    """A model that ``export_pretrained`` wrote; subclasses say what it does.

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
        _check_device(run_opts)
        super().__init__(modules, hparams, run_opts, freeze_params)
        names = {self.precision, self.eval_precision} - {"fp32"}
        self.compute_dtype = AMPConfig.from_name(
            names.pop() if names else "fp32"
        ).dtype
        self.frozen = freeze_params
        if freeze_params:
            self.eval()
        self.source = self.revision = None

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
    ) -> "VQPretrained":
        """Loads what ``export_pretrained`` wrote, without running code that
        came with it; see ``speechbrain_vq.hub.load_pretrained``.

        Arguments
        ---------
        source : path or str
            A folder, or the id of a model on the Hub.
        revision : str, optional
            Branch, tag or commit on the Hub.
        token, cache_dir, local_files_only, force_download
            As in ``huggingface_hub``.
        savedir : path, optional
            A folder to put a copy in.
        run_opts : dict, optional
            ``device``, ``eval_precision`` and so on.
        trust_remote_code : bool
            Whether the yaml may build what it likes.
        freeze_params : bool
            Whether the model is only used, and not trained further.

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
            trust_remote_code=trust_remote_code,
        )
        hparams = load_pretrained(folder, trust_remote_code=trust_remote_code)
        model = cls(hparams["modules"], hparams, run_opts, freeze_params)
        model.source, model.revision = str(source), _commit(folder)
        return model

    @property
    def fingerprint(self) -> str:
        """A short name for the weights: other weights have another one."""
        digest = hashlib.sha256()
        for name, value in sorted(self.mods.state_dict().items()):
            if torch.is_tensor(value):
                digest.update(name.encode())
                digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def compute_precision(self) -> str:
        """What it computes in: ``fp32``, ``bf16`` or ``fp16``."""
        return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(
            self.compute_dtype, "fp32"
        )

    def autocast(self) -> torch.autocast:
        """The precision to compute in, whatever it is outside."""
        kind = torch.device(self.device).type
        if self.compute_dtype is torch.float32:
            return torch.autocast(kind, enabled=False)
        return torch.autocast(kind, dtype=self.compute_dtype)

    def half(self) -> "VQPretrained":
        """Computes in fp16 from here on; weights stay in fp32."""
        self.compute_dtype = torch.float16
        return self

    def bfloat16(self) -> "VQPretrained":
        """Computes in bf16 from here on; weights stay in fp32."""
        self.compute_dtype = torch.bfloat16
        return self

    def float(self) -> "VQPretrained":
        """Computes in fp32 from here on."""
        self.compute_dtype = torch.float32
        return self

    def train(self, mode: bool = True) -> "VQPretrained":
        """A frozen model stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def _apply(self, fn, recurse=True):
        # Features and quantizer are made for fp32, so `model.half()` of a
        # model around this one may move it, but not convert it.
        super()._apply(keep_dtype(fn), recurse)
        tensors = itertools.chain(self.parameters(), self.buffers())
        # SpeechBrain notes the device once; this one may move.
        self.device = str(next(tensors, torch.empty(0)).device)
        return self


def _commit(folder):
    """The commit on the Hub that a folder holds, or None."""
    mark = pathlib.Path(folder) / MARK
    if mark.is_file():
        return json.loads(mark.read_text(encoding="utf-8")).get("commit")
    folder = pathlib.Path(folder)
    return folder.name if folder.parent.name == "snapshots" else None


def _check_device(run_opts):
    """Before anything is moved there, which would end in a traceback."""
    known = isinstance(run_opts, dict)
    device = (
        run_opts.get("device") if known else getattr(run_opts, "device", None)
    )
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


def _check_has(found, needed, kind, cls):
    missing = [name for name in needed if name not in found]
    if missing:
        raise ValueError(
            f"A {cls.__name__} needs the {kind} {', '.join(needed)}; "
            f"{', '.join(missing)} of them are missing, "
            f"{', '.join(map(str, found)) or 'none'} are there."
        )
