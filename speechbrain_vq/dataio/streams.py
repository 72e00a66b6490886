"""Train on data sets that are streamed by ``datasets``, with exact resume."""

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


# On every rank, as each is somewhere else in the data set.
@functools.partial(register_checkpoint_hooks, save_on_main_only=False)
class StreamLoader(LoopedLoader):
    """Load batches of a streamed data set, for ``Brain.fit``.

    The data set is read again and again, its files in another order each time;
    an epoch is a number of batches, so that all ranks have as many. Each rank
    reads other rows. As a recoverable of a checkpointer, the loader goes on
    with the batch at which the run was stopped, without reading those before;
    each row is read once in a round even with another number of ranks.

    Arguments
    ---------
    rows : datasets.IterableDataset
        Data set, as of ``load_dataset(..., streaming=True)``. With as many
        files as ranks, or a multiple, each rank reads its own files only.
    item : callable
        Makes the item of a row, a dict, from the row and the number of times
        that the data set was read before. Rows for which it raises an
        AudioError are left out; of the warnings few are shown.
    batch_size : int
        Number of items of a batch.
    epoch_length : int
        Number of batches of an epoch.
    shuffled : int
        Number of consecutive rows that are shuffled, beside the files; after a
        resume, up to so many are read again. 1: they are not.
    seed : int
        Seed of the orders.
    collate : callable
        Makes a batch of a list of items.
    **options
        Options of the DataLoader, such as ``num_workers=1``: a process of its
        own reads and decodes. More would have no order to go on in.

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
                f"num_workers={options['num_workers']}: a stream is read by "
                "one process of each rank, so that it can go on: 0 or 1."
            )
        self.rank, self.ranks = rank(), world_size()
        if shuffled > 1:
            # Of one row: its buffer is not in the state of the data set.
            rows = rows.shuffle(seed=seed, buffer_size=1)
        part = functools.partial(_part, rank=self.rank, ranks=self.ranks)
        self.stream = _Stream(
            rows, part, item, batch_size, shuffled, seed, collate
        )
        loader = torch.utils.data.DataLoader(
            self.stream,
            batch_size=None,
            # Not the global one, from which a resumed run would draw again.
            generator=torch.Generator(),
            **options,
        )
        super().__init__(loader, epoch_length)
        self.batchsize_fn = lambda batch: batch_size

    def __next__(self):
        """Return a batch, and note where the next one begins."""
        batch, self.stream.state = super().__next__()
        return batch

    @mark_as_saver
    def save(self, path):
        """Save where all ranks are."""
        states = gather_objects(self.stream.state)
        if if_main_process():
            counts = self.step, self.total_steps, self.total_samples
            torch.save({"counts": counts, "states": states}, path)

    @mark_as_loader
    def load(self, path, end_of_epoch=True):
        """Go on where the rank was, or where all were if they are not as many
        as before."""
        saved = torch.load(path)
        states = saved["states"]
        if len(states) != self.ranks:
            logger.info(
                "The stream was read by %d processes, now by %d: they go on "
                "with what is left of the round.",
                *(len(states), self.ranks),
            )
            states = _deal(states, self.ranks)
        self.stream.state = states[self.rank]
        self.step, self.total_steps, self.total_samples = saved["counts"]
        self.iterator = None
        if not end_of_epoch and self.step == 0 and self.total_steps > 0:
            # Stopped between the last batch of an epoch and its end.
            self.step = self.epoch_length


def _part(number: int, rank: int, ranks: int) -> dict:
    """Return the rows of a rank in a round, from the first one on: ``rows`` is
    the state of the data set at the begin of a block, and ``row`` the number of
    its rows that were read."""
    part = {"round": number, "rank": rank, "ranks": ranks}
    return {**part, "block": 0, "rows": None, "row": 0}


def _deal(states: list[dict], ranks: int) -> list[dict]:
    """Deal out to other ranks what is left of the rounds that were begun."""
    begun = max(state["round"] for state in states)
    left = []
    for reader, state in enumerate(states):
        left += state["parts"]
        left += [
            _part(number, reader, len(states))
            for number in range(state["round"], begun)
        ]
    return [{"parts": left[n::ranks], "round": begun} for n in range(ranks)]


class _Stream(torch.utils.data.IterableDataset):
    """Batches without end, each with the state to go on from after it: parts
    of rounds that are to be read, and the round to begin then."""

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
        """Yield items, and the state after each."""
        parts, number = self.state["parts"], self.state["round"]
        while True:
            if not parts:
                parts, number = [self.part(number)], number + 1
            part, *parts = parts
            usable = part["block"] or part["row"]
            with few_warnings(logger, most=10):
                for item, place in self._read(**part):
                    usable = True
                    after = [{**part, **place}, *parts]
                    yield item, {"parts": after, "round": number}
            if not usable and part == self.part(part["round"]):
                raise ValueError(
                    "The stream has no row that can be used; see the warnings."
                )

    def _read(self, round, rank, ranks, block, rows, row):
        """Yield items of a part, and the place after each."""
        stream = split_dataset_by_node(self.rows, rank, ranks)
        stream.set_epoch(round)
        if rows is not None:
            stream.load_state_dict(rows)
        iterator = iter(stream)
        for number in itertools.count(block):
            some = list(itertools.islice(iterator, self.shuffled))
            if not some:
                return
            random.Random(f"{self.seed} {round} {number}").shuffle(some)
            for index in range(row, len(some)):
                place = {"block": number, "rows": rows, "row": index + 1}
                try:
                    item = self.item(some[index], round)
                except AudioError as error:
                    logger.warning("Left out of the stream: %s", error)
                else:
                    yield item, place
            row, rows = 0, stream.state_dict()
