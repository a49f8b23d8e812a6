"""Training with matrices that are rounded in every forward pass, so that they end where rounding does little.

Quantization-aware training (Jacob et al., arXiv:1712.05877) of the weights alone: the stored numbers stay exact, the net computes
with the nearest codes, and the gradient passes as if nothing had been rounded (the straight-through estimator; Bengio et al.,
arXiv:1308.3432).
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ..errors import BadSettings
from .attach import attach, require_plain, stacks, unhang
from .matrices import View, weights
from .packed import FORMATS, divided, nearest, spread, usual_group

ROLES = ("linear", "conv", "expert", "embedding")


class Rounded(nn.Module):
    """Gives a tensor as its codes in a scheme give it back; its gradient is that of the tensor."""

    def __init__(self, view: View, scheme: str, group: int):
        super().__init__()
        self.view, self.form, self.group = view, FORMATS[scheme], group

    def forward(self, tensor: Tensor) -> Tensor:
        matrix = self.view.matrix(tensor.detach()).float()
        codes, scale = nearest(matrix, self.form, self.group)
        numbers = self.view.tensor(codes * spread(scale, matrix.shape[2]), tensor.shape)
        return tensor + (numbers.to(tensor.dtype) - tensor).detach()


@contextmanager
def rounding(net: nn.Module, scheme: str) -> Iterator[None]:
    """Inside, the net computes with matrices rounded as `quantize` would with its usual groups; whole rows of int8 where those do
    not fit. BadSettings where there is no matrix."""
    require_plain(net, "train")
    found = weights(net, *ROLES)
    if not found:
        raise BadSettings("'quantized' has no effect: this model holds no weight matrices", hint="leave it out")
    group = usual_group(scheme)
    fitting = {weight.name for weight in found if divided(weight.matrix.shape, scheme, group)}
    if not fitting:
        raise BadSettings(f"'quantized': no matrix has columns that {group} divides", hint="--quantized int8")
    for weight in found:
        attach(weight, Rounded(weight.view, *((scheme, group) if weight.name in fitting else ("int8", 0))))
    try:
        yield
    finally:
        for weight in found:
            parameter = stacks(weight.homes[0][0])[weight.homes[0][1]].base.parameter
            assert isinstance(parameter, nn.Parameter)
            unhang(weight, parameter)
