"""The points of a search: recipes that lie beside the result, run step by step, and what was measured of each.

`points/NNN.yaml` is the recipe, run in `work`, where points share the steps that they begin with; `points/NNN.json` is what
was measured on the validation split. A point is known by its chain, the model, the data and the version of this program.
"""

import json
import os
import time
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from .. import __version__, ledger
from ..errors import BadSettings, BrokenPromise, Refusal
from ..figures import finite
from ..files import write_text
from ..recipe import carried_out, check_settings, fingerprint, finished, read_recipe
from .proposals import Chain, text_of


@dataclass(frozen=True, eq=False)
class Point:
    """A chain that was tried: what was measured on the validation split, or the `fault` that kept it from being made, and
    whether that was a refusal, which other settings would not change."""

    number: int
    key: str
    chain: str
    operations: tuple[str, ...]
    measured: dict[str, Any]
    fault: str = ""
    refused: bool = False
    tensors: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Place:
    """What is shrunk, with what, and where it goes."""

    model: str
    data: str
    options: dict[str, Any]
    out: Path
    quiet: bool

    @property
    def work(self) -> Path:
        return self.out / "work"

    def path(self, number: int, ending: str = "yaml") -> Path:
        return self.out / "points" / f"{number:03d}.{ending}"

    def result(self, number: int) -> Path:
        """The folder of the model that a point's recipe ends with."""
        return self.work / read_recipe(str(self.path(number)), {}).steps[-1].name


def absolute(source: str) -> str:
    """A path that means the same from every folder."""
    return str(Path(source).resolve()) if os.path.lexists(source) else source


def score_of(measured: dict[str, Any]) -> float:
    return float(measured["scores"][measured["headline"][0]])


def digest_of(**facts: Any) -> str:
    return sha256(ledger.canonical(facts).encode()).hexdigest()


@dataclass
class Field:
    """The points of one model on one set of data: those that are `known`, by key, and how one more is made. `base`: the key
    of what they all start from; `original`: point 0."""

    place: Place
    base: str
    validation: Any
    original: Point
    known: dict[str, Point]

    @classmethod
    def opened(cls, place: Place) -> "Field":
        """The field with everything that earlier runs left in its folder."""
        from ..sources import open_data

        validation = open_data(place.data, **place.options).split("validation")
        base = digest_of(
            model=fingerprint(place.model), data=fingerprint(place.data), options=place.options, version=__version__
        )
        field = cls(place, base, validation, Point(0, base, "", (), {}), stored(place))
        if base not in field.known:
            field.keep(replace(field.original, measured=field.measured(Path(place.model))))
        field.original = field.known[base]
        return field

    def key(self, chain: Chain) -> str:
        return digest_of(base=self.base, chain=[asdict(move) for move in chain])

    def point(self, chain: Chain) -> tuple[Point, bool]:
        """(what is known of a chain, whether it was made now)."""
        key = self.key(chain)
        if key in self.known:
            return self.known[key], False
        number = 1 + max((point.number for point in self.known.values()), default=0)
        began, operations = time.perf_counter(), tuple(move.operation for move in chain)
        point = Point(number, key, text_of(chain), operations, {})
        write_text(self.place.path(number), recipe_text(chain, self.place, number))
        try:
            tensors = made(self.place, number)[-1]["output"]["tensors"]
            point = replace(point, measured=self.measured(self.place.result(number)), tensors=tensors)
        except (Refusal, BadSettings, BrokenPromise) as error:
            point = replace(point, fault="; ".join(error.faults), refused=isinstance(error, Refusal))
        return self.keep(replace(point, seconds=round(time.perf_counter() - began, 2))), True

    def measured(self, folder: Path) -> dict[str, Any]:
        """The measurement on the validation split. Refusal where the score is no number."""
        from ..measure import measure
        from ..model import open_model
        from ..run import limited_warnings

        with limited_warnings():
            model = open_model(folder)
            model.check(self.validation)
            found = measure(model, self.validation)
        if finite(score_of(found)) is None or not found["bytes"]:
            raise Refusal("its score on the validation split is no number", "more rows")
        return found

    def keep(self, point: Point) -> Point:
        """Put a point on the disk."""
        path = self.place.path(point.number, "json")
        write_text(path, json.dumps(asdict(point), indent=1, ensure_ascii=False) + "\n")
        self.known[point.key] = point
        return point


def stored(place: Place) -> dict[str, Point]:
    """The points that are on the disk, by key. One that cannot be read is none."""
    found: dict[str, Point] = {}
    for path in sorted((place.out / "points").glob("*.json")):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            point = Point(**{**facts, "operations": tuple(facts["operations"])})
            found[point.key] = point
        except (ValueError, TypeError, KeyError, OSError):
            continue
    return found


def recipe_text(chain: Chain, place: Place, number: int) -> str:
    """The recipe of a chain. A step is named after all that leads to it, so that points share steps."""
    steps: dict[str, Any] = {}
    before = place.model
    for count, move in enumerate(chain):
        digest = digest_of(chain=[asdict(one) for one in chain[: count + 1]])
        inputs = {role: before if which == "" else place.model for role, which in move.inputs.items()}
        before = f"{move.operation}-{digest[:10]}"
        steps[before] = {move.operation: {**inputs, **move.settings}}
    text = {"name": f"point-{number:03d}", "data": place.data, **place.options, "steps": steps}
    return yaml.safe_dump(text, sort_keys=False, allow_unicode=True)


def made(place: Place, number: int) -> list[dict[str, Any]]:
    """The ledger lines of a point's steps, after running those that are not done."""
    recipe = read_recipe(str(place.path(number)), {})
    check_settings([step for step in recipe.steps if not finished(step, place.work)])
    return carried_out(recipe, place.work, True)
