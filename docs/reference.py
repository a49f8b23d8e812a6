"""Writes the reference from what the program says of itself: python docs/reference.py

Operations from their settings, families from their records, commands from their own help, the recipe's form from the settings
again, as prose and as a JSON Schema for editors; and the picture of the waist. Nothing in docs/reference is written by hand;
a test compares the folder with `pages()`.
"""

import ast
import json
from collections.abc import Iterable
from importlib import import_module
from inspect import ismodule
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
import torch

from onnuri import recipe, registry
from onnuri.cli import command
from onnuri.operation import Operation

HERE = Path(__file__).parent
WRITTEN = "<!-- Written by `make docs` from the program itself; never by hand. -->"
TYPES = {str: "text", int: "whole number", float: "number", bool: "yes or no", dict: "NAME=VALUE,..."}
BOUNDS = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object"}
ENTRIES = {
    "name": "name of the folder under `runs/`; the name of the file if left out",
    "data": "what every step reads unless it names data of its own: a file, a folder or `builtin:NAME`",
    "start": "what the first step begins with: a kind of model, the folder of a model, or both, to put a new head on a body",
    "answer": "the column that is the answer; with `window` the columns, as `NAME,NAME`",
    "fields": "the columns to use and their kinds, as `{NAME: KIND}`",
    "window": "rows of the past and of the future, `PAST,FUTURE`, where each row is a step in time",
    "steps": "`NAME: {OPERATION: {SETTING: VALUE}}`, one below the other, in the order in which they run",
}
"""What the entries of a recipe mean; complete, or `recipe_page` raises."""


def pages() -> dict[str, str]:
    """{path below docs/: text} of everything that is generated here."""
    return {
        "reference/operations.md": operations_page(),
        "reference/families.md": families_page(),
        "reference/commands.md": commands_page(),
        "reference/recipe.md": recipe_page(),
        "reference/recipe.schema.json": json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n",
        "waist.svg": waist(own("families"), own("operations")),
    }


def own(axis: str) -> list[str]:
    """The names that come with Onnuri; a plug-in that happens to be installed here is not ours to describe."""
    return [name for name, entry in registry.entries(axis).items() if entry.module.startswith("onnuri.")]


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    """A table in Markdown; a bar inside a cell would end it."""
    head = list(head)
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)]


def docstring(name: str) -> str:
    """The docstring of a module; its first line ends a paragraph."""
    text = import_module(name).__doc__ or ""
    return text.strip()


# ------------------------------------------------------------------------------------------------------------ operations


def operations_page() -> str:
    names = own("operations")
    parts = [
        "# Operations",
        "",
        WRITTEN,
        "",
        "Each operation is a command, a Python call and a step of a recipe; the settings are the same in all three. A "
        "promise is measured on the reopened result of every run, and kept in the ledger. Every operation that makes a model "
        "promises besides that no tensor differs after saving and opening again.",
        "",
        *table(("operation", "what it does"), ((f"[{n}](#{n})", registry.summary("operations", n)) for n in names)),
    ]
    for name in names:
        parts += ["", f"## {name}", "", *operation_lines(registry.operation(name))]
    return "\n".join([*parts, ""])


def operation_lines(operation: Operation) -> list[str]:
    """What it is and follows, how it is called, its settings and its promises."""
    entry = registry.entries("operations")[operation.name]
    settings = [
        (
            f"`{name}`",
            type_text(info.annotation),
            default_text(info.default),
            bounds_text(info.metadata),
            info.description,
        )
        for name, info in operation.settings.model_fields.items()
    ]
    promises = [(p.text, f"{p.sense} {p.bound:g}") for p in operation.promises]
    ways = [(way.stage, choices_text(way.choices)) for way in operation.shrinks]
    return [
        docstring(entry.module),
        "",
        "```sh",
        call_text(operation),
        "```",
        "",
        f"Takes {', '.join(map(taken_text, operation.takes.items()))}; gives {given_text(operation)}.",
        "",
        *(
            table(("setting", "type", "default", "bounds", "meaning"), settings)
            if settings
            else ["It has no settings."]
        ),
        "",
        *(table(("promise", "bound"), promises) if promises else ["It has no promise of its own."]),
        *(["", *table(("stage in `onnuri shrink`", "what is tried"), ways)] if ways else []),
    ]


