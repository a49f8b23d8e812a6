"""Set the least important weights to zero, or take out whole channels, heads, experts or blocks.

magnitude: the smallest numbers (Han et al., arXiv:1506.02626). wanda: the smallest products of number and input (Sun et al.,
arXiv:2306.11695; its authors rank within rows: `--scope row`). sparsegpt: those that cost least, and what is left makes up for
them (Frantar & Alistarh, arXiv:2301.00774). What no layer of the net multiplies its input with in the plain way (experts,
recurrent nets) goes by size. Zeros alone make a model smaller only when it is compressed, and no faster here; training onward
keeps them. Two of four in a row is what the sparse units of some accelerators take.

`--units` takes out whole units: the result is a smaller net of the same design without any zeros. Which slices make up a
unit is found by looking (`weights/units.py`), how units are ranked says `weights/ranking.py`. Wherever a net has such units
each place loses the same share of them, its own least important ones, since a description has one number for all places.
`--units tokens` takes tokens out of what a text model reads, with their rows; every text can still be read.
"""

from ...data import Data
from ...errors import Refusal
from ...model import Model
from ...observe import reestimated_statistics
from ...operation import Log, Operation, Promise, Result, Way
from ...weights.attach import require_plain
from ...weights.calibration import looked_at
from ...weights.matrices import weights
from ...weights.sharing import unshared_numbers
from ...weights.units import TOLERANCE
from .numbers import change_of_the_rest, crowded_fours, missing_zeros, with_zeros
from .settings import ROLES, Settings
from .tokens import fewer_tokens, tokens_too_many, unlike_whole
from .units import narrower, shallower, units_too_many, unlike_zeros


def apply(settings: Settings, log: Log, model: Model, data: Data) -> Result:
    """The model with `share` of every matrix at zero, or with that share of its units taken out."""
    require_plain(model.net, "prune")
    if not weights(model.net, *ROLES):
        raise Refusal(
            "nothing to prune: this model holds no weight matrices", "predict, evaluate, or the teacher of distill"
        )
    records = data.split("train")
    seen = looked_at(records, settings.looks, log) if settings.looks else None
    if settings.units == "numbers":
        result = Result(model=with_zeros(settings, log, model, seen))
    elif settings.units == "blocks":
        assert seen is not None, "blocks are looked at"
        result = Result(model=shallower(settings, log, model, seen))
    elif settings.units == "tokens":
        result = fewer_tokens(settings, model, seen)
    else:
        result = narrower(settings, log, model, records, seen)
    assert result.model is not None
    result.model = reestimated_statistics(result.model, records, log)
    return result


def parameters_left(settings: Settings, inputs: dict, result: Result) -> float | None:
    assert result.model is not None
    if settings.units == "numbers":
        return None
    return unshared_numbers(result.model.net) / unshared_numbers(inputs["model"].net)


OPERATION = Operation(
    "prune",
    Settings,
    {"model": "model", "data": "data"},
    "model",
    apply,
    (
        Promise("share of zeros below what was asked for", "at most", 0.02, missing_zeros),
        Promise("largest change of a number that was kept", "at most", 0.0, change_of_the_rest),
        Promise("fours in a row with more than two numbers", "at most", 0.0, crowded_fours),
        Promise("parameters left, as a share of the original's", "at most", 0.9999, parameters_left),
        Promise("units left besides the share asked for, in steps of the design", "at most", 1.0, units_too_many),
        Promise("answers unlike those with zeros in the units' place, relative", "at most", TOLERANCE, unlike_zeros),
        Promise("tokens left besides the share asked for", "at most", 0.0, tokens_too_many),
        Promise(
            "answers unlike those of the whole net given the same tokens, relative", "at most", TOLERANCE, unlike_whole
        ),
    ),
    (  # single numbers are no search's matter: zeros take as many bytes
        Way("weights", {"units": ("channels",), "share": (0.5, 0.25, 0.75), "method": ("wanda", "magnitude")}),
        Way("weights", {"units": ("heads",), "share": (0.5, 0.25, 0.75), "method": ("wanda", "magnitude")}),
        Way("weights", {"units": ("experts",), "share": (0.5, 0.25, 0.75)}),
        Way("weights", {"units": ("blocks",), "share": (0.5, 0.25)}),
        Way("weights", {"units": ("tokens",), "share": (0.5, 0.75, 0.9, 0.95), "method": ("wanda", "magnitude")}),
    ),
)
