"""Say what a model costs on this machine or on another device: memory, time and energy, and whether it fits.

Nothing is asked of the architecture: one forward pass, one answer and one training step are watched (`costs/count.py`) and set
against what the machine can do at its best (`costs/peaks.py`) and what it reaches by kind of task (`costs/efficiency.py`); both are
known before the model is timed. Memory is watched at two small batches; what is alive after each operator grows linearly in
the records, so its peak at any batch follows. Two differences from arithmetic on paper: what libraries load and copy for
themselves is counted, and training's allocator is seen to hold more than is alive. It goes on to gather some more over a
long training: whole trainings came to 1.0 to 1.33 times what is predicted here.

Of another device its data sheet is known (`costs/targets.py`) and nothing is measured. It is assumed to reach the shares of its
peaks that this machine reaches of its own, and what libraries hold for themselves is not counted.
"""

from typing import Any

from pydantic import Field, field_validator

from ...costs import peaks, targets
from ...costs.efficiency import efficiency_of
from ...costs.targets import HERE, Target
from ...data import Data, Records
from ...errors import BadInput, BadSettings
from ...figures import joules_text, number, scaled, size_text, time_text
from ...model import Model
from ...operation import Log, Operation, Result
from ...operation import Settings as Base
from .look import Look, ceilings, longest_first, stored, trainable
from .running import answers, runs
from .training import trains

ASSUMED = "assumed: of its peaks the target reaches the shares that this machine reaches of its own"


class Settings(Base):
    batch_size: int = Field(64, ge=1, description="records at once, in a forward pass and in a training step")
    train_steps: int = Field(3, ge=0, description="training steps that are timed; 0: training is predicted only")
    target: str = Field(
        HERE,
        description="the device: here (this machine), a name in targets.yaml such as raspberry-pi-5, or a YAML file",
    )
    devices: int = Field(1, ge=1, description="targets that share a training batch")

    @field_validator("target")
    @classmethod
    def is_there(cls, name: str) -> str:
        """A device that is not known, or a file with faults, is told of before anything is opened."""
        try:
            return name if name == HERE else (targets.find(name) and name)
        except BadInput as error:
            raise BadSettings(*error.faults, hint=error.hint) from error


def apply(settings: Settings, log: Log, model: Model, data: Data) -> Result:
    """The report. The model is as it was before."""
    target = None if settings.target == HERE else targets.find(settings.target)
    check_settings(settings, model, data.records, target)
    records = longest_first(model, data.records, settings)
    began = peaks.reference()
    best = peaks.measure_peaks()
    found = efficiency_of(best)
    log.progress(1, 4, "peaks of the machine")
    report = {**stored(model), **ceilings(best), "work": [], "memory": [], "notes": [], "uncounted_operators": {}}
    if target:
        report["target"] = {"name": settings.target, **target.model_dump(exclude_none=True)}
    look = Look(model, records, settings, best, report, found, target)
    runs(look)
    log.progress(2, 4, "forward passes")
    answers(look)
    log.progress(3, 4, "answers")
    trains(look)
    report["notes"] += filter(None, [peaks.busy(began, peaks.reference()), unknown(report), ASSUMED * bool(target)])
    report["summary"] = summary(report)
    for note in report["notes"]:
        log.warn(note)
    return Result(report=report)


def check_settings(settings: Settings, model: Model, records: Records, target: Target | None) -> None:
    """BadSettings where one that was given would have no effect."""
    faults = []
    if "train_steps" in settings.model_fields_set and settings.train_steps and not trainable(model):
        faults.append("'train_steps' has no effect: nothing in this model can be trained")
    elif "train_steps" in settings.model_fields_set and target:
        faults.append("'train_steps' has no effect: nothing is timed on a target that is not here")
    if "batch_size" in settings.model_fields_set and settings.batch_size > len(records):
        pieces = len(model.family.pieces(records, model.assets))  # a long record is learnt in many
        if settings.batch_size > pieces:
            faults.append(f"'batch_size' is {settings.batch_size}, but the data have {pieces} records")
    if settings.changed("devices"):
        faults += devices_faults(settings, model, min(settings.batch_size, len(records)), target)
    if faults:
        raise BadSettings(*faults, hint="leave it out")


def devices_faults(settings: Settings, model: Model, records: int, target: Target | None) -> list[str]:
    """Why a batch cannot be shared."""
    if target is None:
        return ["'devices' has no effect here: it is for a target, such as h200"]
    if not trainable(model):
        return ["'devices' has no effect: nothing in this model can be trained"]
    if target.link_bandwidth is None:
        return [f"'devices' has no effect: nothing links {settings.target} to another one (link_bandwidth)"]
    if settings.devices > records:
        return [f"'devices' is {settings.devices}, but a batch has {records} records"]
    return []


# ------------------------------------------------------------------------------------------------------------ in words


def unknown(report: dict[str, Any]) -> str:
    """What to say of operators that no table knows."""
    names = ", ".join(f"{name} ({calls}x)" for name, calls in report["uncounted_operators"].items())
    return f"not in the FLOPs, because no formula is known: {names}" if names else ""


def summary(report: dict[str, Any]) -> str:
    """The report in one line."""
    work, target = report["work"], report.get("target")
    seconds = "predicted_seconds" if target else "measured_seconds"
    parts = [
        f"{scaled(report['parameters'], '', least=1)} parameters",
        size_text(report["bytes_in_memory"]),
        *([f"{scaled(report['forward_flops'], 'FLOP', least=1)} a record"] if report["forward_flops"] else []),
        f"{time_text(work[0][seconds])} a forward pass",
        *(f"{size_text(one['predicted_bytes'])} to {one['work']}" for one in report["memory"]),
    ]
    return (f"on {target['name']}: " if target else "") + ", ".join(parts + (verdicts(report) if target else []))


def verdicts(report: dict[str, Any]) -> list[str]:
    """What is asked of a target: does it fit, how long until an answer, how much for it."""
    said = [f"{'fits' if one['fits'] else 'does not fit'} to {one['work']}" for one in report["memory"]]
    answer = next(one for one in report["work"] if one["work"] == "answer")
    said += [f"{joules_text(answer['joules'])} an answer"] * (answer["joules"] is not None)
    if "answer" in report:
        one = report["answer"]
        said += [f"first {one['piece']} after {time_text(one['seconds_to_first'])}"]
        said += [f"then {number(one['pieces_per_second'])} a second"]
    return said


OPERATION = Operation("estimate", Settings, {"model": "model", "data": "data"}, "report", apply)
