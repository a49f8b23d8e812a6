"""Say what a model costs on this machine: parameters, FLOPs, memory and time, predicted and measured.

Nothing is asked of the architecture: one forward pass, one answer and one training step are watched (`costs.py`) and set
against what the machine can do at its best (`peaks.py`). Memory is watched at two small batches; what is alive after each
operator grows linearly in the records, so its peak at any batch follows. Two differences from arithmetic on paper: what
libraries load and copy for themselves is counted, and training's allocator is seen to hold more than is alive. It goes on
to gather some more over a long training: whole trainings came to 1.0 to 1.33 times what is predicted here.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from .. import machine, measure, peaks, speed
from ..attach import is_trainable, stored_numbers
from ..costs import Cost, Line, Watch, tensors_of, watched
from ..data import Data, Records
from ..errors import BadSettings
from ..family import Batch, Session
from ..figures import scaled, size_text, time_text
from ..fit import FitSettings, Loop
from ..model import Model, count_parameters
from ..operation import Log, Operation, Quiet, Result
from ..operation import Settings as Base
from ..peaks import Peaks
from ..weights import weights
from .train import objective_of

LOOKED_AT = 256  # records among which the longest and the shortest are looked for
ROOM = 0.9  # of the free memory that may be taken for measuring
COARSE = 2**24  # bytes from which what the system tells of memory is exact enough
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int8: "int8"}


class Settings(Base):
    batch_size: int = Field(64, ge=1, description="records at once, in a forward pass and in a training step")
    train_steps: int = Field(3, ge=0, description="training steps that are timed; 0: training is predicted only")


def apply(settings: Settings, log: Log, model: Model, data: Data) -> Result:
    """The report. The model is as it was before."""
    check_settings(settings, model, data.records)
    records = longest_first(model, data.records, settings)
    began = peaks.reference()
    best = peaks.measure_peaks()
    log.progress(1, 4, "peaks of the machine")
    report = {**stored(model), **ceilings(best), "work": [], "memory": [], "notes": [], "uncounted_operators": {}}
    look = Look(model, records, settings, best, report)
    runs(look)
    log.progress(2, 4, "forward passes")
    answers(look)
    log.progress(3, 4, "answers")
    trains(look)
    report["notes"] += filter(None, [peaks.busy(began, peaks.reference()), unknown(report)])
    report["summary"] = summary(report)
    for note in report["notes"]:
        log.warn(note)
    return Result(report=report)


class Look:
    """What all parts of the report need: whom, on what, against which peaks, and the report that they add to."""

    def __init__(self, model: Model, records: Records, settings: Settings, best: Peaks, report: dict[str, Any]):
        self.model, self.records, self.settings, self.best, self.report = model, records, settings, best, report
        self.size, self.memory = len(records), machine.memory_bytes()
        small = max(2, self.size // 8)
        self.probes = (small, 2 * small)
        self.process = 0
        """Bytes that this process holds beside the net, once its libraries have loaded what a forward pass needs."""

    def some(self, n: int) -> Records:
        """The first n records, over again where there are fewer."""
        return self.records[[i % self.size for i in range(n)]]

    def batch(self, n: int) -> Batch:
        return self.model.collate(self.some(n).list())

    def note(self, text: str) -> None:
        self.report["notes"].append(text)

    def watched(self, work: Callable[[], Any], known: list[Tensor]) -> Watch:
        """What `work` costs; what could not be counted is remembered."""
        with watched(known) as watch:
            work()
        self.report["uncounted_operators"] |= watch.unknown
        return watch

    def work(self, name: str, records: int, cost: Cost, seconds: float | None) -> None:
        """One line of the roofline: predicted beside measured, and what holds it back."""
        products, memory = self.best.seconds(cost.flops, cost.moved)
        roofline = max(products, memory)
        found = {
            "work": name,
            "records": records,
            "flops": sum(cost.flops.values()) or None,
            "bytes_moved": cost.moved,
            "operators": cost.calls,
            "product_seconds": products,
            "memory_seconds": memory,
            "roofline_seconds": roofline,
            "predicted_seconds": roofline + cost.calls * self.best.call,
            "measured_seconds": seconds,
            "bottleneck": peaks.bottleneck(products, memory, seconds),
        }
        if not cost.flops:  # what runs elsewhere has its time measured, and nothing to hold that against
            outside = [name for name in found if name.endswith("_seconds") and name != "measured_seconds"]
            found |= dict.fromkeys(("bytes_moved", *outside)) | {"bottleneck": "not executed by torch"}
        self.report["work"].append(found)

    def fits(self, name: str, line: Line, measured: float | None, **parts: float) -> None:
        """One line of memory: predicted beside measured and the machine's own, and the largest batch that fits."""
        predicted = line.at(self.size)
        self.report["memory"].append(
            {
                "work": name,
                "records": self.size,
                **parts,
                "predicted_bytes": predicted,
                "measured_bytes": measured,
                "share_of_machine": predicted / self.memory,
                "largest_batch": line.most(self.memory) if self.report["forward_flops"] else None,
            }
        )


