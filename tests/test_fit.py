"""The loop: exact under accumulation, repeatable, resumable, several players, short dtypes, pruned zeros."""

import copy
import signal

import numpy as np
import pytest
import torch
from torch import nn

from onnuri import registry
from onnuri.data import Records, records_of
from onnuri.errors import BadInput, BrokenPromise
from onnuri.fit import speed
from onnuri.fit.batches import Batches
from onnuri.fit.loop import FitSettings, Loop, Objective, fit
from onnuri.fit.objective import objective_of
from onnuri.model import Model, tensor_digest
from onnuri.operation import Quiet
from onnuri.padding import parted
from onnuri.weights.matrices import weights

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
        for turn, player in enumerate(loop.objective.parts):
            with loop.only(player):
                loop.backward(loop.batches.at(0), player, turn)
        gradients.append({n: p.grad.clone() for n, p in model.net.named_parameters() if p.grad is not None})
    assert gradients[0]
    largest = max(float(value.abs().max()) for value in gradients[0].values())
    for other in gradients[1:]:
        for key, value in gradients[0].items():
            scale = max(float(value.abs().max()), 1e-1 * largest)
            assert float((other[key] - value).abs().max()) / scale < 1e-4, f"{key}: fp32 sums in another order"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", TRAINABLE)
def test_same_seed_same_tensors_and_killed_runs_resume_to_them(name, optimizer):
    records = registry.family(name).toy(24, 0)
    settings = FitSettings(batch_size=8, steps=7, save_every=0, seed=3, optimizer=optimizer)

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


# ------------------------------------------------------------------------------------------------- fast and the same


def letters(lengths: list[int]) -> Records:
    return records_of([{"text": "a" * n, "row": float(i)} for i, n in enumerate(lengths)], {"text": "text"}, None)


def extents(records) -> list[int]:
    return [len(record["text"]) for record in records]


def padded(records, generators) -> dict[str, torch.Tensor]:
    longest = max(len(record["text"]) for record in records)
    noise = torch.stack([torch.rand((), generator=g) for g in generators])
    return {"ids": torch.ones(len(records), longest), "row": torch.tensor([r["row"] for r in records]), "noise": noise}


def test_unlike_lengths_are_cut_into_parts_and_equal_ones_are_not():
    for lengths, parts in (([5] * 64, 1), ([100] * 8 + [4] * 56, 2), ([3] * 15 + [90], 2)):
        batches = Batches(letters(lengths), padded, extents, seed=0, size=len(lengths), micro=0)
        batches.cut()
        assert batches.parts == parts
        whole = sum(batch["ids"].numel() for batch in batches.at(0))
        assert parts == 1 or whole < 0.85 * len(lengths) * max(lengths)
        batches.close()


def test_a_record_has_the_same_noise_however_the_batch_is_cut_and_whether_or_not_it_was_prepared():
    def noises(parts: int, micro: int, prepared: bool) -> dict[float, float]:
        batches = Batches(letters([1, 9, 4, 30, 2, 2, 17, 8]), padded, extents, seed=3, size=4, micro=micro)
        batches.parts = parts
        if prepared:
            batches.prepare(1)
        found = batches.at(1)
        batches.close()
        return {float(r): float(n) for batch in found for r, n in zip(batch["row"], batch["noise"])}

    first = noises(1, 0, False)
    assert len(set(first.values())) == 4
    assert all(noises(*how) == first for how in ((2, 0, False), (4, 0, True), (1, 3, True), (1, 1, False)))


