"""distill: its divergence against a formula, its identity, students of another kind, and what it refuses."""

from dataclasses import replace

import pytest
import torch

import folders
from onnuri import registry
from onnuri.data import joined, records_of
from onnuri.errors import BadInput, BadSettings, Refusal
from onnuri.family import Generators
from onnuri.fit.loop import FitSettings, fit
from onnuri.fit.objective import objective_of
from onnuri.model import Model, count_parameters, open_model
from onnuri.operation import Quiet
from onnuri.operations.distill import Settings, agreement, apply, divergence_of, sized, written
from onnuri.run import execute
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


# ------------------------------------------------------------------------------------------- records the teacher answers


@pytest.mark.parametrize("name", registry.entries("families"))
def test_the_teacher_answers_in_every_family(name):
    """What is written are the questions of the train records, each once, with the answers of `sample`."""
    teacher, data = started(name)
    train = data.split("train")
    found = written(Settings(written=7), teacher, train, train, Quiet()).list()
    asked = train.some(7).list()
    question = teacher.family.fields(teacher.assets)[0]
    assert len(found) == 7 and all(set(row) == set(train.fields) for row in found)
    assert all(
        one[field] is other[field] or one[field] == other[field]
        for one, other in zip(found, asked)
        for field in question
    )
    if question and teacher.family.fields(teacher.assets)[1][1] == "category":
        answers = [row[teacher.answer] for row in teacher.sample(teacher.asked(asked))]
        assert [row[teacher.answer] for row in found] == answers
    both = joined(train, records_of(found, train.fields, train.answer))
    assert len(both) == len(train) + 7
    mixed = both[[len(train) + 2, 0, len(train), 1]].list()
    kept = [row[teacher.answer] for row in mixed]
    assert all(
        one is other or one == other
        for one, other in zip(kept[::2], (found[2][teacher.answer], found[0][teacher.answer]))
    )
    loss, count = teacher.family.loss(teacher.net, teacher.collate(mixed), next(iter(teacher.players), ""))
    assert loss.shape == count.shape == (4,) and torch.isfinite(loss).all()


def test_more_questions_than_there_are_is_an_error():
    teacher, data = started("tabular")
    train = data.split("train")
    with pytest.raises(BadSettings, match=f"only {len(train)} questions"):
        written(Settings(written=len(train) + 1), teacher, train, train, Quiet())
    painter, pictures = started("gan")
    assert len(written(Settings(written=600), painter, pictures.records[:5], pictures.records, Quiet())) == 600


def test_a_teacher_answers_records_without_answers(tmp_path):
    """The labels of all records but a few are lost; the student learns from what the teacher says of them."""
    family = registry.family("tabular")
    rows = family.toy(300, 1).list()
    questions = tmp_path / "questions.csv"
    names = [name for name in rows[0] if name != "label"]
    lines = [",".join("" if row[name] is None else str(row[name]) for name in names) for row in rows]
    questions.write_text("\n".join([",".join(names), *lines]) + "\n")
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    execute("train", {"family": "tabular", "epochs": 20}, {"data": "toy:tabular"}, teacher, quiet=True)
    inputs = {"model": str(teacher), "data": "toy:tabular", "questions": str(questions)}
    line = execute("distill", {"size": 0.3, "epochs": 8}, inputs, student, quiet=True)
    assert {entry["role"] for entry in line["inputs"]} == {"model", "data", "questions"}
    alone = execute("distill", {"size": 0.3, "steps": 1}, inputs, tmp_path / "other", quiet=True)
    assert line["after"]["scores"]["accuracy"] > alone["after"]["scores"]["accuracy"]
    wrong = inputs | {"questions": "toy:text_classifier"}
    with pytest.raises(BadInput, match="missing"):
        execute("distill", {"size": 0.3}, wrong, tmp_path / "third", quiet=True)


def test_questions_for_a_teacher_that_is_asked_nothing_are_an_error():
    teacher, data = started("gan")
    with pytest.raises(BadSettings, match="'questions' has no effect"):
        apply(Settings(size=0.8), Quiet(), teacher, data, questions=data)


# ------------------------------------------------------------------------------------------------- across architectures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return folders.write_pictures(tmp_path_factory.mktemp("pictures"), folders.LABELS, 96)


@pytest.mark.parametrize("hidden", [0.0, 1.0])
def test_a_vision_transformer_teaches_a_convolution_net(hidden, pictures, tmp_path):
    """Other pixels, other places: 32 x 32 as the processor has them against 16 x 16, 17 tokens against maps."""
    teacher = open_model(folders.save("vit", tmp_path / "vit"))
    data = open_data(str(pictures))
    fit(objective_of(teacher), data.split("train"), None, FitSettings(steps=60, batch_size=32), Quiet(), True)
    config = {"width": 8, "image_size": 16}
    settings = Settings(family="image_classifier", config=config, steps=60, batch_size=32, weight=1, hidden=hidden)
    result = apply(settings, Quiet(), teacher, data)
    asked = data.split("train").list()
    alike = [a["label"] == b["label"] for a, b in zip(teacher.sample(asked), result.model.sample(asked))]
    assert type(result.model.net).__name__ == "ConvNet" and sum(alike) / len(alike) > 0.9
    losses = [value for _, value in result.curves["loss"]]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("hidden", [0.0, 1.0])
def test_a_transformer_teaches_a_bag_of_ngrams(hidden):
    teacher, data = started("text_classifier", hidden_size=32)
    fit(objective_of(teacher), data.split("train"), None, FitSettings(steps=80, batch_size=32), Quiet(), True)
    settings = Settings(
        family="text_classifier", config={"net": "ngrams"}, steps=60, batch_size=32, weight=1, hidden=hidden
    )
    result = apply(settings, Quiet(), teacher, data)
    asked = data.split("test").list()
    alike = [a["label"] == b["label"] for a, b in zip(teacher.sample(asked), result.model.sample(asked))]
    assert list(result.model.blocks) == ["bag"] and sum(alike) / len(alike) > 0.9
