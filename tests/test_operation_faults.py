"""A fault in an operation, of the kind that no exception tells: `apply` is changed, and the kit or the cell must turn red."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from onnuri import registry
from onnuri.conformance import operations
from onnuri.conformance.bench import SMALL, Bench, maker
from onnuri.conformance.operations import has_effect, record, repeats, whole
from onnuri.conformance.trial import Trial
from onnuri.errors import BrokenPromise, OnnuriError, Refusal
from onnuri.matrix import run_cell
from onnuri.operation import Operation, Result
from onnuri.weights.attach import stacks, unhang
from onnuri.weights.matrices import weights


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Benches that the tests share: no operation changes what lies there."""
    return tmp_path_factory.mktemp("faults")


def trial(operation: Operation, name: str, place: Path) -> Trial:
    return Trial(operation, Bench(name, place / name))


def mutated(name: str, apply: Callable) -> Operation:
    """An operation whose `apply` is given to `apply(original, settings, log, **inputs)`."""
    operation = registry.operation(name)
    return replace(operation, apply=lambda settings, log, **inputs: apply(operation.apply, settings, log, **inputs))


def forgetful(place: int) -> Callable:
    """Puts one weight back as it was."""

    def apply(original, settings, log, model, **inputs) -> Result:
        kept = [weight.matrix.clone() for weight in weights(model.net)]
        result = original(settings, log, model=model, **inputs)
        found = weights(result.model.net, "linear", "conv")[place]
        old = kept[[weight.name for weight in weights(result.model.net)].index(found.name)]
        with torch.no_grad():
            fixed = torch.nn.Parameter(found.view.tensor(old, found.value.shape).clone())
        if stacks(found.homes[0][0]):
            unhang(found, fixed)
        else:
            found.value.data = fixed.data
        return result

    return apply


@pytest.mark.parametrize("operation", ("prune", "quantize", "train", "adapt"))
@pytest.mark.parametrize("which", (0, -1))
def test_an_operation_that_forgets_one_weight_is_found(operation, which, place):
    names = ("tabular", "image_classifier", "text_classifier", "gan", "sequence")
    assert whole([trial(registry.operation(operation), name, place) for name in names])
    with pytest.raises(BrokenPromise, match="forgotten") as found:
        whole([trial(mutated(operation, forgetful(which)), name, place) for name in names])
    assert all(name in str(found.value) for name in names)


def deaf(setting: str) -> Callable:
    """Never hears one of its settings."""

    def apply(original, settings, log, **inputs) -> Result:
        default = type(settings).model_fields[setting].default
        return original(settings.model_copy(update={setting: default}), log, **inputs)

    return apply


@pytest.mark.parametrize(
    ("operation", "setting"),
    [
        ("prune", "scope"),
        ("prune", "share"),
        ("quantize", "scheme"),
        ("quantize", "embeddings"),
        ("distill", "temperature"),
        ("distill", "weight"),
        ("train", "weight_decay"),
        ("train", "micro_batch"),
        ("train", "seed"),
        ("evaluate", "split"),
        ("predict", "split"),
        ("merge", "weight"),
        ("adapt", "alpha"),
    ],
)
def test_a_setting_that_is_ignored_is_found(operation, setting, place, monkeypatch):
    quick = [
        {name: value for name, value in SMALL.items() if name in registry.operation(operation).settings.model_fields}
    ]
    monkeypatch.setattr(operations, "contexts", lambda *_: quick)  # of the settings around it, those that are quick
    names = ("tabular", "sequence", "text_classifier")
    assert has_effect([trial(registry.operation(operation), name, place) for name in names], setting)
    with pytest.raises(BrokenPromise, match=f"'{setting}' has no effect"):
        has_effect([trial(mutated(operation, deaf(setting)), name, place) for name in names], setting)


def unseeded(original, settings, log, **inputs) -> Result:
    return original(settings.model_copy(update={"seed": int(torch.randint(10**6, ()))}), log, **inputs)


