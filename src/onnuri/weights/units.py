"""The units of a net that can be left out, found by looking: which slices of which tensors make up one channel, head or expert.

No architecture is named. A net of the same design with fewer units differs in shape; the axes that differ are those that
the units lie on. Which of these axes belong together is tried out, from the finest division to the coarsest: units
that are put in another order, in all that belongs to them and in nothing else, change no answer of the net. What fails that
is not taken apart. Tried on a copy with random numbers, so that no zeros, no equal and no faint ones hide a fault.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product

import torch
from torch import Tensor, nn

from ..errors import Refusal
from ..family import Batch, Size
from ..model import Model
from .matrices import weights
from .sharing import block_ties, tie

TOLERANCE = 1e-4  # relative: sums in fp32 in another order stay well below it, a wrong order far above
SEEN = 10  # times the tolerance: what a wrong order must change at least
SPREAD = 0.3  # of what is added to single numbers, such as biases and the scales of norms
SURELY_UNLIKE = 12  # so many units have half a billion orders
MOST_LAYOUTS = 16  # ways of lying in the tensors that are tried for one division


@dataclass(frozen=True)
class Axis:
    """One axis of one tensor: `chunks` times in turn, each unit's own run."""

    tensor: str
    axis: int
    size: int
    chunks: int = 1

    def index(self, count: int) -> Tensor:
        """(count, places of a unit): where on this axis each of `count` units lies."""
        return torch.arange(self.size).view(self.chunks, count, -1).transpose(0, 1).reshape(count, -1)


@dataclass(frozen=True)
class Place:
    """Units that can stand in for each other, and how many of them are `left`: as many of each of the equal `sections`."""

    name: str
    count: int
    left: int
    sections: int
    axes: tuple[Axis, ...]


Kept = Mapping[str, Tensor]
"""{name of a place: the numbers of the units that stay, in order}."""


@dataclass(frozen=True)
class Cut:
    """A size of the design and all places that become narrower with it. `exact`: a unit of zeros is as good as none."""

    size: Size
    left: int
    places: tuple[Place, ...]
    exact: bool


# --------------------------------------------------------------------------------------------------------------- finding


def cut_of(model: Model, size: Size, left: int, batch: Batch) -> Cut:
    """How `size` can become `left`. Refusal where a net with fewer is not this one without some units."""
    smaller = size.made(left)
    tie(smaller, block_ties(model.net))
    lengths = changed_axes(model.net, smaller)
    if not lengths:
        raise misfit(size, "their number is in the shape of no tensor")
    trial = Trial(model, batch)
    places = trial.places(size, left, lengths)
    if places is None:
        raise misfit(size, f"which parts of {min(name for name, _ in lengths)} belong together could not be found")
    return Cut(size, left, tuple(places), trial.is_exact(size, left, places))


def misfit(size: Size, why: str) -> Refusal:
    return Refusal(f"{size.name}: no {size.units} can be left out: {why}", "prune --units blocks, or distill --size")


def changed_axes(net: nn.Module, smaller: nn.Module) -> dict[tuple[str, int], tuple[int, int]]:
    """{(tensor, axis): (its size, its new size)}. Refusal where the nets differ in more than sizes."""
    old, new = tensors_of(net), tensors_of(smaller)
    unlike = [name for name in old.keys() | new.keys() if name not in old or name not in new]
    unlike += [name for name in old.keys() & new.keys() if old[name].dim() != new[name].dim()]
    whole = [name for name, value in old.items() if name not in unlike and not value.is_floating_point()]
    unlike += [name for name in whole if old[name].shape != new[name].shape]
    if unlike:
        raise Refusal(f"{min(unlike)} would find no place", "another number of units")
    pairs = {(name, axis): (n, new[name].shape[axis]) for name in old for axis, n in enumerate(old[name].shape)}
    changed = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    if any(after > before for before, after in changed.values()):
        raise Refusal("some tensors would grow", "another number of units")
    return changed


