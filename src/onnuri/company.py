"""The records of one step as they see each other, for losses in which each is told apart from the others.

A loss that needs the others asks `met` for what all records of the step show. By itself it meets nobody, and every record's loss
is its own. Who trains arranges the meeting, however the step is cut: all parts, in all processes, first show what they have
without a gradient, then each computes its loss beside what the others showed. Every part takes the loss of all records, values and
gradient of its own rows alone, so that the parts' gradients add up to that of the whole step (Gao et al. 2021, GradCache,
arXiv:2101.06983). Differing in:
1. No gradient is kept between the two passes: the loss of all is computed again for each part, which costs products of vectors
   against a pass through a net, and needs no hook in the middle of it.
2. A step of one part in one process has one pass.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

Shown = tuple[Tensor, ...]
"""What the records of a part show: tensors with B first."""


@dataclass
class Meeting:
    """What all parts showed, and which of them is at work; `heard` is what was shown here and now."""

    parts: Sequence[Shown] = ()
    place: int = 0
    heard: list[Shown] = field(default_factory=list)


open_ones: list[Meeting] = []


def met(*shown: Tensor) -> tuple[Shown, slice] | None:
    """What all records of the step show, (N, ...) each, and which rows are those shown here, as they are; None where nobody has
    arranged a meeting."""
    return asked(shown)


def asked(shown: Shown) -> tuple[Shown, slice] | None:
    if not open_ones:
        return None
    meeting = open_ones[-1]
    meeting.heard.append(tuple(each.detach() for each in shown))
    if not meeting.parts:
        return shown, slice(0, len(shown[0]))
    before = sum(len(part[0]) for part in meeting.parts[: meeting.place])
    parts = [*meeting.parts[: meeting.place], shown, *meeting.parts[meeting.place + 1 :]]
    return tuple(map(torch.cat, zip(*parts))), slice(before, before + len(shown[0]))


@cache
def keep_eager() -> None:
    """From now on a compiled loss asks anew each time. Whoever compiles one calls this before, so that nobody else waits the second
    that torch's compiler takes to load."""
    global asked
    asked = torch.compiler.disable(asked)  # type: ignore  # torch states other types of its decorator


@contextmanager
def meeting(parts: Sequence[Shown] = (), place: int = 0) -> Iterator[list[Shown]]:
    """Inside, records meet: those of their own batch, or those of all `parts`, of which theirs is number `place`. Gives the list of
    what they show, empty where the loss asks for nobody."""
    open_ones.append(Meeting(parts, place))
    try:
        yield open_ones[-1].heard
    finally:
        open_ones.pop()


def shared(losses: Tensor, own: slice) -> Tensor:
    """The losses of one's own rows (B,) among those of all (N,); their sum has the gradient of the sum of all."""
    others = losses.sum() - losses[own].sum()
    return losses[own] + (others - others.detach()) / len(losses[own])
