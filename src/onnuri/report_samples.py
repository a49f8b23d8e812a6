"""The part of a report in which people see for themselves: records, and what each model said to them."""

from typing import Any

import numpy as np
from markupsafe import Markup

from . import draw
from .figures import finite, number, plain


def sample(one: dict) -> dict:
    """A record with what each model said to it."""
    if is_series(one.get("answer")):
        return forecasts(one)
    fields = [(name, shown(value)) for name, value in (one.get("question") or {}).items()]
    truth, said = one.get("answer"), []
    for name, each in (one.get("said") or {}).items():
        answer, score = (each or {}).get("answer"), finite((each or {}).get("score"))
        said.append(
            {
                "name": name,
                "answer": shown(answer),
                "wrong": wrong(truth, answer, one.get("kind")),
                "score": "" if score is None else f"{score:.2f}",
            }
        )
    return {
        "pictures": [value for _, value in fields if isinstance(value, Markup)],
        "said": said,
        "fields": [pair for pair in fields if not isinstance(pair[1], Markup)],
        "truth": None if truth is None else shown(truth),
    }


def wrong(truth: Any, answer: Any, kind: str | None) -> bool:
    """Whether an answer misses the truth. Only a name or a whole number can be missed: a measured value is never exactly equal, and
    a text may be right in other words."""
    truth = truth.item() if isinstance(truth, np.generic) else truth
    return kind != "text" and isinstance(truth, (str, int)) and str(answer) != str(truth)


def forecasts(one: dict) -> dict:
    """A series that was continued: the last channel of the past, of the truth and of each answer in one chart."""
    past = next((value for value in (one.get("question") or {}).values() if is_series(value)), one["answer"][:0])
    found = {name: np.array((each or {}).get("answer"), float) for name, each in (one.get("said") or {}).items()}
    said = {name: value for name, value in found.items() if value.shape == one["answer"].shape}
    errors = {name: np.abs(value - one["answer"]).mean() for name, value in said.items()}
    lines = {("truth", "정답"): one["answer"], **said}
    return {
        "chart": Markup(draw.forecast(past[:, -1], {name: value[:, -1] for name, value in lines.items()})),
        "said": [{"name": name, "answer": f"± {number(error)}", "wrong": False} for name, error in errors.items()],
        "fields": [],
        "truth": None,
    }


def shown(value: Any) -> Any:
    """A value of a record as a person sees it: a picture, a series (its last channel), or one line of text."""
    if is_series(value):
        return Markup(draw.forecast(value[:, -1], {}))
    if isinstance(value, np.ndarray) and value.ndim >= 2:
        return Markup(draw.picture(value, alt="picture", size=96))
    return plain(value)


def is_series(value: Any) -> bool:
    """Whether a value is a series, (times, channels) of measured numbers; pixels are whole ones."""
    return isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype.kind == "f" and value.size > 0
