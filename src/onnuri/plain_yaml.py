"""A recipe's or a target's text as plain values: YAML in which nothing occurs twice, stands for code or for a bomb."""

from pathlib import Path
from typing import Any

import yaml

from .errors import BadInput, OnnuriError, propose

LARGEST = 2**20  # bytes of a recipe; a longer one is no recipe
DEEPEST, MOST = 20, 10_000  # nesting and values of a recipe: an alias may stand for a bomb or for itself


class Loader(yaml.SafeLoader):
    """YAML in which a name that occurs twice is an error, not a value that is lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise yaml.constructor.ConstructorError(None, None, f"'{twice[0]}' occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


def load_yaml(path: Path, what: str = "recipe") -> dict[str, Any]:
    """The text as plain values. BadInput for whatever is not YAML of a recipe's size; `what` it was to be."""
    try:
        if path.stat().st_size > LARGEST:
            raise BadInput(f"{path} is larger than a {what} can be")
        value = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except OnnuriError:
        raise
    except Exception as error:  # PyYAML lets through whatever a scalar of a wrong form makes it stumble over
        raise BadInput(f"{path} is not a {what}: {' '.join(str(error).split()) or type(error).__name__}") from error
    if not isinstance(value, dict):
        raise BadInput(f"{path} is not a {what}: it must be a mapping" + " with data and steps" * (what == "recipe"))
    return plain(value, path, what)


def plain(value: Any, path: Path, what: str = "recipe") -> Any:
    """A copy with names that are texts and values that JSON knows. BadInput for others, and for too many or too deep."""
    room = MOST

    def copy(part: Any, depth: int) -> Any:
        nonlocal room
        room -= 1
        if depth > DEEPEST or room < 0:
            raise BadInput(f"{path} is not a {what}: it is nested too deeply, or stands for too much")
        if isinstance(part, dict):
            return {copy(str(name), depth): copy(entry, depth + 1) for name, entry in part.items()}
        if isinstance(part, list):
            return [copy(entry, depth + 1) for entry in part]
        if part is not None and not isinstance(part, (str, int, float)):
            raise BadInput(f"{path}: {str(part)[:80]!r} is no text, number, list or mapping", hint="quote it")
        if isinstance(part, str) and ("\0" in part or any("\ud800" <= letter <= "\udfff" for letter in part)):
            raise BadInput(f"{path}: {part[:80]!r} holds what is no character")
        return part

    return copy(value, 0)


def changed(recipe: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The recipe with some entries changed, each NAME, STEP.SETTING or STEP.SETTING.ENTRY; BadInput where there is no such step."""
    for name, value in changes.items():
        step, *inner = name.split(".")
        if not inner:
            recipe = {**recipe, name: value}
            continue
        steps = recipe["steps"] if isinstance(recipe.get("steps"), dict) else {}
        body = steps.get(step)
        if not isinstance(body, dict) or len(body) != 1:
            raise BadInput(f"'{name}' changes a step that is not there; {propose(step, steps)}")
        operation, given = next(iter(body.items()))
        recipe = {**recipe, "steps": {**steps, step: {operation: within(given or {}, inner, value)}}}
    return recipe


def within(settings: Any, names: list[str], value: Any) -> Any:
    """A copy of nested settings, one of them changed."""
    first, *rest = names
    known = settings if isinstance(settings, dict) else {}
    return {**known, first: within(known.get(first), rest, value) if rest else value}
