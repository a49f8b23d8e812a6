"""Configurable 8-bit floats against all their numbers, one by one, and the error study against torch's own types."""

import pytest
import torch

from onnuri.weights.matrices import weights
from onnuri.weights.number_formats import BIASES, CFLOATS, best_cfloat, cfloat, held, relative_errors


def numbers(exponent: int, mantissa: int, bias: int) -> torch.Tensor:
    """Every number of the format that is not negative, as the guide writes them."""
    small = [fraction * 2.0 ** (-mantissa - bias) for fraction in range(2**mantissa)]
    normal = [
        (1 + fraction * 2.0**-mantissa) * 2.0 ** (power - bias)
        for power in range(1, 2**exponent)
        for fraction in range(2**mantissa)
    ]
    return torch.tensor(small + normal, dtype=torch.float64)


@pytest.mark.parametrize("bias", [0, 7, 31, 63])
@pytest.mark.parametrize(("exponent", "mantissa"), CFLOATS.values())
def test_rounding_finds_the_nearest_of_all_numbers(exponent, mantissa, bias):
    known = numbers(exponent, mantissa, bias)
    assert len(known) == 128 and torch.equal(cfloat(known.float(), exponent, mantissa, bias).double(), known)
    draw = torch.Generator().manual_seed(bias)
    wide = torch.exp2(torch.rand(3000, generator=draw) * (2**exponent + 6) - bias - 4)
    x = torch.cat([wide, -wide, torch.randn(3000, generator=draw) * float(known.max()) / 3])
    nearest = (x.double().abs()[:, None] - known).abs().min(1).values
    assert torch.equal((cfloat(x, exponent, mantissa, bias).double() - x.double()).abs(), nearest)


def test_between_two_normal_numbers_ties_go_to_the_even_one():
    assert cfloat(torch.tensor([1.0625, 1.1875, -1.0625]), 4, 3, 7).tolist() == [1.0, 1.25, -1.0]


@pytest.mark.parametrize(("exponent", "mantissa"), CFLOATS.values())
@pytest.mark.parametrize("size", [1e-12, 1e-3, 1.0, 3e4])
def test_the_bias_is_the_best_of_all(exponent, mantissa, size):
    x = size * torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(0))
    errors = [float((cfloat(x, exponent, mantissa, bias) - x).square().sum()) for bias in BIASES]
    found, bias = best_cfloat(x, exponent, mantissa)
    assert float((found - x).square().sum()) == min(errors) and errors[bias] == min(errors)


def test_the_study_says_the_error_of_each_format():
    layer = torch.nn.Linear(64, 16).requires_grad_(False)
    errors = relative_errors(weights(layer), 32)
    assert errors["bf16"]["weight"] == pytest.approx(
        float((layer.weight.bfloat16().float() - layer.weight).norm() / layer.weight.norm()), rel=1e-5
    )
    assert errors["bf16"]["weight"] < errors["cfloat8-1-4-3"]["weight"] < errors["cfloat8-1-5-2"]["weight"]
    assert errors["int8"]["weight"] < errors["fp8-e4m3"]["weight"] < errors["int4"]["weight"]
    assert torch.equal(held(layer.weight[None], "bf16", 0)[0], layer.weight.bfloat16().float())
