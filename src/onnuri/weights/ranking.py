"""Which units of a net matter least: by their size, by what the layers see of the data, or by what it costs to do without.

By size: the norm of all parameters of a unit. By size times input: the mean square of what it adds to the layers that read it
(Wanda, Sun et al., arXiv:2306.11695, summed over a unit as in FLAP, An et al., arXiv:2312.11983). By cost: units leave one after
the other, always the one that costs the layers that read it least, and their other columns make up for it (Optimal Brain
Surgeon over groups: ZipLM, Kurtic et al., arXiv:2302.04089); unlike there several leave at a time where many have to, and how many
of each place is not searched for.
Experts: how often the router turns to them. Blocks: by how little they change what flows through (Men et al., ShortGPT,
arXiv:2403.03853).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..data import Records
from ..errors import Refusal
from ..model import Model
from .calibration import BATCH
from .gptq import DAMPING
from .matrices import Weight, weights
from .units import Place, chosen, tensors_of

TURNS = 256  # in which units leave a place; with each, the costs of the others are counted anew

Reader = tuple[Weight, Tensor]
"""A weight that multiplies the units of a place, and (units, columns): which columns of its matrix are whose."""


def readers(model: Model, place: Place, moments: Mapping[str, Tensor]) -> list[Reader]:
    """Those of which it is known what they are multiplied with."""
    found = []
    known = {weight.name: weight for weight in weights(model.net) if weight.name in moments}
    for axis in place.axes:
        weight = known.get(axis.tensor)
        if weight is not None and axis.axis in weight.view.columns:
            shape = [weight.value.shape[d] for d in weight.view.columns]
            grid = torch.arange(weight.matrix.shape[2]).view(shape).movedim(weight.view.columns.index(axis.axis), 0)
            found.append((weight, grid.reshape(axis.size, -1)[axis.index(place.count)].flatten(1)))
    return found


def by_size(model: Model, place: Place) -> Tensor:
    """(units,): the norm of all parameters of each."""
    parameters, total = dict(model.net.named_parameters()), torch.zeros(place.count)
    for axis in place.axes:
        if axis.tensor in parameters:
            value = parameters[axis.tensor].detach().float().movedim(axis.axis, 0)
            total += value.reshape(axis.size, -1).square().sum(1).cpu()[axis.index(place.count)].sum(1)
    return total.sqrt()


def by_input(model: Model, place: Place, moments: Mapping[str, Tensor]) -> Tensor:
    """(units,): the mean square of what each adds to the layers that read it; by size where none is seen."""
    found = readers(model, place, moments)
    if not found:
        return by_size(model, place)
    total = torch.zeros(place.count)
    for weight, columns in found:
        squares = weight.matrix[0].float().square().sum(0) * moments[weight.name].diagonal()
        total += squares.cpu()[columns].sum(1)
    return total


@torch.no_grad()
def by_cost(model: Model, place: Place, moments: Mapping[str, Tensor]) -> Tensor:
    """The numbers of the units that stay, the readers' matrices refitted in place: the columns of the others become zero.
    By size where no reader is seen."""
    found = readers(model, place, moments)
    if not found:
        return chosen(place, by_size(model, place))
    fits = [Fit(weight.matrix[0], columns, moments[weight.name]) for weight, columns in found]
    alive = torch.ones(place.sections, place.count // place.sections, dtype=torch.bool)
    each = (place.count - place.left) // place.sections
    for turn in range(min(each, TURNS)):
        leave = each * (turn + 1) // min(each, TURNS) - each * turn // min(each, TURNS)
        costs = sum(fit.costs() for fit in fits).view_as(alive).masked_fill(~alive, torch.inf)  # type: ignore[union-attr]
        worst = costs.argsort(dim=1, stable=True)[:, :leave]
        alive.scatter_(1, worst, False)
        for fit in fits:
            fit.leave_out((worst + alive.shape[1] * torch.arange(place.sections)[:, None]).flatten())
    for (weight, _), fit in zip(found, fits):
        mask = weight.matrix != 0 if weight.name in model.pruned else 1  # zeros that were put there stay
        weight.value.copy_(weight.view.tensor((fit.matrix.float()[None] * mask).to(weight.value), weight.value.shape))
    return alive.flatten().nonzero()[:, 0]


class Fit:
    """A matrix (rows, columns) and the inverse of its inputs' moments, while units leave. `columns`: (units, theirs)."""

    def __init__(self, matrix: Tensor, columns: Tensor, moments: Tensor):
        damped = moments.double().clone()
        damped.diagonal().add_(DAMPING * damped.diagonal().mean() + 1e-12)
        self.inverse = torch.linalg.inv(damped)
        self.matrix, self.columns = matrix.double().clone(), columns

    def costs(self) -> Tensor:
        """(units,): how much the squared error of the products grows when a unit leaves and the rest makes up for it."""
        blocks = self.inverse[self.columns[:, :, None], self.columns[:, None, :]]
        theirs = self.matrix[:, self.columns].transpose(0, 1)  # (units, rows, theirs)
        return torch.einsum("urk,urk->u", theirs, torch.linalg.solve(blocks, theirs.mT).mT)

    def leave_out(self, units: Tensor) -> None:
        gone = self.columns[units].flatten()
        block = torch.linalg.inv(self.inverse[gone][:, gone])
        self.matrix -= self.matrix[:, gone] @ block @ self.inverse[gone]
        self.inverse -= self.inverse[:, gone] @ block @ self.inverse[gone]
        self.matrix[:, gone] = 0
        self.inverse[gone], self.inverse[:, gone] = 0, 0
        self.inverse[gone, gone] = 1  # so that it can be inverted


