"""Training: FLOPs, time and memory of a step, and how many devices it takes."""

import copy
from dataclasses import replace
from math import ceil
from statistics import median

import torch
from torch import Tensor, nn

from ...costs import peaks
from ...costs.count import Cost, Line, Watch, tensors_of
from ...costs.efficiency import python_calls
from ...costs.roofline import all_reduce_seconds, devices_needed
from ...family import Generators
from ...figures import size_text
from ...fit import speed
from ...fit.loop import FitSettings, Loop
from ...fit.objective import objective_of
from ...model import Model
from ...operation import Quiet
from .look import Look, trainable
from .running import ROOM

COARSE = 2**24  # bytes from which what the system tells of memory is exact enough


def trains(look: Look) -> None:
    """FLOPs, time and memory of a training step, by steps of the real loop on a copy."""
    model, report = look.model, look.report
    if not trainable(model):
        return look.note("nothing in this model is trained as it is, so there is no training step to estimate")
    parts = training_parts(model)
    states = sum(parts.values())
    if states > ROOM * peaks.free_memory():
        look.note("no training step was tried: weights, gradients and moments alone need more memory than is free")
        need = states if look.target else look.process + states
        found = {"work": "train", **parts, "predicted_bytes": need, "fits": need <= look.memory}
        return report["memory"].append(found)
    objective = objective_of(model)
    pieces = objective.pieces(look.records)
    share = len(pieces) / len(look.records)
    look = look.learning(pieces, lambda records: objective.collate(records, Generators(0, range(len(records)))))
    speed.prepare()  # as training does
    before = peaks.resident_bytes()
    with torch.random.fork_rng():
        probes, held, calls = probed(look)
    process = look.process + max(0, peaks.resident_bytes() - before)
    one, two = (watch.each() for watch in probes)
    report["step_flops"] = sum(one.at(two, look.sizes, look.size).flops.values()) or None
    fixed = parts["weights_bytes"] + parts["moments_bytes"]
    if look.target:
        return fleet(look, parts, Line.of(probes, look.sizes, fixed), one, two, share)
    line = Line.of(probes, look.sizes, process + fixed, held)
    cost = one.at(two, look.sizes, look.size)
    predicted = look.time(cost, calls, True)
    measured, seconds = measured_steps(look, line, process)
    look.work("training step", look.size, cost, seconds, calls, True)
    report["train_predicted_seconds_per_1000_records"] = predicted.seconds * 1000 * share / look.size
    report["train_measured_seconds_per_1000_records"] = seconds and seconds * 1000 * share / look.size
    own = {"process_bytes": process, **parts, "activations_bytes": kept(probes, look), "held_per_alive": held}
    look.fits("train", line, measured, **own)


def kept(probes: list[Watch], look: Look, records: int | None = None) -> float:
    """Bytes that the forward pass keeps for the backward pass."""
    return Line([[float(watch.peak_saved)] for watch in probes], look.sizes, 0).at(records or look.size)


def fleet(look: Look, parts: dict[str, float], line: Line, one: Cost, two: Cost, share: float) -> None:
    """A step on as many targets as are asked for, each with an even share of the records, and how many it takes where each
    holds an even share of the states as well. `share`: pieces that a record is learnt in."""
    target, devices, report = look.target, look.settings.devices, look.report
    assert target is not None
    records = ceil(look.size / devices)
    time = look.work("training step", records, one.at(two, look.sizes, records), None)
    states = line.fixed + parts["gradients_bytes"]
    needed = devices_needed(target, states, lambda n: max(0.0, line.at(n) - states), look.size)
    sharing = (
        all_reduce_seconds(parts["gradients_bytes"], devices, target.link_bandwidth or 1.0) if devices > 1 else 0.0
    )
    step = time.seconds + sharing
    look.fits("train", line, None, records, **parts)
    if not report["memory"][-1]["fits"]:
        look.note(training_advice(look, states, needed))
    report["train_predicted_seconds_per_1000_records"] = step * 1000 * share / look.size
    report["fleet"] = {
        "devices": devices,
        "records_per_device": records,
        "all_reduce_seconds": sharing,
        "all_reduce_share": sharing / step,
        "step_seconds": step,
        "step_joules": step * target.watts * devices,
        "devices_needed": needed,
    }


