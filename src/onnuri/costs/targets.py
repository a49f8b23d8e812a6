"""Devices that a model may be meant for: their peaks, memory, power and links, each figure with its source.

The known ones stand in `targets.yaml`; a file of one's own has the same shape.
"""

from functools import cache
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import BadInput, propose
from ..plain_yaml import load_yaml

HERE = "here"
FORMATS = ("fp32", "fp16", "bf16", "int8", "int4")
SHORT = {"bf16": "fp16", "fp16": "bf16"}  # one stands for the other: they have the same bytes and mostly the same units
FILE = Path(__file__).parent / "targets.yaml"
Positive = Annotated[float, Field(gt=0)]
"""A figure that a device cannot do without."""


class Target(BaseModel):
    """A device, as `targets.yaml` explains it. `sources`: {figure: where it comes from}."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    title: str
    peaks: dict[str, Positive]
    memory_bytes: Positive
    usable: float = Field(gt=0, le=1)
    bandwidth: Positive
    call_seconds: Positive
    watts: Positive
    link_bandwidth: Positive | None = None
    sources: dict[str, str]

    @model_validator(mode="after")
    def whole(self) -> "Target":
        """Formats are known and fp32 is among them; every figure has a source, and no source is without a figure."""
        figures = {name for name in type(self).model_fields if name not in ("title", "sources")}
        figures -= {"link_bandwidth"} if self.link_bandwidth is None else set()
        unknown = [name for name in self.peaks if name not in FORMATS]
        faults = [f"peaks: '{name}' is no number format; {propose(name, FORMATS)}" for name in unknown]
        faults += ["peaks: fp32 is missing, which stands for whatever is not there"] * ("fp32" not in self.peaks)
        faults += [f"sources: none for '{name}'" for name in sorted(figures) if not self.sources.get(name, "").strip()]
        faults += [f"sources: there is no '{name}'" for name in sorted(set(self.sources) - figures)]
        if faults:
            raise ValueError("\n".join(faults))
        return self

    @property
    def room(self) -> float:
        """Bytes that one process may take."""
        return self.usable * self.memory_bytes

    def peak(self, form: str) -> float:
        """Operations a second in a number format; one that the device lacks is computed in the other short float, else
        in fp32."""
        return next(self.peaks[name] for name in (form, SHORT.get(form, ""), "fp32") if name in self.peaks)


def find(name: str) -> Target:
    """The target of that name, or the one that the file describes. BadInput with all that is wrong with it."""
    if name in known():
        return known()[name]
    path = Path(name)
    if not path.is_file():
        what = "there is no such file" if path.suffix in (".yaml", ".yml") else "no target and no file has that name"
        raise BadInput(f"target '{name}': {what}; {propose(name, [HERE, *known()])}", hint="--target raspberry-pi-5")
    return parsed(load_yaml(path, "target"), str(path))


@cache
def known() -> dict[str, Target]:
    """{name: target} of those that come with the package."""
    found = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return {name: parsed(value, name) for name, value in found.items()}


def parsed(value: dict[str, Any], where: str) -> Target:
    try:
        return Target.model_validate(value)
    except ValidationError as error:
        faults = [line for entry in error.errors() for line in fault_of(entry).splitlines()]
        raise BadInput(
            *(f"{where}: {fault}" for fault in faults),
            hint="the blocks of targets.yaml in the package show what is wanted",
        ) from None


def fault_of(entry: Any) -> str:
    """One fault in words."""
    place = ".".join(map(str, entry["loc"]))
    if entry["type"] == "value_error":
        return str(entry["ctx"]["error"])
    said = {
        "missing": "is missing",
        "extra_forbidden": f"is no figure of a target; {propose(place, Target.model_fields)}",
    }
    wrong = f"{entry['msg'].replace('Input should be', 'must be')}, found {str(entry['input'])[:60]!r}"
    return f"'{place}' {said.get(entry['type'], wrong)}"
