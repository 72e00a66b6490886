"""A training on a stream for test_stream.py, one of several ranks:
``torchrun --nproc_per_node=2 stream_worker.py DATA FOLDER WORKERS [KILLED_AT]``.
"""

import os
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import datasets
import torch
from speechbrain.utils.distributed import ddp_init_group
from speechbrain.utils.epoch_loop import EpochCounter

from speechbrain_vq import ReinitSchedule
from speechbrain_vq.dataio.streams import StreamLoader
from tests.training.toy import DIM, Toy, bits, make, modules

RANK = int(os.environ.get("RANK", 0))
OPTIONS = {
    "device": "cpu",
    "distributed_backend": "gloo",
    "distributed_launch": "RANK" in os.environ,
    "ckpt_interval_steps": 5,
    "noprogressbar": True,
}


class Streamed(Toy):
    """Notes the rows of each step, and is killed at one of them."""

    killed_at = None

    def compute_forward(self, batch, stage):
        return super().compute_forward(batch.x.data, stage)

    def compute_objectives(self, output, batch, stage):
        return super().compute_objectives(output, batch.x.data, stage)

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        super().on_fit_batch_end(batch, outputs, loss, should_step)
        self.rows[self.optimizer_step] = batch.id
        if self.optimizer_step == self.killed_at and RANK == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def main(data, folder, workers, killed_at=None):
    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
    ddp_init_group(OPTIONS)
    rows = datasets.load_dataset(
        "parquet", data_files=f"{data}/*.parquet", split="train", streaming=True
    )

    def item(row, number):
        x = torch.tensor(row["x"]).view(-1, DIM)
        return {"id": f"{row['id']}.{number}", "x": x}

    options = {"shuffled": 4, "num_workers": int(workers)}
    loader = StreamLoader(rows, item, 3, 7, **options)
    torch.manual_seed(0)
    brain = make(
        Streamed,
        modules(codebook="ema", dropout=0.1),
        folder=pathlib.Path(folder, "save"),
        run=OPTIONS,
        reinit_schedule=ReinitSchedule(2, 3),
    )
    epochs = EpochCounter(4)
    brain.checkpointer.add_recoverables({"epochs": epochs, "stream": loader})
    brain.rows, brain.killed_at = {}, int(killed_at or 0)
    brain.fit(epochs, loader)
    found = {"rows": brain.rows, "bits": bits(brain)}
    torch.save(found, pathlib.Path(folder, f"rank{RANK}.pt"))


if __name__ == "__main__":
    main(*sys.argv[1:])
