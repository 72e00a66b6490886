"""Brains of the shapes of SpeechBrain's templates and integration tests with a
quantizer put in: the lines marked ``# vq`` are all that changes."""

import contextlib
import inspect
import random

import pytest
import speechbrain as sb
import torch
from speechbrain import Stage
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, ctc_loss

from speechbrain_vq import ReinitSchedule, VectorQuantizer, VQMixin
from speechbrain_vq.training.resume import AtomicCheckpointer
from tests.training.toy import digest

DIM, CODES = 8, 16


class Autoencoder(VQMixin, sb.Brain):  # vq
    """integration/autoencoder: decodes what it encodes."""

    def compute_forward(self, batch, stage):
        encoded = self.modules.encoder(batch[0])
        self.vq = self.modules.quantizer(encoded, batch[1])  # vq
        return self.modules.decoder(self.vq.quantized)  # vq

    def compute_objectives(self, predictions, batch, stage):
        return (predictions - batch[0]).square().mean() + self.vq.loss  # vq


class CTC(VQMixin, sb.Brain):  # vq
    """integration/ASR_CTC: phones by CTC."""

    def compute_forward(self, batch, stage):
        x = self.modules.encoder(batch[0])
        self.vq = self.modules.quantizer(x, batch[1])  # vq
        return self.modules.head(self.vq.quantized).log_softmax(-1)  # vq

    def compute_objectives(self, predictions, batch, stage):
        frames = (batch[1] * predictions.shape[1]).round().long()
        targets = torch.ones(len(frames), 3, dtype=torch.long)
        loss = ctc_loss(
            predictions.movedim(1, 0),
            targets,
            frames,
            torch.full_like(frames, 2),
        )
        return loss + self.vq.loss  # vq


class VAD(VQMixin, sb.Brain):  # vq
    """integration/VAD: speech or not, of each frame."""

    def compute_forward(self, batch, stage):
        x = self.modules.encoder(batch[0])
        self.vq = self.modules.quantizer(x, batch[1])  # vq
        return self.modules.head(self.vq.quantized)[..., 0]  # vq

    def compute_objectives(self, predictions, batch, stage):
        targets = (batch[0].mean(-1) > 0).float()
        loss = binary_cross_entropy_with_logits(predictions, targets)
        return loss + self.vq.loss  # vq


class G2P(VQMixin, sb.Brain):  # vq
    """integration/G2P: a recurrent encoder and decoder."""

    def compute_forward(self, batch, stage):
        x, _ = self.modules.gru(self.modules.encoder(batch[0]))
        self.vq = self.modules.quantizer(x, batch[1])  # vq
        return self.modules.head(self.modules.gru(self.vq.quantized)[0])  # vq

    def compute_objectives(self, predictions, batch, stage):
        targets = batch[0].argmax(-1)
        loss = nn.functional.cross_entropy(predictions.movedim(-1, 1), targets)
        return loss + self.vq.loss  # vq


class SpeakerID(VQMixin, sb.Brain):  # vq
    """templates/speaker_id: one class for an utterance."""

    def compute_forward(self, batch, stage):
        x = self.modules.encoder(batch[0])
        self.vq = self.modules.quantizer(x, batch[1])  # vq
        return self.modules.head(self.vq.quantized.mean(1))  # vq

    def compute_objectives(self, predictions, batch, stage):
        targets = batch[0].mean((1, 2)).gt(0).long()
        loss = nn.functional.cross_entropy(predictions, targets)
        return loss + self.vq.loss  # vq


class Enhancement(VQMixin, sb.Brain):  # vq
    """templates/enhancement: a mask."""

    def compute_forward(self, batch, stage):
        x = self.modules.encoder(batch[0])
        self.vq = self.modules.quantizer(x, batch[1])  # vq
        return (
            torch.sigmoid(self.modules.head(self.vq.quantized)) * batch[0]
        )  # vq

    def compute_objectives(self, predictions, batch, stage):
        return (
            predictions - 0.5 * batch[0]
        ).square().mean() + self.vq.loss  # vq


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
        self.g_optimizer = self.opt_class(generator)
        self.d_optimizer = self.opt_class(
            self.modules.discriminator.parameters()
        )
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("g", self.g_optimizer)
            self.checkpointer.add_recoverable("d", self.d_optimizer)

    def zero_grad(self, set_to_none=False):
        self.g_optimizer.zero_grad(set_to_none)
        self.d_optimizer.zero_grad(set_to_none)


