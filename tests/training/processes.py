"""Processes of the tests, also as ranks over gloo, from a server that has
imported what they need."""

import multiprocessing
import os
import signal
import socket

import torch
from speechbrain.utils.distributed import ddp_init_group
from speechbrain.utils.run_opts import RunOptions

RANK_OPTIONS = {"device": "cpu", "distributed_backend": "gloo"}
TIME_LIMIT = 300  # Of what never ends.

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["pytest", "tests.training.toy"])


def start(target, *args, **kwargs):
    """Start a function in a process of its own."""
    process = _SERVER.Process(target=_run, args=(target, args, kwargs))
    process.start()
    return process


def _run(target, args, kwargs):
    # A shell's background jobs, as the tests may be, ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    target(*args, **kwargs)


def run(target, *args, **kwargs):
    """Run a function in a process of its own; its exit code."""
    return _wait_for(start(target, *args, **kwargs))


def run_ranks(number, target, *args):
    """Run a function, given the rank first, on some ranks; their exit codes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    common = number, port, target, args
    ranks = [start(_run_rank, rank, *common) for rank in range(number)]
    return [_wait_for(rank) for rank in ranks]


def _run_rank(rank, number, port, target, args):
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(number),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    ddp_init_group(RunOptions.from_dictionary(RANK_OPTIONS))
    target(rank, *args)
    torch.distributed.destroy_process_group()


def _wait_for(process):
    process.join(TIME_LIMIT)
    assert process.exitcode is not None, "The process hangs."
    return process.exitcode
