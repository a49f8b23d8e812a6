"""What a runtime is: where it keeps what it executes, in which precisions, how that is made and how it is opened."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from .data import Records
from .family import Session
from .model import Model
from .operation import Log

Precision = Literal["fp32", "fp16", "bf16", "int8", "int4"]
ALLOWED: dict[Precision, float] = {"fp32": 1e-4, "fp16": 0.05, "bf16": 0.05, "int8": 0.25, "int4": 0.5}
"""How much the outputs may differ from the original's in fp32, relative to the largest of them."""


class Choice(Protocol):
    """How a model is written for a runtime."""

    @property
    def precision(self) -> Precision: ...

    @property
    def opset(self) -> int: ...

    @property
    def model_fields_set(self) -> set[str]:
        """What was said, and not left to the default."""
        ...


@dataclass(frozen=True)
class Runtime:
    """`artefact`: the file by which it knows its model folders. `precisions`: what it can be asked to compute in. `opsets`: the
    versions of ONNX that it reads, none where it reads another format."""

    name: str
    artefact: str
    precisions: tuple
    opsets: range
    make: Callable[[Model, Records, Choice, Log], Session]
    """(model, records to look at, choice, log) -> what executes it. The model is as it was before. Refusal for a net that the
    runtime has no way to compute."""

    open: Callable[[Path], Session]
    """A model folder that holds the artefact -> what executes it; BadInput where it cannot be run."""

    elsewhere: bool = False
    """Whether what it makes is meant for other machines than this: how fast it is here says nothing then."""
