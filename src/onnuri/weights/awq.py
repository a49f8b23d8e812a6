"""Making the columns that matter larger before they are rounded, and folding the inverse into what feeds them.

AWQ (Lin et al., arXiv:2306.00978), with four differences: 1. which layer feeds which is found by watching one forward pass, where
the authors keep a list for each architecture: layers that get one and the same tensor form a group, the layers that ran before
it are tried as its feeder, and one is taken only if folding leaves the outputs as they were; 2. a column matters by the
root mean square of its inputs, not by their mean size; 3. the error of a rounding is that of the products over all records,
by the second moments of the inputs; 4. the scales of the codes are fitted as `packed.fitted_scales` does, not clipped.

M: (columns, columns) second moments of what a layer multiplies its matrix with. s (channels,): columns times s, feeder over s.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from ..data import Records
from ..model import Model
from ..observe import watching
from .calibration import factors, second_moments
from .matrices import Weight, is_transposed_linear
from .packed import Format, fitted_scales, spread

TOLERANCE = 1e-5  # by which outputs may differ, relative to the largest: folding is exact but for rounding
NEAR = 8  # layers before a group that are tried as its feeder
ALPHAS = [step / 20 for step in range(20)]  # exponents tried, 0 is no scaling
FEW = 4  # records on which outputs are compared
RoundTrip = Callable[[Weight, Tensor, Tensor], Tensor]
"""(weight, its matrix times s, second moments of its inputs over s) -> the matrix as its codes give it back."""


@dataclass(frozen=True)
class Group:
    """Layers that multiply one and the same input, and the layer that makes it. `channels`: of that input."""

    members: tuple[tuple[Weight, nn.Module], ...]
    feeder: nn.Module
    channels: int


def fitted(matrix: Tensor, form: Format, group: int, moments: Tensor) -> tuple[Tensor, Tensor]:
    """As `packed.nearest`, the scales fitted by the mean squares of the inputs."""
    scale = fitted_scales(matrix, form, group, moments.diagonal())
    return form.nearest(matrix / spread(scale, matrix.shape[2])), scale


@torch.no_grad()
def scale_columns(
    model: Model, found: Sequence[Weight], records: Records, round_trip: RoundTrip, done: Callable[[int, int], None]
) -> int:
    """Fold scales into the net so that `round_trip` changes its products less; its outputs stay as they are. How many groups of
    layers were scaled."""
    batch = model.collate(records.list(slice(0, FEW)))
    wanted = model.outputs(batch)[0]
    groups, scaled = list(groups_of(model, found, batch, wanted)), 0
    for number, group in enumerate(groups):
        moments = second_moments(model, records, [weight for weight, _ in group.members])
        scale = best_scale(group, moments, round_trip)
        if scale is not None:
            with kept(group) as keep:
                fold_members(group, scale)
                fold_feeder(group, scale)
                if gap(model.outputs(batch)[0], wanted) <= TOLERANCE:
                    keep()
                    scaled += 1
        done(number + 1, len(groups))
    return scaled


# ------------------------------------------------------------------------------------------------- what feeds which layer


@torch.no_grad()
def groups_of(model: Model, found: Sequence[Weight], batch: dict, wanted: Tensor) -> Iterator[Group]:
    """Every group of layers whose feeder was found, in order of execution."""
    known = {id(weight.homes[0][0]): weight for weight in found if len(weight.homes) == 1}
    ran: list[tuple[nn.Module, Tensor]] = []  # holding the inputs keeps their identities apart
    with watching(model.net, lambda _, module, x: ran.append((module, x)), (nn.Module,)):
        model.outputs(batch)
    times = [id(module) for module, _ in ran]
    seen: dict[int, list[int]] = {}
    for place, (module, x) in enumerate(ran):
        if id(module) in known and times.count(id(module)) == 1 and factors(module, x) is not None:
            seen.setdefault(id(x), []).append(place)
    for places in seen.values():
        members = tuple((known[id(ran[place][0])], ran[place][0]) for place in places)
        channels = channels_in(members[0][1])
        before = [module for module, _ in reversed(ran[: places[0]]) if channels_out(module) == channels]
        tried = (Group(members, feeder, channels) for feeder in list(dict.fromkeys(before))[:NEAR])
        yield from islice((group for group in tried if feeds(model, group, batch, wanted)), 1)


def channels_in(module: nn.Module) -> int:
    """Of the input of a layer that `factors` knows."""
    return module.in_channels if isinstance(module, nn.Conv2d) else matrix_shape(module)[1]


def channels_out(module: nn.Module) -> int:
    """Of an output each of whose channels is in proportion to its own entries of the parameters; 0 where that is not so."""
    if isinstance(module, nn.Linear) or is_transposed_linear(type(module)):
        return matrix_shape(module)[0]
    if isinstance(module, nn.Conv2d):
        return module.out_channels
    lengths = {value.shape for value in module._parameters.values() if value is not None}
    lone = len(lengths) == 1 and not module._modules
    return next(iter(lengths))[0] if lone and all(len(shape) == 1 for shape in lengths) else 0


def matrix_shape(module: nn.Module) -> tuple[int, int]:
    """(rows, columns) of a linear layer."""
    rows, columns = module.weight.shape  # type: ignore[union-attr]
    return (columns, rows) if is_transposed_linear(type(module)) else (rows, columns)  # type: ignore[return-value]


def feeds(model: Model, group: Group, batch: dict, wanted: Tensor) -> bool:
    """Whether folding any scales leaves the outputs as they are, though each half of it alone changes them. Powers of two are
    exact in every type."""
    powers = torch.randint(-1, 2, (group.channels,), generator=torch.Generator().manual_seed(0))
    scale = torch.exp2(powers.float())
    with kept(group):
        fold_members(group, scale)
        if gap(model.outputs(batch)[0], wanted) <= TOLERANCE:
            return False
        fold_feeder(group, scale)
        return gap(model.outputs(batch)[0], wanted) <= TOLERANCE


def gap(values: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest of what is wanted."""
    apart = torch.where(values == wanted, 0.0, (values.float() - wanted.float()).abs()).nan_to_num(nan=torch.inf)
    size = wanted.float().abs().nan_to_num(nan=0.0, posinf=0.0).max()
    return float(apart.max() / size.clamp_min(1e-12))