@pytest.mark.parametrize("name", ("tabular", "sequence", "gan"))
@pytest.mark.parametrize("operation", ("train", "distill", "adapt"))
def test_an_operation_that_draws_its_own_seed_is_found(operation, name, place):
    with pytest.raises(BrokenPromise, match="the same seed gives other tensors"):
        repeats(trial(mutated(operation, unseeded), name, place))


def spoiling(original, settings, log, model, **inputs) -> Result:
    result = original(settings, log, model=model, **inputs)
    with torch.no_grad():
        next(model.net.parameters()).add_(1)
    return result


@pytest.mark.parametrize("operation", ("evaluate", "predict"))
@pytest.mark.parametrize("name", ("tabular", "sequence", "image_classifier"))
def test_an_operation_that_changes_what_it_only_looks_at_is_found(operation, name, place):
    with pytest.raises(BrokenPromise, match="it changes 'model'"):
        whole([trial(mutated(operation, spoiling), name, place)])


# ------------------------------------------------------------------------------------------------------------ the matrix


def scaled_weights(factor: float) -> Callable:
    """Changes what the operation promised to keep."""

    def apply(original, settings, log, **inputs) -> Result:
        result = original(settings, log, **inputs)
        with torch.no_grad():
            for parameter in result.model.net.parameters():
                parameter.mul_(factor)
        return result

    return apply


def other_net(original, settings, log, model, **inputs) -> Result:
    """Works on a net that is not the one it was given."""
    with torch.no_grad():
        for parameter in model.net.parameters():
            parameter.add_(0.1)
    return original(settings, log, model=model, **inputs)


def silent_refusal(original, settings, log, **inputs) -> Result:
    raise Refusal("it cannot", "")


def crash(original, settings, log, **inputs) -> Result:
    return {}["nothing"]


@pytest.mark.parametrize(
    ("operation", "apply", "told"),
    [
        ("prune", scaled_weights(1.001), "largest change of a number that was kept"),
        ("prune", deaf("share"), "share of zeros below"),
        ("quantize", other_net, "rounding error"),
        ("export", other_net, "largest relative difference"),
        ("merge", scaled_weights(1.001), "difference to the formula"),
        ("quantize", silent_refusal, "it cannot"),
        ("evaluate", crash, "KeyError"),
    ],
)
@pytest.mark.parametrize("name", ("tabular", "sequence", "image_classifier"))
def test_a_fault_in_an_operation_turns_its_cell_red(operation, apply, told, name, place, monkeypatch):
    assert Bench(name, place / name).other
    faulty, original = mutated(operation, apply), registry.operation
    if apply.__qualname__.startswith("deaf"):
        monkeypatch.setitem(SMALL, "share", 0.7)
    monkeypatch.setattr(registry, "operation", lambda asked: faulty if asked == operation else original(asked))
    cell = run_cell(name, operation, place / name)
    assert cell.outcome == "failed" and told in cell.text, cell


def test_a_row_whose_first_model_cannot_be_made_fails_cell_by_cell(tmp_path, monkeypatch):
    family = registry.family("tabular")
    broken = replace(family, loss=lambda net, batch, player: (_ for _ in ()).throw(OnnuriError("no loss")))
    original = registry.family
    monkeypatch.setattr(registry, "family", lambda name: broken if name == "tabular" else original(name))
    monkeypatch.setattr("onnuri.operations.train.find_family", registry.family)
    cells = [run_cell("tabular", name, tmp_path) for name in (maker(), "evaluate")]
    assert [cell.outcome for cell in cells] == ["failed", "failed"] and all("no loss" in cell.text for cell in cells)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"apply": lambda settings, log, model: None}, "apply takes settings, log, model; it must take"),
        ({"takes": {"model": "modell", "data": "data"}}, "no input is of kind 'modell'"),
        ({"gives": "folder"}, "gives 'folder'"),
        ({"promises": registry.operation("prune").promises * 2}, "stated twice"),
    ],
)
def test_a_record_that_does_not_fit_together_is_found(change, told):
    with pytest.raises(BrokenPromise, match=told):
        record(replace(registry.operation("prune"), **change))
