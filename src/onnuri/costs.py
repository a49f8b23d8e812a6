"""What a piece of work costs, found by watching every operator that torch executes: FLOPs, bytes moved, bytes alive.

FLOPs are those of products (a multiplication and an addition are two), as the field counts them: what is done value by
value, reductions and moves count none. They are counted anew here because torch's own counter (`torch.utils.flop_counter`)
leaves out, silently, on a processor: attention, recurrent layers, fused experts, products of integers; and counts the
backward pass of a grouped convolution as if it were not grouped. An operator that is in no table is named, never zero.

Attention counts every pair of places, masked ones too, as is usual (Chowdhery et al. 2022, arXiv 2204.02311, appendix B).
"""

import re
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._library import custom_ops
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Formula = Callable[..., float]

# ------------------------------------------------------------------------------------------------------------ the tables


def matrices(a: Tensor, b: Tensor, *_: Any) -> float:
    """(..., M, K) x (..., K, N); of grouped products too, where each row belongs to one group."""
    shared = a.shape[0] if a.dim() == 3 and b.dim() == 2 else 1
    return 2 * a.numel() * (b.shape[-1] if b.dim() > 1 else 1) / shared


def added_matrices(_: Tensor, a: Tensor, b: Tensor, *rest: Any) -> float:
    return matrices(a, b)


def convolution(x: Tensor, weight: Tensor, bias: Any, stride: Any, pad: Any, dilation: Any, transposed: bool, *_: Any):
    """Each kernel is laid on each place of the output, of the input where it is transposed; groups are in its shape."""
    places = x.shape[2:] if transposed else out_sizes(x.shape[2:], weight.shape[2:], stride, pad, dilation)
    return 2 * x.shape[0] * prod(places) * weight.numel()


def out_sizes(sizes: Any, kernel: Any, stride: Any, pad: Any, dilation: Any) -> list[int]:
    return [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in zip(sizes, kernel, stride, pad, dilation)]


def convolution_backward(out: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> float:
    """The gradients of the input and of the kernels cost one forward pass each; `rest` ends with which are wanted."""
    transposed, wanted = rest[4], rest[-1]
    places = (x if transposed else out).shape[2:]
    return 2 * x.shape[0] * prod(places) * weight.numel() * sum(wanted[:2])


def attention(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> float:
    """(B, H, L, D), (B, G, S, D), (B, G, S, E): scores and their mixture of values."""
    return 2 * q.shape[:-1].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])


def attention_backward(_: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> float:
    """Scores once more, then the gradients of q, k and v and of the scores."""
    return 2 * q.shape[:-1].numel() * k.shape[-2] * (3 * q.shape[-1] + 2 * v.shape[-1])


def recurrent(x: Tensor, into: Tensor, onto: Tensor, *_: Any) -> float:
    """(times, B, inputs) of one layer in one direction, all gates."""
    return 2 * x.shape[:-1].numel() * (into.numel() + onto.numel())


def recurrent_backward(*inputs: Any) -> float:
    return 2 * recurrent(*inputs)


PRODUCTS: dict[str, Formula] = {
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "vdot", "_int_mm", "_grouped_mm", "_scaled_mm"), matrices),
    **dict.fromkeys(("addmm", "baddbmm", "addbmm", "addmv", "_addmm_activation"), added_matrices),
    **dict.fromkeys(("convolution", "_convolution", "convolution_overrideable"), convolution),
    "convolution_backward": convolution_backward,
    "mkldnn_rnn_layer": recurrent,
    "mkldnn_rnn_layer_backward": recurrent_backward,
    **{
        f"_scaled_dot_product_{kind}{end}": formula
        for kind in ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
        for end, formula in (("", attention), ("_backward", attention_backward))
    },
}
"""{operator: its FLOPs from its arguments}."""

LINEAR = re.compile(
    r"""
    (_?new|empty|full|ones|zeros|rand\w*|_foreach)(_\w+)? | \w+_like | arange | scalar_tensor | linspace | eye
    | \w*(batch|group|layer|instance|rms|weight|vector)_norm\w* | norm | \w*softmax | logsumexp | \w*dropout | glu
    | \w*(avg|max)_pool\dd(_with_indices)? | upsample_\w+ | \w+_pad(\dd|_nd) | (un)?fold | im2col | col2im | grid_sampler\w*
    | \w*loss\w* | \w*embedding(_bag|_dense)? | _?(unsafe_)?(index|masked)(_\w+)? | scatter\w* | gather | \w+_scatter
    | sort | argsort | topk | kthvalue | median | mode | (arg|c?um|cum)?(max|min) | cumsum | cumprod | logcumsumexp
    | sum | mean | prod | std | var | var_mean | count_nonzero | nonzero | trace | histc | bincount | bucketize | searchsorted
    | isin | equal | \w*unique\w* | where | fill | zero | copy | _to_copy | clone | resize | _local_scalar_dense
    | cat | stack | repeat\w* | roll | rot90 | flip | tril | triu | slice | select | pixel_(un)?shuffle | one_hot
    | _?unsafe_\w+ | split\w* | _pack_padded_sequence | floor_divide | _prelu_kernel | \w*adamw?
    | bernoulli | uniform | normal | exponential | random | multinomial
    """,
    re.VERBOSE,
)
"""Operators that move or reduce what they read; beside them those that torch itself calls pointwise or a reduction."""

