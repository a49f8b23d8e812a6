"""The on-line doctor: what is wrong with a training, told while it runs, each finding with its cure.

It looks at curves and gradients only, so it serves every family alike. Thresholds are rules of thumb; each stands beside
the reason for it and is tested on a training with exactly that fault and on a healthy one.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..observe import dead_units
from ..operation import Finding
from ..weights.matrices import Weight

Curve = Sequence[tuple[int, float]]

VANISHING = 1e-4  # gradient per weight of the early matrices against the late ones; healthy nets stay above 1e-2
EXPLODING = 1e3  # gradient norm of a mean loss before clipping; healthy ones are 0.01 to 50
DEAD = 0.4  # share of a layer's units that never leave zero over a whole batch
OVERFITTING = 1.1  # validation loss against its own best, while the training loss still falls
DESERTED = 0.05  # of an even share: what an expert is chosen less than, it learns next to nothing from
EVEN = 20  # choices for each expert, if all were even, from which fewer are not chance
TOO_HIGH = 1.5  # smoothed loss against the best so far (or the start) when it ought to fall
TOO_LOW = 0.01  # relative fall of the loss over a whole run, and relative movement of the weights


def not_a_number(step: int, batch: dict[str, Tensor], net: nn.Module) -> Finding:
    """Which of the three causes it is: the data, the weights, or the step size."""
    for name, value in batch.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            return Finding(
                "not-a-number",
                f"step {step}: '{name}' of the batch holds NaN or infinity",
                "clean that column, or fill in what is missing",
            )
    where = (
        "its weights are finite" if all(torch.isfinite(p).all() for p in net.parameters()) else "its weights are lost"
    )
    return Finding(
        "not-a-number",
        f"step {step}: the loss left the range of numbers while the data are finite; {where}",
        "a learning rate ten times lower, --clip 1, or --precision fp32",
    )


def probe(weights: Sequence[Weight], gradient_norm: float, step: int) -> Iterator[Finding]:
    """Look at the gradients of one step, before they are clipped."""
    if gradient_norm > EXPLODING:
        yield Finding(
            "exploding-gradients",
            f"step {step}: gradient norm {gradient_norm:.3g}",
            "a lower learning rate with warm-up, --clip 1, or normalization layers",
        )
    ratios = [ratio for weight in weights if (ratio := gradient_ratio(weight)) is not None]
    third = len(ratios) // 3
    if third >= 1:
        early, late = median(ratios[:third]), median(ratios[-third:])
        if late > 0 and early < VANISHING * late:
            yield Finding(
                "vanishing-gradients",
                f"step {step}: the early layers get {early / late:.1e} of the late layers' gradient",
                "residual connections, normalization layers, or another activation than sigmoid",
            )


def gradient_ratio(weight: Weight) -> float | None:
    """Root mean square of the gradient over that of the weight; None where there is no gradient."""
    gradient = weight.value.grad if weight.value.is_leaf else None
    if gradient is None:
        return None
    return float(gradient.norm() / weight.value.detach().norm().clamp_min(1e-12))


def check_units(net: nn.Module, forward) -> Iterator[Finding]:
    """Watch one forward pass for units that are zero for every record."""
    for name, share in dead_units(net, forward).items():
        if share > DEAD:
            yield Finding(
                "dead-units",
                f"{share:.0%} of the units that feed {name} are zero for every record of a batch",
                "a lower learning rate, a new start, or GELU instead of ReLU",
            )
            return


def check_experts(loads: Mapping[str, Tensor]) -> Iterator[Finding]:
    """Look at how often each expert of each mixture is chosen in a batch, (E,)."""
    for name, load in loads.items():
        even = float(load.mean())
        dead = int((load < DESERTED * even).sum())
        if dead and even >= EVEN:
            yield Finding(
                "dead-experts",
                f"{dead} of the {len(load)} experts of {name} get less than {DESERTED:.0%} of an even share of a batch's tokens",
                "--balance 0.01, fewer experts, or a lower learning rate",
            )
            return


def check_curves(loss: Curve, validation: Curve, moved: float, done: bool = False) -> Iterator[Finding]:
    """Look at the curves so far. `moved`: how far the weights can have gone, relative to their size; `done`: nothing follows."""
    smooth = smoothed([value for _, value in loss])
    if len(smooth) >= 8:
        start, best, now = smooth[0], min(smooth), smooth[-1]
        floor = max(abs(best), 0.1 * abs(start), 1e-3)
        if now > best + (TOO_HIGH - 1) * floor and now > 0.9 * start:
            yield Finding(
                "learning-rate-too-high",
                f"the loss went from {start:.3g} to {best:.3g} and is at {now:.3g}",
                "a learning rate three to ten times lower, or a longer warm-up; --rate measured finds one",
            )
        elif start - now < TOO_LOW * abs(start) and moved < TOO_LOW:
            yield Finding(
                "learning-rate-too-low",
                f"the loss is at {now:.4g} after {start:.4g}, and the weights moved by "
                f"{moved:.1e} of their size at most",
                "a learning rate ten times higher; --rate measured finds one",
            )
        elif done and now > (1 - TOO_LOW) * min(start, loss[0][1]):
            yield Finding(
                "nothing-learnt",
                f"the loss is at {now:.4g} after {loss[0][1]:.4g} at the first step",
                "--rate measured tries other learning rates; or other data, since these may not tell the answer",
            )
    if len(validation) >= 3:
        values = [value for _, value in validation]
        best = min(values)
        if values[-1] > OVERFITTING * best + 1e-6 and len(smooth) >= 2 and smooth[-1] < 0.7 * best:
            at = validation[values.index(best)][0]
            yield Finding(
                "overfitting",
                f"validation loss {values[-1]:.3g} after a best of {best:.3g} at step {at}, "
                f"training loss {smooth[-1]:.3g}",
                f"--patience 3 stops there; or more data, more weight decay, fewer steps (about {at})",
            )


def smoothed(values: Sequence[float]) -> list[float]:
    """Means of up to 20 equal stretches."""
    width = max(1, math.ceil(len(values) / 20))
    return [sum(part) / len(part) for start in range(0, len(values), width) if (part := values[start : start + width])]


def median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
