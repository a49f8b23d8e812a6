"""The batches of a training: which records at which step, cut so that little is padding, collated while the step before runs.

All of it is a function of (seed, step): a run that is taken up again sees what it would have seen.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import ceil
from typing import Any

import torch
from torch import Tensor

from ..data import Record, Records
from ..family import Batch, Generators, mix
from ..padding import FEWEST, parted

Collate = Callable[[Sequence[Record], Sequence[torch.Generator]], Batch]
Lengths = Callable[[Sequence[Record]], list[int]]
MOST_PARTS = 8
SAVING = 0.85  # of the numbers in a batch, padding included: what twice as many parts must at least come down to


class Batches:
    """The training batches of one process. `parts`: into how many a batch may be cut to save padding, a power of two."""

    def __init__(
        self,
        records: Records,
        collate: Collate,
        lengths: Lengths,
        seed: int,
        size: int,
        micro: int,
        process: tuple[int, int] = (0, 1),
    ):
        self.records, self.collate, self.lengths, self.seed = records, collate, lengths, seed
        self.size, self.micro, self.process, self.parts = size, micro, process, 1
        self.per_epoch = ceil(len(records) / size)
        self.worker = one_thread()
        self.ahead: tuple[int, Future[list[Batch]]] | None = None
        self.shuffled = (-1, torch.empty(0))

    def rows(self, step: int) -> tuple[list[int], int]:
        """This process's row numbers of a step, and the epoch."""
        epoch, place = divmod(step, self.per_epoch)
        if self.shuffled[0] != epoch:
            generator = torch.Generator().manual_seed(mix(self.seed, epoch))
            self.shuffled = epoch, torch.randperm(len(self.records), generator=generator)
        whole = self.shuffled[1][place * self.size : (place + 1) * self.size]
        return whole[self.process[0] :: self.process[1]].tolist(), epoch

    def at(self, step: int) -> list[Batch]:
        """The batch of a step in the parts that it is cut into, the longest records first: what they need in memory is
        known at once."""
        if self.ahead is not None and self.ahead[0] == step:
            found, self.ahead = self.ahead[1].result(), None
            return found
        return self.run(self.make, step, self.parts)

    def prepare(self, step: int) -> None:
        """Begin to collate the batch of a later step."""
        self.ahead = step, self.worker.submit(self.make, step, self.parts)

    def run(self, work: Callable[..., Any], *inputs: Any) -> Any:
        """The result of `work` in the thread that collates: what reads records and tokenizes need not bear two at a time."""
        return self.worker.submit(work, *inputs).result()

    def make(self, step: int, parts: int) -> list[Batch]:
        rows, epoch = self.rows(step)
        return self.collated(self.records[rows].list(), rows, mix(self.seed, epoch), parts)

    def of(self, records: Records) -> Iterator[list[Batch]]:
        """Other records, as they stand, in steps of the same size, each in its parts."""
        for start in range(0, len(records), self.size):
            rows = range(start, min(start + self.size, len(records)))
            yield self.run(self.of_rows, records, rows)

    def of_rows(self, records: Records, rows: range) -> list[Batch]:
        return self.collated(records.list(slice(rows.start, rows.stop)), rows, self.seed, self.parts)

    def collated(self, records: list[Record], keys: Sequence[int], seed: int, parts: int) -> list[Batch]:
        """Records with these numbers in at most so many parts, none of more than `micro`; of none, none."""
        lengths = self.lengths(records) if records else []
        return [
            self.collate([records[i] for i in part], Generators(seed, [keys[i] for i in part]))
            for part in parted(lengths, self.micro or self.size, parts)
        ]

    def cut(self) -> None:
        """Choose `parts` by what the first batch would hold in one, two, four ... of them."""
        held, parts = self.run(self.numbers, 1), 2
        while parts <= MOST_PARTS and self.size // parts >= FEWEST:
            fewer = self.run(self.numbers, parts)
            if fewer > SAVING * held:
                break
            held, self.parts, parts = fewer, parts, 2 * parts

    def numbers(self, parts: int) -> int:
        """How many numbers the first batch holds when it is cut so."""
        return sum(numbers_in(batch) for batch in self.make(0, parts))

    def close(self) -> None:
        self.worker.shutdown(cancel_futures=True)


def one_thread() -> ThreadPoolExecutor:
    """A thread that takes one core; all others, and those that begin later, have as many as before."""
    before, worker = torch.get_num_threads(), ThreadPoolExecutor(1, "collate")
    worker.submit(torch.get_num_threads).result()  # the first question would undo what was set before it
    worker.submit(torch.set_num_threads, 1).result()
    torch.set_num_threads(before)
    return worker


def numbers_in(batch: Batch) -> int:
    return sum(value.numel() for value in batch.values())


def moved(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}
