"""How well number formats hold the numbers of matrices: those that are stored here, and Tesla's configurable 8-bit floats.

CFloat8 (Tesla Dojo Technology: A Guide to Tesla's Configurable Floating Point Formats & Arithmetic, 2021): a sign, an exponent of
4 or 5 bits with a bias from 0 to 63 that is configured for many numbers at once, and 3 or 2 bits of mantissa; no infinities
and no NaN. Its subnormal numbers are 0.f * 2^-bias as the guide states, so that they end well below the smallest normal
number, 2^(1 - bias). What is larger than the largest number becomes that. Rounding is to the nearest, ties to even. It is an
error study: no scheme stores such codes.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .matrices import Weight
from .packed import FORMATS, nearest, spread

CFLOATS = {"cfloat8-1-4-3": (4, 3), "cfloat8-1-5-2": (5, 2)}
"""{name: bits of the exponent, of the mantissa}"""

STORED = ("int8", "int4", "fp8-e4m3", "fp8-e5m2", "bf16")
BIASES = range(64)
NEAR = 4  # biases above and below the one by which the largest number just fits


def cfloat(numbers: Tensor, exponent: int, mantissa: int, bias: int) -> Tensor:
    """The nearest numbers of the format."""
    size = numbers.double().abs()
    lowest, highest = 1.0 - bias, 2.0**exponent - 1 - bias
    power = torch.frexp(size)[1].double() - 1
    step = torch.exp2(power.clamp(lowest, highest) - mantissa)
    normal = ((size / step).round() * step).clamp(2.0**lowest, (2 - 2.0**-mantissa) * 2.0**highest)
    fraction = 2.0 ** (-bias - mantissa)
    small = (size / fraction).round().clamp_max(2**mantissa - 1) * fraction
    found = torch.where((size - small).abs() <= (size - normal).abs(), small, normal)
    return (found * numbers.sign()).float()


def best_cfloat(matrix: Tensor, exponent: int, mantissa: int) -> tuple[Tensor, int]:
    """(the numbers as the format holds them at the bias with the least squared error, that bias)."""
    top = float(matrix.abs().max().clamp_min(1e-30).log2().floor())
    fits = round(2**exponent - 1 - top)
    tried = [bias for bias in range(fits - NEAR, fits + NEAR + 1) if bias in BIASES] or [min(max(fits, 0), 63)]
    found = [(cfloat(matrix, exponent, mantissa, bias), bias) for bias in tried]
    return min(found, key=lambda one: float((one[0] - matrix).square().sum()))


def held(matrix: Tensor, name: str, group: int) -> Tensor:
    """The matrix (units, rows, columns) as a format holds it. `group`: columns that share a scale in 4 bits, where they can."""
    if name in CFLOATS:
        return best_cfloat(matrix, *CFLOATS[name])[0]
    form = FORMATS[name]
    codes, scale = nearest(matrix, form, group if form.bits == 4 and matrix.shape[2] % group == 0 else 0)
    return codes * spread(scale, matrix.shape[2])


def relative_errors(
    found: Sequence[Weight], group: int, names: Iterable[str] = (*STORED, *CFLOATS)
) -> dict[str, dict[str, float]]:
    """{format: {matrix: root mean square of the error over that of the numbers}}"""
    return {
        name: {weight.name: relative(weight.matrix.float(), name, group) for weight in found if weight.matrix.any()}
        for name in names
    }


def relative(matrix: Tensor, name: str, group: int) -> float:
    return float((held(matrix, name, group) - matrix).norm() / matrix.norm())
