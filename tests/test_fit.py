"""The loop: exact under accumulation, repeatable, resumable, several players, short dtypes, pruned zeros."""

import copy
import signal

import pytest
import torch
from torch import nn

from onnuri import registry
from onnuri.errors import BrokenPromise
from onnuri.fit import FitSettings, Loop, fit
from onnuri.model import Model, tensor_digest
from onnuri.operation import Quiet
from onnuri.operations.train import objective_of
from onnuri.weights import weights

TRAINABLE = [name for name in registry.entries("families") if name != "forest"]


def tiny(name: str, records) -> Model:
    family = registry.family(name)
    return Model(family, *family.start(family.tiny(), records, torch.Generator().manual_seed(0)))


def without_dropout(model: Model) -> Model:
    """Functional dropout included: every number called dropout in modules and config is set to zero."""
    for module in model.net.modules():
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize("name", TRAINABLE)
def test_accumulation_gives_the_gradient_of_the_whole_batch(name):
    records = registry.family(name).toy(16, 0)
    settings = FitSettings(batch_size=12, steps=1)
    gradients = []
    for micro in (0, 1, 5):
        model = without_dropout(tiny(name, records))
        loop = Loop(
            objective_of(model), records, None, settings.model_copy(update={"micro_batch": micro}), Quiet(), True
        )
        chosen, keys, epoch = loop.batch(0)
        for turn, player in enumerate(loop.objective.parts):
            with loop.only(player):
                loop.backward(chosen, keys, epoch, player, turn)
        gradients.append({n: p.grad.clone() for n, p in model.net.named_parameters() if p.grad is not None})
    assert gradients[0]
    largest = max(float(value.abs().max()) for value in gradients[0].values())
    for other in gradients[1:]:
        for key, value in gradients[0].items():
            scale = max(float(value.abs().max()), 1e-1 * largest)
            assert float((other[key] - value).abs().max()) / scale < 1e-4, f"{key}: fp32 sums in another order"


@pytest.mark.parametrize("name", TRAINABLE)
def test_same_seed_same_tensors_and_killed_runs_resume_to_them(name):
    records = registry.family(name).toy(24, 0)
    settings = FitSettings(batch_size=8, steps=7, save_every=0, seed=3)

    def run(log, stop_at=None) -> str:
        model = tiny(name, records)
        if stop_at is not None:
            log.progress = lambda done, total, text="": stop(done, stop_at)
        fit(objective_of(model), records, records[:8], settings, log, True)
        return tensor_digest(model.net)

    first, second = run(Quiet()), run(Quiet())
    assert first == second
    log = Quiet()
    with pytest.raises(KeyboardInterrupt):
        run(log, stop_at=5)
    assert log.state is not None and log.state[1]["step"] == 4
    log.progress = Quiet().progress
    assert run(log) == first


def stop(done: int, at: int) -> None:
    if done == at:
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", TRAINABLE)
def test_loss_falls_or_the_headline_improves(name):
    family = registry.family(name)
    records = family.toy(64, 0)
    model = tiny(name, records)
    asked = records.list()
    before = family.score(asked, model.sample(asked), model.assets)
    progress = fit(
        objective_of(model), records, None, FitSettings(batch_size=32, steps=40, learning_rate=3e-3), Quiet(), True
    )
    after = family.score(asked, model.sample(asked), model.assets)
    metric, direction = model.headline
    better = after[metric] - before[metric] if direction == "up" else before[metric] - after[metric]
    curve = progress.curves["loss"]
    assert better > 0 or (len(model.players) == 1 and curve[-1][1] < 0.8 * curve[0][1])


def test_short_dtypes_are_trained_by_fp32_masters():
    """AdamW at 1e-5 moves weights by less than bf16 can hold; through masters the movement survives to the end."""
    records = registry.family("tabular").toy(64, 0)
    moved = []
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny("tabular", records)
        model.net.to(dtype)
        start = copy.deepcopy(model.net)
        fit(
            objective_of(model),
            records,
            None,
            FitSettings(steps=200, batch_size=16, learning_rate=1e-4, precision="fp32"),
            Quiet(),
            False,
        )
        assert next(model.net.parameters()).dtype == dtype
        moved.append(
            sum(
                float((a.detach().float() - b.detach().float()).norm())
                for a, b in zip(model.net.parameters(), start.parameters())
            )
        )
    assert moved[1] == pytest.approx(moved[0], rel=0.25)