# ------------------------------------------------------------------------------------------------------------- experts


@torch.no_grad()
def by_load(model: Model, places: Sequence[Place], records: Records) -> dict[str, Tensor]:
    """{place: (experts,)}: the mean probability that the router of the place gives each."""
    tensors, sums = tensors_of(model.net), dict[str, Tensor]()
    handles = []
    for place in places:
        names = [a.tensor for a in place.axes if a.axis == 0 and tensors[a.tensor].dim() == 2 and a.size == place.count]
        if not names:
            raise Refusal(f"{place.name}: no router of two axes chooses between these experts", "--method magnitude")

        def watch(module: nn.Module, inputs: tuple, name: str = names[0], place: Place = place) -> None:
            x = inputs[0].reshape(-1, inputs[0].shape[-1])
            load = functional.linear(x.float(), tensors[name].float()).softmax(1).sum(0)
            sums[place.name] = sums.get(place.name, 0) + load.cpu()

        handles.append(model.net.get_submodule(names[0].rpartition(".")[0]).register_forward_pre_hook(watch))
    run(model, records)
    for handle in handles:
        handle.remove()
    return sums


# -------------------------------------------------------------------------------------------------------------- blocks


def by_change(model: Model, records: Records) -> dict[str, float]:
    """{block: 1 - the mean cosine between what goes into it and what comes out}; infinite where their shapes differ."""
    sums, counts = dict[str, float](), dict[str, int]()

    def watch(name: str, axis: int):
        def hook(module: nn.Module, inputs: tuple, named: dict, output) -> None:
            given, made = first([*inputs, *named.values()]), first(output)
            if given is None or made is None or given.shape != made.shape:
                angles = torch.tensor([-torch.inf])
            else:
                angles = functional.cosine_similarity(given.float(), made.float(), axis)
            sums[name] = sums.get(name, 0.0) + float(angles.sum())
            counts[name] = counts.get(name, 0) + angles.numel()

        return hook

    handles = [
        block.register_forward_hook(watch(name, axis), with_kwargs=True) for name, (block, axis) in model.blocks.items()
    ]
    run(model, records)
    for handle in handles:
        handle.remove()
    return {name: 1 - sums[name] / counts[name] if name in sums else torch.inf for name in model.blocks}


def first(values) -> Tensor | None:
    """The first tensor of numbers among nested values."""
    if isinstance(values, Tensor):
        return values if values.is_floating_point() else None
    inside = values.values() if isinstance(values, dict) else values if isinstance(values, (list, tuple)) else ()
    return next((found for value in inside if (found := first(value)) is not None), None)


@torch.no_grad()
def run(model: Model, records: Records) -> None:
    """All records once through the net, and through all its players."""
    for start in range(0, len(records), BATCH):
        batch = model.collate(records.list(slice(start, start + BATCH)))
        for player in model.players:
            model.family.loss(model.net, batch, player)