def test_a_step_is_cut_where_the_least_is_padded():
    assert parted([2, 9, 9, 2], 4) == [[1, 2, 0, 3]] and parted([2, 9, 9, 2], 3) == [[1, 2, 0], [3]]
    lengths = [64] * 8 + [20] * 24 + [5] * 96
    assert [len(part) for part in parted(lengths, 128, 4)] == [8, 24, 96], "a fourth part would save nothing"
    assert [len(part) for part in parted(lengths, 128, 2)] == [32, 96]
    assert [len(part) for part in parted(lengths, 50, 4)] == [8, 24, 50, 46]
    assert parted([], 8, 4) == [] and parted([7], 8, 4) == [[0]]
    rng = np.random.default_rng(0)
    for size in (64, 128, 704):
        lengths = rng.integers(1, 90, size).tolist()
        parts = parted(lengths, size, 8)
        assert sorted(i for part in parts for i in part) == list(range(size)) and len(parts) <= 8
        held = sum(len(part) * max(lengths[i] for i in part) for part in parts)
        order, width = sorted(lengths, reverse=True), -(-size // 8)
        equal = sum(order[start] * len(order[start : start + width]) for start in range(0, size, width))
        assert held <= 1.01 * equal, (
            "parts of one size are among those that it may choose, but for where a part may end"
        )


def test_a_fault_of_the_data_is_told_by_the_thread_that_collates():
    def fails(records, generators):
        raise BadInput("row 3 is no picture")

    batches = Batches(letters([1, 2]), fails, extents, seed=0, size=2, micro=0)
    batches.prepare(0)
    with pytest.raises(BadInput, match="row 3"):
        batches.at(0)
    batches.close()


def test_the_thread_that_collates_takes_one_core_and_leaves_the_others_theirs():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        batches = Batches(letters([1]), padded, extents, seed=0, size=1, micro=0)
        assert batches.run(torch.get_num_threads) == 1 and torch.get_num_threads() == 2
        batches.close()
    finally:
        torch.set_num_threads(before)


def test_pictures_lie_channels_last_while_a_batch_normed_net_is_trained():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.GroupNorm(2, 8))
    with speed.arranged(net), speed.arranged(plain):
        assert net[0].weight.is_contiguous(memory_format=torch.channels_last) and plain[0].weight.is_contiguous()
        assert net(torch.randn(2, 3, 8, 8)).is_contiguous(memory_format=torch.channels_last)
    assert net[0].weight.is_contiguous()


def squares() -> tuple[Objective, Records]:
    """A linear layer of 64 x 64 that makes ones small."""
    net = torch.nn.Linear(64, 64, bias=False)
    objective = Objective(
        net,
        {"net": net},
        lambda records, generators: {"x": torch.ones(len(records), 64)},
        lambda batch, player: (net(batch["x"]).square().sum(1), torch.ones(len(batch["x"]))),
    )
    return objective, records_of([{"x": float(i)} for i in range(32)], {"x": "number"}, None)


def test_the_pace_of_a_long_training_counts_its_flops(monkeypatch):
    """A linear layer of d x d over n numbers: 2 n d forward and twice that backward; its share lies between 0 and 1."""
    monkeypatch.setattr(speed, "SHORT", 0.0)
    objective, records = squares()
    pace = fit(objective, records, None, FitSettings(steps=8, batch_size=16, precision="fp32"), Quiet(), True).pace
    assert pace["flops_per_second"] * pace["seconds_per_step"] == pytest.approx(3 * 2 * 16 * 64 * 64, rel=0.5)
    assert 0 < pace["share_of_peak"] < 1 and pace["precision"] == "fp32"
    assert pace["records_per_second"] * pace["seconds_per_step"] == pytest.approx(16)


@pytest.mark.parametrize(("large", "kind"), [(2 * 16 * 64 * 64, "bf16"), (2 * 16 * 64 * 64 + 1, "fp32")])
def test_the_type_is_chosen_by_the_cost_of_the_first_batch(large, kind, monkeypatch):
    if not speed.bf16_pays(float("inf"), torch.device("cpu")):
        pytest.skip("this processor has no products in bf16")
    monkeypatch.setattr(speed, "SHORT", 0.0)
    monkeypatch.setattr(speed, "LARGE", large)
    objective, records = squares()
    assert fit(objective, records, None, FitSettings(steps=8, batch_size=16), Quiet(), True).pace["precision"] == kind


def test_a_processor_without_bf16_looks_in_fp32_or_says_what_it_cannot(monkeypatch):
    from onnuri.errors import BadSettings
    from onnuri.fit import speed

    monkeypatch.setattr(speed.peaks, "native_bf16", lambda device: False)
    cpu, matrix = torch.device("cpu"), torch.ones(4, 4)
    with speed.any_types(cpu, False):
        assert (matrix @ matrix).dtype == torch.float32
    with (
        pytest.raises(BadSettings, match="cannot compute this net in bf16: no such kernel"),
        speed.any_types(cpu, True),
    ):
        raise RuntimeError("no such kernel. Run with ONEDNN_VERBOSE")
    with pytest.raises(RuntimeError), speed.any_types(cpu, False):
        raise RuntimeError("another fault")
