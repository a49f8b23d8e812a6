"""What each operator of torch computes: the FLOPs of products, and which operators are known to be none.

FLOPs are those of products (a multiplication and an addition are two), as the field counts them: what is done value by
value, reductions and moves count none. They are counted anew here because torch's own counter (`torch.utils.flop_counter`)
leaves out, silently, on a processor: attention, recurrent layers, fused experts, products of integers; and counts the
backward pass of a grouped convolution as if it were not grouped. An operator that is in no table is named, never zero.

Attention counts every pair of places, masked ones too, as is usual (Chowdhery et al. 2022, arXiv 2204.02311, appendix B).
"""

import re
from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._library import custom_ops

Formula = Callable[..., float]


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
