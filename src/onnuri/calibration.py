"""What the matrices of a net are multiplied with, seen on real records: block after block, in the order of the net."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .data import Records
from .model import Model
from .observe import watching
from .operation import Log
from .weights import Weight, is_transposed_linear

BATCH = 16  # records that run through the net at once
FEW = 32  # records below which what is seen may be chance


def looked_at(records: Records, count: int, log: Log) -> Records:
    """At most `count` records, evenly spaced, to look at; few of them are warned of."""
    if min(count, len(records)) < FEW:
        log.warn(f"calibration: {min(count, len(records))} records are few, and what is seen of them may be chance")
    return records.some(count)


def in_turn(model: Model, found: Sequence[Weight], records: Records | None) -> Iterator[tuple[Weight, Tensor | None]]:
    """Each weight with its `second_moments`, those of one block after another and then those of none: a block is looked at when
    the ones before it are done. None where a weight has no such moments, or there are no `records` to look at."""
    for part in parts(model, found) if records else [found]:
        moments = second_moments(model, records, part) if records else {}
        for weight in part:
            yield weight, moments.get(weight.name)


def parts(model: Model, found: Sequence[Weight]) -> Iterator[list[Weight]]:
    """The weights of each block, then those of none."""
    left = list(found)
    for name in model.blocks:
        inside = [weight for weight in left if weight.name.startswith(f"{name}.")]
        left = [weight for weight in left if weight not in inside]
        if inside:
            yield inside
    if left:
        yield left


@torch.no_grad()
def second_moments(model: Model, records: Records, part: Sequence[Weight]) -> dict[str, Tensor]:
    """{weight: the mean of x x^T (columns, columns) over all x that its matrix is multiplied with}, in fp32; of the weights
    of linear layers and plain convolutions over pictures, no others."""
    homes = {id(module): weight.name for weight in part for module, attribute in weight.homes if attribute == "weight"}
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(_: str, module: nn.Module, x: Tensor) -> None:
        name = homes.get(id(module))
        if name and (rows := factors(module, x)) is not None:
            sums[name] = sums[name].addmm_(rows.T, rows) if name in sums else rows.T @ rows
            counts[name] = counts.get(name, 0) + len(rows)

    with watching(model.net, watch, (nn.Module,)):
        for start in range(0, len(records), BATCH):
            model.outputs(model.collate(records.list(slice(start, start + BATCH))))
    return {name: total / counts[name] for name, total in sums.items()}


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

    with watching(model.net, watch, (nn.Embedding, nn.EmbeddingBag)):
        for start in range(0, len(records), BATCH):
            model.outputs(model.collate(records.list(slice(start, start + BATCH))))
    return {name: found / found.sum() for name, found in counts.items()}


def factors(module: nn.Module, x: Tensor) -> Tensor | None:
    """(products, columns): the vectors out of an input that the layer's matrix is multiplied with."""
    if isinstance(module, nn.Linear) or is_transposed_linear(type(module)):
        return x.reshape(-1, x.shape[-1]).float()
    if isinstance(module, nn.Conv2d) and module.groups == 1 and not isinstance(module.padding, str):
        patches = functional.unfold(x.float(), module.kernel_size, module.dilation, module.padding, module.stride)  # type: ignore[arg-type]
        return patches.transpose(1, 2).flatten(0, 1)
    return None
