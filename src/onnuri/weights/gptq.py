"""Rounding and pruning that make up for themselves: each column's error is taken out of the columns that come after it.

GPTQ (Frantar et al., arXiv:2210.17323), with three choices: 1. columns go in falling order of their inputs' mean squares, while
their groups stay as they lie (the "static groups" of the authors' code); 2. a group's scale is that of its largest number: the
scale that fits best before columns make up for each other cuts those off that then have to grow; 3. the damping is a
hundredth of the mean diagonal. SparseGPT (Frantar & Alistarh, arXiv:2301.00774) sets columns to zero instead.

`moments` (columns, columns): the mean of x x^T over the inputs x of the product that a matrix stands in.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .packed import Format, scales, spread

DAMPING = 0.01
BLOCK = 128  # columns after which the errors of all are taken out of those that are left, in one product


def gptq(matrix: Tensor, form: Format, group: int, moments: Tensor) -> tuple[Tensor, Tensor]:
    """(codes (units, rows, columns) as floats, scales (units, rows, groups))."""
    scale = scales(matrix, form, group)
    order = moments.diagonal().argsort(descending=True)
    steps = spread(scale, matrix.shape[2]).expand_as(matrix)[..., order].mT.contiguous()

    def settle(columns: Tensor, place: int) -> Tensor:
        return form.nearest(columns[:, place] / steps[:, place]) * steps[:, place]

    rounded = compensated(matrix[..., order], error_shares(moments[order][:, order]), settle)
    return form.nearest(rounded / steps.mT)[..., order.argsort()], scale


def sparse(matrix: Tensor, keep: Callable[[Tensor], Tensor], run: int, moments: Tensor) -> Tensor:
    """The matrix with zeros. `keep`: what each of some columns would cost (units, rows, columns) -> 1 for those that stay;
    asked for `run` columns at a time, a divisor of BLOCK."""
    shares = error_shares(moments)
    costs = shares.diagonal().square()
    kept = torch.ones_like(matrix.mT)

    def settle(columns: Tensor, place: int) -> Tensor:
        if place % run == 0:
            part = slice(place, place + run)
            kept[:, part] = keep(columns[:, part].mT.square() / costs[part]).mT
        return columns[:, place] * kept[:, place]

    return compensated(matrix, shares, settle)


def compensated(matrix: Tensor, shares: Tensor, settle: Callable[[Tensor, int], Tensor]) -> Tensor:
    """The matrix with each column, from the first on, as `settle` makes it: (all columns as they stand by then (units, columns,
    rows), which one) -> the column. `shares`: as `error_shares` gives them. Columns lie together: one after the other is read."""
    columns = matrix.mT.clone(memory_format=torch.contiguous_format)
    for start in range(0, columns.shape[1], BLOCK):
        stop = min(start + BLOCK, columns.shape[1])
        errors = torch.empty_like(columns[:, start:stop])
        for place in range(start, stop):
            settled = settle(columns, place)
            error = (columns[:, place] - settled) / shares[place, place]
            columns[:, place:stop] -= shares[place, place:stop, None] * error[:, None]
            columns[:, place], errors[:, place - start] = settled, error
        columns[:, stop:] -= shares[start:stop, stop:].mT @ errors
    return columns.mT


def error_shares(moments: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse: row i says how much of column i's error the later columns take."""
    moments = moments.double()
    silent = moments.diagonal() <= 0  # a column whose input is always zero
    damped = moments + torch.diag(silent.double())
    damped.diagonal().add_(DAMPING * moments.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()
