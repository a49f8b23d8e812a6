"""What a cleaning promises, measured on the data as they were written and opened again."""

from typing import Any

import numpy as np

from ...operation import Result
from .copies import Owners, repeated
from .flat import flat
from .reading import batches, column_of
from .settings import Settings


def documents_lost(settings: Settings, inputs: dict[str, Any], result: Result) -> float:
    """How many of those that came in are neither there nor among the removed."""
    assert result.data is not None and result.report is not None
    return float(len(inputs["data"].records) - len(result.data.records) - sum(result.report["removed"].values()))


def copies_kept(settings: Settings, inputs: dict[str, Any], result: Result) -> float:
    """How many stand twice in what was kept."""
    assert result.data is not None
    column, seen, found = column_of(inputs["data"].records, settings.text), Owners(), 0
    for batch in batches(result.data.records, column):
        texts = flat([record[column] for record in batch.records])
        found += int((repeated(seen, texts.hashes(texts.whole), np.asarray(batch.rows)) >= 0).sum())
    return float(found)
