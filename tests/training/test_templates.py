"""A quantizer in Brains of any kind: of the shapes of SpeechBrain's templates
and integration tests, where the lines marked ``# vq`` are all that changes, and
with optimizers wherever a Brain may keep them."""

import contextlib
import inspect

import pytest
import speechbrain as sb
import torch
from speechbrain import Stage
from torch import nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    ctc_loss,
)

from speechbrain_vq import ReinitSchedule, VectorQuantizer, VQMixin
from speechbrain_vq.training.resume import AtomicCheckpointer
from tests.training.toy import DIM, Toy, adam, bits

CODES = 16


class Autoencoder(VQMixin, sb.Brain):  # vq
    """integration/autoencoder: features from their code."""

    def compute_forward(self, batch, stage):
        x = self.modules.encoder(batch[0])
        self.vq = self.modules.quantizer(x, batch[1])  # vq
        return self.modules.head(self.vq.quantized)  # vq

    def compute_objectives(self, predictions, batch, stage):
        return self.loss(predictions, batch[0]) + self.vq.loss  # vq

    def loss(self, predictions, x):
        return (predictions - x).square().mean()


class VAD(Autoencoder):
    """integration/VAD: speech or not, for each frame."""

    def loss(self, predictions, x):
        targets = (x.mean(-1, keepdim=True) > 0).float()
        return binary_cross_entropy_with_logits(predictions, targets)


class SpeakerID(Autoencoder):
    """templates/speaker_id: one class for an utterance."""

    def loss(self, predictions, x):
        targets = x.mean((1, 2)).gt(0).long()
        return cross_entropy(predictions.mean(1), targets)


class Enhancement(Autoencoder):
    """templates/enhancement: a mask."""

    def loss(self, predictions, x):
        return (predictions.sigmoid() * x - 0.5 * x).square().mean()


class CTC(Autoencoder):
    """integration/ASR_CTC: phones by CTC."""

    def loss(self, predictions, x):
        frames = torch.full([len(x)], x.shape[1])
        targets = torch.ones(len(x), 3, dtype=torch.long)
        lengths = frames, torch.full_like(frames, 2)
        log_probs = predictions.log_softmax(-1).movedim(1, 0)
        return ctc_loss(log_probs, targets, *lengths)


class G2P(VQMixin, sb.Brain):  # vq
    """integration/G2P: a recurrent network on each side."""

    def compute_forward(self, batch, stage):
        x, _ = self.modules.gru(self.modules.encoder(batch[0]))
        self.vq = self.modules.quantizer(x, batch[1])  # vq
        x, _ = self.modules.gru(self.vq.quantized)  # vq
        return self.modules.head(x)

    def compute_objectives(self, predictions, batch, stage):
        targets = batch[0].argmax(-1)
        loss = cross_entropy(predictions.movedim(-1, 1), targets)
        return loss + self.vq.loss  # vq


class Separation(Autoencoder):
    """integration/separation (conv_tasnet): a ``fit_batch`` of its own."""

    def loss(self, predictions, x):
        sources = predictions.unflatten(-1, (2, -1))
        return (sources.sum(-2) - x).square().mean()

    def fit_batch(self, batch):
        predictions = self.compute_forward(batch, Stage.TRAIN)
        loss = self.compute_objectives(predictions, batch, Stage.TRAIN)
        loss.backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 5.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


class EnhanceGAN(VQMixin, sb.Brain):  # vq
    """integration/enhance_GAN: two optimizers of its own, and fit_batch."""

    def compute_forward(self, batch, stage):
        x = self.modules.encoder(batch[0])
        self.vq = self.modules.quantizer(x, batch[1])  # vq
        return self.modules.head(self.vq.quantized)  # vq

    def compute_objectives(self, predictions, batch, stage, name="g"):
        if name == "d":
            true = self.modules.discriminator(batch[0]).mean()
            return true - self.modules.discriminator(predictions).mean()
        cheat = self.modules.discriminator(predictions).mean()
        error = (predictions - batch[0]).square().mean()
        return error + 0.01 * cheat + self.vq.loss  # vq

    def fit_batch(self, batch):
        self.d_optimizer.zero_grad()
        fake = self.compute_forward(batch, Stage.TRAIN).detach()
        self.compute_objectives(fake, batch, Stage.TRAIN, "d").backward()
        self.d_optimizer.step()
        self.g_optimizer.zero_grad()
        predictions = self.compute_forward(batch, Stage.TRAIN)
        loss = self.compute_objectives(predictions, batch, Stage.TRAIN)
        loss.backward()
        self.g_optimizer.step()
        return loss.detach()

    def init_optimizers(self):
        generator = [
            *self.modules.encoder.parameters(),
            *self.modules.quantizer.parameters(),  # vq
            *self.modules.head.parameters(),
        ]
        discriminator = self.modules.discriminator.parameters()
        self.g_optimizer = self.opt_class(generator)
        self.d_optimizer = self.opt_class(discriminator)
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("g", self.g_optimizer)
            self.checkpointer.add_recoverable("d", self.d_optimizer)

    def zero_grad(self, set_to_none=False):
        self.g_optimizer.zero_grad(set_to_none)
        self.d_optimizer.zero_grad(set_to_none)