# ---------------------------------------------------------------------------------------------------------------- folding


@contextmanager
def kept(group: Group) -> Iterator[Callable[[], None]]:
    """Inside, the group's parameters may change; they are put back at the end, unless what is yielded was called."""
    tensors = [value for value in group.feeder._parameters.values() if value is not None]
    old = [(value, value.detach().clone()) for value in [*tensors, *(weight.value for weight, _ in group.members)]]
    try:
        yield old.clear
    finally:
        for value, before in old:
            value.copy_(before)


def fold_members(group: Group, scale: Tensor) -> None:
    for weight, _ in group.members:
        matrix = weight.view.matrix(weight.value).float()
        weight.value.copy_(weight.view.tensor(matrix * per_column(scale, matrix.shape[2]), weight.value.shape))


def fold_feeder(group: Group, scale: Tensor) -> None:
    for value in group.feeder._parameters.values():
        if value is not None:
            turned = is_transposed_linear(type(group.feeder)) and value.dim() == 2
            value.div_(scale if turned else scale.view(-1, *[1] * (value.dim() - 1)))


def per_column(scale: Tensor, columns: int) -> Tensor:
    """A convolution has several columns for each channel of its input, one beside the other."""
    return scale.repeat_interleave(columns // len(scale))


# ------------------------------------------------------------------------------------------------------------- the search


def best_scale(group: Group, moments: Mapping[str, Tensor], round_trip: RoundTrip) -> Tensor | None:
    """Of the scales tried, those by which the products of all members change least; None where that is none at all."""
    first = next(iter(moments.values()))
    sizes = first.diagonal().unflatten(0, (group.channels, -1)).mean(1).sqrt()
    short = any(weight.value.dtype.itemsize < 4 for weight, _ in group.members)
    best, least = None, torch.inf
    for alpha in ALPHAS:
        scale = normal(sizes, alpha)
        scale = torch.exp2(scale.log2().round()) if short else scale  # exact in a short type
        error = sum(error_of(weight, moments[weight.name], scale, round_trip) for weight, _ in group.members)
        if error < least:
            best, least = (scale if alpha else None), error
    return best


def normal(sizes: Tensor, alpha: float) -> Tensor:
    """sizes ** alpha, brought around 1."""
    scale = sizes.clamp_min(1e-4 * sizes.max().clamp_min(1e-12)) ** alpha
    return scale / (scale.max() * scale.min()).sqrt()


def error_of(weight: Weight, moments: Tensor, scale: Tensor, round_trip: RoundTrip) -> float:
    """tr(E M E^T) of what rounding the scaled matrix does."""
    matrix = weight.view.matrix(weight.value).float()
    columns = per_column(scale, matrix.shape[2])
    off = round_trip(weight, matrix * columns, moments / columns[:, None] / columns) / columns - matrix
    return float(((off @ moments) * off).sum())
