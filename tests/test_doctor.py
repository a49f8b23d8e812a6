"""Every fault that is seeded is found and named; a healthy training is left in peace."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from onnuri.data import records_of
from onnuri.errors import BrokenPromise
from onnuri.fit.doctor import check_curves
from onnuri.fit.loop import FitSettings, Objective, fit
from onnuri.operation import Quiet

CLASSES = 4


def points(n: int, seed: int, noise: float = 0.3, random_labels: bool = False):
    """Gaussian clouds around the corners of a square, in 16 dimensions."""
    g = torch.Generator().manual_seed(seed)
    centers = torch.randn(CLASSES, 16, generator=torch.Generator().manual_seed(99))
    y = torch.randint(CLASSES, (n,), generator=g)
    x = centers[y] + noise * torch.randn(n, 16, generator=g)
    if random_labels:
        y = torch.randint(CLASSES, (n,), generator=g)
    return records_of([{"x": a, "y": b} for a, b in zip(x, y.tolist())], {"x": "number", "y": "category"}, "y")


def mlp(depth: int = 3, activation=nn.ReLU, width: int = 32) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(16, width), activation()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


def findings(net: nn.Module, train=None, validation=None, **settings) -> set[str]:
    def collate(records, generators):
        return {"x": torch.stack([r["x"] for r in records]), "y": torch.tensor([r["y"] for r in records])}

    def loss(batch, player):
        total = F.cross_entropy(net(batch["x"]), batch["y"], reduction="none")
        return total, torch.ones_like(total)

    options = {"epochs": 8, "batch_size": 32, "learning_rate": 2e-3, "clip": 1.0, **settings}
    objective = Objective(net, {"net": net}, collate, loss)
    progress = fit(
        objective, train or points(512, 0), validation or points(128, 1), FitSettings(**options), Quiet(), True
    )
    return set(progress.findings)


def test_a_healthy_training_has_no_findings():
    assert findings(mlp()) == set()
    assert findings(mlp(activation=nn.GELU), epochs=20) == set()


def test_a_learning_rate_that_is_too_high():
    assert "learning-rate-too-high" in findings(mlp(), learning_rate=3.0, clip=0)


def test_a_learning_rate_that_is_too_low():
    assert findings(mlp(), learning_rate=1e-8) == {"learning-rate-too-low"}


def test_vanishing_gradients():
    assert "vanishing-gradients" in findings(mlp(depth=12, activation=nn.Sigmoid))


def test_nothing_learnt_is_told_when_it_is_over():
    """Not while it may yet come; a measured rate is what is proposed."""
    curve = [(step, 0.69) for step in range(40)]
    assert [one.name for one in check_curves(curve, [], 1.0)] == []
    (finding,) = check_curves(curve, [], 1.0, done=True)
    assert finding.name == "nothing-learnt" and "--rate measured" in finding.cure
    assert not list(check_curves([(step, 0.69 - 0.001 * step) for step in range(40)], [], 1.0, done=True))


def test_exploding_gradients():
    net = mlp(depth=8)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(6)
    assert "exploding-gradients" in findings(net, epochs=1)


@pytest.mark.parametrize("functional", [False, True])
def test_dead_units(functional):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(16, 32), nn.Linear(32, CLASSES)

        def forward(self, x):
            return self.b(F.relu(self.a(x)))

    net = Functional() if functional else mlp(depth=2)
    first = net.a if functional else net[0]
    with torch.no_grad():
        first.bias[:24] = -50
    assert "dead-units" in findings(net)


@pytest.mark.parametrize("patience", [0, 60])
def test_overfitting(patience):
    """Nobody who has set a patience, and so gets the best net, is told of it."""
    train, held = points(64, 0, 1.0, True), points(256, 1, 1.0, True)
    found = findings(mlp(width=256), train, held, epochs=80, patience=patience)
    assert ("overfitting" in found) == (not patience)


def test_not_a_number_in_the_data_names_the_entry():
    bad = points(64, 0).list()
    bad[3]["x"][2] = float("nan")
    with pytest.raises(BrokenPromise, match="'x' of the batch holds NaN"):
        findings(mlp(), records_of(bad, {"x": "number", "y": "category"}, "y"))


def test_not_a_number_by_overflow_blames_the_step_size():
    with pytest.raises(BrokenPromise, match="learning rate ten times lower"):
        findings(mlp(), learning_rate=1e30, clip=0)
