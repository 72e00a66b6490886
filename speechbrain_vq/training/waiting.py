"""Warn about ranks that wait for others."""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch

from speechbrain_vq.nnet.utils import rank, world_size

# SpeechBrain's logger is silent on ranks other than 0.
logger = logging.getLogger(__name__)

_TORCH = torch.__path__[0]


@contextlib.contextmanager
def reported_waits(
    progress: Callable[[], Any] = lambda: None, seconds: float = 60.0
) -> Iterator[None]:
    """Context manager that warns when this rank has waited ``seconds`` for the
    others in one call, and again each time the wait has doubled. The return
    value of ``progress`` must change as the work proceeds."""
    if world_size() == 1:
        yield
        return
    stop = threading.Event()
    arguments = threading.get_ident(), progress, seconds, stop
    watch = threading.Thread(target=_watch, args=arguments, daemon=True)
    watch.start()
    try:
        yield
    finally:
        stop.set()
        watch.join()


def _watch(thread, progress, seconds, stop):
    before, since, limit = None, 0.0, seconds
    while not stop.wait(seconds / 4):
        # Frames are not stored, because they hold references to tensors.
        place = _waits_at(sys._current_frames().get(thread))
        now = place and (place, progress())
        if now is None or now != before:
            before, since, limit = now, time.monotonic(), seconds
        elif (waited := time.monotonic() - since) >= limit:
            limit *= 2
            logger.warning(
                "Rank %d has waited for the others for %.0f s, in %s.",
                *(rank(), waited, place),
            )


def _waits_at(frame: FrameType | None) -> str | None:
    """Describe the collective call that a frame is in, or return None."""
    names = []
    while frame is not None and frame.f_code.co_filename.startswith(_TORCH):
        names.append((frame.f_code.co_filename, frame.f_code.co_name))
        frame = frame.f_back
    waits = any(
        "distributed" in file or name == "_engine_run_backward"
        for file, name in names
    )
    if frame is None or not waits:
        return None
    code = frame.f_code
    return (
        f"{names[0][1]} called by {code.co_name}, {code.co_filename} line "
        f"{frame.f_lineno}"
    )