def training_advice(look: Look, states: float, needed: int | None) -> str:
    """What it takes where a batch cannot be trained on one target."""
    said = f"training does not fit: weights, gradients and moments take {size_text(states)} of {size_text(look.memory)}"
    if needed is None:
        return f"{said}, and what one record makes is too much for any number of devices"
    if look.target and look.target.link_bandwidth is None:
        return f"{said}; {needed} devices would hold it, but nothing links them"
    return f"{said}; {needed} devices hold it, each an even share of the states and of the records"


def training_parts(model: Model) -> dict[str, float]:
    """Bytes of what AdamW needs whatever the batch. Players take turns, so the gradients of one are alive at a time."""
    trained = {player: [p for p in part.parameters() if p.requires_grad] for player, part in model.players.items()}
    sizes = [sum(4 * p.numel() for p in parameters) for parameters in trained.values()]
    masters = [t.numel() * (4 if t.is_floating_point() else t.element_size()) for t in tensors_of(model.net)]
    return {"weights_bytes": sum(masters), "gradients_bytes": max(sizes), "moments_bytes": 2 * sum(sizes)}


def training_copy(model: Model) -> nn.Module:
    """The net with fp32 masters, as the training loop has it."""
    return copy.deepcopy(model.net).float()


def loop_of(look: Look, net: nn.Module, n: int, ready: bool = False) -> Loop:
    """The training loop over one batch of n records, at a step where the doctor does not look; its first step, which
    makes the moments, is done. `ready`: the batch is collated once, so that each batch size makes the same operators."""
    settings = FitSettings.model_validate({"batch_size": n, "steps": 1000})
    objective = objective_of(replace(look.model, net=net))
    if ready:
        batch = look.batch(n)
        objective = replace(objective, collate=lambda records, generators: batch)
    loop = Loop(objective, look.some(n), None, settings, Quiet(), fresh=False)
    loop.progress.step = 1
    loop.step()
    return loop


def probed(look: Look) -> tuple[list[Watch], float, int]:
    """(a watched step of each small batch, bytes held by the allocator for each byte alive at the larger one, calls of the
    interpreter in a step)."""
    net, watches, held, calls = training_copy(look.model), [], 1.0, 0
    for n in look.probes:
        loop = loop_of(look, net, n, ready=True)
        states = [state for optimizer in loop.optimizers.values() for state in optimizer.state.values()]
        moments = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        watches.append(look.watched(loop.step, [*tensors_of(net), *moments]))
        if look.target is None:
            rise, alive = peaks.peak_of(lambda loop=loop: every_kind_of_step(loop)), watches[-1].peak
            held = max(1.0, rise / alive) if rise and alive > COARSE else 1.0
            calls = python_calls(loop.step)
    return watches, held, calls


def every_kind_of_step(loop: Loop) -> None:
    """Steps, one of them under the doctor's eyes, and ends of epochs: the allocator comes to hold what all of it takes."""
    for step in (1, loop.total // 2, 1):
        loop.progress.step = step
        loop.step()
        loop.end_of_epoch()


def measured_steps(look: Look, line: Line, process: int) -> tuple[float | None, float | None]:
    """(bytes at the peak, seconds of a step) over `train_steps` steps; (None, None) where that is not wanted or the
    memory is not free."""
    if not look.settings.train_steps:
        return None, None
    if line.at(look.size) - process > ROOM * peaks.free_memory():
        look.note(f"training on {look.size} records was not tried: it needs more memory than is free")
        return None, None
    times: list[float] = []

    def steps() -> None:
        loop = loop_of(look, training_copy(look.model), look.size)
        times.extend(peaks.seconds(loop.step) for _ in range(look.settings.train_steps))
        every_kind_of_step(loop)

    with torch.random.fork_rng():
        extra = peaks.peak_of(steps)
    return (None if extra is None else process + extra), median(times)
