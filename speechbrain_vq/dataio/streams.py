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

logger = logging.getLogger(__name__)


# On every rank, as each is somewhere else in the data set.
@functools.partial(register_checkpoint_hooks, save_on_main_only=False)
class StreamLoader(LoopedLoader):
    """Load batches of a streamed data set, for ``Brain.fit``.

    The data set is read again and again, its files in another order each time;
    an epoch is a number of batches, so that all ranks have as many. Each rank
    reads other rows. As a recoverable of a checkpointer, the loader goes on
    with the batch at which the run was stopped, without reading those before.

    Arguments
    ---------
    rows : datasets.IterableDataset
        Data set, as of ``load_dataset(..., streaming=True)``. With as many
        files as ranks, or a multiple, each rank reads its own files only.
    item : callable
        Makes the item of a row, a dict, from the row and the number of times
        that the data set was read before. Rows for which it raises an
        AudioError are left out, with a warning.
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
        rows = split_dataset_by_node(rows, self.rank, self.ranks)
        self.stream = _Stream(rows, item, batch_size, shuffled, seed, collate)
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
        """Go on where the rank was. A ValueError if there are other ranks."""
        saved = torch.load(path)
        if len(saved["states"]) != self.ranks:
            raise ValueError(
                f"{path}: the stream was read by {len(saved['states'])} "
                f"processes, now there are {self.ranks}: go on with as many."
            )
        self.stream.state = saved["states"][self.rank]
        self.step, self.total_steps, self.total_samples = saved["counts"]
        self.iterator = None
        if not end_of_epoch and self.step == 0 and self.total_steps > 0:
            # Stopped between the last batch of an epoch and its end.
            self.step = self.epoch_length


class _Stream(torch.utils.data.IterableDataset):
    """Batches without end, each with the state to go on from after it."""

    def __init__(self, rows, item, batch_size, shuffled, seed, collate):
        self.rows, self.item, self.batch_size = rows, item, batch_size
        self.shuffled, self.seed, self.collate = shuffled, seed, collate
        self.state = {"round": 0, "block": 0, "rows": None, "row": 0}

    def __iter__(self):
        items = []
        for item, state in self._items():
            items.append(item)
            if len(items) == self.batch_size:
                yield self.collate(items), state
                items = []

    def _items(self) -> Iterator[tuple[dict, dict]]:
        """Yield items, and the state after each."""
        state = self.state
        for number in itertools.count(state["round"]):
            self.rows.set_epoch(number)
            if state["rows"] is not None:
                self.rows.load_state_dict(state["rows"])
            rows, place, usable = iter(self.rows), state["rows"], state["row"]
            for block in itertools.count(state["block"]):
                some = list(itertools.islice(rows, self.shuffled))
                if not some:
                    break
                random.Random(f"{self.seed} {number} {block}").shuffle(some)
                for row in range(state["row"], len(some)):
                    item = self._item(some[row], number)
                    if item is None:
                        continue
                    usable = True
                    after = {"round": number, "block": block, "row": row + 1}
                    yield item, {**after, "rows": place}
                state, place = {**state, "row": 0}, self.rows.state_dict()
            if not (usable or state["block"]):
                raise ValueError(
                    "The stream has no row that can be used; see the warnings."
                )
            state = {"round": number + 1, "block": 0, "rows": None, "row": 0}

    def _item(self, row, number):
        try:
            return self.item(row, number)
        except AudioError as error:
            logger.warning("Left out of the stream: %s", error)
            return None
