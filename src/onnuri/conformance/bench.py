"""A place where every operation can be carried out on one family: a tiny model on toy data, made when it is first needed.

The operation that makes models is found, not named: of those that give a model the one that needs none to begin with.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .. import registry
from ..errors import Refusal
from ..operation import Operation
from ..run import execute

SMALL = {"steps": 6, "batch_size": 16, "size": 0.5, "tokens": 2, "nets": 3, "amounts": 2}
"""Settings that make any operation quick; each operation gets those that it knows."""


@cache
def maker() -> str:
    """The name of the operation whose model is optional: it starts new ones."""
    for name in registry.entries("operations"):
        record = registry.operation(name)
        models = [kind for kind in record.takes.values() if not kind.startswith("data")]
        if record.gives == "model" and models and all(kind.endswith("?") for kind in models):
            return name
    raise Refusal("no operation makes a model from data alone", "install Onnuri's own operations again")


def ordered() -> list[str]:
    """All operations: the one that makes models first, the others as they are registered."""
    return [maker(), *(name for name in registry.entries("operations") if name != maker())]


@dataclass(frozen=True)
class Bench:
    """One family and the folder in which its models lie, each under the name of the operation that gave it."""

    family: str
    folder: Path

    @property
    def model(self) -> Path:
        """The model that operations begin with."""
        place = self.folder / maker()
        return place if place.exists() else self.made(place, self.beginning())

    @property
    def other(self) -> Path:
        """A second model of the same lineage: the first one trained onward with another seed, or, where that is refused,
        another new one."""
        place = self.folder / "other"
        if place.exists():
            return place
        try:
            return self.made(place, {"seed": 1}, model=str(self.model))
        except Refusal:
            return self.made(place, self.beginning() | {"seed": 1})

    def beginning(self) -> dict[str, Any]:
        """The settings by which a new model is made."""
        return {"family": self.family, "config": registry.family(self.family).tiny()}

    def made(self, place: Path, settings: dict[str, Any], **models: str) -> Path:
        record = registry.operation(maker())
        execute(record.name, self.settings(record) | settings, {"data": self.data, **models}, place, quiet=True)
        return place

    @property
    def data(self) -> str:
        return f"toy:{self.family}"

    def settings(self, record: Operation) -> dict[str, Any]:
        """Those of SMALL that the operation knows."""
        return {name: value for name, value in SMALL.items() if name in record.settings.model_fields}

    def inputs(self, record: Operation, model: Path | None = None) -> dict[str, str]:
        """All that an operation needs: the data, `model` or the first one, and the second one for each further role."""
        found: dict[str, str] = {}
        first = next((name for name, kind in record.takes.items() if not kind.startswith("data")), "")
        for role, kind in record.takes.items():
            if role == "data" or kind in ("data", "data?", "data whole"):
                found[role] = self.data
            elif role == first:
                found[role] = str(model or self.model)
            elif not kind.endswith("?"):
                found[role] = str(self.other)
        return found
