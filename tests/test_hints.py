"""Hints: what blocks put out and how attention relates places, by hand, by identity, under any cut, and resumed."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from onnuri import registry
from onnuri.errors import Refusal
from onnuri.family import Generators
from onnuri.fit.loop import Loop
from onnuri.hints import Hints, Pair, fitted, hints_of, relations
from onnuri.model import Model, tensor_digest
from onnuri.observe import Seen, inside
from onnuri.operation import Quiet
from onnuri.operations.distill import Settings, agreement, apply, sized
from onnuri.sources import open_data

ATTENDING = ("causal_lm", "diffusion", "text_classifier")
WITH_BLOCKS = [name for name in registry.entries("families") if name != "forest"]


def started(name: str, seed: int = 0, **config):
    data, family = open_data(f"toy:{name}"), registry.family(name)
    config = {**family.tiny(), **config}
    return Model(family, *family.start(config, data.split("train"), torch.Generator().manual_seed(seed))), data


def looked_into(model: Model, rows: list) -> Seen:
    with torch.no_grad(), inside(model.blocks, len(rows)) as seen:
        model.outputs(model.collate(rows))
    return seen


# ------------------------------------------------------------------------------------------------------------ the terms


def test_the_gap_between_blocks_and_its_gradient_are_those_of_a_hand():
    student, teacher = torch.randn(3, 4, 2, requires_grad=True), torch.randn(3, 4, 5)
    real = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    map_ = nn.Linear(2, 5)
    hints = Hints((Pair("s", "t", 0.5, False),), nn.ModuleList([map_]), 3.0, 0.0)
    seen = Seen({"s": student}), Seen({"t": teacher}, real={4: real})
    hints(*seen).sum().backward()
    away = (student @ map_.weight.T + map_.bias - teacher).detach() * real[:, :, None]
    share = 3.0 / (real.sum(1).view(3, 1, 1) * 5 * 0.5)  # a mean over 5 features and the real places, in variances
    torch.testing.assert_close(hints(*seen), (away.square() * share).sum((1, 2)))
    torch.testing.assert_close(student.grad, 2 * share * away @ map_.weight.detach())
    torch.testing.assert_close(map_.weight.grad, torch.einsum("bpt,bps->ts", 2 * share * away, student.detach()))


def test_pooled_features_are_means_over_the_places_that_are_no_padding():
    student, teacher = torch.randn(2, 1, 3), torch.randn(2, 4, 3)
    real = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]).bool()
    hints = Hints((Pair("s", "t", 2.0, True),), nn.ModuleList([nn.Identity()]), 1.0, 0.0)
    wanted = torch.stack([teacher[0, :3].mean(0), teacher[1, 0]])
    expected = (student[:, 0] - wanted).square().mean(1) / 2
    torch.testing.assert_close(hints(Seen({"s": student}), Seen({"t": teacher}, real={4: real})), expected)


def test_relations_are_the_softened_products_of_joined_heads():
    x, real = torch.randn(2, 4, 5, 3), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    found = relations(x, 2, real).exp()
    joined = torch.cat([x[1, 0], x[1, 1]], 1)  # the first two of four heads are the first of two
    products = joined @ joined.T / math.sqrt(6)
    torch.testing.assert_close(found[1, 0, :, :2], products[:, :2].softmax(1))
    assert float(found[1, :, :, 2:].abs().max()) == 0
    torch.testing.assert_close(found.sum(3), torch.ones(2, 2, 5))


def test_the_map_is_that_of_least_squares_with_a_faint_ridge():
    x, y = torch.randn(200, 4).double() + 1, torch.randn(200, 6).double()
    found = fitted(x, y)
    ridge = (0.01 * 200 * x.square().mean()).sqrt() * torch.eye(4).double()  # a ridge is that many more rows
    centered, wanted = (torch.cat([z - z.mean(0), more]) for z, more in ((x, ridge), (y, torch.zeros(4, 6).double())))
    weight = torch.linalg.lstsq(centered, wanted).solution.T
    torch.testing.assert_close(found.weight.double(), weight, atol=1e-6, rtol=1e-5)  # kept in fp32
    torch.testing.assert_close(found.bias.double(), y.mean(0) - weight @ x.mean(0), atol=1e-6, rtol=1e-5)


def test_features_that_hardly_move_do_not_decide_all():
    """A student's constant that drifts costs little where the teacher's pooled features are all but constant, too."""
    rows = 1 + 1e-6 * torch.randn(64, 4).double()
    map_ = fitted(rows, 1 + 1e-6 * torch.randn(64, 4).double())
    with torch.no_grad():
        drifted = map_(rows.float() + 0.1) - map_(rows.float())
    assert float(drifted.abs().max()) < 1e-3


# ------------------------------------------------------------------------------------------------------------- the net


@pytest.mark.parametrize("name", WITH_BLOCKS)
def test_a_model_has_no_gap_to_itself(name):
    teacher, data = started(name)
    attention = float(name in ATTENDING)
    objective = agreement(Settings(weight=1, hidden=1, attention=attention), teacher, teacher, data.records)
    records = data.records[:6].list()
    with torch.no_grad():
        total, count = objective.loss(objective.collate(records, Generators(0, range(6))), "all")
    assert float((total / count).abs().max()) < 1e-5
    assert not list(objective.net["maps"].parameters())


@pytest.mark.parametrize("name", WITH_BLOCKS)
def test_a_fresh_student_knows_no_more_than_its_fit_tells(name):
    """Least squares leaves at most the variance of the records it saw, which the teacher's blocks do have."""
    teacher, data = started(name)
    student = sized(teacher, 0.5, 1)
    hints = hints_of(1.0, 0.0, teacher, student, data.records[:64])
    rows = data.records[:64].list()
    terms = hints(looked_into(student, rows), looked_into(teacher, rows))
    assert 0 < float(terms.mean().detach()) < 1.5  # pooled places or padding weigh records otherwise than rows
    assert any(isinstance(map_, nn.Linear) for map_ in hints.maps)


