"""Checkpoints of SpeechBrain that are written whole and verified when read."""

import contextlib
import hashlib
import importlib.metadata
import logging
import math
import os
import shutil
import time

import yaml
from speechbrain.core import Brain
from speechbrain.utils.checkpoints import (
    CKPT_PREFIX,
    METAFNAME,
    PARAMFILE_EXT,
    Checkpoint,
    Checkpointer,
)
from speechbrain.utils.distributed import (
    ddp_barrier,
    ddp_broadcast,
    if_main_process,
)
from speechbrain.utils.logger import get_logger

from speechbrain_vq.training.states import RandomState

logger = get_logger(__name__)

# Of the checkpoints written here. One of a later format is refused.
FORMAT = 1
# What is noted in the meta beside SpeechBrain's and the caller's.
SEAL = "speechbrain_vq"


class AtomicCheckpointer(Checkpointer):
    """A Checkpointer for any Brain, named in yaml as
    ``!new:speechbrain_vq.training.resume.AtomicCheckpointer``.

    It writes each checkpoint under a name that no reader looks at and renames
    it when it is complete: a run killed or a disk full while saving leaves the
    earlier ones as they were. Checksums in the meta tell at recovery which
    checkpoints are whole; damaged ones are named and passed over. It saves the
    random state too, adds to the meta what the ``checkpoint_meta()`` of a
    recoverable returns (a dict of numbers), and puts off a checkpoint between
    two optimizer steps, whose gradients would be lost, to the next. The
    arguments are those of SpeechBrain's ``Checkpointer``.

    Example
    -------
    >>> import torch
    >>> checkpointer = AtomicCheckpointer(getfixture("tmp_path"))
    >>> _ = checkpointer.save_checkpoint(name="best")
    >>> drawn = torch.rand(3)
    >>> _ = checkpointer.recover_if_possible()
    >>> torch.equal(torch.rand(3), drawn)
    True
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # What to do when the next checkpoint within an epoch is saved.
        self.stop = None
        # The Brain's ckpt_interval_steps, while a checkpoint waits.
        self._interval = None
        # By folder, what is wrong with a checkpoint; None: it is whole.
        self._faults = {}
        if "random_state" not in self.recoverables:
            self.add_recoverable(
                "random_state", RandomState(), optional_load=True
            )

    def save_checkpoint(
        self, meta=None, end_of_epoch=True, name=None, verbosity=logging.INFO
    ):
        """Saves a checkpoint whole, or raises what a saver raised and leaves
        nothing behind. The arguments are SpeechBrain's; ``meta`` wins over
        what the recoverables add.

        Returns
        -------
        Checkpoint
            None on ranks other than 0, and where the checkpoint was put off.

        Raises
        ------
        OSError
            If it could not be written, such as to a full disk.
        """
        if self._waits_for_step(end_of_epoch):
            return None
        added = {"unixtime": self._later_than_all()}
        for recoverable in self.recoverables.values():
            if hasattr(recoverable, "checkpoint_meta"):
                added.update(recoverable.checkpoint_meta())
        folder, path = self.checkpoints_dir, None
        partial = folder / ".partial"
        try:
            _remove_on_main(partial)  # What a killed run left.
            self.checkpoints_dir = partial
            # Level 0 is not logged: it would name the partial folder.
            saved = super().save_checkpoint(
                {**added, **(meta or {})}, end_of_epoch, name, logging.NOTSET
            )
            ddp_barrier()  # Some savers write on every rank.
            if saved is not None:
                saved = _move(_seal(saved), folder, numbered=name is None)
                path = saved.path
                logger.log(verbosity, f"Saved a checkpoint in {path}")
        except (OSError, RuntimeError) as error:
            self.checkpoints_dir = folder
            fault = error if isinstance(error, OSError) else _probe(partial)
            if fault is None:
                raise
            last = self.find_checkpoint()
            raise OSError(
                f"No checkpoint could be saved in {folder}: {fault}. "
                + (f"The last one is {last.path.name}." if last else "")
            ) from error
        finally:
            self.checkpoints_dir = folder
            _remove_on_main(partial)
        # No rank looks for it before it is in place, nor reads it anew.
        self._faults[ddp_broadcast(path)] = None
        if self.stop is not None and not end_of_epoch:
            self.stop()
        return saved

    def save_and_keep_only(self, *args, importance_keys=(), **options):
        """As SpeechBrain's, whose default list of keys has one more at each
        save, so that each takes longer than the one before."""
        keys = list(importance_keys)
        super().save_and_keep_only(*args, importance_keys=keys, **options)

    def list_checkpoints(self):
        """As SpeechBrain's, without those that are damaged.

        Returns
        -------
        list of Checkpoint
            A damaged one is told in a warning that names its file.

        Raises
        ------
        ValueError
            If a checkpoint was written in a later format than is read here.
        """
        checkpoints = []
        for folder in sorted(self.checkpoints_dir.glob(f"{CKPT_PREFIX}*/")):
            try:
                checkpoint = _open(folder, folder not in self._faults)
            except _DamagedError as damage:
                if self._faults.get(folder) is None:
                    logger.warning(f"{folder} is not used: {damage}.")
                self._faults[folder] = str(damage)
            else:
                self._faults.setdefault(folder)
                checkpoints.append(checkpoint)
        return [c for c in checkpoints if self._faults[c.path] is None]

    def recover_if_possible(self, *args, **kwargs):
        """As SpeechBrain's, from a checkpoint that is whole.

        Returns
        -------
        Checkpoint
            None where there is none to choose from.

        Raises
        ------
        OSError
            If there are checkpoints, and all of them are damaged.
        """
        self._faults.clear()  # One that was whole may be damaged since.
        recovered = super().recover_if_possible(*args, **kwargs)
        if self._faults and None not in self._faults.values():
            raise OSError(
                f"No checkpoint in {self.checkpoints_dir} can be used. "
                + "; ".join(f"{k.name}: {v}" for k, v in self._faults.items())
                + ". Restore one of them, or remove them to start again."
            )
        return recovered

    def delete_checkpoints(self, **options):
        """As SpeechBrain's, and damaged ones where any may be deleted."""
        super().delete_checkpoints(**options)
        if options.get("ckpt_predicate") is None:
            for folder, fault in self._faults.items():
                if fault is not None:
                    _remove_on_main(folder)

    def find_checkpoints(
        self,
        importance_key=None,
        max_key=None,
        min_key=None,
        ckpt_predicate=None,
        max_num_checkpoints=None,
    ):
        """As SpeechBrain's, but by ``max_key`` or ``min_key`` those of the
        warm-up come last: without quantization the loss is lower."""
        checkpoints = super().find_checkpoints(
            importance_key, max_key, min_key, ckpt_predicate
        )
        if max_key or min_key:
            checkpoints.sort(key=lambda c: bool(c.meta.get("vq_warmup")))
        return checkpoints[:max_num_checkpoints]

    def _later_than_all(self):
        """The time, or just after that of the newest checkpoint where the clock
        has been set back: SpeechBrain orders checkpoints by it."""
        saved = (c.meta["unixtime"] for c in self.list_checkpoints())
        return max([time.time(), *(math.nextafter(t, math.inf) for t in saved)])

    def _waits_for_step(self, end_of_epoch):
        """Whether a checkpoint within the epoch has to wait for the next
        optimizer step: then SpeechBrain is to ask again after it."""
        brain = self.recoverables.get("brain")  # A Brain adds itself so.
        if not isinstance(brain, Brain):
            return False
        left = (
            0 if end_of_epoch else -brain.step % brain.grad_accumulation_factor
        )
        if self._interval is None:
            self._interval = brain.ckpt_interval_steps
        brain.ckpt_interval_steps = left or self._interval
        if not left:
            self._interval = None
        return left > 0


