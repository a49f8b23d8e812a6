"""What a cleaning promises, measured on the data as they were written and opened again."""

from typing import Any

import numpy as np

from ...operation import Result
from .copies import Owners, earlier
from .flat import flat
from .judging import held_of
from .reading import batches, column_of
from .settings import Settings, resolved


def documents_lost(settings: Settings, inputs: dict[str, Any], result: Result) -> float:
    """How many of those that came in are neither there nor among the removed."""
    assert result.data is not None
    removed = len(result.removed.records) if result.removed else 0
    return float(len(inputs["data"].records) - len(result.data.records) - removed)


def copies_kept(settings: Settings, inputs: dict[str, Any], result: Result) -> float:
    """How many stand twice in what was kept."""
    seen, found = Owners(), 0
    for texts, rows in texts_of(settings, inputs, result):
        keys = texts.hashes(texts.whole)
        found += int((earlier(seen, keys, rows) >= 0).sum())
        seen.first(keys, rows)
    return float(found)


def held_out_kept(settings: Settings, inputs: dict[str, Any], result: Result) -> float | None:
    """How many of what was kept hold what the evaluation set holds."""
    if inputs.get("against") is None:
        return None
    column = column_of(inputs["data"].records, settings.text)
    held = held_of(inputs["against"], resolved(settings, inputs["data"].records, column))
    return float(sum(int((held.rows(texts) >= 0).sum()) for texts, _ in texts_of(settings, inputs, result)))


def texts_of(settings: Settings, inputs: dict[str, Any], result: Result):
    """(texts, their rows) of what was kept, batch by batch."""
    assert result.data is not None
    column = column_of(inputs["data"].records, settings.text)
    for batch in batches(result.data.records, column):
        yield flat([record[column] for record in batch.records]), np.asarray(batch.rows)
