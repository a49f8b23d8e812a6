"""The batches of a training: which records at which step, cut so that little is padding, collated while the step before runs.

All of it is a function of (seed, step): a run that is taken up again sees what it would have seen.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import Record, Records, Sound
from ..family import Batch, Generators, mix

Collate = Callable[[Sequence[Record], Sequence[torch.Generator]], Batch]
MOST_PARTS = 8
SAVING = 0.85  # of the numbers in a batch, padding included: what twice as many parts must at least come down to
FEWEST = 8  # records of a part; fewer do not fill a product


class Batches:
    """The training batches of one process. `parts`: into how many a batch may be cut to save padding, a power of two."""

    def __init__(
        self, records: Records, collate: Collate, seed: int, size: int, micro: int, process: tuple[int, int] = (0, 1)
    ):
        self.records, self.collate, self.seed, self.size, self.micro = records, collate, seed, size, micro
        self.process, self.parts = process, 1
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
        found = sorted(zip(self.records[rows].list(), rows), key=lambda pair: -size_of(pair[0]))
        width = ceil(len(found) / parts)
        width = max(1, min(width, self.micro or width))
        seed, batches = mix(self.seed, epoch), []
        for start in range(0, len(found), width):
            records, keys = zip(*found[start : start + width])
            batches.append(self.collate(list(records), Generators(seed, keys)))
        return batches

    def of(self, records: Records) -> Iterator[list[Batch]]:
        """Other records, as they stand, in steps of the same size, each in its parts."""
        for start in range(0, len(records), self.size):
            end, width = min(start + self.size, len(records)), self.micro or self.size
            yield [
                self.run(self.made_of, records, slice(place, min(place + width, end)))
                for place in range(start, end, width)
            ]

    def made_of(self, records: Records, part: slice) -> Batch:
        return self.collate(records.list(part), Generators(self.seed, range(*part.indices(len(records)))))

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


def size_of(record: Record) -> int:
    """About how much there is to read in a record."""
    return sum(map(extent, record.values()))


def extent(value: Any) -> int:
    if isinstance(value, Sound):
        return len(value.samples)
    return value.size if isinstance(value, np.ndarray) else len(value) if isinstance(value, str) else 1


def moved(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}