class Separation(VQMixin, sb.Brain):  # vq
    """integration/separation: fit_batch of its own, and no accumulation."""

    def compute_forward(self, batch, stage):
        x = self.modules.encoder(batch[0])
        self.vq = self.modules.quantizer(x, batch[1])  # vq
        return self.modules.head(self.vq.quantized).unflatten(-1, (2, -1))  # vq

    def compute_objectives(self, predictions, batch, stage):
        error = predictions.sum(-2) - batch[0]
        return error.square().mean() + self.vq.loss  # vq

    def fit_batch(self, batch):
        predictions = self.compute_forward(batch, Stage.TRAIN)
        loss = self.compute_objectives(predictions, batch, Stage.TRAIN)
        loss.backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 5.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


SHAPES = {
    Autoencoder: {"decoder": lambda: nn.Linear(DIM, DIM)},
    CTC: {"head": lambda: nn.Linear(DIM, 4)},
    VAD: {"head": lambda: nn.Linear(DIM, 1)},
    G2P: {
        "gru": lambda: nn.GRU(DIM, DIM, batch_first=True),
        "head": lambda: nn.Linear(DIM, DIM),
    },
    SpeakerID: {"head": lambda: nn.Linear(DIM, 2)},
    Enhancement: {"head": lambda: nn.Linear(DIM, DIM)},
    EnhanceGAN: {
        "head": lambda: nn.Linear(DIM, DIM),
        "discriminator": lambda: nn.Linear(DIM, 1),
    },
    Separation: {"head": lambda: nn.Linear(DIM, 2 * DIM)},
}

every_shape = pytest.mark.parametrize("cls", SHAPES)


class Stopped(Exception):
    """A run that is interrupted."""


def train(cls, folder, stop=None):
    """Train three epochs of eight batches, or until a batch is reached; go on
    from a checkpoint of the folder."""
    torch.manual_seed(0)
    parts = {
        "encoder": nn.Linear(DIM, DIM),
        "quantizer": VectorQuantizer(DIM, CODES, reservoir_size=512),
        **{name: make() for name, make in SHAPES[cls].items()},
    }
    epochs = sb.utils.epoch_loop.EpochCounter(3)
    # The quantizer needs no entry.
    model = nn.ModuleDict({k: v for k, v in parts.items() if k != "quantizer"})
    checkpointer = AtomicCheckpointer(
        folder, {"model": model, "epochs": epochs}
    )
    brain = cls(
        parts,
        lambda p: torch.optim.Adam(p, lr=0.001),
        {"reinit_schedule": ReinitSchedule(4, 6)},
        {"ckpt_interval_steps": 5},
        checkpointer,
    )
    generator = torch.Generator().manual_seed(1)
    items = [
        (torch.randn(4, 30, DIM, generator=generator), torch.ones(4))
        for _ in range(8)
    ]
    left = iter(range(stop)) if stop is not None else None

    def collate(batch):
        if left is not None and next(left, None) is None:
            raise Stopped
        return batch[0]

    loader = brain.make_dataloader(items, Stage.TRAIN, collate_fn=collate)
    brain.fit(epochs, loader, progressbar=False)
    return brain


@every_shape
def test_codebook_is_used_and_learns(cls, tmp_path):
    brain = train(cls, tmp_path)
    assert brain.codebook_trainer.steps == 24
    assert not brain.modules.quantizer.bypass
    assert brain.vq_stats["train"]["used_codes_percent"] > 90
    assert brain.vq_stats["train"]["codebook_drift"] > 0


@every_shape
def test_interrupted_run_ends_with_the_same_bits(cls, tmp_path):
    whole = train(cls, tmp_path / "whole")
    draw = random.Random(cls.__name__)
    for _ in range(2):
        with contextlib.suppress(Stopped):
            train(cls, tmp_path / "parts", draw.randint(1, 17))
    parts = train(cls, tmp_path / "parts")
    assert digest(parts.modules.state_dict()) == digest(
        whole.modules.state_dict()
    )


@every_shape
def test_at_most_six_lines_change(cls):
    source = inspect.getsource(cls)
    assert 0 < source.count("# vq") <= 6
