"""The packed form of a weight: short codes, and the scales that make numbers of them again.

Codes lie as the weight's matrices do, (units, rows, columns). The columns of a row share one scale, or each group of them
has its own (Dettmers et al., arXiv:2110.02861). A number is code * scale; there is no offset.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .matrices import View

GROUP = 32  # columns, for codes of 4 bits
LEAST = 1e-12  # a scale: zeros have some as well
DECODED = 2**30  # bytes of decoded matrices that a process keeps at most; others are decoded anew for each product
SHRINKS = [1 - 0.04 * step for step in range(11)]  # of a scale
ROUNDING = ("int8-dynamic", "int8-static")
"""The schemes by which a layer rounds its input too, and multiplies integers."""


@dataclass(frozen=True)
class Format:
    """`dtype`: of what is stored, two codes a byte where `bits` is 4. `largest`: the code of a group's largest number; 0 where
    codes are the numbers themselves. `digits`: binary ones behind the first one of a float code; None for integers."""

    dtype: torch.dtype
    bits: int
    largest: float
    digits: int | None = None

    def nearest(self, numbers: Tensor) -> Tensor:
        """The codes next to these multiples of a scale, as floats."""
        if self.digits is not None:
            return numbers.to(self.dtype).float()
        return numbers.round().clamp(-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1)

    def stored(self, codes: Tensor) -> Tensor:
        """Codes (..., columns) as they lie in memory and in files."""
        if self.bits == 4:
            low, high = (codes + 8).to(torch.uint8).unflatten(-1, (-1, 2)).unbind(-1)
            return low | high << 4
        return codes.to(self.dtype)

    def codes(self, stored: Tensor) -> Tensor:
        """The inverse of `stored`, in fp32."""
        if self.bits == 4:
            return torch.stack([stored & 15, stored >> 4], -1).flatten(-2).float() - 8
        return stored.float()

    def step(self, codes: Tensor) -> Tensor:
        """The distance of neighboring codes where these lie, in scales."""
        if self.digits is None:
            return torch.ones_like(codes)
        smallest = torch.finfo(self.dtype).smallest_normal
        return torch.exp2(codes.abs().clamp_min(smallest).log2().floor() - self.digits)


FORMATS = {
    "int8": Format(torch.int8, 8, 127.0),
    "int8-dynamic": Format(torch.int8, 8, 127.0),
    "int8-static": Format(torch.int8, 8, 127.0),
    "int4": Format(torch.uint8, 4, 7.5),
    "fp8-e4m3": Format(torch.float8_e4m3fn, 8, 448.0, 3),
    "fp8-e5m2": Format(torch.float8_e5m2, 8, 57344.0, 2),
    "bf16": Format(torch.bfloat16, 16, 0.0, 7),
}
"""By scheme. int8-dynamic and int8-static have the codes of int8; the layers round their inputs as well."""


def scales(matrix: Tensor, form: Format, group: int) -> Tensor:
    """(units, rows, groups): what makes each group's largest number the largest code. `group`: columns of one; 0: all."""
    if not form.largest:
        return matrix.new_ones(*matrix.shape[:2], 1)
    return grouped(matrix, group).abs().amax(3).clamp_min(LEAST) / form.largest


def fitted_scales(matrix: Tensor, form: Format, group: int, weight: Tensor) -> Tensor:
    """The same, but of several smaller ones that with the least squared error. `weight` (columns,): what that of each counts."""
    widest = scales(matrix, form, group)
    numbers, weights = grouped(matrix, group), weight.expand_as(matrix).unflatten(2, (widest.shape[2], -1))
    best, least = widest, torch.full_like(widest, torch.inf)
    for shrink in SHRINKS:
        step = (widest * shrink).unsqueeze(3)
        error = (weights * (form.nearest(numbers / step) * step - numbers).square()).sum(3)
        best = torch.where(error < least, step.squeeze(3), best)
        least = torch.minimum(error, least)
    return best


def usual_group(scheme: str) -> int:
    """How many columns share a scale where nothing is said of it; 0: all of a row."""
    return GROUP if FORMATS[scheme].bits == 4 else 0


def divided(shape: Sequence[int], scheme: str, group: int) -> bool:
    """Whether the columns of matrices (units, rows, columns) are whole groups, and whole bytes."""
    return (not group or shape[2] % group == 0) and shape[2] * FORMATS[scheme].bits % 8 == 0


