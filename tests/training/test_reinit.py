"""A re-initialization leaves nothing of the old code behind."""

import logging
import re

import pytest
import torch

from speechbrain_vq import (
    CodebookTrainer,
    ReinitSchedule,
    VectorQuantizer,
    kmeans,
)
from tests.training.toy import DIM, Toy, batches, make, modules


def filled(**options):
    """A quantizer that has seen some data."""
    options = {"codebook_size": 8, "reservoir_size": 64, **options}
    quantizer = VectorQuantizer(DIM, **options)
    for _ in range(3):
        quantizer(torch.randn(2, 20, DIM))
    return quantizer


def reinitialize(quantizer, step=1, optimizer=None):
    """Step an optimizer until a trainer re-initializes the quantizer."""
    if optimizer is None:
        optimizer = torch.optim.SGD([torch.zeros(1), quantizer.codebook], 0.0)
    schedule = ReinitSchedule(0, step)
    trainer = CodebookTrainer(quantizer, optimizer, schedule=schedule)
    for _ in range(step):
        optimizer.step()
    trainer.close()


def test_codebook_is_kmeans_of_the_reservoir():
    quantizer = filled()
    sample = quantizer.reservoir.contents()
    wanted = kmeans(sample, 8, generator=torch.Generator().manual_seed(7))
    reinitialize(quantizer, 7)
    assert torch.equal(quantizer.codebook[0], wanted.centroids)


def test_same_step_gives_the_same_bits_and_leaves_the_random_state():
    books = []
    for _ in range(2):
        torch.manual_seed(5)
        quantizer = filled()
        state = torch.get_rng_state()
        reinitialize(quantizer, 3)
        assert torch.equal(torch.get_rng_state(), state)
        books.append(quantizer.codebook.detach())
    assert torch.equal(*books)


def test_codes_without_vectors_are_moved_to_some():
    quantizer = filled()
    with torch.no_grad():
        quantizer.codebook[0, 2:5] = 1000.0
    quantizer.reinitialize(start="codebook")
    assert (quantizer.codebook.abs() < 100).all()
    indices = quantizer(torch.randn(1000, DIM)).indices
    assert len(indices.unique()) == 8


def test_log_line_tells_what_was_done(caplog):
    caplog.set_level(logging.INFO)
    reinitialize(filled(), 12)
    line = next(m for m in caplog.messages if "re-initialized quantizer" in m)
    assert re.fullmatch(
        r"Step 12: re-initialized quantizer from 64 vectors, "
        r"mean squared distance \S+ -> \S+, \d+ ms\.",
        line,
    )


def test_empty_reservoir_is_told_and_harmless(caplog):
    quantizer = VectorQuantizer(DIM, 8, reservoir_size=16)
    before = quantizer.codebook.detach().clone()
    optimizer = torch.optim.Adam([quantizer.codebook])
    quantizer.codebook.grad = torch.ones_like(before)
    optimizer.step()
    before = quantizer.codebook.detach().clone()
    quantizer.codebook.grad = None
    reinitialize(quantizer, optimizer=optimizer)
    assert torch.equal(quantizer.codebook, before)
    assert optimizer.state[quantizer.codebook]["exp_avg"].any()
    assert "the reservoir of quantizer is empty" in caplog.text


@pytest.mark.parametrize("codebooks", [1, 2])
def test_moments_start_anew_in_a_fit(codebooks):
    class Watch(Toy):
        def fit_batch(self, batch):
            loss = super().fit_batch(batch)
            codebook = self.modules.quantizer.codebook
            state = self.optimizer.state.get(codebook, {})
            self.steps = [
                *getattr(self, "steps", []),
                int(state.get("step", 0)),
            ]
            return loss

    brain = make(
        Watch,
        modules(num_codebooks=codebooks),
        reinit_schedule=ReinitSchedule(2, 3),
    )
    brain.fit(range(1), batches(9), progressbar=False)
    assert brain.steps == [1, 0, 1, 2, 0, 1, 2, 0, 1]
