"""One step downhill: what the optimizers do to a weight, against torch's own."""

import copy

import pytest
import torch
from torch import nn

from onnuri.errors import BadSettings
from onnuri.fit import descent
from onnuri.weights.matrices import weights


def test_scaling_inside_the_optimizer_is_clipping_before_it():
    """Against torch's own: the gradient divided by the count, clip_grad_norm_, and an AdamW that is not fused."""
    torch.manual_seed(0)
    ours, theirs = (nn.Linear(8, 8) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    mine = descent.optimizer_of(list(ours.parameters()), 0.1, 0.01)
    other = torch.optim.AdamW(
        [{"params": [theirs.weight], "weight_decay": 0.01}, {"params": [theirs.bias], "weight_decay": 0.0}],
        lr=0.1, betas=(0.9, 0.98), foreach=False,
    )  # fmt: skip
    for limit in (0.5, 0.0, 100.0):
        x = torch.randn(5, 8)
        for net in (ours, theirs):
            net.zero_grad()
            net(x).square().sum().backward()
        norm = descent.scale(mine, list(ours.parameters()), torch.tensor([1.0, 5.0], dtype=torch.float64), limit)
        for parameter in theirs.parameters():
            parameter.grad /= 5
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), limit or float("inf"))
        assert float(norm) == pytest.approx(float(expected), rel=1e-5)
        mine.step()
        other.step()
        for one, two in zip(ours.parameters(), theirs.parameters()):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("blocks", [[], ["0"]])
def test_a_step_that_is_no_number_changes_no_weight(blocks):
    net = nn.Sequential(nn.Linear(4, 4))
    views = descent.hidden(net, blocks) if blocks else None
    before, optimizer = copy.deepcopy(net.state_dict()), descent.optimizer_of(list(net.parameters()), 0.1, 0.01, views)
    (net(torch.ones(1, 4)) * float("nan")).sum().backward()
    descent.scale(optimizer, list(net.parameters()), torch.ones(2), 1.0)
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_muon_is_that_of_torch():
    """Three steps, one gradient clipped; both iterate in bf16 where the processor has it: 15 products, each right
    to 0.4 %."""
    torch.manual_seed(0)
    ours, theirs = (nn.Sequential(nn.Linear(24, 16, bias=False), nn.Linear(16, 40, bias=False)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    mine = descent.optimizer_of(list(ours.parameters()), 0.01, 0.1, descent.hidden(ours, ["0", "1"]))
    other = torch.optim.Muon(theirs.parameters(), lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    before = copy.deepcopy(ours.state_dict())
    for limit in (0.0, 0.5, 0.0):
        x = torch.randn(64, 24)  # more rows than a gradient has: what has no direction is turned by rounding alone
        for net in (ours, theirs):
            net.zero_grad()
            net(x).square().sum().backward()
        descent.scale(mine, list(ours.parameters()), torch.tensor([1.0, 1.0], dtype=torch.float64), limit)
        nn.utils.clip_grad_norm_(theirs.parameters(), limit or float("inf"))
        mine.step()
        other.step()
    for name, value in ours.state_dict().items():
        moved, expected = value - before[name], theirs.state_dict()[name] - before[name]
        assert (moved - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 16, 48), (2, 48, 16)])
def test_what_is_made_orthogonal_keeps_its_singular_vectors(shape):
    matrices = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    found = descent.orthogonal(matrices)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6 and values.max() < 1.3
    turned = left.mT @ found @ right.mT
    off = turned - torch.diag_embed(turned.diagonal(dim1=1, dim2=2))
    assert off.norm() < 0.05 * turned.norm()


def test_muon_takes_the_kernels_inside_blocks_and_leaves_the_rest_to_adamw():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 6, 3), nn.GroupNorm(1, 6)), nn.Embedding(4, 4))
    views = descent.hidden(net, ["1", "2"])
    assert list(views) == [net[1][0].weight] and views[net[1][0].weight] == weights(net)[1].view
    optimizer = descent.optimizer_of(list(net.parameters()), 0.01, 0.01, views)
    net[1](net[0](torch.randn(2, 3, 8, 8))).square().sum().backward()
    descent.scale(optimizer, list(net.parameters()), torch.ones(2), 0.0)
    optimizer.step()
    kept = {name: set(optimizer.state[value]) for name, value in net.named_parameters() if value in optimizer.state}
    assert kept.pop("1.0.weight") == {"momentum"}
    assert set(kept) == {"0.weight", "0.bias", "1.0.bias", "1.1.weight", "1.1.bias"}


def test_muon_without_a_matrix_in_a_block_is_refused():
    with pytest.raises(BadSettings, match="none is trained"):
        descent.hidden(nn.Linear(4, 4), [])
