"""What each rank of a distributed run does for test_ddp.py:
``torchrun --nproc_per_node=2 ddp_worker.py FOLDER``.
"""

import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import speechbrain as sb
import torch
from speechbrain.utils.run_opts import RunOptions
from torch.nn.parallel import DistributedDataParallel

from speechbrain_vq import ReinitSchedule, Reservoir, VectorQuantizer
from tests.training.toy import DIM, Toy, batches, digest, make, modules, ragged

OPTIONS = {"device": "cpu", "distributed_backend": "gloo"}
RANK = int(os.environ.get("RANK", 0))


class Watched(Toy):
    """Notes the bits of the codebook, and of all parameters, at each step,
    and meets NaN on the second rank."""

    sick = ()

    def fit_batch(self, batch):
        self.batch_number = getattr(self, "batch_number", 0) + 1
        if RANK == 1 and self.batch_number in self.sick:
            batch = [batch[0] * torch.nan]
        loss = super().fit_batch(batch)
        (quantizer,) = self.quantizers.values()
        self.trail = [
            *getattr(self, "trail", []),
            (
                digest(quantizer.embedding.state_dict()),
                digest(list(self.modules.parameters())),
            ),
        ]
        return loss


def fit(kind, sick=(), folder=None, epochs=(1, 2)):
    """A fit over both ranks."""
    # Each rank would start elsewhere, were they not made to agree.
    torch.manual_seed(RANK)
    brain = make(
        Watched,
        modules(codebook=kind),
        folder=folder,
        run=OPTIONS,
        reinit_schedule=ReinitSchedule(2, 3),
    )
    brain.sick = sick
    valid = batches(2) if folder else None
    brain.fit(epochs, batches(8), valid, progressbar=False)
    return {
        "trail": brain.trail,
        "steps": brain.optimizer_step,
        "stats": brain.vq_stats["train"],
    }


def parity(kind, other):
    """One training step where the second rank holds something else."""
    torch.manual_seed(0)
    quantizer = VectorQuantizer(
        DIM, 8, codebook=kind, affine=True, estimator="straight_through"
    )
    wrapped = DistributedDataParallel(quantizer)
    x, lengths = ragged(RANK, other)
    x.requires_grad_()
    out = wrapped(x, lengths)
    # DDP averages: twice the mean over two ranks is the sum.
    (out.loss + 2 * out.quantized.square().sum()).backward()
    return {
        "gradients": {n: p.grad for n, p in quantizer.named_parameters()},
        "buffers": dict(quantizer.named_buffers()),
        "loss": out.loss.detach(),
    }


def samples(rounds=200, capacity=100, bins=8):
    """How often each part of both ranks' streams is in the sample: the first
    rank has seen 1000 vectors, the second 3000."""
    first, number = ((0, 1000), (1000, 3000))[RANK]
    counts = torch.zeros(bins, dtype=torch.long)
    hashes = []
    for seed in range(rounds):
        torch.manual_seed(1000 * RANK + seed)
        reservoir = Reservoir(capacity, 1)
        reservoir.add(torch.arange(first, first + number).view(-1, 1).float())
        sample = reservoir.gather(seed)
        assert len(torch.unique(sample)) == len(sample) == capacity
        hashes.append(digest(sample))
        counts += torch.bincount(
            sample[:, 0].long() // (4000 // bins), minlength=bins
        )
    return {"counts": counts, "hashes": hashes}


def few():
    """The sample where one rank has seen nothing, and the other little."""
    reservoir = Reservoir(100, 1)
    reservoir.add(torch.arange(30 * RANK).view(-1, 1).float())
    return reservoir.gather(1).flatten().sort().values


def patience():
    """What ends a run in which one rank is sick for good."""
    try:
        fit("gradient", sick=range(1, 20), epochs=(1, 2, 3))
    except ValueError as error:
        return str(error)
    return "nothing"


def main():
    """Does all, and saves what came of it."""
    torch.set_num_threads(1)
    folder = pathlib.Path(sys.argv[1])
    sb.utils.distributed.ddp_init_group(RunOptions.from_dictionary(OPTIONS))
    results = {
        "gradient": fit("gradient", folder=folder / "save"),
        "resumed": fit("gradient", folder=folder / "save", epochs=(3,)),
        "ema": fit("ema"),
        "sick": fit("gradient", sick=(3,)),
        "sick_ema": fit("ema", sick=(3,)),
        "samples": samples(),
        "few": few(),
        "patience": patience(),
        "parity": {
            f"{kind}-{other}": parity(kind, other)
            for kind in ("gradient", "ema")
            for other in ("ragged", "padding")
        },
    }
    torch.save(results, folder / f"rank{RANK}.pt")
    # Last, as a rank that breaks here takes the other with it.
    empty = {f"{k}-empty": parity(k, "empty") for k in ("gradient", "ema")}
    torch.save({"parity": empty}, folder / f"empty{RANK}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