def two(brain):
    """The quantizer is in the second."""
    modules = brain.modules
    rest = [*modules.encoder.parameters(), *modules.decoder.parameters()]
    brain.g, brain.d = adam(rest), adam(modules.quantizer.parameters())
    return brain.g, brain.d


def one(brain):
    brain.optimizer = adam(brain.modules.parameters())
    return (brain.optimizer,)


def contained(brain):
    """As of version 0.1, by the name of its codebook."""
    brain.optimizers_dict = {"codebook": adam(brain.modules.parameters())}
    return tuple(brain.optimizers_dict.values())


def hidden(brain):
    brain.mine = {"all": adam(brain.modules.parameters())}
    return tuple(brain.mine.values())


class Steps(Toy):
    """Optimizers of its own, without super, and the steps of SpeechBrain."""

    def init_optimizers(self):
        made = self.make()
        self.each = lambda: made
        if self.checkpointer is not None:
            names = map(str, range(len(made)))
            recoverables = dict(zip(names, made, strict=True))
            self.checkpointer.add_recoverables(recoverables)


class OwnSteps(Steps):
    """And a ``fit_batch`` of its own."""

    def fit_batch(self, batch):
        output = self.compute_forward(batch, Stage.TRAIN)
        loss = self.compute_objectives(output, batch, Stage.TRAIN)
        loss.backward()
        for optimizer in self.each():
            optimizer.step()
        self.zero_grad()
        return loss.detach()

    def zero_grad(self, set_to_none=False):
        for optimizer in self.each():
            optimizer.zero_grad(set_to_none)


# Linear layers beside encoder and quantizer, by their output sizes.
SHAPES = {
    Autoencoder: {"head": DIM},
    CTC: {"head": 4},
    VAD: {"head": 1},
    G2P: {"head": DIM},
    SpeakerID: {"head": 2},
    EnhanceGAN: {"head": DIM, "discriminator": 1},
    Separation: {"head": 2 * DIM},
    Enhancement: {"head": DIM},
}
MAKES = {OwnSteps: (two, one, hidden), Steps: (contained, one)}
OTHERS = [
    type(f"{base.__name__} {make.__name__}", (base,), {"make": make})
    for base, makes in MAKES.items()
    for make in makes
]
every_kind = pytest.mark.parametrize("cls", [*SHAPES, *OTHERS])


def train(cls, folder, stop=None):
    """Train three epochs of eight batches, or until a batch is reached; go on
    from a checkpoint of the folder."""
    torch.manual_seed(0)
    sizes = SHAPES.get(cls, {"decoder": DIM})
    layers = {name: nn.Linear(DIM, size) for name, size in sizes.items()}
    layers["encoder"] = nn.Sequential(nn.Linear(DIM, DIM), nn.Dropout(0.3))
    if cls is G2P:
        layers["gru"] = nn.GRU(DIM, DIM, batch_first=True)
    epochs = sb.utils.epoch_loop.EpochCounter(3)
    # The quantizer needs no entry.
    saved = {"model": nn.ModuleDict(layers), "epochs": epochs}
    brain = cls(
        {**layers, "quantizer": VectorQuantizer(DIM, CODES)},
        adam,
        {"reinit_schedule": ReinitSchedule(4, 6)},
        {"ckpt_interval_steps": 5},
        AtomicCheckpointer(folder, saved),
    )
    x = torch.randn(8, 4, 30, DIM, generator=torch.Generator().manual_seed(1))
    items = [(item, torch.ones(4)) for item in x]
    left = iter(range(24 if stop is None else stop))

    def collate(batch):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return batch[0]

    loader = brain.make_dataloader(items, Stage.TRAIN, collate_fn=collate)
    with contextlib.suppress(KeyboardInterrupt):
        brain.fit(epochs, loader, progressbar=False)
    return brain


@every_kind
def test_codebook_is_used_and_learns(cls, tmp_path):
    brain = train(cls, tmp_path)
    assert brain.codebook_trainer.steps == 24
    assert brain.vq_stats["train"]["used_codes_percent"] > 90
    assert brain.vq_stats["train"]["codebook_drift"] > 0
    rates = {
        len(group["params"]): group["lr"]
        for optimizer in brain.codebook_trainer.optimizers
        for group in optimizer.param_groups
        if any(p is brain.modules.quantizer.codebook for p in group["params"])
    }
    assert rates == {1: 0.01}


@every_kind
def test_interrupted_run_ends_with_the_same_bits(cls, tmp_path):
    whole = train(cls, tmp_path / "whole")
    for stop in (7, 13):
        assert train(cls, tmp_path / "parts", stop).codebook_trainer.steps < 24
    assert bits(train(cls, tmp_path / "parts")) == bits(whole)


def changed_lines(cls):
    """How many lines of a Brain, and of those it extends, have changed."""
    own = [base for base in cls.mro() if base.__module__ == __name__]
    return sum(inspect.getsource(base).count("# vq") for base in own)


@pytest.mark.parametrize("cls", SHAPES)
def test_at_most_six_lines_change(cls):
    assert 0 < changed_lines(cls) <= 6