def packed_bytes(shape: Sequence[int], form: Format, group: int) -> int:
    """Bytes of the codes and scales of matrices (units, rows, columns)."""
    units, rows, columns = shape
    groups = columns // group if group else 1
    return units * rows * (columns * form.bits // 8 + 4 * groups)


def grouped(matrix: Tensor, group: int) -> Tensor:
    """(units, rows, groups, columns of each)."""
    return matrix.unflatten(2, (-1, group or matrix.shape[2]))


def spread(scale: Tensor, columns: int) -> Tensor:
    """Each group's scale at each of its columns, along the last axis; one that all columns share stays one."""
    groups = scale.shape[-1]
    return scale if groups == 1 else scale.repeat_interleave(columns // groups, -1)


def nearest(matrix: Tensor, form: Format, group: int) -> tuple[Tensor, Tensor]:
    """(codes (units, rows, columns) as floats, scales (units, rows, groups)), each number to the code next to it."""
    scale = scales(matrix, form, group)
    return form.nearest(matrix / spread(scale, matrix.shape[2])), scale


Rounding = Callable[[Tensor, Format, int], tuple[Tensor, Tensor]]
"""As `nearest`: (matrix, format, columns of a group) -> (codes, scales)."""


class Packed(nn.Module):
    """The base of a stack: codes, one fp32 scale per group, and how they stand for a tensor of this shape and type.

    scheme "int8-dynamic": a Linear also rounds each row of its input to int8 on the fly and multiplies integers; "int8-static":
    a Linear or a convolution rounds its whole input to int8 at the step `input_scale` (), which was fixed beforehand.
    """

    codes: Tensor
    scale: Tensor
    input_scale: Tensor | None

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        view: View,
        shape: torch.Size,
        dtype: torch.dtype,
        scheme: str,
        input_scale: Tensor | None = None,
    ):
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("input_scale", input_scale)
        self.view, self.shape, self.dtype, self.scheme = view, shape, dtype, scheme

    @property
    def form(self) -> Format:
        return FORMATS[self.scheme]

    @property
    def matrix(self) -> Tensor:
        """(units, rows, columns) in fp32."""
        codes = self.form.codes(self.codes)
        return codes * spread(self.scale, codes.shape[2])

    def decoded(self) -> Tensor:
        """(rows, columns): the codes where each row has one scale, else the matrix; to be read only. Kept where no gradient is
        asked for: a text is written by as many products with one matrix as it has tokens."""
        kept, versions = KEPT.get(self), (self.codes._version, self.scale._version)
        if kept and kept.codes is self.codes and kept.scale is self.scale and kept.versions == versions:
            return kept.numbers
        numbers = self.form.codes(self.codes[0]) if self.scale.shape[2] == 1 else self.matrix[0]
        room = DECODED - sum(each.numbers.nbytes for each in KEPT.values())
        plain = type(self.codes) is Tensor  # a tracer's is not
        if plain and not torch.is_grad_enabled() and numbers.nbytes <= room:
            KEPT[self] = Decoded(self.codes, self.scale, versions, numbers)
        return numbers

    def forward(self) -> Tensor:
        """The tensor: the product in fp32, cast once."""
        return self.view.tensor(self.matrix, self.shape).to(self.dtype)

    def rounds(self, x: Tensor) -> bool:
        """Whether this input is rounded. Rounding has no gradient: where one is asked for (an update is trained) it is not."""
        return self.scheme in ROUNDING and not (torch.is_grad_enabled() and x.requires_grad)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., in) -> (..., out); with one scale a row the product is scaled, and not the matrix before."""
        # codes are up to 127: their products would leave the range of a short type before they are scaled
        in_integers = self.rounds(x)
        product = (
            integer_product(x, self.codes[0], self.input_scale) if in_integers else F.linear(x.float(), self.decoded())
        )
        if self.scale.shape[2] == 1:
            product = product * self.scale[0, :, 0]
        product = product.to(x.dtype)
        return product if bias is None else product + bias

    def conv2d(self, x: Tensor, layer: nn.Conv2d) -> Tensor:
        """x (B, in, H, W) -> (B, out, H', W'), a plain convolution in integers: each place's patch is a row of a product."""
        size = [
            (x.shape[2 + d] + 2 * layer.padding[d] - layer.dilation[d] * (layer.kernel_size[d] - 1) - 1)  # type: ignore[operator]
            // layer.stride[d]
            + 1
            for d in (0, 1)
        ]
        return self.linear(patches(layer, x).to(x.dtype), layer.bias).transpose(1, 2).unflatten(2, size)

    def rows(self, places: Tensor) -> Tensor:
        """These rows of a table, without forming the float table."""
        codes = self.form.codes(self.codes[0, places])
        return (codes * spread(self.scale[0, places], codes.shape[-1])).to(self.dtype)


@dataclass(frozen=True, eq=False)
class Decoded:
    """Numbers, and what they were decoded from."""

    codes: Tensor
    scale: Tensor
    versions: tuple[int, int]
    numbers: Tensor


KEPT: WeakKeyDictionary[Packed, Decoded] = WeakKeyDictionary()


def integer_product(x: Tensor, codes: Tensor, step: Tensor | None) -> Tensor:
    """x (..., in) times codes (out, in) transposed, x rounded to int8 at this step, or per row where there is none; fp32."""
    rows = x.reshape(-1, x.shape[-1]).float()
    step = rows.abs().amax(1, keepdim=True).clamp_min(LEAST) / 127 if step is None else step
    integers = torch.round(rows / step).clamp_(-128, 127).to(torch.int8)
    product = torch._int_mm(integers, codes.t())  # type: ignore[attr-defined]  torch exports it under no other name
    return (product.float() * step).reshape(*x.shape[:-1], codes.shape[0])


def is_plain_conv(layer: nn.Module) -> bool:
    """Whether a layer is a convolution over pictures that is one product of its patches with its matrix."""
    plain = isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"
    return plain and not isinstance(layer.padding, str)


def patches(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """(B, places, columns): what a plain convolution multiplies its matrix with, in fp32."""
    found = F.unfold(x.float(), layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
    return found.transpose(1, 2)


def packed_tensors(net: nn.Module) -> list[Tensor]:
    """All codes and scales, those of tied weights once."""
    return [value for module in net.modules() if isinstance(module, Packed) for value in module.buffers()]


def packed_numbers(net: nn.Module) -> int:
    """How many weights the codes stand for."""
    return sum(module.shape.numel() for module in net.modules() if isinstance(module, Packed))
