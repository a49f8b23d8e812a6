"""What can be set of a cleaning."""

import math
from typing import Literal

import numpy as np
from pydantic import Field, field_validator

from ...data import Records
from ...errors import BadSettings, propose
from ...operation import Settings as Base
from .personal import KINDS
from .reading import read
from .rules import RULES, chosen


def is_bound(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


MASKED = ",".join(kind for kind in KINDS if kind != "name")
SAMPLE, LONG = 1000, 40  # documents looked at, and how many words half of them must have to be pages


class Settings(Base):
    text: str = Field("", description="the column of the texts; found by itself where there is one")
    rules: Literal["auto", "web", "short", "none"] = Field(
        "auto",
        description="rules of quality: web has Gopher's, C4's and FineWeb's, short those that a review or a message can "
        "keep; auto: short where half of the documents have fewer than 40 words",
    )
    limits: dict = Field({}, description="other bounds of rules, as words=20,short_lines=0.8; names: see the report")
    languages: Literal["all", "ko,en", "ko", "en"] = Field("ko,en", description="languages that are kept")
    mask: str = Field(MASKED, description=f"personal data to mask, of {', '.join(KINDS)}; '' for none")
    lines: bool = Field(True, description="leave out long lines that stand in an earlier document")
    bands: int = Field(14, ge=0, le=64, description="near copies: bands of a MinHash signature; 0 looks for none")
    rows: int = Field(8, ge=1, le=64, description="near copies: numbers in a band, all of which must be equal")
    shingle: int = Field(5, ge=1, le=32, description="near copies: words in a row that are compared as one")
    overlap: int = Field(13, ge=3, le=64, description="so many words in a row, also in --against, take a document out")

    @field_validator("mask")
    @classmethod
    def known_kinds(cls, value: str) -> str:
        wrong = [kind for kind in value.split(",") if kind and kind not in KINDS]
        if wrong:
            raise ValueError(f"no personal data is called {', '.join(map(repr, wrong))}; known: {', '.join(KINDS)}")
        return value

    @field_validator("limits")
    @classmethod
    def known_rules(cls, value: dict) -> dict:
        names = [rule.name for rule in RULES]
        faults = [f"there is no rule '{name}'; {propose(name, names)}" for name in value if name not in names]
        faults += [
            f"'{name}' must be a number, found {limit!r}"
            for name, limit in value.items()
            if name in names and not is_bound(limit)
        ]
        if faults:
            raise ValueError("; ".join(faults))
        return value

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(kind for kind in self.mask.split(",") if kind)


def resolved(settings: Settings, records: Records, column: str) -> Settings:
    """With `auto` made plain."""
    if settings.rules != "auto":
        return settings
    some = records.some(SAMPLE)
    words = [len(record[column].split()) for record in read(some, range(len(some))).records]
    return settings.model_copy(update={"rules": "web" if words and np.median(words) >= LONG else "short"})


def require_effect(settings: Settings) -> None:
    """BadSettings for what could change nothing. `settings`: with `auto` made plain."""
    known = [rule.name for rule in chosen(settings.rules, {})]
    faults = [
        f"'limits' has no effect on '{name}': that is no rule of the set '{settings.rules}'"
        for name in settings.limits
        if name not in known
    ]
    faults += [
        f"'{name}' has no effect where no near copies are looked for"
        for name in ("rows", "shingle")
        if not settings.bands and settings.changed(name)
    ]
    if faults:
        raise BadSettings(*faults, hint=f"leave it out; the rules are {', '.join(known) or 'none'}")
