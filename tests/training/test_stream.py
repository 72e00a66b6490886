"""A training on a streamed data set, killed and resumed, reads the rows of one
that was never stopped; in one process, in two, and on two nodes."""

import gc
import os
import pathlib
import socket
import subprocess
import sys
from collections import Counter
from functools import partial
from itertools import islice

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechbrain_vq.dataio.audio import AudioError
from speechbrain_vq.dataio.streams import StreamLoader, _deal, _part, _Stream

WORKER = pathlib.Path(__file__).with_name("stream_worker.py")
FILES, ROWS = 4, 11


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Parquet files of some rows each."""
    folder = tmp_path_factory.mktemp("data")
    generator = torch.Generator().manual_seed(0)
    for file in range(FILES):
        names = [f"{file}-{row}" for row in range(ROWS)]
        x = torch.randn(ROWS, 40, generator=generator).tolist()
        dataset = datasets.Dataset.from_dict({"id": names, "x": x})
        dataset.to_parquet(folder / f"{file}.parquet")
    return folder


@pytest.fixture(autouse=True, scope="module")
def no_sleep():
    """`datasets` sleeps at the end of each round."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
        yield
        # Of loaders that were left in the middle of one.
        gc.collect()


@pytest.fixture(scope="module")
def rows(data):
    """The stream of these files."""
    return datasets.load_dataset(
        "parquet", data_files=f"{data}/*.parquet", split="train", streaming=True
    )


def loader(rows, item=lambda row, number: (row["id"], number), **options):
    options = {"shuffled": 4, "collate": list, **options}
    return StreamLoader(rows, item, 3, 5, **options)


def test_each_round_has_each_row_once(rows):
    batches = loader(rows)
    read = [item for _ in range(6) for batch in batches for item in batch]
    assert len(batches) == 5 and len(read) == 90
    number = FILES * ROWS
    rounds = [read[:number], read[number : 2 * number]]
    names = [[name for name, _ in some] for some in rounds]
    assert len(set(names[0])) == number
    assert sorted(names[0]) == sorted(names[1]) and names[0] != names[1]
    assert [n for _, n in read] == sorted(n for _, n in read)
    # Of several files from the start, and in no file's order.
    assert len({name[0] for name in names[0][:8]}) > 1
    assert names[0] != [name for name, _ in sum(loader(rows, seed=1), [])]


@pytest.mark.parametrize(
    "shuffled, num_workers", [(1, 0), (4, 0), (100, 0), (4, 1)]
)
def test_it_goes_on_with_the_next_batch(rows, tmp_path, shuffled, num_workers):
    options = {"shuffled": shuffled, "num_workers": num_workers}
    whole = loader(rows, **options)
    wanted = [batch for _ in range(7) for batch in whole]
    # In the first round and later; in an epoch, at its end, and before any.
    stops = (29,) if num_workers else (0, 4, 5, 6, 14, 15, 29)
    for stop in stops:
        first = loader(rows, **options)
        seen = []
        while len(seen) < stop:
            for batch in first:
                seen.append(batch)
                if len(seen) == stop:
                    break
        first.save(tmp_path / "state")
        second = loader(rows, **options)
        second.load(tmp_path / "state", end_of_epoch=False)
        while len(seen) < len(wanted):
            seen += second
        assert seen == wanted


def test_bad_rows_are_left_out_but_not_all(rows, caplog):
    def item(row, number):
        if row["id"].endswith("0") or always:
            raise AudioError(f"{row['id']}: contains no sound.")
        return row["id"]

    always = False
    read = sum((batch for _ in range(4) for batch in loader(rows, item)), [])
    assert not any(name.endswith("0") for name in read)
    assert "Left out of the stream: 0-0: contains no sound." in caplog.text
    always = True
    with pytest.raises(ValueError, match="no row that can be used"):
        list(loader(rows, item))
    with pytest.raises(ValueError, match="num_workers=2: .* 0 or 1"):
        loader(rows, num_workers=2)


