"""Time series: one value of a record as an array, and a table with a row per time step cut into windows.

A window is a record of `past`, what was seen, `future`, what came after it, and `channels`, the names of the columns in
the order of the past: a column that was renamed since is another one. The rows are divided in time, as the
literature does it (Zhou et al. 2021, Informer): train first, then validation, then test. The future of a window lies
wholly in its part; its past may reach back into the part before. A window whose future crosses a border is in no part.
"""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np

from .data import SHARES, SPLITS, Data, Kind, Record, Records
from .errors import BadInput, BadSettings, propose

PAST, FUTURE, CHANNELS = "past", "future", "channels"
TIMES = ("date", "time", "datetime", "timestamp")  # names under which a column of numbers is a clock
LARGEST_GAP = 10  # times the usual step: a month is 1.1 of them, a weekend 3, a holiday 7
FORM = "--window PAST,FUTURE or --window PAST,FUTURE,TRAIN,VALIDATION,TEST, all in rows"


class Window(NamedTuple):
    """Rows seen, rows to come, and the rows of train, validation and test; () divides them by SHARES."""

    past: int
    future: int
    parts: tuple[int, ...]


def windowed(
    name: str, table: Records, option: Any, answer: str | None = None, fields: dict[str, Kind] | None = None
) -> Data:
    """The windows of a table whose rows are the steps of one series, in order: float32 views (times, channels) into one
    array.

    Each column of numbers is a channel, in the table's order but for those of `answer` (NAME or NAME,NAME), which come
    last: they alone are in `future`. Without `answer` all are forecast. `fields` keeps some columns. A column of time
    stamps is checked and left out. With a future of 0 the one window is the newest past, to be answered.

    Raises BadInput for missing values, columns of words, stamps that do not rise or leave a gap, and too few rows.
    """
    window = read_window(option)
    names, forecast = channels_of(table, answer, fields or {})
    check_times(table)
    order = [*(channel for channel in names if channel not in forecast), *forecast]
    steps = array_of(table, names)
    parts = parts_of(name, len(steps), window)
    chosen = cut(steps[:, [names.index(channel) for channel in order]], order, window, len(forecast))
    return Data(name, chosen, parts, cut(steps, names, window, len(names)))


def read_window(option: Any) -> Window:
    """The option as a text or as a list of numbers."""
    words = option.split(",") if isinstance(option, str) else option if isinstance(option, (list, tuple)) else [option]
    try:
        past, future, *parts = [int(str(word)) for word in words]
    except ValueError:
        raise BadSettings(f"a window is two whole numbers, or five; found {option!r}", hint=FORM) from None
    if past < 1 or future < 0 or len(parts) not in (0, 3) or (parts and min(parts) < 1):
        raise BadSettings(f"a window needs a past of 1 or more and a future of 0 or more; found {option!r}", hint=FORM)
    return Window(past, future, tuple(parts))


# -------------------------------------------------------------------------------------------------- columns, time stamps


def channels_of(table: Records, answer: str | None, fields: dict[str, Kind]) -> tuple[list[str], list[str]]:
    """(the columns that are channels, those of them that are forecast)."""
    clock = clock_of(table)
    asked = [answer] if answer in table.fields else [part.strip() for part in (answer or "").split(",")]
    asked = list(dict.fromkeys(filter(None, asked)))
    if missing := [name for name in [*fields, *asked] if name not in table.fields]:
        raise BadInput(*(f"there is no column '{name}'; {propose(name, table.fields)}" for name in missing))
    # in the order of their names: another order of the columns must not be another meaning
    names = sorted(name for name in table.fields if (not fields or name in [*fields, *asked]) and name != clock)
    kinds = table.fields | fields
    faults = [
        f"the column '{name}' holds {kinds[name]}; the channels of a window are numbers"
        for name in names
        if kinds[name] != "number" or table.fields[name] != "number"
    ]
    faults += [f"'{name}' is the clock of this table, it cannot be forecast" for name in asked if name == clock]
    if faults or not names:
        keep = ",".join(f"{name}=number" for name in names if table.fields[name] == "number") or "NAME=number,..."
        raise BadInput(*(faults or ["the table has no column of numbers"]), hint=f"--fields {keep}")
    return names, asked or names


def clock_of(table: Records) -> str | None:
    """The first column that holds time stamps, or numbers under a name that says so."""
    first = table[0]
    for name, kind in table.fields.items():
        if (kind == "number" and name.lower() in TIMES) or (
            isinstance(first[name], str) and seconds(first[name]) is not None
        ):
            return name
    return None


