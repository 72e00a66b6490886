"""A small auto-encoder to train: what the tests here, and the processes which
they start, have in common."""

import hashlib
import itertools
import math
import os
import signal

import torch

# The first step of an optimizer would import it, in each process anew.
import torch._dynamo
from speechbrain import Brain, Stage
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.epoch_loop import EpochCounter

from speechbrain_vq import (
    MaskedBatchNorm,
    ReinitSchedule,
    ResidualVectorQuantizer,
    VectorQuantizer,
    VQMixin,
)
from speechbrain_vq.training.resume import AtomicCheckpointer

DIM = 4


class AutoEncoder(Brain):
    """A Brain that knows nothing of vector quantization, and whose hooks do
    not call super()."""

    def compute_forward(self, batch, stage):
        x = batch[0] if isinstance(batch, list | tuple) else batch
        return self.modules.quantizer(self.modules.encoder(x))

    def compute_objectives(self, output, batch, stage):
        x = batch[0] if isinstance(batch, list | tuple) else batch
        decoded = self.modules.decoder(output.quantized)
        return torch.nn.functional.mse_loss(decoded, x) + output.loss

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        self.seen = getattr(self, "seen", 0) + 1

    def on_stage_start(self, stage, epoch=None):
        self.stage = stage

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage == Stage.VALID and self.checkpointer is not None:
            self.checkpointer.save_and_keep_only(
                meta={"loss": float(stage_loss)}, num_to_keep=2
            )


class Toy(VQMixin, AutoEncoder):
    """The same with quantizers trained as they should be."""


def batches(number=6, size=3, time=10):
    """Batches for a Brain, the same at each call."""
    generator = torch.Generator().manual_seed(1)
    shape = size, time, DIM
    return [(torch.randn(shape, generator=generator),) for _ in range(number)]


def modules(quantizer=None, dropout=0.0, **options):
    """An encoder, a quantizer and a decoder."""
    options = {"codebook_size": 8, "reservoir_size": 64, **options}
    layers = torch.nn.Linear(DIM, DIM), torch.nn.Dropout(dropout)
    return {
        "encoder": torch.nn.Sequential(*layers),
        "quantizer": quantizer or VectorQuantizer(DIM, **options),
        "decoder": torch.nn.Linear(DIM, DIM),
    }


def adam(parameters):
    """The optimizer where a test does not say."""
    return torch.optim.Adam(parameters, lr=0.001)


def make(cls=Toy, parts=None, opt_class=adam, folder=None, run=None, **hparams):
    """A Brain, with a checkpointer where there is a folder."""
    parts = modules() if parts is None else parts
    checkpointer = None
    if folder is not None:
        saved = {"model": torch.nn.ModuleDict(parts)}
        checkpointer = AtomicCheckpointer(folder, saved)
    options = {"device": "cpu", **(run or {})}
    return cls(parts, opt_class, hparams, options, checkpointer)


def digest(value, sha=None):
    """A hash of all bits in nested containers of tensors and numbers."""
    outermost = sha is None
    sha = sha or hashlib.sha256()
    if torch.is_tensor(value):
        sha.update(str(value.dtype).encode())
        sha.update(str(tuple(value.shape)).encode())
        sha.update(value.detach().cpu().contiguous().numpy().tobytes())
    elif isinstance(value, dict):
        for key, item in value.items():
            sha.update(str(key).encode())
            digest(item, sha)
    elif isinstance(value, list | tuple):
        for item in value:
            digest(item, sha)
    else:
        sha.update(repr(value).encode())
    return sha.hexdigest() if outermost else None


def bits(brain):
    """Hashes of all that training changes, by what it is."""
    optimizers = [o.state_dict() for o in brain.codebook_trainer.optimizers]
    state = {
        "modules": brain.modules.state_dict(),
        "optimizers": optimizers,
        "stats": brain.vq_stats.get("train"),
        "monitors": brain.monitor.state_dict(),
        "trainer": brain.codebook_trainer.state_dict(),
        "random": torch.get_rng_state(),
    }
    hashes = {name: digest(value) for name, value in state.items()}
    return {**hashes, "steps": brain.optimizer_step}


# A training run in a process of its own ------------------------------------