@given(
    runs=st.lists(
        st.tuples(st.integers(1, 4), st.integers(0, 9)), min_size=1, max_size=4
    ),
    shuffled=st.integers(1, 9),
)
@settings(deadline=None, max_examples=10)
def test_whatever_ranks_come_and_go_each_row_is_read_once(runs, shuffled):
    rows = datasets.Dataset.from_dict({"id": range(FILES * ROWS)})
    rows = rows.to_iterable_dataset(FILES).shuffle(seed=0, buffer_size=1)
    read, states = Counter(), []

    def go_on(ranks, number, last=None):
        """Each rank reads some batches, the later ones more."""
        if len(states) != ranks:
            states[:] = _deal(states or [{"parts": [], "round": 0}], ranks)
        for rank in range(ranks):
            stream = _Stream(
                *(rows, partial(_part, rank=rank, ranks=ranks)),
                lambda row, number: (row["id"], number),
                *(2, shuffled, 0, list),
            )
            stream.state = states[rank]
            for batch, state in islice(stream, number + rank):
                states[rank] = state
                read.update(batch)
                if batch[0][1] == last:
                    return

    for ranks, number in runs:
        go_on(ranks, number)
    begun = max(state["round"] for state in states)
    go_on(1 + (len(states) == 1), 0)
    go_on(1, 999, last=begun)
    names = range(FILES * ROWS)
    assert max(read.values()) == 1
    assert {(n, r) for n in names for r in range(begun)} <= read.keys()


def train(arguments, nodes=1, ranks=1):
    """Train in processes, also of two agents of torchrun on one machine;
    return their exit codes."""
    command = [sys.executable]
    if ranks > 1:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            port = server.getsockname()[1]
        command += ["-m", "torch.distributed.run", f"--nnodes={nodes}"]
        command += [f"--nproc_per_node={ranks // nodes}", "--rdzv_backend=c10d"]
        command += [f"--rdzv_endpoint=127.0.0.1:{port}", "--rdzv_id=stream"]
    command += [str(WORKER), *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    agents = [
        subprocess.Popen(command, env=env, cwd=WORKER.parents[2])
        for _ in range(nodes)
    ]
    try:
        return [agent.wait(timeout=280) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()


def results(folder, ranks=1):
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(ranks)]


def names_of(run):
    """Of all rows that a rank has read."""
    return [name for names in run["rows"].values() for name in names]


def assert_agree(runs):
    for key in ("modules", "optimizers", "steps"):
        assert len({run["bits"][key] for run in runs}) == 1, key


@pytest.mark.slow
@pytest.mark.parametrize("nodes, ranks", [(1, 1), (1, 2), (2, 2)])
def test_what_was_killed_goes_on_where_it_was(data, tmp_path, nodes, ranks):
    one, two = tmp_path / "one", tmp_path / "two"
    assert train([data, one, 0], nodes, ranks) == [0] * nodes
    # With a process that reads ahead, of which nothing may be lost.
    assert any(train([data, two, 1, 13], nodes, ranks))
    assert train([data, two, 1], nodes, ranks) == [0] * nodes
    before, after = results(one, ranks), results(two, ranks)
    for first, second in zip(before, after, strict=True):
        assert len(second["rows"]) < len(first["rows"]) == 28
        assert second["rows"].items() <= first["rows"].items()
        assert ranks > 1 or first["bits"] == second["bits"]
    # Each rank has its own rows, and in the end as many steps.
    names = [set(names_of(run)) for run in before]
    assert len(set.union(*names)) == sum(map(len, names))
    assert_agree(before + after)


@pytest.mark.slow
def test_other_ranks_go_on_with_what_is_left(data, tmp_path):
    assert any(train([data, tmp_path, 0, 13], 1, 2))
    assert train([data, tmp_path, 0], 1, 3) == [0]
    after = results(tmp_path, 3)
    assert_agree(after)
    # By two ranks, of the 88 of two rounds.
    read = 2 * 3 * (min(after[0]["rows"]) - 1)
    rows = Counter(sum(map(names_of, after), []))
    assert max(rows.values()) == 1
    assert sum(name.endswith((".0", ".1")) for name in rows) == 88 - read
