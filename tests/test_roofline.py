"""The roofline against arithmetic on paper: a Linear, a product that bytes hold back, a ring, a fleet."""

import pytest
import torch
from torch import nn

from onnuri.costs import targets
from onnuri.costs.count import Cost, passes, tensors_of, watched
from onnuri.costs.efficiency import Curve, python_calls
from onnuri.costs.roofline import WHOLE, all_reduce_seconds, devices_needed, time_on
from onnuri.costs.tasks import Task

TARGET = targets.known()["h200"].model_copy(
    update={"peaks": {"fp32": 1e9, "bf16": 4e9}, "bandwidth": 1e8, "call_seconds": 1e-6}
)


def cost_of(layer: nn.Module, x: torch.Tensor) -> Cost:
    with torch.no_grad(), watched(tensors_of(layer)) as watch:
        layer(x)
    return watch.once()


@pytest.mark.parametrize(("rows", "bound"), [(512, "compute"), (1, "memory bandwidth")])
def test_a_linear(rows, bound):
    layer = nn.Linear(256, 128)
    flops, moved = 2 * rows * 256 * 128, 4 * (128 + rows * 256 + 256 * 128 + rows * 128)
    time = time_on(TARGET, cost_of(layer, torch.ones(rows, 256)), WHOLE)
    assert time.seconds == pytest.approx(max(flops / 1e9, moved / 1e8) + 1e-6)
    assert time.bottleneck == bound and time.parts.keys() == {"product", "calls"}


def test_bf16_is_computed_at_its_own_peak():
    layer = nn.Linear(256, 128).bfloat16()
    flops = 2 * 4096 * 256 * 128
    time = time_on(TARGET, cost_of(layer, torch.ones(4096, 256, dtype=torch.bfloat16)))
    assert time.parts["product"] == pytest.approx(flops / 4e9)


def test_what_is_done_value_by_value_is_bytes():
    time = time_on(TARGET, cost_of(nn.ReLU(), torch.ones(10**6)))
    assert time.parts == {"stream": pytest.approx(8e6 / 1e8), "calls": pytest.approx(1e-6)}
    assert time_on(TARGET, cost_of(nn.ReLU(), torch.ones(1))).bottleneck == "calls of operators"


def test_a_ring():
    assert all_reduce_seconds(1e9, 1, 1e9) == 0
    assert all_reduce_seconds(1e9, 2, 1e9) == 1 and all_reduce_seconds(1e9, 4, 1e9) == 1.5


@pytest.mark.parametrize(
    ("states", "each", "records", "devices"),
    [(50, 5, 10, 1), (90, 5, 10, 2), (400, 5, 10, 5), (50, 101, 10, None)],  # 400/4 + 3*5 > 100 >= 400/5 + 2*5
)
def test_devices_that_share_states_and_records(states, each, records, devices):
    target = TARGET.model_copy(update={"memory_bytes": 100.0, "usable": 1.0})
    assert devices_needed(target, states, lambda n: each * n, records) == devices


def test_a_cost_on_a_line_is_the_cost_at_that_size():
    net = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))
    two, four, nine = (cost_of(net, torch.ones(n, 16)) for n in (2, 4, 9))
    found = two.at(four, (2, 4), 9)
    assert [task.kind for task in nine.tasks] == ["product", "error function", "product"]
    for one, other in zip(found.tasks, nine.tasks):
        assert (one.flops, one.moved, *one.sizes) == pytest.approx((other.flops, other.moved, *other.sizes))


def test_passes_through_a_net_are_seen_and_inner_calls_are_not():
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    x = torch.ones(1, 4)
    with torch.no_grad(), watched(net.parameters()) as watch, passes(net, watch) as starts:
        net(x)
        net[1](net[0](x))
    assert starts == [0, 3, 4]
    parts = [watch.each().between(start, end) for start, end in ((0, 3), (3, 4), (4, 6))]
    assert [sum(part.flops.values()) for part in parts] == [64, 32, 32]
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_curves():
    curve = Curve(((1.0, 1.0), (100.0, 10.0)))
    assert curve.at(10) == pytest.approx(10**0.5) and curve.at(0.1) == 1 and curve.at(1e4) == pytest.approx(10)
    assert curve.along(1000) == pytest.approx(100), "seconds go on with the bytes"


def test_calls_of_the_interpreter_are_counted():
    def one() -> None: ...

    assert python_calls(lambda: [one() for _ in range(5)]) - python_calls(lambda: [one() for _ in range(2)]) == 3


def test_a_task_cannot_become_negative():
    one, two = (Task("stream", torch.float32, 0.0, size, size) for size in (10.0, 5.0))
    assert one.at(two, 4).moved == 0