def choices_text(choices: dict[str, tuple[Any, ...]]) -> str:
    """What a search may try, the likeliest first."""
    return "; ".join(f"`{name}` {', '.join(map(str, values))}" for name, values in choices.items())


def call_text(operation: Operation) -> str:
    """The command with its inputs."""
    model = {"": "", "?": " [MODEL]"}.get(
        "" if "model" not in operation.takes else operation.takes["model"][-1:], " MODEL"
    )
    others = "".join(
        f" [--{role} {place_of(kind)}]" if kind.endswith("?") else f" --{role} {place_of(kind)}"
        for role, kind in operation.takes.items()
        if role not in ("model", "data")
    )
    ends = {"model": " --out FOLDER", "data": " --out FOLDER", "records": " --out FILE", "report": ""}
    return f"onnuri {operation.name}{model}{others} --data DATA{ends[operation.gives]}"


def place_of(kind: str) -> str:
    return "DATA" if kind.startswith("data") else "FOLDER"


def taken_text(taken: tuple[str, str]) -> str:
    role, kind = taken
    return f"`{role}`{' (optional)' if kind.endswith('?') else ''}"


def given_text(operation: Operation) -> str:
    return {
        "model": "a model folder",
        "data": "a folder of data",
        "records": "a file of records",
        "report": "a report",
    }[operation.gives]


def type_text(annotation: Any) -> str:
    """The type of a setting in words; the choices where there are some."""
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(annotation))
    return TYPES.get(annotation) or TYPES.get(get_origin(annotation) or str, "text")