LOOKUPS = frozenset(("embedding", "index", "index_select", "gather", "embedding_bag", "_embedding_bag"))
"""Operators that read only some rows of a table."""


COPYING = frozenset(("convolution", "convolution_backward"))
"""Operators that, on a processor, copy what they read and write into a layout of their own and hold both."""


def workspace(tensors: list[Tensor]) -> int:
    """Bytes of those copies; none where channels lie innermost already."""
    pictures = [tensor for tensor in tensors if tensor.dim() >= 3 and not tensor.is_cuda]
    return sum(tensor.nbytes for tensor in pictures if tensor.is_contiguous())


@cache
def is_linear(operator: Any) -> bool:
    """Whether an operator is known to multiply no matrices."""
    name = base_name(operator)
    stems = {name, *(name.removesuffix(end) for end in ("_backward", "_backward_data", "_forward", "_copy"))}
    tags = {torch.Tag.pointwise, torch.Tag.reduction, torch.Tag.inplace_view} & set(operator.tags)
    return bool(tags) or operator.is_view or any(LINEAR.fullmatch(stem) or is_pointwise(stem) for stem in stems)


def python_kernel(operator: Any) -> Callable[..., Any] | None:
    """What an operator that a library wrote in Python (`torch.library.custom_op`) does; None for all others."""
    known = custom_ops.OPDEFS.get(operator._schema.name)
    return None if known is None else known._init_fn


def is_pointwise(name: str) -> bool:
    packet = getattr(torch.ops.aten, name, None)
    return packet is not None and any(torch.Tag.pointwise in getattr(packet, o).tags for o in packet.overloads())


def base_name(operator: Any) -> str:
    """`aten::add_.Tensor` -> add."""
    return operator._schema.name.split("::")[1].removesuffix("_")


# ---------------------------------------------------------------------------------------------- lines over the records


@dataclass(frozen=True)
class Cost:
    """`flops` by type; `moved`: bytes of weights read, and of what is made, written and read; `calls` of operators."""

    flops: dict[torch.dtype, float]
    moved: float
    calls: float

    def at(self, other: "Cost", sizes: tuple[int, int], n: int) -> "Cost":
        """With n records, when self is the cost of sizes[0] and `other` that of sizes[1]."""

        def on_line(one: float, two: float) -> float:
            return one + (two - one) / (sizes[1] - sizes[0]) * (n - sizes[0])

        flops = {kind: on_line(self.flops.get(kind, 0), other.flops.get(kind, 0)) for kind in other.flops}
        return Cost(flops, on_line(self.moved, other.moved), on_line(self.calls, other.calls))


class Line:
    """Bytes alive after each operator as lines over the number of records, on top of what is `fixed`. Where another
    batch makes other operators, only the peak is one."""

    def __init__(self, courses: Sequence[Sequence[float]], sizes: tuple[int, int], fixed: float):
        alike = len(courses[0]) == len(courses[1])
        low, high = (np.array(one if alike else [max(one)], dtype=float) for one in courses)
        self.slope = (high - low) / (sizes[1] - sizes[0])
        self.start, self.fixed = low - self.slope * sizes[0], fixed

    @staticmethod
    def of(watches: Sequence["Watch"], sizes: tuple[int, int], fixed: float, held: float = 1.0) -> "Line":
        """`held`: bytes that the allocator takes for each byte alive."""
        return Line([[held * alive for alive in watch.course] or [0.0] for watch in watches], sizes, fixed)

    def at(self, n: int) -> float:
        """Bytes at the peak with n records."""
        return self.fixed + float((self.start + self.slope * n).max())

    def most(self, memory: float) -> int | None:
        """The most records whose peak stays below `memory`, 0 where not even one does; None where they take none."""
        rising = self.slope > 0
        room = (memory - self.fixed - self.start[rising]) / self.slope[rising]
        return max(0, int(room.min())) if rising.any() else None


# ------------------------------------------------------------------------------------------------------------ the watcher


