"""What an operator does as far as its time goes: its kind, what it computes and moves, and the sizes on which its pace depends.

Kinds are those of work, not of nets: products, convolutions by their form, attention, recurrent layers, and what is done
value by value, named by what it spends its time on. How fast each is, is measured elsewhere (`efficiency.py`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

VALUES = {
    "random": r"bernoulli|normal|uniform|exponential|multinomial|random|rand\w*|\w*dropout",
    "gather": r"_?(unsafe_)?index(_select|_put|_add)?|gather|scatter\w*|\w*embedding(_bag|_dense)?|take|upsample_nearest\w*",
    "error function": r"gelu|erf\w*|erfinv",
    "hyperbolic": r"tanh|sin|cos|tan|atan\w*|mish|softplus",
    "exponential function": r"exp\w*|sigmoid|silu|log\w*|\w*softmax|elu|rsqrt|logsumexp",
    "norm": r"\w*(batch|group|layer|instance|rms)_norm\w*|var\w*|std\w*",
    "pool": r"\w*(avg|max)_pool\dd(_with_indices)?|(arg)?(sort|max|min)|topk|amax|amin|cum\w+",
    "reduction": r"sum|mean|prod|norm|\w*vector_norm|any|all|count_nonzero",
}
"""{kind of work done value by value: the operators that do it}; all others stream."""

STREAM = "stream"
INNERMOST = "pool over channels that lie innermost"
ENDS = ("_backward_data", "_backward", "_forward")
AMOUNTS = ("flops", "read", "written")
PATTERNS = {kind: re.compile(pattern) for kind, pattern in VALUES.items()}


@dataclass(frozen=True)
class Task:
    """`read`, `written`: bytes. `sizes`: rows, inner and columns of a product; the fewest channels of a convolution; places
    of attention; width of a recurrent layer."""

    kind: str
    dtype: torch.dtype
    flops: float
    read: float
    written: float
    sizes: tuple[float, ...] = ()

    @property
    def moved(self) -> float:
        return self.read + self.written

    def at(self, other: "Task", place: float) -> "Task":
        """On the line through self (at place 0) and `other` (at place 1)."""

        def on_line(one: float, two: float) -> float:
            return max(0.0, one + (two - one) * place)

        sizes = tuple(map(on_line, self.sizes, other.sizes))
        flops, read, written = (on_line(getattr(self, name), getattr(other, name)) for name in AMOUNTS)
        return Task(self.kind, self.dtype, flops, read, written, sizes)


def task_of(name: str, args: Sequence[Any], inputs: list[Tensor], outputs: list[Tensor], flops: float) -> Task:
    """`name` of the operator without its ending; its FLOPs are known, or 0 where it is no product."""
    read, written = bytes_of(inputs), bytes_of(outputs)
    dtype = inputs[0].dtype if inputs else outputs[0].dtype if outputs else torch.float32
    if not flops:
        kind = kind_of(name)
        if kind == "gather":  # rows of a table are read, not all of it
            read = min(read, written)
        if kind == "pool" and inputs and inputs[0].dim() > 3 and not inputs[0].is_contiguous():
            kind = INNERMOST
        return Task(kind, dtype, 0.0, read, written)
    kind, sizes = product_kind(name, args)
    return Task(kind, next(value for value in args[1:] if isinstance(value, Tensor)).dtype, flops, read, written, sizes)


def bytes_of(tensors: list[Tensor]) -> float:
    """Of each memory once: what is changed in place is read and written."""
    return float(sum({tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}.values()))


def kind_of(name: str) -> str:
    """Of work done value by value."""
    for end in ENDS:
        name = name.removesuffix(end)
    return next((kind for kind, pattern in PATTERNS.items() if pattern.fullmatch(name)), STREAM)


def product_kind(name: str, args: Sequence[Any]) -> tuple[str, tuple[float, ...]]:
    """(kind, sizes) of an operator that has FLOPs."""
    backward = " backward" * ("backward" in name)
    if "convolution" in name:
        return convolution_kind(args, bool(backward))
    if "attention" in name:
        return f"attention{backward}", (args[1].shape[-2] if backward else args[0].shape[-2],)
    if "rnn" in name:
        return f"recurrent{backward}", (args[2].shape[-1],)
    a, b = [value for value in args if isinstance(value, Tensor)][-2:] if "add" in name else args[:2]
    return "product", (a.shape[-2] if a.dim() > 1 else 1, a.shape[-1], b.shape[-1] if b.dim() > 1 else 1)


def convolution_kind(args: Sequence[Any], backward: bool) -> tuple[str, tuple[float, ...]]:
    """By the form of its kernels: each form has kernels of its own in every library."""
    weight, stride = (args[2], args[4]) if backward else (args[1], args[3])
    groups = args[9] if backward else args[8]
    if weight.shape[1] == 1 and groups > 1:
        form = "depthwise"
    elif weight.dim() == 3:
        form = "line"
    elif prod(weight.shape[2:]) == 1:
        form = "pointwise"
    else:
        form = "strided" if max(stride) > 1 else "plain"
    return f"{form} convolution{' backward' * backward}", (min(weight.shape[:2]) if form != "depthwise" else groups,)
