"""What an operation is: settings, what it takes and gives, a function, and promises that are measured each time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from .data import Data, Record

if TYPE_CHECKING:  # an operation on data alone runs without torch
    from torch import Tensor

    from .model import Model
    from .stored import Stored


class Settings(BaseModel):
    """Flat and frozen. From it come the command line, the Python call, the recipe step and the reference page."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def changed(self, name: str) -> bool:
        """Whether this setting is another than its default."""
        return getattr(self, name) != type(self).model_fields[name].default


@dataclass(frozen=True)
class Finding:
    """Something the doctor saw: its name, the figures that show it, and what cures it."""

    name: str
    evidence: str
    cure: str


@dataclass(frozen=True)
class Part:
    """Some of the records that an operation gives, by their rows in the data that came in, and of those that it took out, each with
    why in its fields `removed_...`. A record holds the fields that were changed; the others are those of the row."""

    rows: list[int]
    kept: list[Record]
    removed: list[Record]
    state: "Callable[[], tuple[dict[str, Tensor], dict[str, Any]]] | None" = None
    """What the operation goes on from behind this part, to be asked for before the next one: tensors and facts, as the log
    keeps them."""


@dataclass
class Result:
    """What an operation hands back to the runner."""

    model: "Model | None" = None
    stored: "Stored | None" = None
    """In place of a model what was written tensor by tensor, where the operation was done at rest."""

    records: list[Record] | None = None
    parts: Iterator[Part] | None = None
    """New data, part by part, so that they never lie in memory whole. `report` and `bars` are filled in when the last has come."""

    data: Data | None = None
    removed: Data | None = None
    """The same when the runner has written and opened them again."""

    report: dict[str, Any] | None = None
    """What an operation found that only looks: a measurement, or whatever it finds with a `summary` of one line."""

    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    charts: list[str] = field(default_factory=list)
    """Drawings of a report, as SVG, for its page."""

    bars: dict[str, dict[str, float]] = field(default_factory=dict)
    """{what was measured: {part of the model: value}}, to be drawn."""

    pace: dict[str, Any] = field(default_factory=dict)
    """Of a training: its speed, and the share of the machine's peak."""


@dataclass(frozen=True)
class Promise:
    """A named check with a measured value and a bound. `measure`: (settings, inputs, result) -> value, or None where it
    does not apply to this model."""

    text: str
    sense: Literal["at most", "at least"]
    bound: float
    measure: Callable[[Any, dict[str, Any], Result], float | None]


STAGES = ("design", "weights", "repair", "format")
"""The order in which a chain that makes a model smaller goes: another, smaller net; fewer numbers in the same net; what these
lost, learnt back; the numbers in fewer bits."""


@dataclass(frozen=True)
class Way:
    """One way in which an operation helps to make a model smaller, for a search to try. `choices`: {setting: values, the
    likeliest first}, any of which go together. `role`: the input that the model made so far is; a further model that the
    operation takes is the one that the chain began with. A chain holds one way of a stage at most."""

    stage: Literal["design", "weights", "repair", "format"]
    choices: dict[str, tuple[Any, ...]]
    role: str = "model"
    alone: bool = True
    """Whether its result is of use before anything repairs it: else it is tried in chains only."""


@dataclass(frozen=True)
class Operation:
    """`takes`: {input: kind}, a kind being `model` or `data`, with `?` behind it where it may be left out; or `data to
    answer`, records that need no answers; or `data whole`, records of which each is a whole document; or `body`, a folder that
    the settings `family`, `new_head` and `seed` say how to open. The first model is the one that the operation is done to.
    `gives`: `model`, `data`, `records` or `report`."""

    name: str
    settings: type[Settings]
    takes: dict[str, str]
    gives: Literal["model", "data", "records", "report"]
    apply: Callable[..., Result]
    """(settings, log, **inputs) -> Result. Touches no disk, no command line, no globals."""

    promises: tuple[Promise, ...] = ()
    shrinks: tuple[Way, ...] = ()
    """How a search may use it to make a model smaller; empty where it does not."""

    at_rest: Callable[..., Iterator[tuple[str, "Tensor"]]] | None = None
    """(settings, log, **models as `Stored`) -> each tensor of the result, under the names of the first: how it is done where
    no data are given. No net is opened then, so that a model may be larger than the memory, and nothing is measured but
    the promises."""


class Log(Protocol):
    """What the runner gives an operation to speak through, and to keep its state by while it works."""

    def progress(self, done: int, total: int, text: str = "") -> None: ...

    def warn(self, text: str) -> None: ...

    def save_state(self, tensors: dict, facts: dict) -> None:
        """Keep the state of unfinished work; replaces the one before, whole or not at all."""

    def load_state(self) -> tuple[dict, dict] | None:
        """The state that an interrupted run of the same work left; None at the first start."""


class Quiet:
    """A log that says nothing and keeps its state in memory: for tests and for use as a library."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.state: tuple[dict, dict] | None = None

    def progress(self, done: int, total: int, text: str = "") -> None:
        pass

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def save_state(self, tensors: dict, facts: dict) -> None:
        self.state = ({name: value.clone() for name, value in tensors.items()}, facts)

    def load_state(self) -> tuple[dict, dict] | None:
        return self.state


__all__ = ["Data", "Finding", "Log", "Operation", "Part", "Promise", "Quiet", "Result", "Settings", "Way"]
