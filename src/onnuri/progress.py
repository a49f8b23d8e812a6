"""What a person sees while an operation works, and where the operation keeps its state meanwhile."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from . import machine
from .files import whole_file


class Progress:
    """An operation's log: a bar with the time left on stderr, warnings, and resumable state in one safetensors file.

    `key` names the work; a state with another key is not ours and is ignored.
    """

    def __init__(self, title: str, quiet: bool, state: Path | None = None, key: str = ""):
        self.title, self.state, self.key, self.warnings = title, state, key, list[str]()
        self.meter, self.earlier = machine.Meter(), (0.0, 0.0)
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self.bar = Bar(
            TextColumn(f"[bold]{title:10}"),
            BarColumn(24),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[text]}"),
            console=self.console,
            disable=quiet or not self.console.is_terminal,  # a log file wants the warnings, not the strokes of a bar
        )
        self.task = self.bar.add_task(title, total=None, text="")

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()

    def progress(self, done: int, total: int, text: str = "") -> None:
        self.bar.update(self.task, completed=done, total=total, text=text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.console.print(f"[yellow]{self.title}:[/] {escape(text)}", markup=True, soft_wrap=True)

    def spent(self) -> tuple[float, float]:
        """Seconds and joules of the work so far, those of processes that were killed included up to their last state."""
        return self.earlier[0] + self.meter.seconds, self.earlier[1] + self.meter.energy().joules

    def save_state(self, tensors: dict, facts: dict) -> None:
        if self.state is None:
            return
        from safetensors.torch import save_file

        metadata = {"key": self.key} | {
            name: json.dumps(value)
            for name, value in (("facts", facts), ("warnings", self.warnings), ("spent", self.spent()))
        }
        with whole_file(self.state, sum(value.nbytes for value in tensors.values())) as partial:
            save_file({name: value.contiguous() for name, value in tensors.items()}, partial, metadata=metadata)

    def load_state(self) -> tuple[dict, dict] | None:
        if self.state is None or not self.state.exists():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.state, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("key") != self.key:
                    return None
                self.warnings, self.earlier = json.loads(metadata["warnings"]), json.loads(metadata["spent"])
                return {name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata["facts"])  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, ValueError):
            return None
