"""What ranks send each other is what docs/scaling.md says."""

import pytest
import torch
from torch import distributed

from speechbrain_vq import CodebookTrainer, ReinitSchedule, VectorQuantizer
from tests.training.processes import run_ranks

DIM, SIZE, BOOKS, CAPACITY = 6, 8, 2, 40


def count_traffic(rank, folder, kind):
    """Save the number of elements that each call sends, by step."""
    sent = []
    # The second argument of all_gather is what a rank sends.
    for name, place in ("all_reduce", 0), ("all_gather", 1), ("broadcast", 0):
        send = getattr(distributed, name)

        def counted(*args, send=send, place=place, **options):
            sent.append(args[place].numel())
            return send(*args, **options)

        setattr(distributed, name, counted)
    quantizer = VectorQuantizer(
        *(DIM, SIZE, DIM, BOOKS, "residual"),
        codebook=kind,
        reservoir_size=CAPACITY,
        entropy_weight=0.5 if kind == "gradient" else 0.0,
    )
    linear = torch.nn.Linear(DIM, DIM)
    model = torch.nn.ModuleList([linear, quantizer])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    CodebookTrainer(model, optimizer, schedule=ReinitSchedule(2, 1))
    steps = []
    for _ in range(3):
        sent.clear()
        out = quantizer(linear(torch.randn(30, DIM)))
        (out.quantized.square().sum() + out.loss).backward()
        of_batch = sorted(sent)
        sent.clear()
        optimizer.step()
        steps.append((of_batch, sorted(sent)))
    if rank == 0:
        torch.save(steps, folder / "steps")


@pytest.mark.parametrize("kind", ["gradient", "ema"])
def test_traffic_of_steps_and_of_reinitializations(tmp_path, kind):
    assert run_ranks(2, count_traffic, tmp_path, kind) == [0, 0]
    warmup, _, last = torch.load(tmp_path / "steps")
    norm, codebook = [1, DIM, DIM], BOOKS * SIZE * DIM
    # The usage of codes, and its gradient.
    others, moved = [1 + 2 * BOOKS, BOOKS * SIZE, BOOKS * SIZE], [codebook]
    if kind == "ema":
        others = [BOOKS * SIZE * (DIM + 1)]
        # With the codebook, what an EMA codebook has beside it.
        moved += [codebook, codebook, BOOKS * SIZE]
    assert warmup == (norm, [])
    assert last == (
        sorted([*norm, 1, *others]),
        sorted([CAPACITY * DIM, 1, 1, *moved]),
    )
