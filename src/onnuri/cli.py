"""The command line, derived from the operations: a setting is an option, an input an argument. No logic of its own.

With --json stdout holds one JSON value, or nothing at all where the command failed: the message is on stderr then, and the
exit code is 2. `verify` is the one that gives its result and exit code 2. A number that is none is written as null.

Nothing heavy is imported before a command runs; the help of a command imports only that command's operation.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import click

from . import __version__, registry


class Commands(click.Group):
    """The operations and our own few commands, each made when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*registry.entries("operations"), *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.commands:
            return self.commands[cmd_name]
        return operation_command(cmd_name) if cmd_name in registry.entries("operations") else None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        from .errors import UnknownName, propose

        if args and self.get_command(ctx, args[0]) is None:
            raise UnknownName(f"there is no command '{args[0]}'; {propose(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        operations = [(name, registry.summary("operations", name)) for name in registry.entries("operations")]
        others = [(name, command.get_short_help_str(80)) for name, command in self.commands.items()]
        for title, rows in (("Operations", operations), ("Commands", others)):
            with formatter.section(title):
                formatter.write_dl(rows)


@click.group(cls=Commands, epilog="onnuri COMMAND --help tells the settings of each. Start with: onnuri run quickstart")
@click.version_option(__version__)
def command() -> None:
    """The whole life of a model, on your own machine, with evidence."""


# ------------------------------------------------------------------------------------------ operations become commands


def operation_command(name: str) -> click.Command:
    """`onnuri NAME [MODEL] --data D [--setting value ...] --out DIR [--json]`."""
    from .opening import is_whole

    operation = registry.operation(name)
    others = [role for role in operation.takes if role not in ("model", "data")]
    params: list[click.Parameter] = []
    if "model" in operation.takes:
        params.append(click.Argument(["model"], required=not operation.takes["model"].endswith("?")))
    whole = is_whole(operation.takes["data"])
    params.append(
        click.Option(
            ["--data"],
            required=not operation.takes["data"].endswith("?"),
            help=(
                "a csv, parquet or jsonl file, or a folder of documents"
                if whole
                else "builtin:NAME, a csv, parquet or jsonl file, a folder of images, sounds or texts"
            )
            + "; without it, tensor by tensor and not measured" * (operation.at_rest is not None),
        )
    )
    params += [click.Option([f"--{role}"], help=told(role, operation.takes[role])) for role in others]
    params += [option(field, info) for field, info in operation.settings.model_fields.items()]
    params += [] if whole else READING
    params += [
        click.Option(["--out"], help="folder or file of the result"),
        click.Option(["--json", "as_json"], is_flag=True, help="one JSON result on stdout, nothing else"),
    ]

    def run(**values: Any) -> None:
        carry_out(operation, others, values)

    return Tolerant(name, params=params, callback=run, help=registry.summary("operations", name))


READING = [
    click.Option(["--answer"], help="the column that is the answer; with --window the columns, as NAME,NAME"),
    click.Option(
        ["--fields"], help="the columns to use and their kinds, as NAME=number|category|text|image|audio|series,..."
    ),
    click.Option(
        ["--window"], help="rows of the past and of the future, PAST,FUTURE, where each row is a step in time"
    ),
]
"""How records are read, where they have an answer."""


def told(role: str, kind: str) -> str:
    """The help for an input beside the model and the data."""
    from .opening import is_asked, is_whole

    if is_whole(kind):
        return "an evaluation set, none of which may be kept"
    if kind.startswith("data"):
        return "more data, without answers" if is_asked(kind) else f"data for {role}, with answers"
    return f"folder of the {role}"


class Tolerant(click.Command):
    """A command whose unknown options get a proposal, with all faults at once."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        from .errors import BadSettings, propose

        names = [name for param in self.params for name in (*param.opts, *param.secondary_opts)]
        known = [name for name in names if name.startswith("--")]
        wrong = [a.split("=")[0] for a in args if a.startswith("--") and a.split("=")[0] not in [*known, "--help"]]
        if wrong:
            raise BadSettings(
                *(f"there is no setting '{name}'; {propose(name, known)}" for name in wrong),
                hint=f"onnuri {self.name} --help",
            )
        return super().parse_args(ctx, args)


def option(field: str, info: Any) -> click.Option:
    """One setting as an option; its value is checked by the settings, not here."""
    flag = f"--{field.replace('_', '-')}"
    described = info.description or ""
    if info.annotation is bool:
        return click.Option(
            [f"{flag}/--no-{field.replace('_', '-')}"], default=None, help=f"{described}  [{info.default}]"
        )
    shown = "" if info.default in ("", {}) else f"  [{info.default}]"
    return click.Option([flag, field], default=None, help=f"{described}{shown}", metavar=metavar(info.annotation))


def metavar(annotation: Any) -> str:
    choices = getattr(annotation, "__args__", None)
    return (
        "|".join(map(str, choices))
        if choices and all(isinstance(c, str) for c in choices)
        else {"dict": "NAME=VALUE,..."}.get(
            getattr(annotation, "__name__", ""), getattr(annotation, "__name__", "value").upper()
        )
    )


def carry_out(operation: Any, others: list[str], values: dict[str, Any]) -> None:
    """From the words of the command line to `run.execute`, and its result to the screen."""
    from .run import execute

    as_json, out = values.pop("as_json"), values.pop("out")
    inputs = {role: values.pop(role) for role in ["model", "data", *others] if values.get(role) is not None}
    options = {name: values.pop(name, None) for name in ("answer", "fields", "window")}
    options["fields"] = pairs(options["fields"])
    settings = {
        name: pairs(value) if operation.settings.model_fields[name].annotation is dict else value
        for name, value in values.items()
        if value is not None and name in operation.settings.model_fields
    }
    result = execute(
        operation.name,
        settings,
        inputs,
        Path(out) if out else None,
        {name: value for name, value in options.items() if value},
        quiet=as_json,
    )
    if as_json:
        click.echo(json_text(result))
    else:
        from .show import result_text

        click.echo(result_text(result, out))


def pairs(text: str | None) -> dict[str, Any]:
    """NAME=VALUE,... as a dict; values are read as YAML, so numbers are numbers."""
    parts = re.split(r",(?=[^,=\[\]]*=)", text) if text else []  # a comma within [8,8] has no NAME= behind it
    return {name: value for part in parts for name, value in pair(part).items()}


def pair(text: str) -> dict[str, Any]:
    """NAME=VALUE as {NAME: VALUE}. BadSettings where it is none, or where the value is no text, number, list or mapping."""
    import yaml

    from .errors import BadSettings

    name, equals, given = text.partition("=")
    if not equals or not name.strip():
        raise BadSettings(f"'{text}' is not NAME=VALUE")
    try:
        value = yaml.safe_load(given)
        json.dumps(value)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise BadSettings(f"the value in '{text}' cannot be read: {reason}", hint="quote it") from error
    return {name.strip(): value}


def json_text(value: Any) -> str:
    """One line of strict JSON: what is no number (a score of nothing) is null."""

    def strict(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: strict(entry) for name, entry in part.items()}
        if isinstance(part, (list, tuple)):
            return [strict(entry) for entry in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    return json.dumps(strict(value), ensure_ascii=False)


# -------------------------------------------------------------------------------------------------------- our own commands


@command.command("run")
@click.argument("recipe")
@click.option("--out", help="folder of the results  [runs/RECIPE]")
@click.option(
    "--set", "changes", multiple=True, metavar="NAME=VALUE", help="change an entry, as data=my.csv or STEP.SETTING=3"
)
@click.option("--json", "as_json", is_flag=True, help="one JSON result on stdout, nothing else")
def run_command(recipe: str, out: str | None, changes: tuple[str, ...], as_json: bool) -> None:
    """Run a recipe: a list of operations, each step cached, resumable, with one report."""
    from .recipe import run_recipe
    from .show import recipe_text

    changed = {name: value for change in changes for name, value in pairs(change).items()}
    result = run_recipe(recipe, Path(out) if out else None, changed, quiet=as_json)
    click.echo(json_text(result) if as_json else recipe_text(result))


@command.command("shrink", cls=Tolerant)
@click.argument("model")
@click.option("--data", required=True, help="builtin:NAME, a file or a folder; its validation split chooses")
@click.option("--size", default="", help="at most so many bytes (250kB), or this share of the model's (0.1)")
@click.option("--latency", type=float, help="at most so many milliseconds from a record to its answer")
@click.option("--score-at-least", type=float, help="no worse a score than this, in the headline's own units")
@click.option("--trials", type=click.IntRange(1), help="models to make  [30, or as --minutes says]")
@click.option("--minutes", type=float, help="no new model is begun after so many minutes")
@click.option("--seed", type=click.IntRange(0), default=0, help="the same seed tries the same models in the same order")
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="a setting of the operations, as epochs=3")
@click.option("--answer", help="the column that is the answer; with --window the columns, as NAME,NAME")
@click.option("--fields", help="the columns to use and their kinds, as NAME=KIND,...")
@click.option("--window", help="rows of the past and of the future, PAST,FUTURE")
@click.option("--out", required=True, help="folder of the result: winner, report.html, front.json, points")
@click.option("--json", "as_json", is_flag=True, help="one JSON result on stdout, nothing else")
def shrink_command(model: str, data: str, out: str, as_json: bool, changes: tuple[str, ...], **asked: Any) -> None:
    """Search for the best smaller model within limits; its measured trade-offs, and the winner's folder."""
    from .show import shrink_text
    from .shrink import Wish, shrink

    options = {"answer": asked.pop("answer"), "fields": pairs(asked.pop("fields")), "window": asked.pop("window")}
    wish = Wish(
        score=asked.pop("score_at_least"), **{name: value for name, value in asked.items() if value is not None}
    )
    changed = {name: value for change in changes for name, value in pairs(change).items()}
    result = shrink(
        model, data, Path(out), wish, changed, {name: value for name, value in options.items() if value}, as_json
    )
    click.echo(json_text(result) if as_json else shrink_text(result))


@command.command("show")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="the ledger as one JSON list")
def show_command(model: Path, as_json: bool) -> None:
    """Show a model's life as a timeline."""
    from . import ledger
    from .errors import BadInput
    from .show import timeline

    if not model.is_dir():
        raise BadInput(f"{model} is not a folder", hint="name a model folder")
    lines = ledger.read(model)
    if not lines:
        raise BadInput(f"{model} has no ledger", hint="folders that Onnuri wrote have one")
    click.echo(json_text(lines) if as_json else timeline(model, lines))


