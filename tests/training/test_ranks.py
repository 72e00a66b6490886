"""One to four ranks train the codebooks of one process with the same global
batches, and so do as many or other ranks that go on from their checkpoint.
"""

import pytest
import torch

from speechbrain_vq import ReinitSchedule, VectorQuantizer
from tests.training import toy
from tests.training.processes import RANK_OPTIONS, run_ranks
from tests.training.toy import DIM, make

BOUND = 1e-5  # Of the largest number of a codebook.
NUMBER, ITEMS = 32, 12  # Batches, and what they hold.


class Composed(toy.Toy):
    """Has two quantizers beside each other."""

    def compute_forward(self, batch, stage):
        latents = self.modules.encoder(batch[0])
        one, two = self.modules.one(latents), self.modules.two(latents)
        quantized = torch.cat([one.quantized, two.quantized], -1)
        return one._replace(quantized=quantized, loss=one.loss + two.loss)


def clusters():
    """Global batches of eight far clusters, so that k-means has one answer."""
    generator = torch.Generator().manual_seed(0)
    means = 10 * torch.randn(8, DIM, generator=generator)
    labels = torch.randint(8, (NUMBER, ITEMS, 10), generator=generator)
    noise = torch.randn(*labels.shape, DIM, generator=generator)
    return means[labels] + noise / 10


def train(rank, world, folder, part):
    """Train on every so many of the items of each batch of a part."""
    torch.manual_seed(rank)
    options = {"codebook_size": 8, "reservoir_size": 5000}
    parts = {
        "encoder": torch.nn.Linear(DIM, DIM),
        "one": VectorQuantizer(DIM, codebook="ema", ema_decay=0.9, **options),
        "two": VectorQuantizer(DIM, **options),
        "decoder": torch.nn.Linear(2 * DIM, DIM),
    }
    torch.nn.init.eye_(parts["encoder"].weight)
    torch.nn.init.constant_(parts["decoder"].weight, 0.1)
    brain = make(
        Composed,
        parts,
        lambda parameters: torch.optim.SGD(parameters, 1e-4),
        folder=folder / "save",
        run={
            **RANK_OPTIONS,
            "grad_accumulation_factor": 2,
            "ckpt_interval_steps": 8,
        },
        # At the steps of the checkpoints.
        reinit_schedule=ReinitSchedule(4, 4),
    )
    shares = [(x[rank::world],) for x in clusters()[part]]
    # Not a data set, of which each rank would be given a part.
    loader = torch.utils.data.DataLoader(shares, batch_size=None)
    brain.fit([1], loader, progressbar=False)
    books = {k: q.codebook.detach() for k, q in brain.quantizers.items()}
    torch.save(books, folder / f"rank{rank}")


def trained(folder, *runs):
    """The codebooks of runs by so many ranks on some of the batches, one after
    the other; they are the same on all ranks."""
    for world, part in runs:
        assert run_ranks(world, train, world, folder, part) == [0] * world
    first, *others = (torch.load(folder / f"rank{n}") for n in range(world))
    for other in others:
        assert all(torch.equal(other[key], x) for key, x in first.items())
    return first


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The codebooks of one process."""
    return trained(tmp_path_factory.mktemp("one"), (1, slice(NUMBER)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "ranks", [(2,), (3,), (4,), (3, 3), (3, 2), (1, 4)], ids=lambda r: f"{r}"
)
def test_ranks_train_the_codebooks_of_one_process(alone, tmp_path, ranks):
    half = NUMBER // len(ranks)
    parts = [slice(half), slice(half, None)]
    found = trained(tmp_path, *zip(ranks, parts, strict=False))
    for key, codebook in alone.items():
        distance = (found[key] - codebook).abs().max() / codebook.abs().max()
        assert distance < BOUND, key
