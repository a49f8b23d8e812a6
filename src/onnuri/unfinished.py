"""Long work that is kept while it goes on, so that the same command takes it up where it was interrupted or killed."""

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from .answers import jsonable
from .data import Record
from .files import is_main_process
from .operation import Log

if TYPE_CHECKING:
    from torch import Tensor

EVERY = 30.0  # seconds
SHARE = 30  # times as long as saving took is worked before the next one: about 3 % of the time at most


class Saving:
    """When to save: `every` so many seconds, more seldom where saving takes long; 0: always."""

    def __init__(self, every: float = EVERY):
        self.every = self.wait = every
        self.last = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self.last >= self.wait

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Inside, the state is saved."""
        began = time.monotonic()
        yield
        self.last = time.monotonic()
        if self.every:
            self.wait = max(self.every, SHARE * (self.last - began))


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Inside, the first Ctrl-C is put into the list that is given, so that the step at hand can end and be kept; the
    second one interrupts at once."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught  # signals reach the main thread alone
        return
    before = signal.getsignal(signal.SIGINT)

    def catch(number: int, frame: Any) -> None:
        caught.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, catch)
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, before)


Answering = Callable[[range], tuple[Sequence[Record], Mapping[str, float]]]
"""The numbers of some questions -> their answers, and what was counted on the way."""


def answered(total: int, at_once: int, answering: Answering, log: Log, doing: str) -> tuple[list[Record], Counter[str]]:
    """The answers to all questions, as values that JSON can hold, and the sums of what was counted. Those that an interrupted run
    of the same work kept are not given anew."""
    rows, counts = kept(log)
    saving = Saving()
    log.progress(len(rows), total, doing)
    with interruptible() as interrupted:
        for start in range(len(rows), total, at_once):
            found, counted = answering(range(start, min(start + at_once, total)))
            rows += [{name: jsonable(value) for name, value in row.items()} for row in found]
            counts.update(counted)
            log.progress(len(rows), total, doing)
            if saving.due() or interrupted:
                with saving.timed():
                    keep(rows, counts, log)
            if interrupted:
                raise KeyboardInterrupt
    return rows, counts


def keep(rows: list[Record], counts: Counter[str], log: Log) -> None:
    if is_main_process():
        text = "\n".join(json.dumps(row) for row in rows).encode()
        log.save_state({"rows": tensor_of(text)}, {"counts": counts})


def kept(log: Log) -> tuple[list[Record], Counter[str]]:
    found = log.load_state()
    if found is None:
        return [], Counter()
    tensors, facts = found
    return [json.loads(line) for line in bytes_of(tensors["rows"]).splitlines()], Counter(facts["counts"])


def tensor_of(content: bytes | np.ndarray) -> "Tensor":
    """Bytes, or those of an array, as a state holds them."""
    import torch

    return torch.from_numpy(np.frombuffer(content, np.uint8).copy())


def bytes_of(tensor: "Tensor") -> bytes:
    return tensor.numpy().tobytes()
