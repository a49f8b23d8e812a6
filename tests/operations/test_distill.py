"""distill: its divergence against a formula, its identity, students of another kind, and what it refuses."""

from dataclasses import replace

import pytest
import torch

from onnuri import registry
from onnuri.errors import BadSettings, Refusal
from onnuri.family import Generators
from onnuri.model import Model, count_parameters
from onnuri.operation import Quiet
from onnuri.operations.distill import Settings, agreement, apply, divergence_of, sized
from onnuri.sources import open_data


def started(name: str, seed: int = 0, **config):
    data, family = open_data(f"toy:{name}"), registry.family(name)
    config = {**family.tiny(), **config}
    return Model(family, *family.start(config, data.split("train"), torch.Generator().manual_seed(seed))), data


def test_divergence_of_logits_is_hintons():
    teacher, data = started("tabular")
    given, wanted, t = torch.randn(3, 2, 5), torch.randn(3, 2, 5), 3.0
    p, q = (wanted / t).softmax(2), (given / t).softmax(2)
    expected = t * t * (p * (p / q).log()).sum(2)
    found = divergence_of(Settings(temperature=t), teacher, data.records)(given, wanted)
    assert torch.allclose(found, expected, atol=1e-5)


def test_divergence_of_values_does_not_depend_on_their_unit():
    teacher, data = started("gan")
    apart = divergence_of(Settings(), teacher, data.records)
    values, _ = teacher.outputs(teacher.collate(data.records[:64].list()))
    assert float(apart(values.mean(0, keepdim=True).expand_as(values), values).mean()) == pytest.approx(1, rel=0.5)


@pytest.mark.parametrize("name", ["tabular", "causal_lm", "diffusion"])
def test_a_model_agrees_with_itself(name):
    teacher, data = started(name)
    objective = agreement(Settings(weight=1.0), teacher, teacher, data.records)
    records = data.records[:6].list()
    with torch.no_grad():
        total, count = objective.loss(objective.collate(records, Generators(0, range(6))), "all")
    assert float(total.abs().max()) < 1e-5 and float(count.min()) > 0


def test_the_student_is_the_widest_that_fits():
    teacher, _ = started("tabular", width=64)
    for size in (0.5, 0.2):
        student = sized(teacher, size, 0)
        assert 0.8 < count_parameters(student.net) / count_parameters(teacher.net) / size <= 1.02


@pytest.mark.parametrize("size", [0.5, 0.25, 0.1])
def test_a_convolution_net_comes_near_to_the_size_that_is_asked_for(size):
    teacher, _ = started("image_classifier", width=32)
    assert 0.85 < count_parameters(sized(teacher, size, 0).net) / count_parameters(teacher.net) / size <= 1.02


def test_a_forest_teaches_a_net():
    teacher, data = started("forest")
    result = apply(Settings(family="tabular", config={"dropout": 0}, epochs=20, weight=1.0), Quiet(), teacher, data)
    asked = data.split("test").list()
    alike = [a["label"] == b["label"] for a, b in zip(teacher.sample(asked), result.model.sample(asked))]
    assert sum(alike) / len(alike) > 0.85


def test_what_is_refused():
    forest, data = started("forest")
    with pytest.raises(Refusal, match="another kind"):
        apply(Settings(), Quiet(), forest, data)
    teacher, _ = started("tabular")
    turned = replace(teacher.assets, labels=teacher.assets.labels[::-1])
    other = Model(teacher.family, teacher.net, turned)
    with pytest.raises(Refusal, match="mean different things"):
        apply(Settings(), Quiet(), teacher, data, student=other)


def test_a_student_begins_with_some_of_the_teachers_blocks():
    teacher, data = started("tabular", layers=4)
    before = {name: tensor.clone() for name, tensor in teacher.net.state_dict().items()}
    result = apply(Settings(depth=0.5, steps=1, learning_rate=1e-12, weight_decay=0), Quiet(), teacher, data)
    student = result.model.net.state_dict()
    assert list(result.model.blocks) == ["layers.0", "layers.1"]
    for new, old in (("layers.0", "layers.0"), ("layers.1", "layers.3")):  # the first and the last
        torch.testing.assert_close(student[f"{new}.up.weight"], before[f"{old}.up.weight"], rtol=0, atol=1e-9)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.net.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (Settings(depth=0.5, size=0.5), "'size' has no effect beside 'depth'"),
        (Settings(depth=0.5, family="tabular"), "'depth' has no effect on a student that is named"),
        (Settings(depth=0.9), "keeps all 2 blocks"),
    ],
)
def test_a_depth_without_effect_is_an_error(settings, text):
    teacher, data = started("tabular")
    with pytest.raises(BadSettings, match=text):
        apply(settings, Quiet(), teacher, data)


def test_a_forest_has_no_depth():
    teacher, data = started("forest")
    with pytest.raises(Refusal):
        apply(Settings(depth=0.5), Quiet(), teacher, data)
