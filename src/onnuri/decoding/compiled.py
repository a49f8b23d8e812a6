"""A step of one token, compiled: torch writes the net as one program in C++ for this processor, its matrices packed for it.

Eagerly a token of a small net is a few hundred calls of kernels, and products of one row that read the matrices at a fraction of
the memory's pace. What is not one token after a memory (the question, the guesses of a draft) is computed as before.
"""

import logging
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import Refusal
from ..family import Batch, Memory, Outputs, Session, Writing
from .growing import ROOMS, Room, roomy

FEWEST = 2  # answers in what is traced: an axis of one place would be taken for one that stays so
SHORT = 4  # tokens of a question there
HOW = {"freezing": True, "max_autotune": True, "max_autotune_gemm_backends": "CPP"}
"""Matrices are constants, and products are written as well: those of MKL are slow on other makers' processors."""

Step = Callable[[Batch, Memory], tuple[Outputs, Memory]]


class OneStep(nn.Module):
    """A step as a function from tensors to tensors. A tensor of the memory that has room along its one of `axes` is given as the
    buffer that it lies in, into which the program writes, and a tensor (places, 0) of as many places as are there."""

    def __init__(self, net: nn.Module, step: Step, axes: Sequence[int | None]):
        super().__init__()
        self.net, self.step, self.axes = net, step, axes

    def forward(self, batch: dict, memory: list, lengths: list) -> tuple:
        given = [
            tensor if axis is None else Room(tensor, axis, 0).first(length.shape[0])
            for tensor, axis, length in zip(memory, self.axes, lengths)
        ]
        (values, mask), kept = self.step(batch, given)
        return values, mask, *(tensor for tensor, axis in zip(kept, self.axes) if axis is None)


def compiled(net: nn.Module, writing: Writing, prompts: Sequence[list[int]]) -> tuple[Step, Batch, list[Tensor]]:
    """(the step compiled for any number of answers; what it and the net's own can be compared on: one more token of as many answers
    as there are prompts, and their memory). Refusal for what torch does not compute and for nets that keep nothing; errors of any
    kind where there is no compiler, or the net is one that it cannot take."""
    if writing.alone is not None or isinstance(net, Session):
        raise Refusal(
            "what writes here is not computed by torch, so there is nothing to compile", "leave --compile out"
        )
    batch, memory, changing = example(writing, prompts)
    axes = [ROOMS[tensor].axis if tensor in ROOMS else None for tensor in memory]
    run = program(OneStep(net, writing.step, axes), batch, memory, changing)
    return by_program(run, writing.step, batch, axes), batch, memory


def example(writing: Writing, prompts: Sequence[list[int]]) -> tuple[Batch, list[Tensor], list[dict[int, Any]]]:
    """(one more token of each, the memory that it follows, the axes along which each of its tensors may change): that of the
    answers, and those that differ after another step or after a longer question."""
    ids = max(prompts, key=len)
    rows = max(FEWEST, len(prompts))
    nothing: list[list[int]] = [[]] * rows
    (values, mask), once = writing.step(writing.batch([(ids * SHORT)[:SHORT]] * rows, nothing), ())
    if not once:
        raise Refusal("this net keeps nothing of what it has read: all of it is computed anew", "leave --compile out")
    after = writing.following([[token] for token in values[mask].argmax(-1).tolist()])
    _, twice = writing.step(after, once)
    _, longer = writing.step(writing.batch([(ids * SHORT)[: SHORT + 1]] * rows, nothing), ())
    axes = [
        {axis: torch.export.Dim.DYNAMIC for axis, sizes in enumerate(zip(*shapes)) if not axis or len(set(sizes)) > 1}
        for shapes in zip(*([tensor.shape for tensor in one] for one in (once, twice, longer)))
    ]
    return after, list(twice), axes


def program(
    step: OneStep, batch: Batch, memory: list[Tensor], changing: list[dict[int, Any]]
) -> Callable[..., list[Tensor]]:
    """What `OneStep` computes, as a program."""
    import torch._inductor  # a second that only those pay who compile
    from torch.utils._sympy.numbers import int_oo

    answers = {name: {0: torch.export.Dim.DYNAMIC} for name in batch}
    places = [{} if axis is None else {0: torch.export.Dim.DYNAMIC} for axis in step.axes]
    with quiet(), torch.no_grad(), TemporaryDirectory(prefix="onnuri-") as place:
        given = (batch, *buffers(rooms(memory, step.axes), memory))
        traced = torch.export.export(step, given, dynamic_shapes=(answers, changing, places), strict=False)
        if limits := [str(size.upper) for size in traced.range_constraints.values() if size.upper != int_oo]:
            raise ValueError(f"the net computes otherwise from {limits[0]} places on")
        path = str(Path(place) / "step.pt2")
        how = HOW if all(tensor.device.type == "cpu" for tensor in memory) else {"freezing": True}
        torch._inductor.aoti_compile_and_package(traced, package_path=path, inductor_configs=how)
        return torch._inductor.aoti_load_package(path)


def by_program(run: Callable[..., list[Tensor]], eager: Step, example: Batch, axes: Sequence[int | None]) -> Step:
    """By the program what is like the example in all but the number of answers, the rest eagerly."""
    shapes = {name: value.shape[1:] for name, value in example.items()}

    def step(batch: Batch, memory: Memory) -> tuple[Outputs, Memory]:
        if not memory or {name: value.shape[1:] for name, value in batch.items()} != shapes:
            return eager(batch, memory)
        behind = rooms(memory, axes)
        values, mask, *rest = run(batch, *buffers(behind, memory))
        others = iter(rest)
        return (values, mask), [room.first(room.filled + 1) if room else next(others) for room in behind]

    return step


def rooms(memory: Memory, axes: Sequence[int | None]) -> list[Room | None]:
    return [None if axis is None else roomy(tensor, axis, 1) for tensor, axis in zip(memory, axes)]


def buffers(behind: Sequence[Room | None], memory: Memory) -> tuple[list[Tensor], list[Tensor]]:
    """The memory and its lengths, as `OneStep` takes them."""
    lengths = [tensor.new_empty(room.filled if room else 0, 0) for room, tensor in zip(behind, memory)]
    return [room.buffer if room else tensor for room, tensor in zip(behind, memory)], lengths


@contextmanager
def quiet():
    """Inside, the makers of torch are not told what would interest them."""
    loggers = [logging.getLogger(name) for name in ("torch._inductor", "torch._dynamo", "torch.fx", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
