"""Write a model for another runtime, with the same answers as the original.

The runtimes are those that are registered; each says in which precisions it computes, and makes what it executes. Which is quickest
depends on the model and on the machine, so that `fastest` makes what each of them would execute here, and times it on an answer.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field

from .. import encoding, measure, registry
from ..data import Data, Records
from ..errors import BadSettings, OnnuriError, Refusal
from ..family import Session
from ..graph import OPSETS, STEPPING, USUAL, in_float, two_parts
from ..model import Model, count_parameters, with_net, without_tensors
from ..operation import Log, Operation, Promise, Quiet, Result
from ..operation import Settings as Base
from ..runtime import ALLOWED, Precision, Runtime
from ..weights.attach import packed_weights
from ..weights.packed import ROUNDING
from ..weights.units import apart

FASTEST = "fastest"
if TYPE_CHECKING:
    RuntimeName = str
else:
    RuntimeName = Literal[(*registry.entries("runtimes"), FASTEST)]
TIMED = 16  # records that are answered one by one


class Settings(Base):
    to: RuntimeName = Field("onnx", description="the runtime to write for; fastest: that which answers soonest here")
    precision: Precision = Field("fp32", description="what the runtime computes in")
    opset: int = Field(
        USUAL,
        ge=OPSETS.start,
        lt=OPSETS.stop,
        description="version of the ONNX operator set, where the runtime reads ONNX; where nothing is said "
        f"{STEPPING} for a net that keeps a memory",
    )


def apply(settings: Settings, log: Log, model: Model, data: Data) -> Result:
    """The same model executed by another runtime."""
    if isinstance(model.net, Session):
        raise Refusal("this model is exported already", "export the model it was made from")
    if not count_parameters(model.net):
        raise Refusal(
            "this model holds no tensors that a graph could compute with", "predict and evaluate run it as it is"
        )
    runtimes = chosen(settings)
    if any(base.scheme in ROUNDING for _, base in packed_weights(model.net).values()):
        log.warn(
            "another runtime computes in float what this model computes in integers: its answers are those of scheme int8"
        )
    records = data.split("train")
    if settings.to == FASTEST:
        result = fastest(runtimes, settings, log, model, records)
    else:
        log.progress(0, 1, f"writing for {settings.to}")
        result = Result(model=with_net(model, runtimes[0].make(model, records, settings, log)))
    assert result.model is not None and isinstance(result.model.net, Session)
    result.model.net.original = without_tensors(in_float(model).net)
    return result


def chosen(settings: Settings) -> list[Runtime]:
    """The runtimes that are asked for: one, or all for this machine. BadSettings for a precision that none of them has, and an
    operator set that none reads."""
    if settings.to != FASTEST:
        asked = [registry.runtime(settings.to)]
    else:
        asked = [one for name in registry.entries("runtimes") if not (one := registry.runtime(name)).elsewhere]
    faults = [faults_of(settings, runtime) for runtime in asked]
    if all(faults):
        raise BadSettings(*dict.fromkeys(fault for each in faults for fault in each))
    return [runtime for runtime, wrong in zip(asked, faults) if not wrong]


def faults_of(settings: Settings, runtime: Runtime) -> list[str]:
    """A precision that the runtime does not have, and an operator set that it does not read."""
    faults = []
    if settings.precision not in runtime.precisions:
        faults.append(f"{runtime.name} does not compute in {settings.precision}: {', '.join(runtime.precisions)}")
    if settings.opset not in runtime.opsets and (runtime.opsets or settings.changed("opset")):
        known = f"{runtime.opsets.start} to {runtime.opsets.stop - 1}" if runtime.opsets else "it reads no ONNX"
        faults.append(f"'opset' {settings.opset} has no effect on {runtime.name}: {known}")
    return faults


def fastest(runtimes: list[Runtime], settings: Settings, log: Log, model: Model, records: Records) -> Result:
    """By that of the runtimes which answers one record soonest."""
    made: dict[str, Model] = {}
    said = {runtime.name: Quiet() for runtime in runtimes}
    faults: list[str] = []
    for number, runtime in enumerate(runtimes):
        log.progress(number, len(runtimes), f"writing for {runtime.name}")
        try:
            made[runtime.name] = with_net(model, runtime.make(model, records, settings, said[runtime.name]))
        except OnnuriError as error:  # its library is not there, or the net is none for it
            faults.append(f"{runtime.name}: {str(error).splitlines()[0]}")
    if not made:
        raise Refusal(
            f"no runtime here computes this net in {settings.precision}: {'; '.join(faults)}",
            "predict and evaluate run it as it is",
        )
    some = records.some(TIMED).list()
    times = {name: measure.latency(one, some, 0)["p50"] for name, one in {"torch": model, **made}.items()}
    best = min(made, key=times.__getitem__)
    for text in said[best].warnings:
        log.warn(text)
    if times["torch"] <= times[best]:
        log.warn(f"torch is quicker here: {times['torch']:.3g} ms an answer, {best} {times[best]:.3g}")
    if faults:
        log.warn(f"left out: {'; '.join(faults)}")
    return Result(model=made[best], bars={"milliseconds of an answer": times})


# ------------------------------------------------------------------------------------------------------------- promises


def parity(*precisions: Precision) -> Callable[[Settings, dict, Result], float | None]:
    """What measures the difference of an export in one of these precisions."""

    def difference(settings: Settings, inputs: dict, result: Result) -> float | None:
        assert result.model is not None
        if settings.precision not in precisions:
            return None
        return measure.largest_difference(
            in_float(inputs["model"]), result.model, inputs["data"].split("test").some(64)
        )

    return difference


@torch.no_grad()
def going_on(settings: Settings, inputs: dict, result: Result) -> float | None:
    """How far what follows a memory is from what follows the original's, relative to the largest, where both keep one."""
    assert result.model is not None
    if settings.precision != "fp32":
        return None
    plain, other = in_float(inputs["model"]), result.model
    records = inputs["data"].split("test").some(8)
    before, after = two_parts(plain, records, len(records))
    _, memory = other.family.steps(other.net, before, ())
    if not memory:
        return None
    (found, _), _ = other.family.steps(other.net, after, memory)
    (wanted, _), _ = plain.family.steps(plain.net, after, plain.family.steps(plain.net, before, ())[1])
    return apart([wanted], [found])


