"""Ranks agree, and are together what one process is with all the data: two
real ranks over gloo.
"""

import os
import pathlib
import subprocess
import sys

import pytest
import torch
from speechbrain.utils.checkpoints import Checkpointer

from speechbrain_vq import VectorQuantizer
from tests.training.toy import DIM, ragged

WORKER = pathlib.Path(__file__).with_name("ddp_worker.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs the ranks, once for all tests; one that waits for another for ever
    is a failure."""
    folder = tmp_path_factory.mktemp("ddp")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    subprocess.run(
        [*command, "--nproc_per_node=2", str(WORKER), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        timeout=300,
    )
    return folder


@pytest.fixture(scope="module")
def ranks(folder):
    """What each rank found."""
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("run", ["gradient", "resumed", "ema"])
def test_ranks_hold_the_same_bits_after_every_step(ranks, run):
    first, second = (rank[run]["trail"] for rank in ranks)
    assert len(first) == (4 if run == "resumed" else 8)
    assert first == second
    assert len(set(first)) == len(first)


def test_checkpoints_are_those_of_one_process(ranks, folder):
    assert [rank["resumed"]["steps"] for rank in ranks] == [12, 12]
    found = Checkpointer(folder / "save").list_checkpoints()
    # Both ranks validate on all of two batches.
    assert sorted(c.meta["valid_vectors"] for c in found) == [120, 120]
    assert not (folder / "save" / ".partial").exists()


@pytest.mark.parametrize("run", ["sick", "sick_ema"])
def test_what_is_sick_on_one_rank_is_skipped_on_both(ranks, run):
    for rank in ranks:
        assert rank[run]["steps"] == 7
        trail = rank[run]["trail"]
        assert trail[2][1] == trail[1][1]
    assert ranks[0][run]["trail"] == ranks[1][run]["trail"]


def test_patience_ends_on_both(ranks):
    for rank in ranks:
        assert "patience is exhausted" in rank["patience"]


@pytest.mark.parametrize("run", ["gradient", "ema"])
def test_figures_count_what_both_ranks_saw(ranks, run):
    assert ranks[0][run]["stats"] == ranks[1][run]["stats"]
    assert ranks[0][run]["stats"]["vectors"] == 8 * 30


def test_sample_is_uniform_over_both_ranks(ranks):
    assert ranks[0]["samples"]["hashes"] == ranks[1]["samples"]["hashes"]
    counts = ranks[0]["samples"]["counts"].double()
    mean = counts.mean()
    # The 99.9th percentile of chi-square with 7 degrees of freedom.
    assert ((counts - mean).square() / mean).sum() < 24.3


def test_few_vectors_are_all_in_the_sample(ranks):
    for rank in ranks:
        assert torch.equal(rank["few"], torch.arange(30.0))


@pytest.mark.parametrize("other", ["ragged", "empty", "padding"])
@pytest.mark.parametrize("kind", ["gradient", "ema"])
def test_two_ranks_are_one_with_the_whole_batch(folder, kind, other):
    name = "empty" if other == "empty" else "rank"
    ranks = [torch.load(folder / f"{name}{rank}.pt") for rank in (0, 1)]
    torch.manual_seed(0)
    quantizer = VectorQuantizer(
        DIM, 8, codebook=kind, affine=True, estimator="straight_through"
    )
    frames = []
    for rank in (0, 1):
        x, lengths = ragged(rank, other)
        numbers = (lengths * x.shape[1]).round().long()
        frames += [item[:n] for item, n in zip(x, numbers, strict=True)]
    out = quantizer(torch.cat(frames))
    (out.loss + out.quantized.square().sum()).backward()
    for rank in ranks:
        found = rank["parity"][f"{kind}-{other}"]
        for name, parameter in quantizer.named_parameters():
            torch.testing.assert_close(
                found["gradients"][name], parameter.grad, rtol=1e-4, atol=1e-5
            )
        for name, buffer in quantizer.named_buffers():
            torch.testing.assert_close(
                found["buffers"][name], buffer, rtol=1e-4, atol=1e-5
            )
    mean = sum(r["parity"][f"{kind}-{other}"]["loss"] for r in ranks) / 2
    torch.testing.assert_close(mean, out.loss.detach(), rtol=1e-4, atol=1e-6)
