"""Over the actors of a Ray cluster: the bits of one process, whoever dies."""

import contextlib
import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import datasets
import pytest
import soundfile
import torch

from speechbrain_vq.evaluation import evaluate
from speechbrain_vq.inference import RayEngine, read_tokens, tokenize_to

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
FILES, SECONDS = 24, 40
NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each, on this machine."""
    pytest.importorskip("ray")
    ray = importlib.import_module("ray")
    utils = importlib.import_module("ray.cluster_utils")
    head = {**NODE, "include_dashboard": False}
    cluster = utils.Cluster(initialize_head=True, head_node_args=head)
    cluster.second = cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Recordings of a quarter of an hour, and two that cannot be used."""
    folder = tmp_path_factory.mktemp("speech")
    noise = torch.randn(16000 * SECONDS) / 10
    for number in range(FILES):
        samples = len(noise) - 4000 * number
        soundfile.write(folder / f"{number}.flac", noise[:samples], 16000)
    (folder / "text.wav").write_text("not audio")
    whole = (folder / "0.flac").read_bytes()
    (folder / "cut.flac").write_bytes(whole[: len(whole) // 2])
    return folder


def rows_of(output, tmp_path):
    rows = datasets.load_dataset(
        "parquet", data_dir=str(output), split="train", cache_dir=tmp_path / "c"
    )
    found = {row["path"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def lines_of(path):
    """Lines by path of audio, less the column that shards lack."""
    lines = {line["path"]: line for line in read_tokens(path)}
    assert all(line.pop("codebook_size") for line in lines.values())
    return lines


def workers(node):
    """Process numbers of a node's actors that hold a model."""
    raylet = node.all_processes["raylet"][0].process.pid
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"ray::MapWorker" in (entry / "cmdline").read_bytes():
                parent = (entry / "stat").read_text().rpartition(")")[2]
                if int(parent.split()[1]) == raylet:
                    found.append(int(entry.name))
    return found


def wait_for(condition):
    end = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def shards(output):
    return sorted(output.glob("*.parquet"))


def test_a_lost_worker_and_a_lost_node_lose_nothing(
    cluster, tokenizer, folder, tmp_path
):
    given, options = ([folder], tokenizer), {"batch_seconds": 40}
    one = tokenize_to(tmp_path / "one.jsonl", *given, **options)
    output, killed = tmp_path / "two", []

    def kill():
        wait_for(lambda: len(shards(output)) >= 2)
        for node in (cluster.head_node, cluster.second):
            for process in workers(node):
                os.kill(process, signal.SIGKILL)
                killed.append(process)
        wait_for(lambda: len(shards(output)) >= 8)
        cluster.remove_node(cluster.second, allow_graceful=False)
        killed.append(len(shards(output)))

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        two = tokenize_to(output, *given, engine=RayEngine(), **options)
    finally:
        killer.join()
        cluster.second = cluster.add_node(**NODE)
    assert len(killed) >= 2 and killed[-1] < 25
    assert two == one and two.done == 24 and len(two.bad) == 2
    lines = lines_of(tmp_path / "one.jsonl")
    assert rows_of(output, tmp_path) == lines and not list(output.glob(".*"))


def test_rows_are_those_of_one_process(cluster, tokenizer, folder, tmp_path):
    cells = [str(path) for path in sorted(folder.iterdir())]
    data = datasets.Dataset.from_dict({"audio": cells, "text": cells})
    data.to_parquet(tmp_path / "data.parquet", batch_size=5)
    given = [tmp_path / "data.parquet"], tokenizer, "parquet"
    one, two = tmp_path / "one", tmp_path / "two"
    done = tokenize_to(one, *given)
    assert done == tokenize_to(two, *given, engine=RayEngine())
    assert done.done == 24 and rows_of(one, tmp_path) == rows_of(two, tmp_path)


def test_a_killed_command_goes_on(cluster, model, tokenizer, folder, tmp_path):
    output = tmp_path / "out"
    command = [sys.executable, "-m", "speechbrain_vq", "tokenize", str(folder)]
    command += [f"--model={model}", f"--out={output}", "--engine=ray"]
    command += ["--batch-seconds=40", "--device=cpu"]
    env = {**os.environ, "RAY_ADDRESS": cluster.address}
    process = subprocess.Popen(command, env=env)
    try:
        wait_for(lambda: len(shards(output)) >= 3 or process.poll())
    finally:
        process.kill()
        process.wait()
    before = {path: path.stat().st_mtime_ns for path in shards(output)}
    assert 3 <= len(before) < FILES and list(output.glob(".tokenize-*"))
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "24 files done, 2 left out: 2 cannot be read." in done.stdout
    after = {path: path.stat().st_mtime_ns for path in shards(output)}
    assert before.items() <= after.items() and not list(output.glob(".*"))
    lines = tmp_path / "one.jsonl"
    tokenize_to(lines, [folder], tokenizer, batch_seconds=40)
    assert rows_of(output, tmp_path) == lines_of(lines)


def test_metrics_are_those_of_one_process(cluster, model, folder, tmp_path):
    phones = [[0.1 * n, 0.1 * (n + 1), "abc"[n * n % 3]] for n in range(350)]
    entries = {
        f"utt-{number}": {
            "wav": str(path),
            "length": 35.0,
            "spk_id": "xy"[number % 2],
            "phones": phones,
        }
        for number, path in enumerate(sorted(folder.iterdir()))
    }
    # In several parts, not all of them whole.
    entries |= {f"{name}-again": entry for name, entry in entries.items()}
    manifest = tmp_path / "test.json"
    manifest.write_text(json.dumps(entries))
    one, two = (
        evaluate(model, manifest, max_reconstructed=2, engine=engine)
        for engine in (None, RayEngine("cpu"))
    )
    assert one.metrics == two.metrics and one.settings == two.settings
    assert one.left_out == two.left_out
    # Two that cannot be read, and three that are shorter than their labels.
    assert two.settings["utterances_left_out"] == 2 * 5


def test_a_job_that_ends_its_workers_is_given_up(cluster, tokenizer):
    def work(model, job):
        if job == "fatal":
            os.kill(os.getpid(), signal.SIGKILL)
        if job == "mistaken":
            raise ValueError("of the user")
        return job

    engine = RayEngine()
    assert list(engine.map(work, tokenizer, [1, 2, 3])) == [1, 2, 3]
    with pytest.raises(ValueError, match="of the user"):
        list(engine.map(work, tokenizer, [1, "mistaken"]))
    with pytest.raises(OSError, match="5 workers died on one job"):
        list(engine.map(work, tokenizer, ["fatal", 1]))
    with pytest.raises(ValueError, match="no node .* has a GPU"):
        list(RayEngine("cuda").map(work, tokenizer, [1]))
