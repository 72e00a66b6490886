"""What ranks send each other is what docs/scaling.md says."""

import torch
from torch import distributed, multiprocessing

from speechbrain_vq import CodebookTrainer, ReinitSchedule, VectorQuantizer

DIM, SIZE, BOOKS, CAPACITY = 6, 8, 2, 40


def worker(rank, path, results):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{path}", rank=rank, world_size=2
    )
    sent = []
    for name in ("all_reduce", "all_gather", "broadcast"):
        original = getattr(distributed, name)

        def counted(*args, original=original, name=name, **kwargs):
            # The second argument of all_gather is what a rank has to say.
            tensor = args[1] if name == "all_gather" else args[0]
            sent.append((name, tensor.numel()))
            return original(*args, **kwargs)

        setattr(distributed, name, counted)
    found = {}
    for kind in ("gradient", "ema"):
        quantizer = VectorQuantizer(
            *(DIM, SIZE, DIM, BOOKS, "residual"),
            codebook=kind,
            reservoir_size=CAPACITY,
        )
        linear = torch.nn.Linear(DIM, DIM)
        model = torch.nn.ModuleList([linear, quantizer])
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        schedule = ReinitSchedule(warmup=2, every=1)
        CodebookTrainer(model, optimizer, schedule=schedule)
        for name in ("warmup", "first", "step"):
            sent.clear()
            out = quantizer(linear(torch.randn(30, DIM)))
            (out.quantized.square().sum() + out.loss).backward()
            found[f"{kind} {name}"] = list(sent)
            sent.clear()
            optimizer.step()
            found[f"{kind} {name} end"] = list(sent)
    if rank == 0:
        results.put(found)
    distributed.destroy_process_group()


def test_traffic_of_steps_and_of_reinitializations(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    processes = multiprocessing.start_processes(
        worker,
        (str(tmp_path / "ranks"), results),
        nprocs=2,
        join=False,
        start_method="spawn",
    )
    found = results.get()
    while not processes.join(60):
        pass
    norm = [1, DIM, DIM]
    codebook = BOOKS * SIZE * DIM

    def numbers(key):
        return [number for _, number in found[key]]

    for kind in ("gradient", "ema"):
        assert numbers(f"{kind} warmup") == norm
        assert found[f"{kind} warmup end"] == []
        averages = [BOOKS * SIZE * (DIM + 1)] if kind == "ema" else []
        assert sorted(numbers(f"{kind} step")) == sorted([*norm, 1, *averages])
        # With the codebook, what an EMA codebook has beside it.
        moved = [codebook]
        if kind == "ema":
            moved += [codebook, codebook, BOOKS * SIZE]
        assert sorted(numbers(f"{kind} step end")) == sorted(
            [CAPACITY * DIM, 1, 1, *moved]
        )
