"""Train on data sets streamed by ``datasets``, with exact resume."""

import functools
import itertools
import logging
import random
from collections.abc import Callable, Iterator

import torch
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataloader import LoopedLoader
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import if_main_process

from speechbrain_vq.nnet.utils import gather_objects, rank, world_size

from .audio import AudioError
from .logs import few_warnings

logger = logging.getLogger(__name__)


# Saving gathers the positions of all ranks, so every rank runs the hook.
@functools.partial(register_checkpoint_hooks, save_on_main_only=False)
class StreamLoader(LoopedLoader):
    """Load batches of a streamed data set, for ``Brain.fit``.

    The data set is read in rounds, with its files in a new order each time. An
    epoch is a fixed number of batches, the same on all ranks, and each rank
    reads different rows. Add the loader to the checkpointer as a recoverable:
    a resumed run continues with the next batch, without reading earlier ones
    again. Each row is read once per round, even if the number of ranks changes.

    Arguments
    ---------
    rows : datasets.IterableDataset
        Data set, such as ``load_dataset(..., streaming=True)``. If the number
        of files is a multiple of the number of ranks, each rank reads only its
        own files.
    item : callable
        Function that maps a row and the number of the round, from 0, to an item
        (a dict). Rows for which it raises AudioError are skipped; only the
        first few warnings are shown.
    batch_size : int
        Number of items per batch.
    epoch_length : int
        Number of batches per epoch.
    shuffled : int
        Number of consecutive rows that are shuffled, in addition to the files.
        A resumed run rereads at most this many rows. 1 disables shuffling of
        rows.
    seed : int
        Seed for the order of files and rows.
    collate : callable
        Function that makes a batch from a list of items.
    **options
        Options of the DataLoader. With ``num_workers=1``, a worker process
        reads and decodes; with more, a resume could not keep the order.

    Example
    -------
    >>> import datasets
    >>> rows = datasets.Dataset.from_dict({"x": [1, 2, 3]})
    >>> loader = StreamLoader(
    ...     rows.to_iterable_dataset(), lambda row, _: row, 2, 3, collate=list
    ... )
    >>> [len(batch) for batch in loader], len(loader)
    ([2, 2, 2], 3)
    """

    def __init__(
        self,
        rows: IterableDataset,
        item: Callable[[dict, int], dict],
        batch_size: int,
        epoch_length: int,
        shuffled: int = 256,
        seed: int = 0,
        collate: Callable = PaddedBatch,
        **options,
    ):
        if options.get("num_workers", 0) > 1:
            raise ValueError(
                f"num_workers={options['num_workers']}: must be 0 or 1. A "
                "stream can be resumed only if each rank reads it with one "
                "process."
            )
        self.rank, self.ranks = rank(), world_size()
        if shuffled > 1:
            # Shuffle only files: a resume would lose a buffer of rows.
            rows = rows.shuffle(seed=seed, buffer_size=1)
        part = functools.partial(_part, rank=self.rank, ranks=self.ranks)
        self.stream = _Stream(
            rows, part, item, batch_size, shuffled, seed, collate
        )
        loader = torch.utils.data.DataLoader(
            self.stream,
            batch_size=None,
            # Drawing from the global generator would make a resume inexact.
            generator=torch.Generator(),
            **options,
        )
        super().__init__(loader, epoch_length)
        self.batchsize_fn = lambda batch: batch_size

    def __next__(self):
        """Return the next batch, and store the state after it."""
        batch, self.stream.state = super().__next__()
        return batch

    @mark_as_saver
    def save(self, path):
        """Save the positions of all ranks."""
        states = gather_objects(self.stream.state)
        if if_main_process():
            counts = self.step, self.total_steps, self.total_samples
            torch.save({"counts": counts, "states": states}, path)

    @mark_as_loader
    def load(self, path, end_of_epoch=True):
        """Restore the position of this rank. If the number of ranks has
        changed, redistribute what all ranks had left to read."""
        saved = torch.load(path)
        states = saved["states"]
        if len(states) != self.ranks:
            logger.info(
                "The stream was read by %d processes and is now read by %d, "
                "which share the rest of the round.",
                *(len(states), self.ranks),
            )
            states = _deal(states, self.ranks)
        self.stream.state = states[self.rank]
        self.step, self.total_steps, self.total_samples = saved["counts"]
        self.iterator = None
        if not end_of_epoch and self.step == 0 and self.total_steps > 0:
            # The run stopped after the last batch of an epoch, before its end.
            self.step = self.epoch_length


def _part(number: int, rank: int, ranks: int) -> dict:
    """Return the part of a round that a rank reads. ``block`` counts blocks of
    shuffled rows, ``rows`` is the state of the data set at the start of the
    block, and ``row`` is the number of rows read in it."""
    part = {"round": number, "rank": rank, "ranks": ranks}
    return {**part, "block": 0, "rows": None, "row": 0}


def _deal(states: list[dict], ranks: int) -> list[dict]:
    """Redistribute the unread parts of the current rounds among ranks."""
    current = max(state["round"] for state in states)
    parts = []
    for reader, state in enumerate(states):
        parts += state["parts"]
        parts += [
            _part(number, reader, len(states))
            for number in range(state["round"], current)
        ]
    return [{"parts": parts[n::ranks], "round": current} for n in range(ranks)]


class _Stream(torch.utils.data.IterableDataset):
    """Endless batches, each with the state after it: the unread parts of
    unfinished rounds, and the number of the next round."""

    def __init__(self, rows, part, item, batch_size, shuffled, seed, collate):
        self.rows, self.part, self.item = rows, part, item
        self.batch_size, self.collate = batch_size, collate
        self.shuffled, self.seed = shuffled, seed
        self.state = {"parts": [], "round": 0}

    def __iter__(self):
        items = []
        for item, state in self._items():
            items.append(item)
            if len(items) == self.batch_size:
                yield self.collate(items), state
                items = []

    def _items(self) -> Iterator[tuple[dict, dict]]:
        """Yield items, each with the state after it."""
        parts, number = self.state["parts"], self.state["round"]
        while True:
            if not parts:
                parts, number = [self.part(number)], number + 1
            part, *parts = parts
            usable = part["block"] or part["row"]
            with few_warnings(logger, maximum=10):
                for item, position in self._read(**part):
                    usable = True
                    unread = [{**part, **position}, *parts]
                    yield item, {"parts": unread, "round": number}
            if not usable and part == self.part(part["round"]):
                raise ValueError(
                    "The stream has no row that can be used; see the warnings."
                )

    def _read(self, round, rank, ranks, block, rows, row):
        """Yield the items of a part, each with the position after it."""
        stream = split_dataset_by_node(self.rows, rank, ranks)
        stream.set_epoch(round)
        if rows is not None:
            stream.load_state_dict(rows)
        iterator = iter(stream)
        for number in itertools.count(block):
            buffer = list(itertools.islice(iterator, self.shuffled))
            if not buffer:
                return
            random.Random(f"{self.seed} {round} {number}").shuffle(buffer)
            for index in range(row, len(buffer)):
                position = {"block": number, "rows": rows, "row": index + 1}
                try:
                    item = self.item(buffer[index], round)
                except AudioError as error:
                    logger.warning("Left out of the stream: %s", error)
                else:
                    yield item, position
            row, rows = 0, stream.state_dict()