def check_settings(settings: Settings, model: Model, records: Records) -> None:
    """BadSettings where one that was given would have no effect."""
    faults = []
    if "train_steps" in settings.model_fields_set and settings.train_steps and not trainable(model):
        faults.append("'train_steps' has no effect: nothing in this model can be trained")
    if "batch_size" in settings.model_fields_set and settings.batch_size > len(records):
        faults.append(f"'batch_size' is {settings.batch_size}, but the data have {len(records)} records")
    if faults:
        raise BadSettings(*faults, hint="leave it out")


def trainable(model: Model) -> bool:
    return bool(model.players) and is_trainable(model.net)


def longest_first(model: Model, records: Records, settings: Settings) -> Records:
    """`batch_size` records, evenly spaced: first the one of most values, then the one of fewest, so that every part of
    them is padded as the whole is."""
    records = records.some(settings.batch_size)
    sizes = [sum(v.numel() for v in model.collate([record]).values()) for record in records.some(LOOKED_AT).list()]
    places = np.linspace(0, len(records) - 1, len(sizes)).astype(int).tolist()  # as `some` takes them
    ends = [places[sizes.index(max(sizes))], places[sizes.index(min(sizes))]]
    return records[[*dict.fromkeys(ends), *(i for i in range(len(records)) if i not in ends)]]


# ------------------------------------------------------------------------------------------------------ what is stored


def stored(model: Model) -> dict[str, Any]:
    """Parameters by role, bytes by type."""
    net = model.net.original if isinstance(model.net, Session) else model.net
    total, roles = count_parameters(model.net), dict[str, int]()
    for weight in weights(net):
        roles[weight.role] = roles.get(weight.role, 0) + stored_numbers(weight)
    if total > sum(roles.values()):
        roles["rest"] = total - sum(roles.values())
    kinds: dict[str, int] = {}
    for tensor in tensors_of(model.net):
        kind = str(tensor.dtype).removeprefix("torch.")
        kinds[kind] = kinds.get(kind, 0) + tensor.nbytes
    if other := bytes_beside(model.net):
        kinds["other"] = other
    return {
        "parameters": total,
        "parameters_by_role": roles,
        "bytes_on_disk": measure.folder_bytes(model.folder) if model.folder else None,
        "bytes_in_memory": sum(kinds.values()),
        "bytes_in_memory_by_type": kinds,
    }


def bytes_beside(net: nn.Module) -> int:
    """Of a text or graph that stands for weights."""
    values = net.state_dict().values()
    return sum(len(value) if isinstance(value, (bytes, str)) else 0 for value in values)


def ceilings(best: Peaks) -> dict[str, Any]:
    """The peaks of the machine as figures of the report."""
    return {
        "threads": best.threads,
        **{f"peak_{NAMES[kind]}_flops_per_second": peak.best for kind, peak in best.flops.items()},
        "peak_memory_bytes_per_second": best.bandwidth.best,
        "peak_spreads": {
            **{NAMES[kind]: peak.spread for kind, peak in best.flops.items()},
            "memory": best.bandwidth.spread,
        },
        "call_seconds": best.call,
        "machine_memory_bytes": machine.memory_bytes(),
    }


# -------------------------------------------------------------------------------------------------- running and answering


def runs(look: Look) -> None:
    """FLOPs, bytes, time and memory of a forward pass, of one record and of a batch."""
    model, report, one = look.model, look.report, look.batch(1)
    known = tensors_of(model.net)
    seconds_of_one = peaks.timed(lambda: model.outputs(one))
    process = look.process = max(0, peaks.resident_bytes() - report["bytes_in_memory"])
    alone = look.watched(lambda: model.outputs(one), known)
    places = int(model.outputs(one)[1].sum())
    report |= {
        "forward_flops": alone.total_flops or None,
        "forward_flops_per_place": alone.total_flops / places if alone.flops and places else None,
        "places": places,
        "forward_weight_bytes": alone.read_once,
        "forward_activation_bytes": 2 * alone.made,
        "flops_per_byte": alone.total_flops / alone.once().moved if alone.flops else None,
    }
    if not alone.flops:
        look.note("torch does not execute this net: no FLOPs, no roofline, and what it holds while it runs is not seen")
    look.work("forward pass", 1, alone.once(), seconds_of_one)
    batches = [look.batch(n) for n in look.probes]
    probes = [look.watched(lambda batch=batch: model.outputs(batch), known) for batch in batches]
    line = Line.of(probes, look.probes, process + report["bytes_in_memory"])
    measured = seconds = None
    if line.at(look.size) - line.fixed < ROOM * peaks.free_memory():
        extra = peaks.peak_of(lambda: model.outputs(look.batch(look.size)))
        measured = line.fixed + extra if extra is not None else None
        many = look.batch(look.size)
        seconds = peaks.timed(lambda: model.outputs(many))
    else:
        look.note(f"a batch of {look.size} was not run: it needs more memory than is free")
    if look.size > 1:
        one_cost, two_cost = (watch.once() for watch in probes)
        look.work("forward pass", look.size, one_cost.at(two_cost, look.probes, look.size), seconds)
    look.fits("run", line, measured, process_bytes=process, weights_bytes=report["bytes_in_memory"])


