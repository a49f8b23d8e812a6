"""The templates of a task, filled in where they reach nothing but the data: a sandbox in place of the harness's own environment."""

from collections.abc import Callable
from typing import Any

from jinja2 import StrictUndefined, Template
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ...errors import BadInput
from .tasks import Task

OWN = ("builtins", "datetime", "jinja2.runtime", "jinja2.utils")
"""The modules whose classes a template may look into: plain data, and what Jinja brings. An image could be saved to a file."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja as the harness sets it up. What was asked for last is kept, so that a fault can be told with its task."""

    def __init__(self, filters: dict[str, Callable[..., Any]]):
        super().__init__(undefined=StrictUndefined, keep_trailing_newline=True)
        self.filters |= filters
        self.last = ""

    def from_string(self, source: Any, *args: Any, **kwargs: Any) -> Template:
        self.last = source
        return super().from_string(source, *args, **kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return type(obj).__module__ in OWN and super().is_safe_attribute(obj, attr, value)


def escaped(error: SecurityError, template: str, tasks: list[Task]) -> BadInput:
    """What is said of a template that reaches beyond its data, with the file of each task that holds it."""
    files = [task["metadata"]["file"] for task in tasks if template in texts(task)]
    return BadInput(
        f"{', '.join(files)}: a template may only use the data: {error}", hint=f"leave this out: {template}"
    )


def texts(part: Any) -> list[str]:
    """Every text in a task."""
    inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return [part] if isinstance(part, str) else [text for one in inner for text in texts(one)]
