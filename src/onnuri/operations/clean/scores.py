"""What a cleaning found, added up while it goes: counts, and scores of how accurate, unique, recent and balanced the data are.

accuracy: the share of documents that break no rule, are in a language asked for, and could be read. uniqueness: of those the
share that is no copy. timeliness: of the kept documents that name a year, in a column of dates or in the text, the share that
names one of the last five. balance: of the languages and of each column of classes, the entropy over the largest possible one, 1
where all are as frequent. Each lies between 0 and 1; the last two say None where there is nothing to go by.
"""

import math
import re
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import numpy as np

from ...data import ANSWER_NAMES, Records
from .deciding import LONG_LINE, Decided
from .judging import Judged, orders
from .language import LANGUAGES
from .rules import chosen
from .settings import Settings

COPIES = ("copy", "near_copy")
DATES = ("date", "time", "timestamp", "published", "created", "year", "datetime", "날짜", "일자", "작성일", "등록일")
YEAR = re.compile(r"(?<!\d)(?:19|20)\d\d(?=년|[-./]\d{1,2}(?!\d))")
YEAR_ALONE = re.compile(r"(?<!\d)(?:19|20)\d\d(?!\d)")
RECENT, CLASSES = 5, 50
EXAMPLES, SHOWN = 2, 120  # of each reason, and characters of each
SUMS = ("read", "kept", "characters_read", "characters_kept")
COUNTERS = ("reasons", "edits", "years", "lengths", "languages")


