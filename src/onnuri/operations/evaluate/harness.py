"""lm-evaluation-harness at work on a model: without a network, its caches in a folder that goes, its figures as plain numbers."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partialmethod
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from jinja2.exceptions import SecurityError

from ...errors import BadInput, OnnuriError, needs_extra
from ...family import Writing
from ...operation import Log
from .tasks import Task, foreign
from .templates import Sandbox, escaped

SAMPLES = 1000  # of the bootstrap, by which it finds the error of what is no mean
AWAY = (
    "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "HF_EVALUATE_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_DATASETS_DISABLE_PROGRESS_BARS",
)


def scored(writing: Writing, tasks: list[Task], batch_size: int, limit: int, log: Log) -> dict[str, Any]:
    """{"summary", "tasks": {task: {metric: {"value", "error"}}}}: `error` is the standard error, None where it is not known."""
    require_harness()
    with offline(), no_bars():
        found, program = carried_out(writing, tasks, batch_size, limit, log)
    results = {name: figures(one) for name, one in found["results"].items()}
    shown = "; ".join(f"{name}: {', '.join(map(text, one, one.values()))}" for name, one in results.items())
    documents = {name: count["effective"] for name, count in found["n-samples"].items()}
    return {"summary": shown, "tasks": results, "documents": documents, "harness": program}


def require_harness() -> None:
    if any(find_spec(name) is None for name in ("lm_eval", "datasets")):
        raise needs_extra("harness", "lm_eval")


def carried_out(
    writing: Writing, tasks: list[Task], batch_size: int, limit: int, log: Log
) -> tuple[dict[str, Any], str]:
    """(what the program gives, its name and version). BadInput where a template, a column or a filter does not fit the data."""
    from importlib.metadata import version

    from lm_eval import simple_evaluate, utils  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    from .tokens import Tokens

    no_foreign_metric(tasks)
    options = {"limit": limit or None, "log_samples": False, "bootstrap_iters": SAMPLES}
    model, manager = Tokens(writing, batch_size, log), TaskManager(include_defaults=False)
    sandbox = Sandbox(utils.env.filters)
    try:
        with patch.object(utils, "env", sandbox):
            return simple_evaluate(model, tasks=tasks, task_manager=manager, **options), f"lm_eval {version('lm_eval')}"
    except OnnuriError:
        raise
    except SecurityError as error:
        raise escaped(error, sandbox.last, tasks) from error
    except Exception as error:  # each fault of a task fails in its own way
        names = ", ".join(str(task["task"]) for task in tasks)
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise BadInput(f"{names}: lm-evaluation-harness could not run it: {type(error).__name__}: {why}") from error


def no_foreign_metric(tasks: list[Task]) -> None:
    """BadInput for every metric that the harness does not bring."""
    from lm_eval.api import metrics, registry  # pyright: ignore[reportMissingImports]  # noqa: F401  metrics fills it

    if faults := [fault for task in tasks for fault in foreign(task, registry.metric_registry.keys())]:
        raise BadInput(*faults)


def figures(result: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """{metric, with its filter where there is one: value and standard error}."""
    found = {}
    for key, value in result.items():
        metric, comma, name = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, (int, float)):
            error = result.get(f"{metric}_stderr,{name}")
            known = float(error) if isinstance(error, (int, float)) else None
            found[metric if name == "none" else f"{metric} ({name})"] = {"value": float(value), "error": known}
    return found


def text(metric: str, one: dict[str, float | None]) -> str:
    error = "" if one["error"] is None else f" ± {one['error']:.2g}"
    return f"{metric} {one['value']:.4g}{error}"


def no_bars() -> AbstractContextManager[Any]:
    """Inside, no other program draws its progress: ours is drawn already."""
    from tqdm import tqdm

    return patch.object(tqdm, "__init__", partialmethod(tqdm.__init__, disable=True))


@contextmanager
def offline() -> Iterator[None]:
    """Inside, its libraries fetch nothing, keep their caches in a folder that goes, and speak only where something is wrong."""
    level = logging.root.manager.disable
    with TemporaryDirectory(prefix="onnuri-") as folder, patch.dict(os.environ, dict.fromkeys(AWAY, "1")):
        logging.disable(logging.WARNING)
        try:
            with walled(Path(folder)):
                yield
        finally:
            logging.disable(level)


@contextmanager
def walled(folder: Path) -> Iterator[None]:
    """Inside, `datasets` keeps what it makes in `folder`, takes columns for what they are and not for pictures that a file says lie
    elsewhere, and no connection is opened. Its settings are those of its first import, whatever the environment says later."""
    from datasets import Features, config  # pyright: ignore[reportMissingImports]

    plain = Features.from_arrow_schema
    bare = staticmethod(lambda schema: plain(schema.remove_metadata()))
    flags = {"HF_HUB_OFFLINE": True, "HF_DATASETS_OFFLINE": True}
    places = {"HF_DATASETS_CACHE": folder, "DOWNLOADED_DATASETS_PATH": folder / "downloads"}
    with (
        patch.dict(vars(config), flags | places),
        patch.object(Features, "from_arrow_schema", bare),
        patch.object(socket.socket, "connect", unreachable),
        patch.object(socket, "getaddrinfo", unreachable),
    ):
        yield


def unreachable(*_: Any, **__: Any) -> None:
    raise OSError("no network is used here")