@command.command("verify")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="the result as JSON")
def verify_command(model: Path, as_json: bool) -> None:
    """Check that nothing was changed in a model folder, nor in an adapter's base; exit code 2 when anything was."""
    from . import ledger

    faults = ledger.verify(model)
    if as_json:
        click.echo(json_text({"model": str(model), "verified": not faults, "faults": faults}))
    else:
        click.echo("\n".join(faults) or f"{model}: unchanged, {len(ledger.read(model))} ledger lines")
    if faults:
        raise SystemExit(2)


@command.command("families", cls=Tolerant)
@click.argument("name", required=False)
@click.option("--config", help="entries of a new model's config, as NAME=VALUE,...: what the others become beside them")
@click.option("--json", "as_json", is_flag=True, help="the config of NAME as one JSON object")
def families_command(name: str | None, config: str | None, as_json: bool) -> None:
    """List the kinds of model, or what the config of a new one of kind NAME can say."""
    from .errors import BadSettings
    from .show import config_text

    if name:
        entries = registry.family(name).configured(pairs(config))
        click.echo(json_text(entries) if as_json else config_text(name, entries))
    elif config or as_json:
        raise BadSettings("--config and --json need the NAME of a family", hint="onnuri families NAME")
    else:
        list_axis("families")


@command.command("operations")
def operations_command() -> None:
    """List the operations."""
    list_axis("operations")