class Tally:
    """The sums, and the `report` that is filled in when all has been seen."""

    def __init__(self, settings: Settings, records: Records, column: str):
        self.settings, self.column, self.today = settings, column, datetime.now(UTC).year
        self.report, self.bars = dict[str, Any](), dict[str, dict[str, float]]()
        self.read = self.kept = self.characters_read = self.characters_kept = 0
        self.reasons, self.edits, self.years = Counter[str](), Counter[str](), Counter[int]()
        self.lengths, self.languages = Counter[int](), Counter[str]()
        self.examples: dict[str, list[dict[str, str]]] = {}
        self.dates = next((name for name in records.fields if name.lower() in DATES), "")
        self.classes: dict[str, Counter[str]] = {
            name: Counter()
            for name, kind in records.fields.items()
            if name != column and (kind == "category" or name.lower() in ANSWER_NAMES)
        }

    def facts(self) -> dict[str, Any]:
        """The sums as JSON holds them; as a key of JSON a number would be a text."""
        sums = {name: getattr(self, name) for name in SUMS}
        counters = {name: list(getattr(self, name).items()) for name in COUNTERS}
        classes = {name: list(counts.items()) for name, counts in self.classes.items()}
        return {**sums, **counters, "examples": self.examples, "classes": classes}

    def take_up(self, facts: dict[str, Any]) -> None:
        for name in SUMS:
            setattr(self, name, facts[name])
        for name in COUNTERS:
            setattr(self, name, Counter(dict(facts[name])))
        self.examples = facts["examples"]
        self.classes = {name: Counter(dict(pairs)) for name, pairs in facts["classes"].items()}

    def add(self, batch: Judged, decided: Decided) -> None:
        lengths = np.diff(batch.texts.starts)
        stays = np.ones(len(lengths), bool)
        stays[list(decided.reasons)] = False
        self.read += len(lengths)
        self.kept += len(decided.part.kept)
        self.characters_read += int(lengths.sum())
        self.characters_kept += sum(len(record[self.column]) for record in decided.part.kept)
        self.lengths += Counter(np.log2(np.maximum(lengths[stays], 1)).astype(int).tolist())
        self.languages += Counter(LANGUAGES[code] for code in batch.languages[stays].tolist())
        for place, counts in batch.counts.items():
            self.edits += counts if stays[place] else Counter()
        self.edits["documents with repeated lines"] += decided.shortened
        for one in decided.part.removed:
            self.reasons[one["removed_reason"]] += 1
            some = self.examples.setdefault(one["removed_reason"], [])
            if len(some) < EXAMPLES:
                some.append({"detail": one["removed_detail"], "text": one[self.column][:SHOWN]})
        for place in np.flatnonzero(stays).tolist():
            self.look(batch.records[place])

    def look(self, record: dict[str, Any]) -> None:
        """Years and classes of a document that is kept."""
        where, form = (str(record[self.dates]), YEAR_ALONE) if self.dates else (record[self.column], YEAR)
        if "19" in where or "20" in where:
            past = [year for year in map(int, form.findall(where)) if year <= self.today]
            self.years += Counter([max(past)] if past else ())
        for name, counts in self.classes.items():
            if len(counts) <= CLASSES:
                counts[str(record[name])] += 1

    # ------------------------------------------------------------------------------------------------- what is said of it

    def finish(self) -> None:
        """Fill in the report."""
        removed = dict(self.reasons.most_common())
        asked = self.settings
        self.report.update(
            summary=f"{self.kept:,} of {self.read:,} documents kept, {self.characters_kept:,} characters",
            documents={"read": self.read, "kept": self.kept, "removed": self.read - self.kept},
            characters={"judged": self.characters_read, "kept": self.characters_kept},
            removed=removed,
            edited={name: count for name, count in self.edits.items() if count},
            rules={
                "set": asked.rules,
                "bounds": {rule.name: bounds(rule) for rule in chosen(asked.rules, asked.limits)},
            },
            repeated_lines_from=LONG_LINE if asked.lines else None,
            near_copies_from=round(orders(asked).likeness, 3) if asked.bands else None,
            languages=dict(self.languages.most_common()),
            scores=self.scores(),
            years={str(year): count for year, count in sorted(self.years.items())},
            examples=self.examples,
        )
        self.bars.update(self.drawn())

    def scores(self) -> dict[str, float | None]:
        sound = self.kept + sum(self.reasons[name] for name in (*COPIES, "held_out"))
        unique = sound - sum(self.reasons[name] for name in COPIES)
        columns = {
            name: counts
            for name, counts in self.classes.items()
            if len(counts) <= CLASSES and len(counts) < counts.total() / 2
        }
        found = {
            "accuracy": sound / max(self.read, 1),
            "uniqueness": unique / max(sound, 1),
            "timeliness": recent(self.years, self.today),
            "balance, language": balance(self.languages),
            **{f"balance, {name}": balance(counts) for name, counts in columns.items()},
        }
        return {name: None if value is None else round(value, 4) for name, value in found.items()}

    def drawn(self) -> dict[str, dict[str, float]]:
        """What is drawn: the reasons, and how long the documents are that stay."""
        lengths = {
            f"up to {2 ** (power + 1):,} characters": float(self.lengths[power]) for power in sorted(self.lengths)
        }
        removed = {name: float(count) for name, count in self.reasons.most_common()}
        return {name: bars for name, bars in (("documents removed", removed), ("documents kept", lengths)) if bars}

    def reasons_text(self) -> str:
        return ", ".join(
            f"{count:,} for {name} ({self.examples[name][0]['detail']})" for name, count in self.reasons.most_common()
        )

    def advice(self) -> str:
        """What would keep more, of the reason that took most."""
        name = self.reasons.most_common(1)[0][0]
        if name == "language":
            return "--languages all"
        if name in {rule.name for rule in chosen("short", {})}:
            return f"--limits {name}=NUMBER, or --rules none"
        if name in {rule.name for rule in chosen("web", {})}:
            return f"--rules short, or --limits {name}=NUMBER"
        return "other documents"


def bounds(rule: Any) -> str:
    """A rule in words."""
    least = "" if rule.least == -math.inf else f"at least {rule.least:g}"
    korean = "" if rule.korean is None else f" (Korean {rule.korean:g})"
    most = "" if rule.most == math.inf else f"at most {rule.most:g}"
    return f"{', '.join(filter(None, (least + korean, most)))}; {rule.origin}"


def recent(years: Counter[int], today: int) -> float | None:
    """The share of the years that are among the last RECENT."""
    return sum(count for year, count in years.items() if year > today - RECENT) / years.total() if years else None


def balance(counts: Counter[str]) -> float | None:
    """The entropy of the classes over that of as many equal ones (Pielou's evenness)."""
    if len(counts) < 2:
        return None
    shares = np.array(list(counts.values())) / counts.total()
    return float(-(shares * np.log(shares)).sum() / math.log(len(shares)))
