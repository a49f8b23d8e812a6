"""What the checks of a family look at: a tiny model of it on toy data, stirred, written and read again.

A check is a function from a Subject to a line that says what was measured; it raises BrokenPromise when a fact is false.
The toy data's answer is renamed, so that a family that knows only its own name for it is found out.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import Record, Records, records_of
from ..errors import BrokenPromise, OnnuriError
from ..family import Batch, Family
from ..fit.loop import FitSettings, fit
from ..fit.objective import objective_of
from ..hub import guarded
from ..model import Model
from ..operation import Quiet

NUM_RECORDS = 64
ANSWER = "the answer"
"""The name of the answer in the data that a family is checked with."""

TOLERANCE = 1e-4
"""Relative: sums in fp32 in another order, as batches of another size make them, stay well below it."""

STIRRED = 0.1
"""Relative: how far each number of a net is moved before it is written, so that none is what a new net would have."""


@dataclass(frozen=True)
class Check:
    """One check and its outcome. `text`: what was measured, or what is wrong."""

    subject: str
    name: str
    passed: bool
    text: str
    seconds: float


class Subject:
    """A family under test. `folder` is its own to write in."""

    def __init__(self, family: Family, folder: Path):
        self.family, self.folder = family, folder

    @cached_property
    def records(self) -> Records:
        return renamed(self.family.toy(NUM_RECORDS, 0))

    @cached_property
    def rows(self) -> list[Record]:
        return self.records.list()

    def new(self, seed: int = 0, records: Records | None = None, **config: Any) -> Model:
        """A new tiny model, on these records or on the toy's."""
        generator = torch.Generator().manual_seed(seed)
        family = self.family
        return Model(family, *family.start({**family.tiny(), **config}, records or self.records, generator))

    @cached_property
    def model(self) -> Model:
        """A model whose every number differs from a new one's. No check changes it."""
        model = self.new()
        trained(model, self.records, steps=4)
        stir(model)
        return model

    @cached_property
    def written(self) -> Path:
        """The folder that the family wrote `model` into."""
        path = self.folder / "written"
        path.mkdir()
        self.family.write(self.model.net, self.model.assets, path, True)
        return path

    @cached_property
    def described(self) -> Path:
        """The same without the weights."""
        path = self.folder / "described"
        path.mkdir()
        self.family.write(self.model.net, self.model.assets, path, False)
        return path

    @cached_property
    def reopened(self) -> Model:
        return Model(self.family, *guarded(self.family.read, self.written, False))


def renamed(records: Records) -> Records:
    """The records with their answer under another name, in memory."""
    if records.answer is None:
        raise BrokenPromise("toy() must say which field is the answer")
    names = {name: ANSWER if name == records.answer else name for name in records.fields}
    rows = [{names[name]: value for name, value in record.items()} for record in records]
    return records_of(rows, {names[name]: kind for name, kind in records.fields.items()}, ANSWER)


def trained(model: Model, records: Records, **settings: Any) -> None:
    """Train a model on records by the only loop; one that follows no gradient stays as it is."""
    if model.players:
        fit(objective_of(model), records, None, FitSettings(**{"batch_size": 16, **settings}), Quiet(), True)


@torch.no_grad()
def stir(model: Model) -> None:
    """Move every parameter and every buffer that is stored. Buffers that are not stored are derived from the config or
    from the data; moved by hand they would rightly come back as they were."""
    generator = torch.Generator().manual_seed(1)
    for value in {id(value): value for value in model.net.state_dict(keep_vars=True).values()}.values():
        if isinstance(value, Tensor) and value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator).to(value)
            value.mul_(1 + STIRRED * noise).add_(STIRRED**2 * noise)


# ------------------------------------------------------------------------------------------------------------- carrying out


def carry_out(subject: str, checks: dict[str, Callable[[Any], str]], about: Any) -> Iterator[Check]:
    """Every check, one after the other; one that fails does not keep the others from being run."""
    for name, check in checks.items():
        began = time.perf_counter()
        try:
            passed, text = True, check(about)
        except OnnuriError as error:
            passed, text = False, str(error)
        except Exception as error:  # a stranger's code may raise anything, and that is a finding
            passed, text = False, f"{type(error).__name__}: {(str(error) or 'no reason given').splitlines()[0]}"
        yield Check(subject, name, passed, text, time.perf_counter() - began)


def require(condition: Any, text: str) -> None:
    """BrokenPromise with `text` unless the condition holds."""
    if not condition:
        raise BrokenPromise(text)


# ---------------------------------------------------------------------------------------------------------------- comparing


def gap(one: Tensor, other: Tensor) -> float:
    """The largest absolute difference, relative to the largest value of `one` (at least 1); infinite where shapes differ,
    or where only one is a number."""
    if one.shape != other.shape:
        return float("inf")
    if not one.numel():
        return 0.0
    one, other = one.detach().double(), other.detach().double()
    size = one.abs().nan_to_num(0, 0, 0).max().clamp_min(1)
    alike = (one == other) | (one.isnan() & other.isnan())
    return float((torch.where(alike, 0.0, (one - other).abs()) / size).nan_to_num(float("inf")).max())


def batch_gap(one: Batch, other: Batch) -> float:
    """The largest `gap` of two batches' entries; infinite where one lacks an entry."""
    return float("inf") if one.keys() != other.keys() else max([gap(one[name], other[name]) for name in one], default=0)


def unlike(one: Any, other: Any, tolerance: float = TOLERANCE) -> bool:
    """Whether two values of records differ. Numbers may by the tolerance, pixels by one step of brightness."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() != other.keys() or any(unlike(one[name], other[name], tolerance) for name in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) != len(other) or any(unlike(a, b, tolerance) for a, b in zip(one, other))
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        step = 1 if one.dtype == np.uint8 and tolerance else tolerance * max(1.0, np.abs(one).max(initial=0))
        apart = one.shape == other.shape and np.abs(one.astype(np.float64) - other.astype(np.float64))
        return one.shape != other.shape or bool(np.max(apart, initial=0) > step)
    if isinstance(one, float) and isinstance(other, (int, float)):
        return not (
            one == other or abs(one - other) <= tolerance * max(1.0, abs(one)) or (one != one and other != other)
        )
    return one is not other and (type(one) is not type(other) or one != other)


# ------------------------------------------------------------------------------------------------------------ chance


@contextmanager
def chance(seed: int) -> Iterator[None]:
    """Inside, what draws from a global random state gets the numbers of `seed`; the states are then put back."""
    states = np.random.get_state(), random.getstate()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        yield
    np.random.set_state(states[0])
    random.setstate(states[1])
