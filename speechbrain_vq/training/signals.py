"""Signals that end a training: it saves a checkpoint first."""

import os
import signal
import sys
import threading

from speechbrain.core import Brain
from speechbrain.utils.logger import get_logger

from speechbrain_vq.nnet.utils import world_size
from speechbrain_vq.training.checkpoints import AtomicCheckpointer

logger = get_logger(__name__)


class GentleStop:
    """Has a SIGTERM or a Ctrl-C within it, in a Brain's fit, wait for the next
    optimizer step, after which a checkpoint is saved: then the process exits
    with the code 143, or a KeyboardInterrupt is raised. A second Ctrl-C does
    not wait. It needs an ``AtomicCheckpointer`` and the main thread; handlers
    of others for these signals stay.

    With several ranks, it suffices if one gets the signal.

    Arguments
    ---------
    brain : sb.Brain
        The Brain.
    """

    _USUAL = {
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGINT: signal.default_int_handler,
    }

    def __init__(self, brain: Brain):
        self.brain, self.asked = brain, None
        self._interval = brain.ckpt_interval_steps

    def __enter__(self):
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and isinstance(self.brain.checkpointer, AtomicCheckpointer):
            for number, usual in self._USUAL.items():
                if signal.getsignal(number) is usual:
                    signal.signal(number, self._ask)
        return self

    def __exit__(self, kind, error, traceback):
        for number, usual in self._USUAL.items():
            if signal.getsignal(number) == self._ask:
                signal.signal(number, usual)
        if self.asked is not None:
            self.brain.ckpt_interval_steps = self._interval
            self.brain.checkpointer.stop = None
            if error is None:
                self._end()

    def _ask(self, number, frame):
        self.asked = number
        # Schedulers and torchrun may send a SIGTERM each.
        if number == signal.SIGINT:
            signal.signal(number, self._USUAL[number])
        if world_size() == 1:
            self.begin()

    def begin(self) -> None:
        """Ask for a checkpoint; on every rank, before the same step."""
        self.asked = self.asked or signal.SIGTERM
        self.brain.ckpt_interval_steps = 1  # SpeechBrain looks after a batch.
        self.brain.checkpointer.stop = self._end

    def _end(self):
        if self.asked == signal.SIGINT:
            raise KeyboardInterrupt
        logger.warning(
            "Stopped by SIGTERM; the same command goes on from here."
        )
        sys.exit(128 + self.asked)


def outlive_signals(worker: int) -> None:
    """Leave the process group, which as a whole may get a SIGTERM or a Ctrl-C
    that the training waits with: a loader's ``worker_init_fn=``."""
    if hasattr(os, "setpgrp"):  # Not on Windows
        os.setpgrp()