def default_text(value: Any) -> str:
    shown = {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value
    return "" if shown in ("", {}, ()) else f"`{shown}`"


def bounds_text(metadata: Iterable[Any]) -> str:
    """The bounds that pydantic checks."""
    return ", ".join(
        f"{sign} {getattr(one, name):g}" for one in metadata for name, sign in BOUNDS if hasattr(one, name)
    )


# -------------------------------------------------------------------------------------------------------------- families


def families_page() -> str:
    names = own("families")
    facts = {name: family_facts(name) for name in names}
    parts = [
        "# Families",
        "",
        WRITTEN,
        "",
        "A family is a kind of model. `onnuri train --family NAME --config ENTRY=VALUE,...` starts a new one; a folder of the "
        "kind that a family reads is known by its own description. Fields and scores are those of a tiny model on toy data.",
        "",
        *table(
            ("family", "Hub tag", "asked", "answered", "judged by"),
            ((f"[{name}](#{name})", *facts[name]) for name in names),
        ),
    ]
    for name in names:
        module = registry.entries("families")[name].module
        parts += ["", f"## {name}", "", docstring(module), "", *config_lines(module)]
    return "\n".join([*parts, ""])


def family_facts(name: str) -> tuple[str, str, str, str]:
    """(tag, question, answer, headline) of the family's own tiny model."""
    family = registry.family(name)
    _, assets = family.start(family.tiny(), family.toy(64, 0), torch.Generator().manual_seed(0))
    question, (_, kind) = family.fields(assets)
    metric, better = family.headline(assets)
    asked = ", ".join(sorted(set(question.values()))) or "nothing"
    return family.tag, asked, kind, f"{metric}, {better} is better"


def config_lines(module: str) -> list[str]:
    """The entries of a new model's config with their defaults, and what the family says of them; one table for each
    design, where a family has several in modules of their own."""
    made_by = [import_module(module), *(each for each in vars(import_module(module)).values() if is_design(each))]
    lines: list[str] = []
    for part in made_by:
        defaults = vars(part).get("DEFAULTS", {})
        rows = [(f"`{name}`", "from the data" if value is None else f"`{value}`") for name, value in defaults.items()]
        said = note_behind(part.__name__, "DEFAULTS")
        lines += [docstring(part.__name__).splitlines()[0], ""] if part.__name__ != module else []
        lines += [*table(("config", "default"), rows), ""] if rows else []
        lines += [" ".join(said.split()), ""] if said else []
    return lines[:-1]


def is_design(value: Any) -> bool:
    """Whether a family's module has imported this one for a design that it holds."""
    return ismodule(value) and value.__name__.startswith("onnuri.families.") and "DEFAULTS" in vars(value)


def note_behind(module: str, name: str) -> str:
    """The text that stands behind the assignment of `name` in a module."""
    path = registry.source_of(module)
    body = ast.parse(path.read_text(encoding="utf-8")).body if path else []
    for statement, after in pairwise(body):
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            value = after.value if isinstance(after, ast.Expr) else None
            return str(value.value) if isinstance(value, ast.Constant) else ""
    return ""


# -------------------------------------------------------------------------------------------------------------- commands


def commands_page() -> str:
    """Each command's own help, as the terminal shows it."""
    names = [
        name
        for name in command.list_commands(click.Context(command))
        if name in {*own("operations"), *command.commands}
    ]
    parts = ["# Commands", "", WRITTEN, "", "What `onnuri --help` and `onnuri COMMAND --help` say."]
    parts += ["", "```text", help_text(command, "onnuri"), "```"]
    for name in names:
        found = command.get_command(click.Context(command), name)
        assert found is not None
        parts += ["", f"## onnuri {name}", "", "```text", help_text(found, f"onnuri {name}"), "```"]
    return "\n".join([*parts, ""])


def help_text(of: click.Command, name: str) -> str:
    context = click.Context(of, info_name=name, terminal_width=100, max_content_width=100)
    return "\n".join(line.rstrip() for line in of.get_help(context).splitlines())


# ---------------------------------------------------------------------------------------------------------------- recipe


def recipe_page() -> str:
    """The entries of a recipe, how a step is written, and the recipes that come with Onnuri."""
    assert ENTRIES.keys() == set(recipe.RECIPE_KEYS), "ENTRIES must say what every entry of a recipe means"
    parts = [
        "# Recipe",
        "",
        WRITTEN,
        "",
        "A recipe is a YAML file, run by `onnuri run FILE`.",
        "",
        *table(("entry", "meaning"), ((f"`{name}`", ENTRIES[name]) for name in recipe.RECIPE_KEYS)),
        "",
        "In a step, an input of the operation (`model`, `student`, `other`) names an earlier step or a folder; `data` names other "
        "data than the recipe's, or an earlier step that gave data; `answer`, `fields` and `window` say how these are read; the "
        "rest are the operation's [settings](operations.md). The first step begins with `start`.",
        "",
        "[recipe.schema.json](recipe.schema.json) is the same as a JSON Schema: an editor that knows YAML completes and "
        "checks a recipe that begins with `# yaml-language-server: $schema=recipe.schema.json`.",
    ]
    for path in sorted(recipe.BUILT_IN.glob("*.yaml")):
        parts += ["", f"## {path.stem}", "", f"`onnuri run {path.stem}`", "", "```yaml"]
        parts += [path.read_text(encoding="utf-8").rstrip("\n"), "```"]
    return "\n".join([*parts, ""])


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a recipe. Operations that it does not know may be a plug-in's; settings may not."""
    operations = {name: step_schema(registry.operation(name)) for name in own("operations")}
    text = {name: {"type": "string", "description": ENTRIES[name]} for name in recipe.RECIPE_KEYS}
    step = {"type": "object", "properties": operations, "minProperties": 1, "maxProperties": 1}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of Onnuri",
        "type": "object",
        "required": ["data", "steps"],
        "additionalProperties": False,
        "properties": {
            **text,
            "window": {"description": ENTRIES["window"]},
            "fields": {"type": "object", "description": ENTRIES["fields"]},
            "steps": {"type": "object", "description": ENTRIES["steps"], "additionalProperties": step},
        },
    }