def tensors_of(net: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by their first names, tied ones once."""
    return dict(net.named_parameters()) | dict(net.named_buffers())


class Trial:
    """A random copy of a net in fp32, on which divisions into units are tried out."""

    def __init__(self, model: Model, batch: Batch):
        self.model, self.batch = Model(model.family, randomized(model.net), model.assets), batch
        self.tensors, self.blocks = tensors_of(self.model.net), list(model.blocks)
        self.before = behavior(self.model, batch)
        self.generator = torch.Generator().manual_seed(0)

    def places(self, size: Size, left: int, lengths: Mapping) -> list[Place] | None:
        """The finest division of all axes that the trial bears out: axes of one length alone where that will do, the others
        together; None where there is none."""
        found: list[Place] = []
        pending: dict[tuple[str, int], tuple[int, int]] = {}
        for pair in sorted(set(lengths.values())):
            some = {key: value for key, value in lengths.items() if value == pair}
            alone = self.borne_out(size, some, [pair])
            found += alone or []
            pending |= {} if alone else some
        if not pending:
            return found
        numbers = sorted({(size.count, left), min(pending.values())}, reverse=True)
        together = self.borne_out(size, pending, numbers)
        return None if together is None else found + together

    def borne_out(self, size: Size, lengths: Mapping, numbers: Sequence[tuple[int, int]]) -> list[Place] | None:
        """The first division of these axes into (count, left) units, one of `numbers`, that changes no answer; while the
        same with one axis of each place alone does: else nothing could be seen here."""
        for division in divisions(size, lengths, numbers, self.blocks):
            if self.unchanged(division):
                alone = [replace(place, axes=place.axes[:1]) for place in division]
                return division if self.change_by(alone) > SEEN * TOLERANCE else None
        return None

    def unchanged(self, places: Sequence[Place]) -> bool:
        """Whether the net answers the same when the units of these places stand in another order: of all of them, and of
        only some, lest the same order in two places hides that they are one."""
        halves = [
            [p for i, p in enumerate(places) if i >> bit & 1 == side] for bit in range(bits(places)) for side in (0, 1)
        ]
        return all(self.change_by(some) <= TOLERANCE for some in [places, *halves])

    @torch.no_grad()
    def change_by(self, places: Sequence[Place]) -> float:
        """How far the answers are from those before when the units of these places stand in another order."""
        orders = {place.name: shuffled(place, self.generator) for place in places}
        reorder(self.tensors, places, orders)
        after = behavior(self.model, self.batch)
        reorder(self.tensors, places, {name: order.argsort() for name, order in orders.items()})
        return apart(self.before, after)

    @torch.no_grad()
    def is_exact(self, size: Size, left: int, places: Sequence[Place]) -> bool:
        """Whether zeros in a unit's place are as good as its absence."""
        kept = {place.name: chosen(place, torch.rand(place.count, generator=self.generator)) for place in places}
        cut = Cut(size, left, tuple(places), True)
        less = Model(self.model.family, taken_out(self.model.net, cut, kept), self.model.assets)
        try:
            found = behavior(less, self.batch)
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            raise misfit(size, f"with {left} it does not run: {str(error).splitlines()[0]}") from error
        set_to_zero(self.model.net, places, kept)
        return apart(behavior(self.model, self.batch), found) <= TOLERANCE


@torch.no_grad()
def randomized(net: nn.Module) -> nn.Module:
    """A copy in fp32 with random matrices whose products are as large as what they multiply, and all else moved."""
    made = copy.deepcopy(net).float().eval()
    generator = torch.Generator().manual_seed(1)
    matrices = {id(weight.value): weight.matrix.shape[2] for weight in weights(made) if weight.role != "embedding"}
    for value in {id(v): v for v in made.state_dict(keep_vars=True).values() if isinstance(v, Tensor)}.values():
        if value.is_floating_point() and value.dim() > 1:
            value.copy_(torch.randn(value.shape, generator=generator) / matrices.get(id(value), 1) ** 0.5)
        elif value.is_floating_point():
            value.add_(SPREAD * torch.rand(value.shape, generator=generator).to(value))
    return made


@torch.no_grad()
def behavior(model: Model, batch: Batch) -> list[Tensor]:
    """All that a net says of a batch: its outputs, and the loss of each player."""
    values, mask = model.family.outputs(model.net, batch)
    losses = [model.family.loss(model.net, batch, player)[0] for player in model.players]
    return [values[mask], *losses]


def apart(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest difference, relative to the largest value; infinite where shapes differ."""
    if any(a.shape != b.shape for a, b in zip(one, other)):
        return math.inf
    gaps = [
        float((a.float() - b.float()).abs().max() / a.float().abs().max().clamp_min(1e-6)) for a, b in zip(one, other)
    ]
    return math.inf if any(gap != gap for gap in gaps) else max(gaps)


def divisions(
    size: Size, lengths: Mapping, numbers: Sequence[tuple[int, int]], blocks: Sequence[str]
) -> Iterator[list[Place]]:
    """The ways in which these axes can be divided, the finest first: for each block, each part of the net or the whole alone;
    units of one number or as the size says; in runs or in chunks."""
    scopes = [[next((b for b in blocks if name.startswith(f"{b}.")), None) for name, _ in lengths]]
    scopes += [[name.partition(".")[0] for name, _ in lengths], [""] * len(lengths)]
    seen: list[list] = []
    for scope in scopes:
        if None in scope or scope in seen:
            continue
        seen.append(scope)
        owners = dict(zip(lengths, scope))
        for number, (run, sections) in product(numbers, grains(size)):
            for chunks in layouts(lengths, number, run):
                if whole := together(lengths, owners, [n // run for n in number], sections, chunks):
                    yield whole


def grains(size: Size) -> list[tuple[int, int]]:
    """(numbers in a unit, sections of units)."""
    return list(dict.fromkeys([(1, 1), (size.run, size.sections)]))


def bits(places: Sequence[Place]) -> int:
    """How many halvings tell these places apart; none are needed where units have too many orders to meet by chance."""
    few = any(place.count // place.sections < SURELY_UNLIKE for place in places)
    return (len(places) - 1).bit_length() if few else 0


def layouts(lengths: Mapping, number: tuple[int, int], run: int) -> list[dict[int, int]]:
    """{size of an axis: chunks}: all in runs first. [] where an axis cannot be divided so."""
    count, left = (n // run for n in number)
    pairs = set(lengths.values())
    if any(n % run for n in number) or any(b % count or a != b // count * left for b, a in pairs) or count < 2:
        return []
    sizes = sorted({before for before, _ in pairs})
    parts = [[n for n in range(1, size // count + 1) if size // count % n == 0] for size in sizes]
    found = [dict(zip(sizes, choice)) for choice in islice(product(*parts), MOST_LAYOUTS**2)]
    return sorted(found, key=lambda one: sum(one.values()))[:MOST_LAYOUTS]


def together(
    lengths: Mapping[tuple[str, int], tuple[int, int]],
    owners: Mapping,
    units: Sequence[int],
    sections: int,
    chunks: Mapping[int, int],
) -> list[Place]:
    """One place of units (how many, how many stay) for each owner; [] where the sections are too small to choose in."""
    count, left = units
    if left < 1 or count % sections or left % sections or count // sections < 2:
        return []
    tail = f"of {min(size for size, _ in lengths.values())}"
    return [
        Place(
            f"{owner or 'net'} {tail}",
            count,
            left,
            sections,
            tuple(
                Axis(name, axis, size, chunks[size])
                for (name, axis), (size, _) in lengths.items()
                if owners[name, axis] == owner
            ),
        )
        for owner in dict.fromkeys(owners.values())
    ]


def shuffled(place: Place, generator: torch.Generator) -> Tensor:
    """Another order of the units, each within its section."""
    each = place.count // place.sections
    order = torch.stack([torch.randperm(each, generator=generator) for _ in range(place.sections)])
    order = torch.where((order == torch.arange(each)).all(1, keepdim=True), order.roll(1, 1), order)
    return (order + each * torch.arange(place.sections)[:, None]).flatten()


def reorder(tensors: Mapping[str, Tensor], places: Sequence[Place], orders: Mapping[str, Tensor]) -> None:
    """Put the units of each place in another order, in place."""
    for place in places:
        for axis in place.axes:
            where = axis.index(place.count)
            source = torch.empty(axis.size, dtype=torch.long)
            source[where.flatten()] = where[orders[place.name]].flatten()
            value = tensors[axis.tensor]
            value.copy_(value.index_select(axis.axis, source.to(value.device)))


# ------------------------------------------------------------------------------------------------------- taking units out


def chosen(place: Place, scores: Tensor) -> Tensor:
    """The numbers of the units that stay: the highest scores of each section, in order."""
    sections = scores.view(place.sections, -1)
    best = sections.argsort(dim=1, descending=True, stable=True)[:, : place.left // place.sections]
    return (best + sections.shape[1] * torch.arange(place.sections)[:, None]).flatten().sort().values


def positions(cut: Cut, kept: Kept) -> dict[str, list[tuple[int, Tensor]]]:
    """{tensor: [(axis, what of it stays)]}."""
    found: dict[str, list[tuple[int, Tensor]]] = {}
    for place in cut.places:
        for axis in place.axes:
            stays = axis.index(place.count)[kept[place.name]].flatten().sort().values
            found.setdefault(axis.tensor, []).append((axis.axis, stays))
    return found


def taken_out(net: nn.Module, cut: Cut, kept: Kept) -> nn.Module:
    """The smaller net with copies of what stays; `net` is as it was. Tied tensors stay tied."""
    stays = positions(cut, kept)
    return rebuilt(
        net,
        cut.size.made(cut.left),
        lambda name, value: part_of(value, stays.get(name, ())),
        lambda why: misfit(cut.size, why),
    )


@torch.no_grad()
def rebuilt(
    net: nn.Module, other: nn.Module, changed: Callable[[str, Tensor], Tensor], fault: Callable[[str], Refusal]
) -> nn.Module:
    """`other`, of the same modules, with what `changed` makes of each tensor of `net` by its first name. Tied tensors stay tied.
    `fault`: why one has no place in `other` -> what is raised."""
    names = {id(value): name for name, value in tensors_of(net).items()}
    old, copies = dict(net.named_modules(remove_duplicate=False)), dict[int, Tensor | None]()
    for path, module in other.named_modules(remove_duplicate=False):
        for mine, theirs in ((module._parameters, old[path]._parameters), (module._buffers, old[path]._buffers)):
            for key, value in theirs.items():
                if id(value) not in copies:
                    copies[id(value)] = (
                        None if value is None else alike(changed(names.get(id(value), ""), value), value)
                    )
                made, wanted = copies[id(value)], mine.get(key)
                if made is not None and wanted is not None and made.shape != wanted.shape:
                    raise fault(f"{path}.{key} would be {tuple(wanted.shape)} instead of {tuple(made.shape)}")
                mine[key] = made  # type: ignore[assignment]
    return other.train(net.training)


def alike(made: Tensor, value: Tensor) -> Tensor:
    """A parameter where `value` is one."""
    made = made.contiguous()
    return nn.Parameter(made, value.requires_grad) if isinstance(value, nn.Parameter) else made


def part_of(value: Tensor, stays: Sequence[tuple[int, Tensor]]) -> Tensor:
    """A tensor of its own with what stays on each axis."""
    part = value.detach().clone()
    for axis, numbers in stays:
        part = part.index_select(axis, numbers.to(part.device))
    return part


@torch.no_grad()
def set_to_zero(net: nn.Module, places: Sequence[Place], kept: Kept) -> None:
    """Zeros wherever the units lie that do not stay."""
    tensors = tensors_of(net)
    for place in places:
        gone = torch.ones(place.count, dtype=torch.bool)
        gone[kept[place.name]] = False
        for axis in place.axes:
            value = tensors[axis.tensor]
            value.index_fill_(axis.axis, axis.index(place.count)[gone].flatten().to(value.device), 0)


@torch.no_grad()
def put_back(net: nn.Module, smaller: nn.Module, cut: Cut, kept: Kept) -> None:
    """Write the numbers of the smaller net into the places of `net` that they came from, zeros into all others."""
    stays, theirs = positions(cut, kept), tensors_of(smaller)
    for name, value in tensors_of(net).items():
        if name not in stays:
            value.copy_(theirs[name])
            continue
        whole = theirs[name].detach()
        for axis, numbers in stays[name]:
            shape = [value.shape[d] if d == axis else n for d, n in enumerate(whole.shape)]
            whole = whole.new_zeros(shape).index_copy_(axis, numbers.to(whole.device), whole)
        value.copy_(whole)