def test_pruned_zeros_stay_zero():
    records = registry.family("tabular").toy(64, 0)
    model = tiny("tabular", records)
    matrix = max(weights(model.net, "linear"), key=lambda w: w.value.numel())
    model.pruned = (matrix.name,)
    with torch.no_grad():
        matrix.value[:, ::2] = 0
    fit(objective_of(model), records, None, FitSettings(steps=20, batch_size=16), Quiet(), False)
    assert (
        float(matrix.value.detach()[:, ::2].abs().max()) == 0 and float(matrix.value.detach()[:, 1::2].abs().max()) > 0
    )


def test_early_stop_returns_to_the_best():
    records = registry.family("tabular").toy(64, 0)
    model = tiny("tabular", records)
    settings = FitSettings(epochs=400, batch_size=8, patience=2, learning_rate=0.05)
    progress = fit(objective_of(model), records[:32], records[32:], settings, Quiet(), True)
    assert progress.stopped and progress.step < 400 * 4
    values = [value for _, value in progress.curves["validation"]]
    loop = Loop(objective_of(model), records[:32], records[32:], settings, Quiet(), True)
    assert loop.validate() == pytest.approx(min(values), rel=1e-5)


def test_compile_keeps_only_what_pays():
    records = registry.family("tabular").toy(32, 0)
    model, log = tiny("tabular", records), Quiet()
    fit(objective_of(model), records, None, FitSettings(steps=3, batch_size=16, compile=True), log, True)
    assert any("compiled" in text and "kept" in text for text in log.warnings)


def test_a_resumed_state_of_other_work_is_not_used():
    records = registry.family("tabular").toy(32, 0)
    log = Quiet()
    fit(
        objective_of(tiny("tabular", records)),
        records,
        None,
        FitSettings(steps=4, batch_size=16, save_every=0),
        log,
        True,
    )
    other = fit(objective_of(tiny("tabular", records)), records, None, FitSettings(steps=6, batch_size=16), log, True)
    assert len(other.curves["loss"]) == 6


def test_not_a_number_names_the_cause():
    records = registry.family("tabular").toy(32, 0)
    model = tiny("tabular", records)
    with torch.no_grad():
        next(p for p in model.net.parameters() if p.dim() == 2).fill_(float("nan"))
    with pytest.raises(BrokenPromise, match="not-a-number"):
        fit(objective_of(model), records, None, FitSettings(steps=3, batch_size=16), Quiet(), True)


def test_ctrl_c_ends_the_step_and_keeps_it():
    """Whatever `save_every` says: the first Ctrl-C keeps the state, and the work goes on from there."""
    records = registry.family("tabular").toy(32, 0)
    settings = FitSettings(steps=9, batch_size=8, save_every=1000)
    whole, before = tiny("tabular", records), signal.getsignal(signal.SIGINT)
    fit(objective_of(whole), records, None, settings, Quiet(), True)
    log, model = Quiet(), tiny("tabular", records)
    log.progress = lambda done, total, text="": signal.raise_signal(signal.SIGINT) if done == 4 else None
    with pytest.raises(KeyboardInterrupt):
        fit(objective_of(model), records, None, settings, log, True)
    assert log.state is not None and log.state[1]["step"] == 4
    assert signal.getsignal(signal.SIGINT) is before
    log.progress, again = Quiet().progress, tiny("tabular", records)
    fit(objective_of(again), records, None, settings, log, True)
    assert tensor_digest(again.net) == tensor_digest(whole.net)


def test_zeros_that_nobody_pruned_may_be_filled():
    """A table net starts with rows of zeros for what is missing or unknown; they must learn."""
    records = registry.family("tabular").toy(64, 0)
    model = tiny("tabular", records)
    matrix = max(weights(model.net, "linear"), key=lambda w: w.value.numel())
    with torch.no_grad():
        matrix.value[:, ::2] = 0
    fit(objective_of(model), records, None, FitSettings(steps=20, batch_size=16), Quiet(), False)
    assert float(matrix.value.detach()[:, ::2].abs().max()) > 0


def test_buffers_of_short_dtypes_come_back_in_their_dtype():
    records = registry.family("tabular").toy(32, 0)
    model = tiny("tabular", records)
    model.net.register_buffer("statistics", torch.ones(3, dtype=torch.bfloat16))
    model.net.to(torch.bfloat16)
    before = {name: value.dtype for name, value in model.net.state_dict().items()}
    fit(objective_of(model), records, None, FitSettings(steps=2, batch_size=16), Quiet(), False)
    assert {name: value.dtype for name, value in model.net.state_dict().items()} == before