def step_schema(operation: Operation) -> dict[str, Any]:
    """The body of a step: settings as pydantic describes them, and the inputs."""
    settings = operation.settings.model_json_schema()["properties"]
    inputs = {role: {"type": "string", "description": "a step before this one, or a path"} for role in operation.takes}
    return {
        "type": ["object", "null"],
        "description": registry.summary("operations", operation.name),
        "properties": {**inputs, **{name: tidy(said) for name, said in settings.items()}, **reading()},
        "additionalProperties": False,
    }


def reading() -> dict[str, Any]:
    """How the data of a step are read."""
    types = {"fields": {"type": "object"}, "window": {}}
    return {name: {**types.get(name, {"type": "string"}), "description": ENTRIES[name]} for name in recipe.READING}


def tidy(said: dict[str, Any]) -> dict[str, Any]:
    """Without the title, which repeats the name."""
    return {key: value for key, value in said.items() if key != "title"}


# --------------------------------------------------------------------------------------------------- picture of the waist

WIDE, ROW, TOP, BOX = 860, 26, 64, 190  # width, height of a line, where the lists begin, width of a list
STYLE = "text{font:14px system-ui,sans-serif;fill:#1f2428} .m{fill:#5b6470;font-size:12px} .h{font-weight:600}"
LINK = 'stroke="#2b6591" stroke-opacity=".35" fill="none"'
FACTS = (
    "read, write",
    "start, adopt, like",
    "fields, axis",
    "collate, loss",
    "outputs, sample",
    "score, headline",
    "players, blocks, keep",
)


def waist(families: list[str], operations: list[str]) -> str:
    """Both axes, and between them the one record that every family fills in and every operation reads."""
    height = TOP + ROW * max(len(families), len(operations)) + 30
    middle, center = WIDE / 2, (TOP + height - 30) / 2
    half = ROW * len(FACTS) / 2 + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {height}" role="img">',
        f"<title>{len(families)} families and {len(operations)} operations meet in one record</title><style>{STYLE}</style>",
        f'<rect width="{WIDE}" height="{height}" rx="8" fill="#fcfbf9"/>',
        *column(families, 24, "start", "families", "state facts", center),
        *column(operations, WIDE - 24, "end", "operations", "derive what they need", center),
        *(curve(24 + BOX * 0.85, y, middle - 100, center) for y in rows(families, center)),
        *(curve(WIDE - 24 - BOX * 0.5, y, middle + 100, center) for y in rows(operations, center)),
        f'<rect x="{middle - 100}" y="{center - half:g}" width="200" height="{2 * half:g}" rx="8" fill="#fff" stroke="#2b6591"/>',
        f'<text x="{middle:g}" y="34" text-anchor="middle" class="h">the waist</text>',
        f'<text x="{middle:g}" y="50" text-anchor="middle" class="m">one record, complete, tested</text>',
        *(
            f'<text x="{middle:g}" y="{y + 5:g}" text-anchor="middle">{fact}</text>'
            for fact, y in zip(FACTS, rows(FACTS, center))
        ),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def rows(names: Iterable[str], center: float) -> list[float]:
    """The heights of the lines of a list that is centered."""
    count = len(list(names))
    return [center + ROW * (place - (count - 1) / 2) for place in range(count)]


def column(names: list[str], x: float, anchor: str, title: str, note: str, center: float) -> list[str]:
    head = [(34, title, ' class="h"'), (50, note, ' class="m"')]
    lines = [*head, *((y + 5, name, "") for y, name in zip(rows(names, center), names))]
    return [f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{marks}>{text}</text>' for y, text, marks in lines]


def curve(x: float, y: float, to_x: float, to_y: float) -> str:
    bend = (x + to_x) / 2
    return f'<path d="M{x:g} {y:g} C{bend:g} {y:g} {bend:g} {to_y:g} {to_x:g} {to_y:g}" {LINK}/>'


def main() -> None:
    for name, text in pages().items():
        (HERE / name).parent.mkdir(exist_ok=True)
        (HERE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