def seconds(stamp: Any) -> float | None:
    """A time stamp in seconds; None where it is none. Dates may be written with -, / or dots."""
    if stamp is None or isinstance(stamp, (int, float)):
        return None if stamp is None else float(stamp)
    try:
        time = datetime.fromisoformat(stamp[:10].replace("/", "-").replace(".", "-") + stamp[10:])
    except ValueError:
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def check_times(table: Records) -> None:
    """BadInput unless the clock, where there is one, rises without a large gap. Months and weekdays are even enough."""
    if (name := clock_of(table)) is None or len(table) < 2:
        return
    stamps = list(table.column(name))
    times = np.array([np.nan if (time := seconds(stamp)) is None else time for stamp in stamps])
    if unread := np.flatnonzero(np.isnan(times)).tolist():
        raise BadInput(f"'{name}' holds no time in {len(unread)} rows, first {stamps[unread[0]]!r} in row {unread[0]}")
    steps = np.diff(times)
    if back := np.flatnonzero(steps <= 0).tolist():
        raise BadInput(
            f"'{name}' does not rise in {len(back)} rows: first {stamps[back[0] + 1]!r} in row {back[0] + 1} after "
            f"{stamps[back[0]]!r}",
            hint=f"sort the rows by '{name}', and put each series into a table of its own",
        )
    if gaps := np.flatnonzero(steps > LARGEST_GAP * np.median(steps)).tolist():
        raise BadInput(
            f"rows are missing in {len(gaps)} places, first between {stamps[gaps[0]]!r} and {stamps[gaps[0] + 1]!r}: "
            "a window must not reach over a gap",
            hint="fill the rows in, or use the longest part without a gap",
        )


def array_of(table: Records, names: Sequence[str]) -> np.ndarray:
    """(rows, channels) float32. BadInput names every column with a missing value."""
    steps = np.empty((len(table), len(names)), np.float32)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is named below
        for place, name in enumerate(names):
            steps[:, place] = [np.nan if value is None else value for value in table.column(name)]
    lost = ~np.isfinite(steps)
    if lost.any():
        faults = (
            f"'{name}' is empty, or beyond float32, in {int(lost[:, place].sum())} of {len(steps)} rows, first in row "
            f"{int(lost[:, place].argmax())}"
            for place, name in enumerate(names)
            if lost[:, place].any()
        )
        raise BadInput(*faults, hint="fill the values in: every step of a window is needed")
    return steps


# ------------------------------------------------------------------------------------------------------------- windows


def parts_of(name: str, num_rows: int, window: Window) -> dict[str, Sequence[int]]:
    """{split: the first rows of its windows}; {} for a future of 0. BadInput where a part has no window."""
    past, future, parts = window
    if num_rows < past + future:
        raise BadInput(f"{name} has {num_rows} rows, one window of {past} and {future} needs {past + future}")
    if not future:
        return {}
    if sum(parts) > num_rows:
        raise BadInput(f"{name} has {num_rows} rows, the parts {parts} of --window have {sum(parts)}")
    train, test = round(SHARES[0] * num_rows), round(SHARES[2] * num_rows)
    borders = np.cumsum([0, *(parts or (train, num_rows - train - test, test))]).tolist()
    found: dict[str, Sequence[int]] = {
        split: range(max(0, begin - past), end - past - future + 1)
        for split, begin, end in zip(SPLITS, borders, borders[1:])
    }
    if empty := [split for split in SPLITS if not found[split]]:
        sizes: dict[str, int] = dict(zip(SPLITS, np.diff(borders).tolist()))
        faults = (f"{name}: the {split} part has {sizes[split]} rows, too few for a window" for split in empty)
        raise BadInput(*faults, hint=f"a window shorter than {past},{future}, or more rows")
    return found


def cut(steps: np.ndarray, names: Sequence[str], window: Window, num_forecast: int) -> Records:
    """Every window of the steps as a record of views; the answer is `future`, its channels the last of those of `past`."""
    told = ",".join(names)
    past, future, _ = window
    steps.setflags(write=False)  # the windows are views of it
    whole, forecast = past + future, steps[:, steps.shape[1] - num_forecast :]
    views = {
        PAST: lambda row: steps[row : row + past],
        FUTURE: lambda row: forecast[row + past : row + whole],
        CHANNELS: lambda row: told,
    }
    starts = range(len(steps) - whole + 1) if future else range(len(steps) - past, len(steps) - past + 1)
    fields: dict[str, Kind] = {PAST: "series", CHANNELS: "category", FUTURE: "series"}
    if not future:
        del fields[FUTURE]

    def get(rows: Sequence[int], names: Collection[str]) -> list[Record]:
        return [{name: views[name](row) for name in names} for row in rows]

    return Records(get, starts, fields, FUTURE if future else None)


def series_of(value: Any, where: str) -> np.ndarray:
    """A list of numbers, or of the channels' numbers at each time, as float32 (times, channels)."""
    try:
        series = np.asarray(value, dtype=np.float64)
    except (ValueError, TypeError):
        raise BadInput(f"{where} holds a series whose times have unlike numbers of channels") from None
    if series.ndim not in (1, 2) or not series.size:
        raise BadInput(f"{where} holds an empty series, or one of more than two dimensions", hint="drop that row")
    with np.errstate(over="ignore"):
        series = series.astype(np.float32).reshape(len(series), -1)
    if not np.isfinite(series).all():
        raise BadInput(f"{where} holds a series with missing or infinite values", hint="fill them in, or drop that row")
    return series
