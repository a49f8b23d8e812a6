"""Clean documents: judge, mask, remove copies and what an evaluation set holds, each removal with its reason.

Documents are read in batches and decided on in their order, so that no more of them than some batches is ever in memory; what is
kept of those before are 12 bytes for each key: one key for each document and each long line, and one for each band of a signature.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from ...data import Data
from ...errors import BadInput, BadSettings
from ...operation import Log, Operation, Part, Promise, Result
from .copies import Held
from .deciding import Memory, decided
from .judging import Judged, held_of, judged_ahead
from .promises import copies_kept, documents_lost, held_out_kept
from .reading import FIRST, batches, column_of, text_columns
from .scores import Tally
from .settings import Settings, require_effect, resolved


def apply(settings: Settings, log: Log, data: Data, against: Data | None = None) -> Result:
    """The documents that are left, in their order, and those that were removed; both come batch by batch."""
    if against is None and settings.changed("overlap"):
        raise BadSettings("'overlap' has no effect without an evaluation set", hint="--against DATA, or leave it out")
    if data.official:
        raise BadInput(
            f"{data.name} is divided; what is to be evaluated would be mixed with what is learnt",
            hint="--data the table to learn from, --against the one to evaluate with",
        )
    column = column_of(data.records, settings.text)
    chosen = resolved(settings, data.records, column)
    require_effect(chosen)
    held = held_of(against, chosen) if against is not None else None
    tally = Tally(chosen, data.records, column)
    return Result(parts=parts(chosen, log, data, column, held, tally), report=tally.report, bars=tally.bars)


def parts(settings: Settings, log: Log, data: Data, column: str, held: Held | None, tally: Tally) -> Iterator[Part]:
    """From the first document on, or from where an interrupted run kept its state."""
    memory, first = Memory(), range(FIRST)
    if kept := log.load_state():
        memory.take_up(kept[0])
        tally.take_up(kept[1]["tally"])
        first = range(*kept[1]["together"])
    columns = [column, *(name for name in text_columns(data.records) if name != column)]
    new = (batch for batch in batches(data.records, column, first) if batch.rows.start >= tally.read)
    for batch in judged_ahead(settings, columns, held, new):
        found = decided(batch, column, memory, settings)
        tally.add(batch, found)
        log.progress(batch.rows.stop, len(data.records), f"{tally.kept:,} kept")
        yield replace(found.part, state=partial(state, batch, memory, tally))
    tally.finish()
    if not tally.kept:
        raise BadInput(f"nothing is left of {tally.read:,} documents: {tally.reasons_text()}", hint=tally.advice())


def state(batch: Judged, memory: Memory, tally: Tally) -> tuple[dict[str, Any], dict[str, Any]]:
    """What goes on behind this batch."""
    return memory.tensors(), {"tally": tally.facts(), "together": [batch.together.start, batch.together.stop]}


OPERATION = Operation(
    "clean",
    Settings,
    {"data": "data whole", "against": "data whole?"},
    "data",
    apply,
    promises=(
        Promise("documents that were neither kept nor removed with a reason", "at most", 0.0, documents_lost),
        Promise("documents kept twice, word for word", "at most", 0.0, copies_kept),
        Promise("documents kept that hold what the evaluation set holds", "at most", 0.0, held_out_kept),
    ),
)
