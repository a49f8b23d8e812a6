"""The kit passes what is ours, counts what it ran, and says in one message what is wrong with a stranger's package."""

import json
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import torch

from command import onnuri, refused, some
from onnuri import registry
from onnuri.check import check_operation, checks
from onnuri.conformance import FACTS, check_family
from onnuri.conformance.bench import Bench
from onnuri.conformance.operations import alternatives, checks_of, record
from onnuri.conformance.subject import carry_out
from onnuri.conformance.trial import Trial
from onnuri.errors import BadInput
from onnuri.matrix import Cell
from onnuri.model import open_model

QUICK = ("tabular", "sequence", "gan")
"""Families on which an operation takes a moment, unlike in what they ask, in their players and in their weights."""

OTHERS = {
    "clean": ("causal_lm", "text_classifier"),
    "extend": ("causal_lm", "text_classifier", "embedder"),
    "extrapolate": ("tabular",),
    "generate": ("causal_lm", "tabular"),
}
"""Families for operations that QUICK ones refuse in every way, or that train many times for each setting."""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("conformance")


LONG = ("adapt", "distill", "estimate", "export", "extend", "extrapolate")
"""Those that measure, trace or train for each of their settings."""


@pytest.mark.parametrize(
    "name", some(registry.entries("operations"), [n for n in registry.entries("operations") if n not in LONG])
)
def test_our_operations_pass(name, place, monkeypatch):
    """Whole columns are run by the test of the matrix; here each setting and each seed."""
    monkeypatch.setattr(torch, "compile", lambda loss, **_: loss)  # compiling takes longer than all the rest
    monkeypatch.setattr("onnuri.decoding.compiled.program", lambda step, *_: step)
    families = OTHERS.get(name, QUICK)
    trials = [Trial(registry.operation(name), Bench(family, place / family)) for family in families]
    found = [*carry_out(name, {"record": record}, registry.operation(name)), *carry_out(name, checks_of(trials), None)]
    assert not [f"{check.name}: {check.text}" for check in found if not check.passed]
    assert len(found) == 2 + len(registry.operation(name).settings.model_fields) + len(families)


def test_every_fact_is_checked_and_counted():
    found = list(check_family(registry.family("tabular")))
    assert [check.name for check in found] == list(FACTS) and all(check.passed for check in found)
    assert all(check.seconds >= 0 and len(check.text) > 5 for check in found)


def test_alternatives_are_legal_and_other_than_the_default():
    operation = registry.operation("train")
    for name, info in operation.settings.model_fields.items():
        values = alternatives(operation, name)
        assert values and info.default not in values
        for value in values:
            operation.settings.model_validate({name: value})


def test_a_promise_that_no_family_measures_is_a_failure(tmp_path):
    cells = [Cell("tabular", "prune", "passed", "fine", promises=())]
    found = {
        check.name: check
        for check in check_operation("prune", cells, tmp_path)
        if check.name in ("promises", "applies")
    }
    assert not found["promises"].passed and "share of zeros" in found["promises"].text
    assert found["applies"].passed


# -------------------------------------------------------------------------------------------------------- strangers' packages

FAMILY = """
    "A stranger's family, a table net under its own name."
    from dataclasses import replace
    from onnuri import hub
    from onnuri.families import tabular

    def claims(folder):
        return hub.peek(folder).get("model_type") == "strange"

    def write(net, table, folder, weights):
        config = {"model_type": "strange", **tabular.design_of(net), "table": tabular.tables.to_json(table)}
        hub.write_own(net, config, folder, weights)

    FAMILY = replace(tabular.FAMILY, name="strange", claims=claims, write=write)
"""
OPERATION = """
    "Multiply every number of a model by a factor."
    from pydantic import Field
    from onnuri.operation import Operation, Promise, Result, Settings as Base
    from onnuri.errors import Refusal

    class Settings(Base):
        factor: float = Field(0.5, gt=0, description="the factor")
        unused: int = Field(1, ge=0, description="nothing at all")

    def apply(settings, log, model, data):
        if not model.players:
            raise Refusal("there is no number in this model", "another model")
        for parameter in model.net.parameters():
            parameter.data.mul_(settings.factor)
        return Result(model=model)

    def ratio(settings, inputs, result):
        before, after = (next(iter(m.net.parameters())).abs().sum() for m in (inputs["model"], result.model))
        return float(abs(after / before - settings.factor))

    OPERATION = Operation(
        "strange", Settings, {"model": "model", "data": "data"}, "model", apply,
        (Promise("how far the factor is missed", "at most", 1e-6, ratio),),
    )
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """install(distribution, axis, name, text): a package with one module and one entry point, as pip would leave it."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(distribution: str, axis: str, name: str, text: str) -> None:
        module = distribution.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(dedent(text), encoding="utf-8")
        info = tmp_path / f"{module}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1\n")
        kind = {"families": "FAMILY", "operations": "OPERATION", "runtimes": "RUNTIME"}[axis]
        (info / "entry_points.txt").write_text(f"[onnuri.{axis}]\n{name} = {module}:{kind}\n")
        forget()

    def forget() -> None:
        entries.cache_clear()
        for module in [name for name in sys.modules if name.startswith("strange_")]:
            del sys.modules[module]

    entries = registry.entries
    yield put
    forget()


def only(monkeypatch, *families: str) -> None:
    """No other families than these, so that columns are short."""
    original = registry.entries

    def fewer(axis: str) -> dict:
        return {name: entry for name, entry in original(axis).items() if axis != "families" or name in families}

    monkeypatch.setattr(registry, "entries", fewer)


