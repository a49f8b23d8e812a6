"""The factored form of a weight: two thin matrices in place of one, stored as two and computed as two products.

Linear layers and tables never form the matrix. A convolution becomes two: its own kernels into `rank` channels, then 1 x 1.
What has no product of its own to replace (recurrent layers, fused experts, grouped convolutions) forms the matrix each time:
there the form is smaller, and no faster.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .matrices import View

CONVOLUTIONS: tuple[Any, ...] = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED: tuple[Any, ...] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
MATRICES = View((0,), (1,), (2,))
"""How the factors themselves read as matrices."""


class Factored(nn.Module):
    """The base of a stack: left (units, rows, rank) times right (units, rank, columns), for a tensor of this shape."""

    def __init__(self, left: Tensor, right: Tensor, view: View, shape: torch.Size):
        super().__init__()
        self.left, self.right = nn.Parameter(left.contiguous()), nn.Parameter(right.contiguous())
        self.view, self.shape = view, shape

    @property
    def rank(self) -> int:
        return self.right.shape[1]

    def forward(self) -> Tensor:
        # under autocast a product comes out short; what reads this as its tensor wants the stored type
        return self.view.tensor((self.left @ self.right).to(self.left.dtype), self.shape)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., in) -> (..., out) by two products."""
        return F.linear(F.linear(x, self.right[0]), self.left[0], bias)

    def rows(self, places: Tensor) -> Tensor:
        """These rows of a table, without forming it."""
        return (F.embedding(places, self.left[0]) @ self.right[0]).to(self.left.dtype)

    def convolved(self, layer: Any, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """What `layer`, a plain or transposed convolution, gives: one into few channels, then one of single points."""
        narrow = [self.rank if axis in self.view.rows else size for axis, size in enumerate(self.shape)]
        kernels = self.view.tensor(self.right, torch.Size(narrow))
        dims = kernels.dim() - 2
        if isinstance(layer, nn.modules.conv._ConvTransposeNd):
            where = layer.stride, layer.padding, layer.kernel_size, dims, layer.dilation
            rim = layer._output_padding(x, output_size, *where)  # type: ignore[arg-type]  torch types it as lists, and has tuples
            between = TRANSPOSED[dims - 1](x, kernels, None, layer.stride, layer.padding, rim, 1, layer.dilation)
        else:
            between = layer._conv_forward(x, kernels, None)  # it pads as the layer does
        points = self.left[0].reshape(-1, self.rank, *[1] * dims)
        return CONVOLUTIONS[dims - 1](between, points, layer.bias)