class _DamagedError(Exception):
    """A checkpoint is damaged, as the message says."""


def _seal(saved):
    """Note in a checkpoint's meta the checksums of its files, and below the
    meta, as a comment, its own."""
    files = (path for path in saved.path.rglob("*") if path.is_file())
    checksums = {
        path.relative_to(saved.path).as_posix(): _checksum(path)
        for path in files
        if path.name != METAFNAME
    }
    version = importlib.metadata.version("speechbrain-vq")
    seal = {"format": FORMAT, "version": version, "checksums": checksums}
    meta = {**saved.meta, SEAL: seal}
    path = saved.path / METAFNAME
    path.write_text(yaml.dump(meta), encoding="utf-8")
    own = _checksum(path)
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"# {own}\n")
    return saved._replace(meta=meta)


def _checksum(path):
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _open(folder, verify):
    """Read a checkpoint, and raise ``_DamagedError`` where it is not whole.
    Those of other Checkpointers have no checksums to verify."""
    path = folder / METAFNAME
    if not path.is_file():
        raise _DamagedError(f"{METAFNAME} is missing")
    content, meta = path.read_bytes(), None
    with contextlib.suppress(ValueError, yaml.YAMLError):
        meta = yaml.safe_load(content)
    if not isinstance(meta, dict) or "unixtime" not in meta:
        raise _DamagedError(f"{METAFNAME} cannot be read")
    seal = meta.get(SEAL, {"format": 0, "checksums": {}})
    text, _, own = content.rpartition(b"# ")
    digest = hashlib.blake2b(text, digest_size=16).hexdigest()
    if SEAL in meta and own.decode("utf-8", "replace") != f"{digest}\n":
        raise _DamagedError(f"{METAFNAME} has changed since it was saved")
    if seal["format"] > FORMAT:
        raise ValueError(
            f"{folder} was written by speechbrain_vq {seal['version']}, in "
            f"format {seal['format']}; this version reads formats up to "
            f"{FORMAT}: install that one."
        )
    for name, checksum in seal["checksums"].items() if verify else ():
        if not (folder / name).is_file():
            raise _DamagedError(f"{name} is missing")
        if _checksum(folder / name) != checksum:
            raise _DamagedError(f"{name} has changed since it was saved")
    files = {p.stem: p for p in folder.glob(f"*{PARAMFILE_EXT}")}
    return Checkpoint(folder, meta, files)


def _probe(folder):
    """Why nothing can be written, which torch's writer does not say."""
    try:
        (folder / "probe").write_bytes(bytes(2**20))
    except OSError as error:
        return error


def _remove_on_main(folder):
    if if_main_process():
        shutil.rmtree(folder, ignore_errors=True)


def _move(saved, folder, numbered):
    target = folder / saved.path.name
    # From the partial folder, SpeechBrain sees no others of this second.
    base, number = saved.path.name.rsplit("+", 1)
    while numbered and target.exists():
        number = f"{int(number) + 1:0{len(number)}d}"
        target = folder / f"{base}+{number}"
    if target.exists():
        # Deleted from elsewhere, so that half of it is never found.
        os.replace(target, saved.path.parent / "replaced")
    os.replace(saved.path, target)
    files = {k: target / path.name for k, path in saved.paramfiles.items()}
    return saved._replace(path=target, paramfiles=files)
