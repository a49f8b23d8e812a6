"""The gradient of attention that replaces torch's: against attention written out in double precision."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from onnuri import attention

COUNT, HEADS, QUERIES, KEYS, WIDTH = 5, 3, 11, 13, 8
NOTHING = float("-inf")
OF_BF16 = 2e-2  # of the gradient's norm: scores, probabilities and products are rounded to 8 bits each


def padding(dtype: torch.dtype) -> Tensor:
    """The first record's last keys, and all keys of one of its queries, are hidden."""
    keep = torch.ones(COUNT, 1, QUERIES, KEYS, dtype=torch.bool)
    keep[0, :, :, 9:] = keep[0, :, 4] = False
    return keep if dtype == torch.bool else torch.zeros(keep.shape, dtype=dtype).masked_fill(~keep, NOTHING)


def gradients(dtype: torch.dtype, written: bool, mask: Tensor | None, **how: object) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (QUERIES, KEYS, KEYS, QUERIES)
    drawn = [torch.randn(COUNT, size, HEADS, WIDTH, generator=generator).bfloat16().to(dtype) for size in sizes]
    query, key, value, outside = (tensor.transpose(1, 2) for tensor in drawn)
    taken = [tensor.requires_grad_() for tensor in (query, key, value)]
    found = written_out if written else scaled_dot_product_attention
    found(*taken, attn_mask=mask, **how).backward(outside)
    return [tensor.grad.double() for tensor in taken]  # type: ignore[union-attr]


def written_out(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool = False, scale: float = 0.0
) -> Tensor:
    scores = query @ key.mT * (scale or WIDTH**-0.5)
    if is_causal:
        scores = scores.masked_fill(torch.ones(QUERIES, KEYS).triu(1) > 0, NOTHING)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, NOTHING) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = (scores - scores.detach().amax(3, keepdim=True).clamp_min(-1e9)).exp()
    return weights / weights.sum(3, keepdim=True).clamp_min(1e-9) @ value  # a query that may see nothing has zero


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"is_causal": True},
        {"scale": 0.7},
        *({"mask": padding(dtype)} for dtype in (torch.bool, torch.bfloat16, torch.float32)),
        {"mask": padding(torch.bool)[0, 0]},
    ],
    ids=["plain", "causal", "scaled", "bool", "same type", "float", "two dimensions"],
)
@pytest.mark.parametrize("held", [attention.HELD, 1], ids=["at once", "one by one"])
def test_gradient_is_that_of_attention_written_out(how: dict, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    attention.hasten()
    monkeypatch.setattr(attention, "HELD", held)
    settings, called = {"mask": None, **how}, []
    monkeypatch.setattr(attention, "gradient", lambda *a, f=attention.gradient, **k: called.append(1) or f(*a, **k))
    found, true = gradients(torch.bfloat16, False, **settings), gradients(torch.float64, True, **settings)
    assert called
    for one, other in zip(found, true):
        assert (one - other).norm() <= OF_BF16 * other.norm()


@pytest.mark.parametrize("dtype, longest", [(torch.float32, attention.LONG), (torch.bfloat16, KEYS)])
def test_elsewhere_torch_does_it(dtype: torch.dtype, longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    attention.hasten()
    monkeypatch.setattr(attention, "LONG", longest)
    monkeypatch.setattr(attention, "gradient", None)
    found, true = gradients(dtype, False, None), gradients(torch.float64, True, None)
    for one, other in zip(found, true):
        assert (one - other).norm() <= OF_BF16 * other.norm()