def described(settings: Settings, inputs: dict, result: Result) -> float | None:
    """The largest difference of a batch that is made as the export says from the one that the family makes."""
    assert result.model is not None
    session, model = result.model.net, inputs["model"]
    if not isinstance(session, Session) or not session.question:
        return None
    records = model.asked(inputs["data"].split("test").some(64).list())
    return max(
        encoding.apart(encoding.encode(session.question, record), model.collate([record], keys=[key]))
        for key, record in enumerate(records)
    )


GOING_ON = "largest relative difference of what follows a memory to what follows the original's"
DIFFERENCE = "largest relative difference to the original's outputs in fp32 on real records"
OPERATION = Operation(
    "export",
    Settings,
    {"model": "model", "data": "data"},
    "model",
    apply,
    (
        Promise(DIFFERENCE, "at most", ALLOWED["fp32"], parity("fp32")),
        Promise(GOING_ON, "at most", ALLOWED["fp32"], going_on),
        Promise(f"{DIFFERENCE}, computed in 16 bits", "at most", ALLOWED["fp16"], parity("fp16", "bf16")),
        Promise(f"{DIFFERENCE}, in 8 bits", "at most", ALLOWED["int8"], parity("int8")),
        Promise(f"{DIFFERENCE}, in 4 bits", "at most", ALLOWED["int4"], parity("int4")),
        # two of 255 steps of a pixel, in deviations: so far go versions of Pillow apart under a processor of transformers
        Promise(
            "largest difference of what a page makes of a question to what Python makes", "at most", 0.05, described
        ),
    ),
)
