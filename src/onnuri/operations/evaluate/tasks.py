"""Tasks of lm-evaluation-harness as their YAML files state them, checked before anything is computed: their data lie here, and no
program comes with them."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from ...errors import BadInput, propose

Task = dict[str, Any]
READERS = ("json", "csv", "parquet", "text")
"""What a `dataset_path` may be: how the files in `data_files` are read."""
OPTIONS = (
    "column_names", "columns", "data_files", "decimal", "delimiter", "encoding", "encoding_errors", "field", "header",
    "keep_linebreaks", "names", "na_values", "quotechar", "quoting", "sample_by", "sep", "skiprows", "thousands", "usecols",
)  # fmt: skip
"""What may stand in `dataset_kwargs`: how files are read, never where else to look or to write."""


class Tags(yaml.SafeLoader):
    """Plain YAML, with the one tag of these files."""


class Function(str):
    """What stands behind `!function`: a name in a Python file beside the task."""


Tags.add_constructor("!function", lambda loader, node: Function(node.value))


def chosen(asked: str) -> list[Task]:
    """The tasks of PATH or PATH,NAME,...: all of a file or folder, or those named. BadInput with every fault of them all."""
    where, *names = asked.split(",")
    known = found(Path(where))
    if strange := [name for name in names if name not in known]:
        raise BadInput(*(f"{where} has no task '{name}'; {propose(name, known)}" for name in strange))
    wanted = {name: known[name] for name in names or known}
    if faults := [fault for path, task in wanted.values() for fault in faults_of(task, path)]:
        raise BadInput(*faults)
    return [resolved(task, path) for path, task in wanted.values()]


def found(where: Path) -> dict[str, tuple[Path, Task]]:
    """{name: (its file, the task)}. Files without a name are there for others to include."""
    if not where.exists():
        raise BadInput(f"{where} does not exist", hint="--tasks FOLDER, or the YAML file of one task")
    paths = sorted([*where.rglob("*.yaml"), *where.rglob("*.yml")]) if where.is_dir() else [where]
    tasks = [(path, read(path)) for path in paths]
    named = {str(task["task"]): (path, task) for path, task in tasks if isinstance(task.get("task"), str)}
    if not named:
        raise BadInput(
            f"{where} has no task: no YAML file there says `task: NAME`", hint="a task file of lm-evaluation-harness"
        )
    return named


def read(path: Path, above: tuple[Path, ...] = ()) -> Task:
    """A file with what it includes; its own entries win."""
    if path in above:
        raise BadInput(f"{path} includes itself")
    try:
        task = yaml.load(path.read_text(encoding="utf-8"), Tags)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(task, dict):
        raise BadInput(f"{path} is no task: it must be entries, as `task: NAME`")
    included = task.pop("include", [])
    for name in included if isinstance(included, list) else [included]:
        task = read(path.parent / str(name), (*above, path)) | task
    return task


def faults_of(task: Task, path: Path) -> list[str]:
    """What keeps a task from being run here."""
    name, source = task["task"], task.get("dataset_path")
    if code := functions(task):
        return [
            f"{name}: {', '.join(code)} would run a Python file of the task's own, which is not done; say it in Jinja"
        ]
    if source not in READERS:
        return [
            f"{name}: its data '{source}' are on the Hub, and nothing is fetched; save them to a file and say in a copy of "
            f"{path.name}: dataset_path: json, dataset_kwargs: {{data_files: {{test: FILE.jsonl}}}}"
        ]
    if faults := beyond(task):
        return faults
    files = files_of(task)
    if not files:
        return [f"{name}: `dataset_kwargs: {{data_files: ...}}` names no file to read"]
    return [
        f"{name}: there is no data file {path.parent / file}" for file in files if not (path.parent / file).is_file()
    ]


def beyond(task: Task) -> list[str]:
    """What in a task, of plain texts as it is, would still have other files read as programs, or look elsewhere for data."""
    name, kwargs = task["task"], task.get("dataset_kwargs") or {}
    if not isinstance(kwargs, dict):
        return [f"{name}: `dataset_kwargs` must be entries, as {{data_files: {{test: FILE.jsonl}}}}"]
    strange = [key for key in kwargs if key not in OPTIONS]
    faults = [f"{name}: '{key}' in `dataset_kwargs` is not taken here; known: {', '.join(OPTIONS)}" for key in strange]
    if task.get("use_prompt"):
        faults.append(
            f"{name}: `use_prompt` takes templates from elsewhere; write them in doc_to_text and doc_to_target"
        )
    return faults


def foreign(task: Task, known: Collection[str]) -> list[str]:
    """Every metric that is none of those `known`: the harness would look for a program of that name and run it."""
    listed = task.get("metric_list") or []
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        return [f"{task['task']}: `metric_list` must be a list of entries, as [{{metric: acc}}]"]
    strange = [
        str(one.get("metric")) for one in listed if one.get("hf_evaluate") or str(one.get("metric")) not in known
    ]
    return [
        f"{task['task']}: the metric '{name}' would be a program from elsewhere, which is not run; {propose(name, known)}"
        for name in strange
    ]


def functions(part: Any) -> list[str]:
    """Every `!function` in a task."""
    if isinstance(part, Function):
        return [f"!function {part}"]
    inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return [name for one in inner for name in functions(one)]


def files_of(task: Task) -> list[str]:
    """The data files, however they are listed."""
    given = (task.get("dataset_kwargs") or {}).get("data_files")
    parts = list(given.values()) if isinstance(given, dict) else [given]
    return [str(one) for part in parts if part for one in (part if isinstance(part, list) else [part])]


def resolved(task: Task, path: Path) -> Task:
    """The task with its files found from its own folder, wherever the command is given, and its own file in `metadata`."""

    def whole(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: whole(one) for name, one in part.items()}
        return [whole(one) for one in part] if isinstance(part, list) else str((path.parent / str(part)).resolve())

    kwargs, about = task["dataset_kwargs"], task.get("metadata")
    metadata = {**(about if isinstance(about, dict) else {}), "file": str(path)}
    return {**task, "metadata": metadata, "dataset_kwargs": {**kwargs, "data_files": whole(kwargs["data_files"])}}