def list_axis(axis: str) -> None:
    for name in registry.entries(axis):
        click.echo(f"{name:18} {registry.summary(axis, name)}")


@command.command("matrix")
@click.option("--out", type=click.Path(path_type=Path), help="the page to write, as Markdown")
@click.option("--family", help="one row")
@click.option("--operation", help="one column; facts: what the families state of themselves")
@click.option("--json", "as_json", is_flag=True, help="every cell as JSON")
def matrix_command(out: Path | None, family: str | None, operation: str | None, as_json: bool) -> None:
    """Run every family under every operation on tiny models; exit code 2 when any cell fails."""
    from dataclasses import asdict

    from .files import write_text
    from .matrix import counts, measure_matrix
    from .matrix_page import markdown, totals
    from .plan import check_parent

    if out:
        check_parent(out)
    cells = measure_matrix(family, operation, quiet=as_json)
    if out:
        write_text(out, markdown(cells))
    click.echo(json_text({**counts(cells), "cells": [asdict(c) for c in cells]}) if as_json else totals(cells))
    if counts(cells)["failed"] or counts(cells)["untested"]:
        raise SystemExit(2)


@command.command("check")
@click.argument("package")
@click.option("--json", "as_json", is_flag=True, help="every check as JSON")
def check_command(package: str, as_json: bool) -> None:
    """Check all that an installed package registers by our own conformance kit; exit code 2 when anything fails."""
    from .check import check_package

    found = check_package(package, quiet=as_json)
    click.echo(json_text(found) if as_json else f"{package}: {found['checks']} checks, {found['failed']} failed")
    if found["failed"] or not found["checks"]:
        raise SystemExit(2)
