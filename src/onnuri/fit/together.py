"""Where the records of a step see each other: in batch norms, which stand still when a step is cut, and in losses that tell records
apart, for which all of them are brought together as `company.py` says.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import company
from ..company import Shown
from ..family import Batch
from . import speed
from .batches import moved

if TYPE_CHECKING:
    from .loop import Loop


@torch.no_grad()
def shown(loop: "Loop", batches: list[Batch], player: str, turn: int) -> tuple[list[Shown], int]:
    """What the records of all parts and processes show each other, part by part, and the number of the first part here; nothing
    where the step is one part or the loss asks for nobody. Each part draws what it will draw again when it learns."""
    if loop.meets is False or (len(batches) == 1 and loop.processes.num_processes == 1):
        return [], 0
    parts = list[Shown]()
    for number, batch in enumerate(batches):
        loop.seed(loop.progress.step, number, turn)
        with loop.autocast(), company.meeting() as heard:
            loop.loss(batch, player)
        loop.meets = bool(heard)
        if not loop.meets:
            return [], 0
        parts += heard
    return gathered(loop, parts)


@torch.no_grad()
def held_out(loop: "Loop", batches: list[Batch], player: str) -> Iterator[tuple[Tensor, Tensor]]:
    """(total, count) of each part of a step that is only looked at, which all processes do whole: they meet as in training."""
    parts = list[Shown]()
    for batch in batches if loop.meets and len(batches) > 1 else ():
        with company.meeting() as heard:
            loop.objective.loss(moved(batch, loop.device), player)
        parts += heard
    for number, batch in enumerate(batches):
        with company.meeting(parts, number):
            yield loop.objective.loss(moved(batch, loop.device), player)


def gathered(loop: "Loop", parts: list[Shown]) -> tuple[list[Shown], int]:
    """The parts of all processes in their order, and the number of the first one of this process."""
    if loop.processes.num_processes == 1:
        return parts, 0
    from accelerate.utils import gather_object

    mine = loop.processes.process_index
    found = gather_object([(mine, tuple(each.cpu() for each in part)) for part in parts])
    found = sorted(found, key=lambda pair: pair[0])
    before = sum(process < mine for process, _ in found)
    return [tuple(each.to(loop.device) for each in part) for _, part in found], before


def notice(loop: "Loop", heard: list[Shown]) -> None:
    """Whether the loss asks for others. If so a step is not cut to save padding: each record would have to be computed twice."""
    loop.meets = bool(heard)
    if loop.meets and not loop.settings.micro_batch:
        loop.batches.parts = 1


def frozen_statistics(loop: "Loop") -> list[nn.Module]:
    """The batch-norm layers whose running statistics must stand still: they see micro-batches, or belong to a base that is not
    trained. One example would otherwise change another's loss."""
    layers = speed.batch_norms(loop.objective.net)
    partial = any(not parameter.requires_grad for parameter in loop.objective.net.parameters())
    micro = 0 < loop.settings.micro_batch < loop.settings.batch_size or loop.processes.num_processes > 1
    if layers and (partial or micro):
        loop.log.warn(
            f"{len(layers)} batch-norm layers keep their statistics: "
            + ("part of the net is frozen" if partial else "a batch is cut into parts")
        )
        return layers
    return []
