"""Blocks that are done give again what they gave, so that looking at one block after another costs two passes and not one for
each block.

Only where every block that runs is called once and in the order of its name's place: what a block gives depends then on nothing
that is done after it. What lies between the blocks is computed each time, so that no net's plan has to be known.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

HELD = 2**31  # bytes of what blocks gave that are kept at most; blocks beyond are computed again


class Enough(Exception):
    """What was to be seen of a batch has been seen."""


class Replay:
    """`run`: computes batch `number`. Nothing is replayed where the blocks are not called as they must be."""

    def __init__(self, blocks: Mapping[str, nn.Module], run: Callable[[int], Any]):
        self.blocks, self.run = blocks, run
        self.order = self.called_in_order()
        self.given: dict[tuple[str, int], Any] = {}
        self.bytes = 0

    def called_in_order(self) -> list[str]:
        """The blocks that run; none where one runs twice or before its place."""
        called: list[str] = []
        with ExitStack() as hooks:
            for name, block in self.blocks.items():
                hooks.callback(block.register_forward_pre_hook(partial(note, called, name)).remove)
            self.run(0)
        return called if called == [name for name in self.blocks if name in called] else []

    def look(self, number: int, at: str | None) -> None:
        """Run batch `number` as far as the block `at` needs it, wholly for None. The blocks before it must be done."""
        done = len(self.order) if at is None else self.order.index(at) if at in self.order else 0
        with ExitStack() as ways:
            for name in self.order[:done]:
                ways.enter_context(self.kept(name, number))
            if at in self.order:
                ways.callback(self.blocks[at].register_forward_hook(stop).remove)
            with suppress(Enough):
                self.run(number)

    @contextmanager
    def kept(self, name: str, number: int) -> Iterator[None]:
        """Inside, a block gives what it gave of this batch, or is heard."""
        block, key = self.blocks[name], (name, number)
        if key in self.given:
            own = vars(block).get("forward")  # what a library may have put before the class's
            block.forward = lambda *args, **options: deepcopy(self.given[key])
            try:
                yield
            finally:
                del block.forward
                if own:
                    block.forward = own
        else:
            handle = block.register_forward_hook(lambda module, inputs, output: self.keep(key, output))
            try:
                yield
            finally:
                handle.remove()

    def keep(self, key: tuple[str, int], output: Any) -> None:
        size = sum(value.nbytes for value in tree_leaves(output) if isinstance(value, Tensor))
        if self.bytes + size <= HELD:
            self.given[key], self.bytes = deepcopy(output), self.bytes + size


def note(called: list[str], name: str, module: nn.Module, inputs: Sequence[Any]) -> None:
    called.append(name)


def stop(module: nn.Module, inputs: Sequence[Any], output: Any) -> None:
    raise Enough
