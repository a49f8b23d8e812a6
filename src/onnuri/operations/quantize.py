"""Store the weights as 8-bit integers, packed on disk, and optionally compute with them.

int8: symmetric, one scale per output row; a quarter of fp32's bytes, computed in float. int8-dynamic: the same codes, and
every Linear also rounds its input to int8 per row on the fly, so that its product runs on the processor's integer units.
"""

from typing import Literal

from pydantic import Field

from .. import measure
from ..attach import pack, packed_weights, require_plain
from ..data import Data
from ..errors import Refusal
from ..model import Model
from ..operation import Log, Operation, Promise, Result
from ..operation import Settings as Base
from ..weights import weights

ROLES = ("linear", "conv", "expert", "embedding")


class Settings(Base):
    scheme: Literal["int8", "int8-dynamic"] = Field(
        "int8", description="weights alone, or activations of Linear layers too"
    )
    embeddings: bool = Field(True, description="pack embedding tables as well")


def apply(settings: Settings, log: Log, model: Model, data: Data) -> Result:
    """The model with its matrices packed."""
    require_plain(model.net, "quantize")
    roles = ROLES if settings.embeddings else ROLES[:-1]
    found = weights(model.net, *roles)
    if not found:
        raise Refusal(
            "nothing to quantize: this model holds no weight matrices", "predict, evaluate, or the teacher of distill"
        )
    for number, weight in enumerate(found):
        pack(weight, settings.scheme)
        log.progress(number + 1, len(found), "matrices packed")
    return Result(model=model)


def worst_rounding(settings: Settings, inputs: dict, result: Result) -> float:
    """The largest |float - packed| in units of the row's scale; 0.5 is what rounding to nearest allows."""
    assert result.model is not None
    original = {weight.name: weight for weight in weights(inputs["model"].net)}
    return max(
        float((original[name].matrix.float() / base.scale - base.view.matrix(base.codes)).abs().max())
        for name, (_, base) in packed_weights(result.model.net).items()
    )


def change_of_outputs(settings: Settings, inputs: dict, result: Result) -> float | None:
    assert result.model is not None
    return measure.largest_difference(inputs["model"], result.model, inputs["data"].split("test").some(64))


OPERATION = Operation(
    "quantize",
    Settings,
    {"model": "model", "data": "data"},
    "model",
    apply,
    (
        Promise("largest rounding error, in steps of the row's scale", "at most", 0.51, worst_rounding),
        Promise("largest relative change of the outputs", "at most", 0.25, change_of_outputs),
    ),
)