def answers(look: Look) -> None:
    """What one answer costs: a family may ask its net many times for it, as when it writes a text."""
    record = look.model.asked(look.some(1).list())
    watch = look.watched(lambda: look.model.sample(record), tensors_of(look.model.net))
    look.report["answer_flops"] = watch.total_flops or None
    look.work("answer", 1, watch.each(), peaks.timed(lambda: look.model.sample(record)))


# ----------------------------------------------------------------------------------------------------------- training


def trains(look: Look) -> None:
    """FLOPs, time and memory of a training step, by steps of the real loop on a copy."""
    model, report = look.model, look.report
    if not trainable(model):
        return look.note("nothing in this model is trained as it is, so there is no training step to estimate")
    parts = training_parts(model)
    if sum(parts.values()) > ROOM * peaks.free_memory():
        look.note("no training step was tried: weights, gradients and moments alone need more memory than is free")
        return report["memory"].append(
            {"work": "train", **parts, "predicted_bytes": look.process + sum(parts.values())}
        )
    speed.prepare()  # as training does
    before = peaks.resident_bytes()
    with torch.random.fork_rng():
        probes, held = probed(look)
    process = look.process + max(0, peaks.resident_bytes() - before)
    line = Line.of(probes, look.probes, process + parts["weights_bytes"] + parts["moments_bytes"], held)
    kept = Line([[float(watch.peak_saved)] for watch in probes], look.probes, 0).at(look.size)
    one, two = (watch.each() for watch in probes)
    cost = one.at(two, look.probes, look.size)
    report["step_flops"] = sum(cost.flops.values()) or None
    measured, seconds = measured_steps(look, line, process)
    look.work("training step", look.size, cost, seconds)
    predicted = report["work"][-1]["predicted_seconds"]
    report["train_predicted_seconds_per_1000_records"] = predicted and predicted * 1000 / look.size
    report["train_measured_seconds_per_1000_records"] = seconds and seconds * 1000 / look.size
    look.fits("train", line, measured, process_bytes=process, **parts, activations_bytes=kept, held_per_alive=held)


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


def probed(look: Look) -> tuple[list[Watch], float]:
    """(a watched step of each small batch, bytes held by the allocator for each byte alive at the larger one)."""
    net, watches, held = training_copy(look.model), [], 1.0
    for n in look.probes:
        loop = loop_of(look, net, n, ready=True)
        states = [state for optimizer in loop.optimizers.values() for state in optimizer.state.values()]
        moments = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        watches.append(look.watched(loop.step, [*tensors_of(net), *moments]))
        rise, alive = peaks.peak_of(lambda loop=loop: every_kind_of_step(loop)), watches[-1].peak
        held = max(1.0, rise / alive) if rise and alive > COARSE else 1.0
    return watches, held


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


# ------------------------------------------------------------------------------------------------------------ in words


def unknown(report: dict[str, Any]) -> str:
    """What to say of operators that no table knows."""
    names = ", ".join(f"{name} ({calls}x)" for name, calls in report["uncounted_operators"].items())
    return f"not in the FLOPs, because no formula is known: {names}" if names else ""


def summary(report: dict[str, Any]) -> str:
    """The report in one line."""
    work = report["work"]
    parts = [
        f"{scaled(report['parameters'], '', least=1)} parameters",
        size_text(report["bytes_in_memory"]),
        *([f"{scaled(report['forward_flops'], 'FLOP', least=1)} a record"] if report["forward_flops"] else []),
        f"{time_text(work[0]['measured_seconds'])} a forward pass",
        *(f"{size_text(one['predicted_bytes'])} to {one['work']}" for one in report["memory"]),
    ]
    return ", ".join(parts)


OPERATION = Operation("estimate", Settings, {"model": "model", "data": "data"}, "report", apply)
