"""Tensors that grow at their end and are seldom copied: behind what is there lies room for more.

What a net keeps of the tokens read grows by one place at a time. Joined anew each time, all of it is copied at each token, which
for a batch of long texts takes longer than attention. A tensor is a value all the same: going on twice from one, or from an older
one, gives copies.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

PLACES = 64  # of room at least; a quarter of what is there, so that the copies of a long text add up to a few


@dataclass(eq=False)
class Room:
    """`buffer`, of which the first `filled` places of the axis are there."""

    buffer: Tensor
    axis: int
    filled: int

    def first(self, count: int) -> Tensor:
        """The places up to `count`, as a tensor that knows its room."""
        self.filled = count
        found = self.buffer.narrow(self.axis, 0, count)
        ROOMS[found] = self
        return found


ROOMS = WeakIdKeyDictionary()
"""The room of a tensor, as long as there is the tensor."""


def grown(kept: Tensor, new: Tensor, axis: int) -> Tensor:
    """What torch.cat([kept, new], axis) gives; and it is that where gradients flow, or where a graph is drawn up without room."""
    traced = torch.compiler.is_exporting()
    if kept.requires_grad or new.requires_grad or (traced and kept not in ROOMS):
        return torch.cat([kept, new], axis)
    before, more = kept.shape[axis], new.shape[axis]
    room = ROOMS[kept] if traced else roomy(kept, axis, more)
    room.buffer.narrow(axis, before, more).copy_(new)
    return room.first(before + more)


def roomy(kept: Tensor, axis: int, more: int) -> Room:
    """The tensor's room for `more` places: its own, or that of a copy where others went on from it or nothing is left."""
    room, count = ROOMS.get(kept), kept.shape[axis]
    if room and room.filled == count and count + more <= room.buffer.shape[axis]:
        return room
    shape = list(kept.shape)
    shape[axis] = count + more + max(PLACES, count // 4)
    buffer = kept.new_empty(shape)
    buffer.narrow(axis, 0, count).copy_(kept)
    return Room(buffer, axis, count)