ARMS = {
    "gradient": lambda: VectorQuantizer(DIM, 8, reservoir_size=64),
    "ema": lambda: modules(codebook="ema", ema_decay=0.9)["quantizer"],
    "rvq": lambda: ResidualVectorQuantizer(2, DIM, 8, reservoir_size=64),
}
EPOCHS = 3


def die(by=signal.SIGKILL, group=False):
    """As the kernel or an impatient user would: nothing is cleaned up."""
    os.kill(0 if group else os.getpid(), by)


class Deadly(Toy):
    """Dies after some batches, of the training or of validations, or gets
    another signal; writes a line of each epoch to a log."""

    batches_left, stage_of_death = None, Stage.TRAIN
    signal, group, log = signal.SIGKILL, False, None

    def compute_objectives(self, output, batch, stage):
        if stage == self.stage_of_death == Stage.VALID:
            self.live()
        return super().compute_objectives(output, batch, stage)

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        if self.stage_of_death == Stage.TRAIN:
            self.live()

    def live(self):
        if self.batches_left is not None:
            self.batches_left -= 1
            if self.batches_left == -1:
                die(self.signal, self.group)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage == Stage.TRAIN:
            self.train_loss = stage_loss
        else:
            with open(self.log, "a") as file:
                print(epoch, self.train_loss, stage_loss, file=file)
        super().on_stage_end(stage, stage_loss, epoch)


@register_checkpoint_hooks
class Recoverable:
    """Writes half a file, and then something happens; its meta can be set."""

    def __init__(self, then=None, **meta):
        self.then, self.meta = then, meta

    def checkpoint_meta(self):
        return self.meta

    @mark_as_saver
    def save(self, path):
        with open(path, "w") as file:
            file.write("half of wh")
        if self.then is not None:
            self.then(path)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        pass


def train(
    folder,
    arm,
    lives=None,
    saves=math.inf,
    factor=1,
    valid=True,
    by=signal.SIGKILL,
    interval=3,
    workers=0,
    stage=Stage.TRAIN,
):
    """Trains a quantizer of ``ARMS`` to the end, and writes the bits of the
    result; a run killed before goes on from its last checkpoint.

    It dies by a signal after some batches of a stage, its ``lives``, or in the
    middle of a checkpoint, after so many ``saves``. ``interval`` is the number
    of batches between checkpoints within an epoch, where there are any; with
    ``workers`` of the loaders, these get the signal, too."""
    if workers:
        os.setpgrp()
    torch.set_num_threads(1)
    torch.manual_seed(3)
    parts = modules(ARMS[arm](), dropout=0.3)
    # Its running statistics depend on the number of its batches.
    parts["encoder"].append(MaskedBatchNorm(DIM))
    run = {"ckpt_interval_steps": interval, "grad_accumulation_factor": factor}
    brain = make(
        *(Deadly, parts, adam, os.path.join(folder, "save"), run),
        reinit_schedule=ReinitSchedule(3, 4),
    )
    brain.batches_left, brain.signal, brain.group = lives, by, workers > 0
    brain.stage_of_death, brain.log = stage, os.path.join(folder, "log")
    epochs, saved = EpochCounter(EPOCHS), itertools.count()
    last = Recoverable(lambda _: next(saved) < saves or die())
    added = {"counter": epochs, "zz_last": last}
    brain.checkpointer.add_recoverables(added)
    data = [x for (batch,) in batches(7, 4) for x in batch]
    loader = {"batch_size": 4, "num_workers": workers}
    if workers:  # A server would import torch for each anew.
        loader["multiprocessing_context"] = "fork"
    brain.fit(
        *(epochs, data, data[:5] if valid else None, False),
        train_loader_kwargs={"shuffle": True, **loader},
        valid_loader_kwargs=loader,
    )
    with open(os.path.join(folder, "bits"), "w") as file:
        file.write(repr(bits(brain)))


def fill_disk(folder, limit):
    """Saves one checkpoint, then another where no file may be longer than a
    limit; writes what came of it."""
    import resource

    brain = make(folder=os.path.join(folder, "save"))
    brain.fit(range(1), batches(), progressbar=False)
    brain.checkpointer.save_checkpoint({"loss": 1.0})
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        brain.checkpointer.save_checkpoint({"loss": 0.5})
        outcome = "saved"
    except OSError as error:
        outcome = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    with open(os.path.join(folder, "outcome"), "w") as file:
        file.write(outcome)