class Watch(TorchDispatchMode):
    """Watches what torch executes inside the block. `known`: tensors that lie in memory before, which are not counted as
    made but as read. Watching changes no result; it makes everything slower."""

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self.flops: Counter[torch.dtype] = Counter()
        self.unknown: Counter[str] = Counter()
        self.calls = 0
        self.read_once = 0
        """Bytes of the known tensors that were read, each part of them once; known when the watch ends."""
        self.read_each = self.made = self.live = self.peak = self.saved = self.peak_saved = 0
        self.course: list[int] = []
        """Bytes alive after each operator."""
        self.known = {storage._cdata: storage for tensor in known if (storage := storage_of(tensor))}
        self.parts: dict[int, dict[Any, int]] = {}
        self.alive: dict[int, int] = {}
        self.kept: dict[int, int] = {}
        self.inside: Any = None

    @property
    def total_flops(self) -> int:
        return sum(self.flops.values())

    def once(self) -> "Cost":
        """The cost where known tensors come from memory once, as weights do in one forward pass."""
        return Cost(dict(self.flops), self.read_once + 2 * self.made, self.calls)

    def each(self) -> "Cost":
        """The cost where known tensors come from memory whenever they are read."""
        return Cost(dict(self.flops), self.read_each + 2 * self.made, self.calls)

    def close(self) -> None:
        """Let go of the known tensors: a watch outlives the net that it watched."""
        self.read_once = sum(min(self.known[key].nbytes(), sum(parts.values())) for key, parts in self.parts.items())
        self.known, self.parts = {}, {}

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(operator, torch._ops.HigherOrderOperator):
            self.unknown[str(operator)] += 1
            return operator(*args, **kwargs)
        if base_name(operator) not in PRODUCTS:
            with self:  # what consists of other operators is counted by its parts
                result = operator.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = self.execute(operator, args, kwargs)
        inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        outputs = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        self.note_bytes(operator, inputs, outputs)
        return result

    def execute(self, operator: Any, args: Any, kwargs: Any) -> Any:
        """The operator's result, its FLOPs counted. One that a library wrote in Python is counted by its parts."""
        self.calls += not operator.is_view
        tensors = any(isinstance(value, Tensor) for value in tree_leaves((args, kwargs)))
        kernel = python_kernel(operator)
        if kernel is None:
            if tensors:
                self.count(operator, args)
            return operator(*args, **kwargs)
        before = self.total_flops, self.unknown.total()
        with self, torch.no_grad():
            result = kernel(*args, **kwargs)
        if before == (self.total_flops, self.unknown.total()):
            self.unknown[operator._schema.name] += 1
        return result

    def count(self, operator: Any, args: Any) -> None:
        formula = PRODUCTS.get(base_name(operator))
        if formula is not None:
            first = next(value for value in args[1:] if isinstance(value, Tensor))
            self.flops[first.dtype] += int(formula(*args))
        elif not is_linear(operator):
            self.unknown[operator._schema.name.removeprefix("aten::")] += 1

    # ------------------------------------------------------------------------------------------------------------ memory

    def note_bytes(self, operator: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        for tensor in [*inputs, *outputs]:
            self.note_made(tensor)
        beside = workspace([*inputs, *outputs]) if base_name(operator) in COPYING else 0
        self.peak = max(self.peak, self.live + beside)
        if not operator.is_view:
            for tensor in inputs:
                self.note_read(operator, tensor, outputs)
        self.course.append(self.live + beside)

    def note_made(self, tensor: Tensor) -> None:
        storage = storage_of(tensor)
        if storage is None or storage._cdata in self.known or storage._cdata in self.alive:
            return
        key, size = storage._cdata, storage.nbytes()
        self.alive[key] = size
        self.made += size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.forget, key).atexit = False

    def forget(self, key: int) -> None:
        self.live -= self.alive.pop(key)
        self.saved -= self.kept.pop(key, 0)

    def note_read(self, operator: Any, tensor: Tensor, outputs: list[Tensor]) -> None:
        storage = storage_of(tensor)
        if storage is None or storage._cdata not in self.known:
            return
        parts = self.parts.setdefault(storage._cdata, {})
        if base_name(operator) in LOOKUPS:
            size = min(storage.nbytes(), sum(out.numel() for out in outputs) * tensor.element_size())
            parts["rows"] = parts.get("rows", 0) + size
        else:
            size = min(storage.nbytes(), tensor.numel() * tensor.element_size())
            parts[tensor.storage_offset(), tensor.numel()] = size
        self.read_each += size * (2 if operator._schema.is_mutable else 1)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Inside, what autograd keeps for the backward pass is counted: unique storages, known tensors left out."""

        def pack(tensor: Tensor) -> Tensor:
            storage = storage_of(tensor)
            if storage is not None and storage._cdata not in self.known and storage._cdata not in self.kept:
                self.note_made(tensor)
                self.kept[storage._cdata] = storage.nbytes()
                self.saved += storage.nbytes()
                self.peak_saved = max(self.peak_saved, self.saved)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield


def storage_of(tensor: Tensor) -> Any:
    """The memory behind a tensor; None where it has none of its own, such as on the meta device."""
    return tensor.untyped_storage() if tensor.layout == torch.strided and not tensor.is_meta else None


@contextmanager
def watched(known: Iterable[Tensor] = ()) -> Iterator[Watch]:
    """A Watch in force; layers that torch would fuse into one operator of its own are run part by part."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with Watch(known) as watch, watch.saving():
            yield watch
        watch.close()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def tensors_of(net: nn.Module) -> list[Tensor]:
    """Parameters and buffers, tied ones once."""
    return list({id(tensor): tensor for tensor in [*net.parameters(), *net.buffers()]}.values())