@pytest.mark.parametrize("name", ["text_classifier", "causal_lm", "image_classifier"])
def test_a_batch_may_be_cut_anywhere(name):
    """Padding that neighbors bring changes neither term."""
    teacher, data = started(name)
    student = sized(teacher, 0.5, 1)
    settings = Settings(weight=1, hidden=1, attention=float(name in ATTENDING), batch_size=12)
    gradients = []
    for micro in (0, 1, 5):
        twin = replace(student, net=sized(teacher, 0.5, 1).net)
        objective = agreement(settings, teacher, twin, data.records)
        cut = settings.model_copy(update={"micro_batch": micro})
        loop = Loop(objective, data.records, None, cut, Quiet(), True)
        with loop.only("all"):
            loop.backward(loop.batches.at(0), "all", 0)
        gradients.append([p.grad.clone() for p in objective.net.parameters() if p.grad is not None])
    for other in gradients[1:]:
        for one, two in zip(gradients[0], other):
            assert float((one - two).abs().max()) <= 1e-3 * max(float(one.abs().max()), 1e-2)  # fp32 in another order


def test_padding_is_what_no_query_may_see():
    teacher, _ = started("text_classifier")
    rows = [{"text": "영화 정말 좋아요 최고였다", "label": "kind"}, {"text": "a", "label": "kind"}]
    batch, seen = teacher.collate(rows), looked_into(teacher, rows)
    assert torch.equal(seen.real[batch["input_ids"].shape[1]], batch["attention_mask"].bool())
    assert not bool(batch["attention_mask"].bool().all())


def test_a_softmax_over_scores_tells_the_padding_as_well():
    scores = torch.randn(2, 3, 4, 4)
    scores[1, :, :, 2:] = torch.finfo(torch.float32).min
    with inside({}, 2) as seen:
        functional.softmax(scores, dim=-1)
    assert seen.real[4].tolist() == [[True] * 4, [True, True, False, False]]


class Interrupted(Quiet):
    def __init__(self, at: int):
        super().__init__()
        self.at = at

    def progress(self, done, total, text=""):
        if done == self.at and text.startswith("loss"):
            raise KeyboardInterrupt


@pytest.mark.parametrize("more", [{"hidden": 1.0, "attention": 1.0}, {"written": 20}])
def test_a_killed_run_resumes_to_the_same_student(more):
    settings = Settings(size=0.5, steps=8, batch_size=8, save_every=0, **more)
    results = []
    for log in (Quiet(), Interrupted(5)):
        teacher, data = started("text_classifier")
        try:
            result = apply(settings, log, teacher, data)
        except KeyboardInterrupt:
            again = Quiet()
            again.state = log.state
            teacher, data = started("text_classifier")
            result = apply(settings, again, teacher, data)
            assert again.state is not None and ("hidden" not in more or any("maps" in name for name in again.state[0]))
        results.append(tensor_digest(result.model.net))
    assert results[0] == results[1]


def test_maps_are_trained_and_stay_outside_of_the_student():
    teacher, data = started("tabular")
    student = sized(teacher, 0.5, 1)
    names = set(student.net.state_dict())
    objective = agreement(Settings(hidden=1), teacher, student, data.records)
    loop = Loop(objective, data.split("train"), None, Settings(hidden=1, steps=2), Quiet(), True)
    before = [p.detach().clone() for p in objective.net["maps"].parameters()]
    loop.run()
    assert before and all(not torch.equal(a, b) for a, b in zip(before, objective.net["maps"].parameters()))
    assert set(student.net.state_dict()) == names


def test_what_cannot_be_compared_is_refused():
    forest, data = started("forest")
    with pytest.raises(Refusal, match="no blocks that show"):
        apply(Settings(family="tabular", hidden=1), Quiet(), forest, data)
    teacher, data = started("tabular")
    with pytest.raises(Refusal, match="the teacher attends nowhere"):
        apply(Settings(attention=1, size=0.5), Quiet(), teacher, data)
    teacher, data = started("text_classifier")
    bag = {"family": "text_classifier", "config": {"net": "ngrams"}}
    with pytest.raises(Refusal, match="the student attends nowhere"):
        apply(Settings(attention=1, **bag), Quiet(), teacher, data)


def test_watching_ends_with_the_pass():
    teacher, data = started("tabular")
    looked_into(teacher, data.records[:2].list())
    assert not any(module._forward_hooks for module in teacher.net.modules())