def test_a_strangers_family_is_checked_in_its_facts_and_its_whole_row(install, monkeypatch):
    install("strange-family", "families", "strange", FAMILY)
    only(monkeypatch, "strange", "forest")
    done = onnuri("check", "Strange_Family", "--json")
    found = json.loads(done.out)
    assert done.code == 0 and not found["failed"], [r for r in found["results"] if not r["passed"]]
    assert found["checks"] == len(found["results"]) == 1 + len(FACTS) + len(registry.entries("operations"))
    assert {result["subject"] for result in found["results"]} == {"strange"} and done.err == ""


def test_a_strangers_operation_is_checked_in_its_whole_column_and_its_settings(install, monkeypatch):
    install("strange-operation", "operations", "strange", OPERATION)
    only(monkeypatch, "tabular", "forest", "sequence")
    done = onnuri("check", "strange_operation")
    assert done.code == 2 and done.out.endswith("strange_operation: 12 checks, 1 failed\n"), done
    lines = done.err.splitlines()
    assert [line for line in lines if line.startswith("FAILED")] == [
        "FAILED strange: setting unused: 'unused' has no effect: 2, 0, 3 give what the default gives, on every family"
    ]
    assert "ok     forest: strange: refused: there is no number in this model; instead: another model" in lines
    assert "ok     strange: promises: 1 promises, each measured on one family at least" in lines


def test_a_package_without_anything_to_check_is_an_error(install):
    refused(onnuri("check", "numpy"), "'numpy' registers no family, operation or runtime", "nothing could be checked")
    refused(onnuri("check", "onnury"), "did you mean onnuri?")


HALF = """
    "Half a family."
    from onnuri.family import Family
    FAMILY = Family(name="half", tag="none", kind=lambda assets: "values")
"""
WRONG = """
    "A family whose facts are of the wrong kind."
    from dataclasses import replace
    from onnuri.families.tabular import FAMILY as OTHER
    FAMILY = replace(OTHER, name="wrong", tag="", like=None, toy=[])
"""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            HALF,
            [
                "strange-one",
                "incomplete record",
                "claims, read, write, configured, start, adopt",
                "keep, sizes, vocabulary, segmentation, tiny, toy",
            ],
        ),
        (WRONG, ["'tag' must be text", "'like' must be a function, found None", "'toy' must be a function, found []"]),
        ("import a_library_that_is_not_there", ["cannot be imported", "a_library_that_is_not_there"]),
        ("FAMILY = 3", ["is no Family, but int"]),
        ("OTHER = 3", ["cannot be imported: AttributeError"]),
        ("from onnuri.families.tabular import FAMILY", ["calls itself 'tabular'"]),
        ("raise ValueError", ["cannot be imported: ValueError: no reason given"]),
        ("def broken(:", ["cannot be imported: SyntaxError"]),
    ],
)
def test_a_plug_in_that_cannot_be_used_is_named_with_its_package(text, told, install, tmp_path):
    install("strange-one", "families", "strange", text)
    message = refused(onnuri("train", "--family", "strange", "--data", "builtin:iris", "--out", tmp_path / "m"))
    assert all(
        part in message for part in [*told, "strange-one: 'strange' of onnuri.families", "pip uninstall strange-one"]
    )
    done = onnuri("families")
    assert done.code == 0 and all(f"\n{name} " in f"\n{done.out}" for name in ("tabular", "strange"))
    found = onnuri("check", "strange-one", "--json")
    assert found.code == 2 and [r["name"] for r in json.loads(found.out)["results"]] == ["record"]
    assert told[0] in found.out


def test_a_broken_plug_in_does_not_keep_other_models_from_being_opened(install, place, tmp_path):
    model = Bench("tabular", place / "tabular").model
    install("strange-one", "families", "strange", "import a_library_that_is_not_there")
    assert open_model(model).family.name == "tabular"
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadInput, match=r"no family knows(.|\n)*strange-one(.|\n)*pip uninstall strange-one"):
        open_model(tmp_path)


def test_a_module_that_is_not_there_is_told_in_the_list(install, tmp_path):
    install("strange-one", "families", "strange", FAMILY)
    (tmp_path / "strange_one.py").unlink()
    assert "strange" in onnuri("families").out and onnuri("families").code == 0


def test_two_packages_with_one_name_are_both_named(install):
    install("strange-one", "families", "strange", FAMILY)
    install("strange-two", "families", "strange", FAMILY)
    message = refused(onnuri("families"), "two packages register the families name 'strange'")
    assert "strange-one" in message and "strange-two" in message and "pip uninstall" in message


def test_a_record_of_an_operation_or_a_runtime_is_checked_too(install, monkeypatch):
    install(
        "strange-op",
        "operations",
        "strange",
        'from onnuri.operation import Operation\nOPERATION = Operation("strange", 3)',
    )
    install(
        "strange-run",
        "runtimes",
        "strange",
        'from onnuri.runtime import Runtime\nRUNTIME = Runtime("strange", 3, (), range(0), None, print)',
    )
    with pytest.raises(BadInput, match="it lacks takes, gives, apply"):
        registry.load("operations", "strange")
    with pytest.raises(BadInput, match=r"'artefact' must be text(.|\n)*'make' must be a function"):
        registry.load("runtimes", "strange")
    assert [check.passed for check in checks("strange-run")] == [False]
