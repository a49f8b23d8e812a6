"""Settings: whatever is given is right or refused by name, and what is right survives every way of writing it down."""

import json
import math
from typing import Any, get_args, get_origin
from unittest.mock import patch

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnuri import cli, plan, registry
from onnuri.errors import BadSettings
from onnuri.operation import Operation
from test_ledger import JSON

OPERATIONS = [*registry.entries("operations")]
WORD = st.text(st.characters(categories=("L", "N")), min_size=1, max_size=6)
PLAIN = st.integers(-(10**9), 10**9) | st.booleans() | WORD.map(lambda word: f"w{word}")
VALUES = PLAIN | st.lists(st.integers(0, 99), max_size=3)


@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=60)
@given(st.data())
def test_settings_are_right_or_refused(name, data):
    operation = registry.operation(name)
    fields = sorted(operation.settings.model_fields)
    names = st.sampled_from(fields) | st.text(max_size=5) if fields else st.text(max_size=5)
    given_ = data.draw(st.dictionaries(names, JSON | st.binary(max_size=3) | st.dates(), max_size=4))
    try:
        chosen = plan.settings_of(operation, given_)
    except BadSettings as error:
        assert error.faults and all(error.faults) and "\n  try: " in str(error)
        assert all(any(repr(key)[1:-1] in fault or key in fault for key in given_) for fault in error.faults)
    else:
        assert plan.settings_of(operation, chosen.model_dump()) == chosen
        assert plan.settings_of(operation, json.loads(json.dumps(chosen.model_dump()))) == chosen


@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=60)
@given(st.data())
def test_what_is_typed_is_what_is_set(name, data):
    """settings -> the words of a command -> the same settings."""
    operation = registry.operation(name)
    fields = operation.settings.model_fields
    names = data.draw(st.lists(st.sampled_from(sorted(fields)), unique=True, max_size=4)) if fields else []
    drawn = {field: data.draw(values_of(fields[field].annotation)) for field in names}
    wanted = {field: value for field, value in drawn.items() if is_right(operation, {field: value})}
    assume(is_right(operation, wanted))
    chosen = plan.settings_of(operation, wanted)
    found: list[dict[str, Any]] = []

    def execute(name: str, given: dict, *_: Any, **__: Any) -> dict:
        found.append(given)
        return {}

    words = [word for field in wanted for word in words_of(field, getattr(chosen, field))]
    places = ["m"] if "model" in operation.takes else []
    with patch("onnuri.run.execute", execute), patch("click.echo"), patch("onnuri.show.result_text"):
        cli.command.main([name, *places, "--data", "d", *words], standalone_mode=False)
    assert plan.settings_of(operation, found[0]) == chosen


def is_right(operation: Operation, given: dict[str, Any]) -> bool:
    try:
        plan.settings_of(operation, given)
    except BadSettings:
        return False
    return True


def values_of(kind: Any) -> st.SearchStrategy:
    """Values that a setting of this annotation may take."""
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(0, 100) | st.integers(-(2**40), 2**40)
    if kind is float:
        return st.floats(0, 1) | st.floats(allow_nan=False, allow_infinity=False)
    if kind is dict:
        return st.dictionaries(WORD, VALUES, max_size=3)
    if all(isinstance(choice, str) for choice in get_args(kind)) and get_args(kind):
        return st.sampled_from(get_args(kind))
    return st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8)


def words_of(field: str, value: Any) -> list[str]:
    """A setting as it is typed."""
    flag = f"--{field.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{field.replace('_', '-')}"]
    if isinstance(value, dict):
        return [
            f"{flag}={','.join(f'{name}={json.dumps(entry, ensure_ascii=False)}' for name, entry in value.items())}"
        ]
    assert not isinstance(value, float) or math.isfinite(value)
    return [f"{flag}={value}"]


def test_every_kind_of_setting_is_known_here():
    """Else a new kind would be typed as a text and its settings never be right."""
    kinds = {
        get_origin(info.annotation) or info.annotation
        for name in OPERATIONS
        for info in registry.operation(name).settings.model_fields.values()
    }
    assert all(kind in (bool, int, float, str, dict) or "Literal" in str(kind) for kind in kinds), kinds
