"""Rounding that makes up for itself: each column's error is taken out of the columns that are not rounded yet.

GPTQ (Frantar et al., arXiv:2210.17323), with three choices: 1. columns go in falling order of their inputs' mean squares, while
their groups stay as they lie (the "static groups" of the authors' code); 2. a group's scale is not that of its largest number but
the one, of several smaller ones, with the least squared error, each column weighted by its inputs' mean square; 3. the
damping is a hundredth of the mean diagonal.
"""

import torch
from torch import Tensor

from .packed import Format, grouped, scales, spread

DAMPING = 0.01
BLOCK = 128  # columns after which the errors of all are taken out of those that are left, in one product
SHRINKS = [1 - 0.04 * step for step in range(11)]  # of a group's scale


def gptq(matrix: Tensor, form: Format, group: int, moments: Tensor) -> tuple[Tensor, Tensor]:
    """(codes (units, rows, columns) as floats, scales (units, rows, groups)). `moments` (columns, columns): the mean of
    x x^T over the inputs x of the product that the matrix stands in."""
    scale = fitted_scales(matrix, form, group, moments.diagonal())
    order = moments.diagonal().argsort(descending=True)
    rows = matrix[..., order].clone()
    steps = spread(scale, matrix.shape[2]).expand_as(matrix)[..., order]
    shares = error_shares(moments[order][:, order])
    codes = torch.empty_like(rows)
    for start in range(0, rows.shape[2], BLOCK):
        block = slice(start, start + BLOCK)
        codes[..., block], errors = rounded(rows[..., block], steps[..., block], shares[block, block], form)
        rows[..., start + BLOCK :] -= errors @ shares[block, start + BLOCK :]
    return codes[..., order.argsort()], scale


def rounded(rows: Tensor, steps: Tensor, shares: Tensor, form: Format) -> tuple[Tensor, Tensor]:
    """Codes and errors of some columns, one after another. Changes `rows`."""
    codes, errors = torch.empty_like(rows), torch.empty_like(rows)
    for place in range(rows.shape[2]):
        column, step = rows[..., place], steps[..., place]
        codes[..., place] = form.nearest(column / step)
        errors[..., place] = (column - codes[..., place] * step) / shares[place, place]
        rows[..., place:] -= errors[..., place, None] * shares[place, place:]
    return codes, errors


def error_shares(moments: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse: row i says how much of column i's error the later columns take."""
    moments = moments.double()
    silent = moments.diagonal() <= 0  # a column whose input is always zero
    damped = moments + torch.diag(silent.double())
    damped.diagonal().add_(DAMPING * moments.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()


def fitted_scales(matrix: Tensor, form: Format, group: int, weight: Tensor) -> Tensor:
    """(units, rows, groups): of the scales tried, each group's with the least error. `weight` (columns,): of each."""
    widest = scales(matrix, form, group)
    numbers, weights = grouped(matrix, group), weight.expand_as(matrix).unflatten(2, (widest.shape[2], -1))
    best, least = widest, torch.full_like(widest, torch.inf)
    for shrink in SHRINKS:
        step = (widest * shrink).unsqueeze(3)
        error = (weights * (form.nearest(numbers / step) * step - numbers).square()).sum(3)
        best = torch.where(error < least, step.squeeze(3), best)
        least = torch.minimum(error, least)
    return best
