"""What is measured of the machine covers every kind of task, and foretells in the right order of size."""

from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from onnuri.costs import efficiency, peaks
from onnuri.costs.count import watched
from onnuri.costs.tasks import INNERMOST, STREAM, VALUES, Task

measured = cache(peaks.measure_peaks)


@cache
def found() -> efficiency.Efficiency:
    return efficiency.measure_efficiency(measured())


def test_every_kind_is_measured():
    assert efficiency.STREAMS.keys() == {*VALUES, STREAM, INNERMOST} == found().streams.keys()
    assert all(seconds > 0 for curve in found().streams.values() for _, seconds in curve.points)
    assert all(share > 0 for curve in [*found().shares.values(), *found().narrow] for _, share in curve.points)


@pytest.mark.parametrize(
    ("work", "kind"),
    [
        (lambda: F.conv2d(torch.ones(1, 4, 8, 8), torch.ones(4, 4, 3, 3)), "plain convolution"),
        (lambda: F.conv2d(torch.ones(1, 4, 8, 8), torch.ones(4, 4, 1, 1)), "pointwise convolution"),
        (lambda: F.conv2d(torch.ones(1, 4, 8, 8), torch.ones(4, 4, 4, 4), stride=2), "strided convolution"),
        (lambda: F.conv2d(torch.ones(1, 4, 8, 8), torch.ones(4, 1, 3, 3), groups=4), "depthwise convolution"),
        (lambda: F.conv1d(torch.ones(1, 4, 8), torch.ones(4, 4, 3)), "line convolution"),
        (lambda: F.scaled_dot_product_attention(*[torch.ones(1, 2, 8, 16)] * 3), "attention"),
        (lambda: nn.LSTM(4, 4)(torch.ones(3, 2, 4)), "recurrent"),
        (lambda: F.linear(torch.ones(2, 3, 4), torch.ones(5, 4)), "product"),
        (lambda: torch.bmm(torch.ones(2, 3, 4), torch.ones(2, 4, 5)), "product"),
        (lambda: F.gelu(torch.ones(4)), "error function"),
        (lambda: F.embedding(torch.zeros(4, dtype=torch.long), torch.ones(9, 2)), "gather"),
        (lambda: F.layer_norm(torch.ones(4, 4), (4,)), "norm"),
    ],
)
@torch.no_grad()
def test_a_piece_of_work_has_its_kind_and_a_time(work, kind):
    with watched() as watch:
        work()
    tasks = [task for task in watch.tasks if task.kind == kind]
    assert tasks and all(found().seconds(task, measured(), 0.0) > 0 for task in watch.tasks)


def test_ten_times_the_work_takes_longer():
    def product(rows: float) -> Task:
        return Task("product", torch.float32, 2 * rows * 512 * 512, 0.0, 0.0, (rows, 512.0, 512.0))

    def stream(size: float) -> Task:
        return Task(STREAM, torch.float32, 0.0, size, size)

    seconds = [
        found().seconds(task, measured(), 0.0) for task in (product(64), product(640), stream(2**20), stream(2**27))
    ]
    assert seconds[1] > 5 * seconds[0] and seconds[3] > 5 * seconds[2]
