"""What the matrices of a net are multiplied with, seen on real records: block after block, in the order of the net."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Records
from ..family import Batch
from ..model import Model
from ..observe import Watcher, watching
from ..operation import Log
from .matrices import Weight, is_transposed_linear
from .packed import LEAST, is_plain_conv, patches
from .replay import Enough, Replay

BATCH = 16  # records that run through the net at once
SAMPLED = 2**14  # numbers of one batch that are kept of an input
CUTS = 8  # steps tried for each halving of a range, four times
FEW = 32  # records below which what is seen may be chance


def looked_at(records: Records, count: int, log: Log) -> Records:
    """At most `count` records, evenly spaced, to look at; few of them are warned of."""
    if min(count, len(records)) < FEW:
        log.warn(f"calibration: {min(count, len(records))} records are few, and what is seen of them may be chance")
    return records.some(count)


def batches_of(model: Model, records: Records, size: int = BATCH) -> list[Batch]:
    """All records, `size` at once, each with its place as its key."""
    places = [range(start, min(start + size, len(records))) for start in range(0, len(records), size)]
    return [model.collate(records.list(slice(keys.start, keys.stop)), keys=keys) for keys in places]


def in_turn(model: Model, found: Sequence[Weight], records: Records | None) -> Iterator[tuple[Weight, Tensor | None]]:
    """Each weight with its `second_moments`, those of one block after another and then those of none: a block is looked at when
    the ones before it are done. None where a weight has no such moments, or there are no `records` to look at."""
    if records is None:
        yield from ((weight, None) for weight in found)
        return
    with torch.no_grad():
        replay = Replay({name: block for name, (block, _) in model.blocks.items()}, partial(answer, model, records))
    for block, part in parts(model, found):
        shared = any(len(weight.homes) > 1 for weight in part)  # what lies behind the block is to be seen too
        run = None if shared and block else partial(replay.look, at=block)
        moments = second_moments(model, records, part, run)
        for weight in part:
            yield weight, moments.get(weight.name)


def parts(model: Model, found: Sequence[Weight]) -> Iterator[tuple[str | None, list[Weight]]]:
    """(name of the block, its weights) for each, then those of none."""
    left = list(found)
    for name in model.blocks:
        inside = [weight for weight in left if weight.name.startswith(f"{name}.")]
        left = [weight for weight in left if weight not in inside]
        if inside:
            yield name, inside
    if left:
        yield None, left


@torch.no_grad()
def second_moments(
    model: Model, records: Records, part: Sequence[Weight], run: Callable[[int], Any] | None = None
) -> dict[str, Tensor]:
    """{weight: the mean of x x^T (columns, columns) over all x that its matrix is multiplied with}, in fp32; of the weights
    of linear layers and plain convolutions over pictures, no others. `run`: computes batch `number`, else `answer` does."""
    homes = {id(module): weight.name for weight in part for module, attribute in weight.homes if attribute == "weight"}
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    once, calls = Counter(homes.keys()), [Counter[int]()]  # of each module, batch by batch
    last: tuple[Any, Tensor, Tensor] | None = None  # the rows are held so that their place is not taken by others

    def watch(_: str, module: nn.Module, x: Tensor) -> None:
        nonlocal last
        name = homes.get(id(module))
        if name and (rows := factors(module, x)) is not None:
            if last is None or last[0] != identity(rows):
                last = identity(rows), rows, rows.T @ rows
            sums[name] = sums[name] + last[2] if name in sums else last[2]
            counts[name] = counts.get(name, 0) + len(rows)
            calls[-1][id(module)] += 1
            if len(calls) > 1 and calls[-1] == calls[0] == once:
                raise Enough  # what follows the last of them is not asked for

    compute = run or partial(answer, model, records)

    def look(number: int) -> None:
        with suppress(Enough):
            compute(number)
        calls.append(Counter())

    run_through(model, records, watch, run=look)
    return {name: total / counts[name] for name, total in sums.items()}


def identity(rows: Tensor) -> tuple[int, int, torch.Size]:
    """The same for what is given to layers side by side, as queries, keys and values; while the tensor is held."""
    return rows.data_ptr(), rows._version, rows.shape


@torch.no_grad()
def looked_up(model: Model, records: Records, part: Sequence[Weight]) -> dict[str, Tensor]:
    """{weight: the share of each of its rows (rows,) in all that is looked up in it}, of tables. Every row counts as looked up
    once more than it was seen to be: what is not in these records may be in others."""
    homes = {id(module): weight for weight in part for module, attribute in weight.homes if attribute == "weight"}
    counts: dict[str, Tensor] = {}

    def watch(_: str, module: nn.Module, places: Tensor) -> None:
        if (weight := homes.get(id(module))) is not None:
            rows = weight.matrix.shape[1]
            before = counts.get(weight.name, torch.ones(rows))
            counts[weight.name] = before + torch.bincount(places.flatten(), minlength=rows)

    run_through(model, records, watch, (nn.Embedding, nn.EmbeddingBag))
    return {name: found / found.sum() for name, found in counts.items()}


@torch.no_grad()
def input_sizes(model: Model, records: Records, found: Sequence[Weight]) -> dict[str, Tensor]:
    """{weight: absolute values out of what its layer is multiplied with, SAMPLED at most for each batch and always the
    largest}; of the weights of linear layers and plain convolutions over pictures."""
    homes = {id(module): weight.name for weight in found for module, attribute in weight.homes if attribute == "weight"}
    sizes: dict[str, list[Tensor]] = {}

    def watch(_: str, module: nn.Module, x: Tensor) -> None:
        name = homes.get(id(module))
        if name and factors(module, x[:1]) is not None:
            flat = x.detach().float().abs().flatten()
            sizes.setdefault(name, []).append(torch.cat([flat.max()[None], flat[:: len(flat) // SAMPLED + 1]]))

    run_through(model, records, watch)
    return {name: torch.cat(parts) for name, parts in sizes.items()}


def fitted_step(sizes: Tensor, largest: float = 127.0) -> Tensor:
    """(): of the steps tried, the one with the least squared error when numbers of these sizes become whole steps, `largest`
    at most; few large ones may be cut off so that the many others are finer."""
    best, least = sizes.max().clamp_min(LEAST) / largest, torch.inf
    for step in (best * 2 ** (-place / CUTS) for place in range(4 * CUTS)):
        error = float(((sizes / step).round().clamp_max(largest) * step - sizes).square().sum())
        best, least = (step, error) if error < least else (best, least)
    return best


def cut_off(sizes: Tensor, step: Tensor, largest: float = 127.0) -> float:
    """The share of numbers of these sizes that lie beyond the range of their codes."""
    return float((sizes > (largest + 0.5) * step).float().mean())


def run_through(
    model: Model,
    records: Records,
    watch: Watcher,
    kinds: tuple[type, ...] = (nn.Module,),
    run: Callable[[int], Any] | None = None,
) -> None:
    """Answer the records while the inputs of modules of these kinds are watched."""
    with watching(model.net, watch, kinds):
        for number in range(-(-len(records) // BATCH)):
            (run or partial(answer, model, records))(number)


def answer(model: Model, records: Records, number: int) -> None:
    """Compute what the model says of batch `number` of the records."""
    start = number * BATCH
    model.outputs(model.collate(records.list(slice(start, start + BATCH))))


def factors(module: nn.Module, x: Tensor) -> Tensor | None:
    """(products, columns): the vectors out of an input that the layer's matrix is multiplied with."""
    if isinstance(module, nn.Linear) or is_transposed_linear(type(module)):
        return x.reshape(-1, x.shape[-1]).float()
    return patches(module, x).flatten(0, 1) if is_plain_conv(module) else None  # type: ignore[arg-type]
