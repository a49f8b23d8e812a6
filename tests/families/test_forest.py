"""The forest: its folder, its scores against LightGBM's own, and texts that would end LightGBM's process."""

import copy
import json
import re
import sys
from pathlib import Path

import lightgbm
import numpy as np
import pytest
import torch

from onnuri.data import Records, records_of
from onnuri.errors import BadInput, BadSettings, Refusal
from onnuri.families import tabular
from onnuri.families.forest import FAMILY, Forest


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def table_of(answer: str, n: int = 120, number: int = 0) -> Records:
    """One question with an answer of two labels, of three, or a number; one value in ten is missing."""
    draw = np.random.default_rng(number)
    rows = []
    for _ in range(n):
        x, color = float(draw.normal(5, 2)), str(draw.choice(["red", "green", "blue"]))
        value = x + 2 * (color == "red")
        found = {
            "two": "high" if value > 6 else "low",
            "three": str(int(value > 4) + int(value > 7)),
            "number": 1000 + 10 * value,
        }[answer]
        rows.append({"x": None if draw.random() < 0.1 else x, "color": color, "y": found})
    kind = "number" if answer == "number" else "category"
    return records_of(rows, {"x": "number", "color": "category", "y": kind}, "y")


def make(answer: str = "two", **config):
    return FAMILY.start(FAMILY.tiny() | config, table_of(answer), seed())


@pytest.mark.parametrize("answer", ["two", "three", "number"])
def test_folder_gives_back_what_was_written(answer: str, tmp_path: Path):
    net, table = make(answer)
    FAMILY.write(net, table, tmp_path, True)
    again, assets = FAMILY.read(tmp_path, False)
    assert assets == table and again.text == net.text and FAMILY.claims(tmp_path)
    assert not tabular.FAMILY.claims(tmp_path)
    batch = FAMILY.collate(table_of(answer), table, [])
    for other in (again, copy.deepcopy(net)):
        assert torch.equal(FAMILY.outputs(net, batch)[0], FAMILY.outputs(other, batch)[0])
    FAMILY.write(net, table, tmp_path / "empty", False)
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["config.json"]
    assert FAMILY.read(tmp_path / "empty", True)[0].booster is None


@pytest.mark.parametrize("answer", ["two", "three", "number"])
def test_outputs_are_those_of_lightgbm(answer: str, tmp_path: Path):
    net, table = make(answer)
    FAMILY.write(net, table, tmp_path, True)
    records = table_of(answer, 40, 1)
    columns = FAMILY.collate(records, table, [])["columns"].numpy()
    expected = lightgbm.Booster(model_file=str(tmp_path / "model.txt")).predict(columns, num_threads=1)
    answers = FAMILY.sample(net, table, records.list(), [])
    scores = [a["y_scores"] for a in answers]
    found = np.array([s if answer == "number" else list(s.values()) for s in scores])
    np.testing.assert_allclose(found[:, 1] if answer == "two" else found, expected, rtol=1e-5)
    values, mask = FAMILY.outputs(net, FAMILY.collate(records, table, []))
    assert values.shape == (40, 1, len(FAMILY.axis(table))) and mask.all()


@pytest.mark.parametrize("answer", ["two", "three"])
def test_learns_labels(answer: str):
    net, table = make(answer)
    test = table_of(answer, 200, 1).list()
    scores = FAMILY.score(test, FAMILY.sample(net, table, test, []), table)
    assert scores["accuracy"] > 0.75 and scores["auc"] > 0.88
    total, count = FAMILY.loss(net, FAMILY.collate(test, table, []), "net")
    assert float(total.sum() / count.sum()) == pytest.approx(scores["log_loss"], abs=1e-5)
    assert "auc" not in FAMILY.score(test[:1], FAMILY.sample(net, table, test[:1], []), table)


def test_learns_a_number_in_its_own_unit():
    net, table = make("number", rounds=100)
    test = table_of("number", 100, 1).list()
    scores = FAMILY.score(test, FAMILY.sample(net, table, test, []), table)
    assert scores["r2"] > 0.75 and FAMILY.headline(table) == ("rmse", "down")
    total, _ = FAMILY.loss(net, FAMILY.collate(test, table, []), "net")
    assert float(total.mean().sqrt()) * table.scale == pytest.approx(scores["rmse"], rel=1e-4)


def test_loss_of_a_record_does_not_depend_on_its_batch():
    net, table = make()
    records = table_of("two", 10, 1).list()
    together = FAMILY.loss(net, FAMILY.collate(records, table, []), "net")[0]
    alone = torch.cat([FAMILY.loss(net, FAMILY.collate([r], table, []), "net")[0] for r in records])
    assert torch.equal(together, alone)


def test_same_seed_same_trees_on_any_number_of_threads():
    records = FAMILY.toy(600, 0)  # enough to hold rows out
    threads, texts = torch.get_num_threads(), []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            texts.append(FAMILY.start({"rounds": 30, "patience": 5}, records, seed())[0].text)
    finally:
        torch.set_num_threads(threads)
    assert texts[0] == texts[1] != FAMILY.start({"rounds": 30, "patience": 5}, records, seed(1))[0].text


def test_it_stops_when_rows_held_out_gain_nothing():
    net, _ = FAMILY.start({"rounds": 1000, "patience": 5}, FAMILY.toy(600, 0), seed())
    assert 1 < net.booster.num_trees() < 300


def test_nothing_follows_a_gradient(tmp_path: Path):
    net, table = make()
    assert FAMILY.players(net) == {} and FAMILY.blocks(net) == {}
    assert not list(net.parameters()) and net.state_dict() == {"_extra_state": net.text}
    with pytest.raises(Refusal):
        FAMILY.like(net, table, 0.5, seed())
    with pytest.raises(Refusal):
        FAMILY.adopt(tmp_path, FAMILY.toy(20, 0), seed())


def test_the_table_is_that_of_the_table_net():
    _, table = FAMILY.start(FAMILY.tiny(), FAMILY.toy(60, 0), seed())
    _, other = tabular.FAMILY.start(tabular.tiny(), FAMILY.toy(60, 0), seed())
    assert FAMILY.axis(table) == FAMILY.axis(other) and FAMILY.fields(table) == FAMILY.fields(other)
    assert FAMILY.tag == tabular.FAMILY.tag and FAMILY.kind(table) == "logits"


def test_a_table_without_gain_gives_stumps():
    rows = [{"x": None, "y": "ab"[i % 2]} for i in range(10)]
    records = records_of(rows, {"x": "number", "y": "category"}, "y")
    net, table = FAMILY.start(FAMILY.tiny(), records, seed())
    assert FAMILY.sample(net, table, rows, [])[0]["y_scores"]["a"] == pytest.approx(0.5)


DAMAGES = {  # most of them end or hang the process when LightGBM 4.7 reads them
    "cut": lambda text: text[: len(text) // 2],
    "cut in the tail": lambda text: text[:-12],
    "empty": lambda text: "",
    "another file": lambda text: "hello",
    "a column that is not there": lambda text: re.sub(r"split_feature=\d", "split_feature=9", text),
    "a child that is not there": lambda text: re.sub(r"left_child=-?\d+", "left_child=9999", text),
    "a split below itself": lambda text: re.sub(r"left_child=-?\d+", "left_child=0", text),
    "a set that is not there": lambda text: re.sub(r"cat_boundaries=0 \d+", "cat_boundaries=0 99999", text),
    "too few leaves": lambda text: re.sub(r"num_leaves=\d+", "num_leaves=99", text),
    "a word for a number": lambda text: re.sub(r"leaf_value=\S+", "leaf_value=abc", text),
    "an infinite number": lambda text: re.sub(r"leaf_value=\S+", "leaf_value=1e999", text),
    "wrong sizes": lambda text: re.sub(r"tree_sizes=\d+", "tree_sizes=1", text),
    "another number of classes": lambda text: text.replace("num_class=1", "num_class=3"),
    "another objective": lambda text: text.replace("objective=binary sigmoid:1", "objective=regression"),
}


def with_sizes(text: str) -> str:
    """The text with its trees' sizes made right, so that only the damage itself can give it away."""
    body, end, tail = text.partition("\nend of trees")
    trees = [len(part) for part in re.findall(r"(?ms)^Tree=.*?(?=^Tree=|\Z)", body + "\n")]
    return re.sub(r"tree_sizes=.*", f"tree_sizes={' '.join(map(str, trees))}", body, count=1) + end + tail


@pytest.mark.parametrize("repair", [False, True], ids=["sizes wrong", "sizes right"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_text_is_bad_input(damage: str, repair: bool, tmp_path: Path):
    net, table = make()
    FAMILY.write(net, table, tmp_path, True)
    assert with_sizes(net.text) == net.text and "cat_boundaries" in net.text
    text = DAMAGES[damage](net.text)
    (tmp_path / "model.txt").write_text(with_sizes(text) if repair and damage != "wrong sizes" else text)
    with pytest.raises(BadInput, match=r"model\.txt"):
        FAMILY.read(tmp_path, False)


def test_a_text_that_lightgbm_itself_wrote_opens(tmp_path: Path):
    net, table = make()
    FAMILY.write(net, table, tmp_path, True)
    net.booster.save_model(tmp_path / "model.txt")
    assert FAMILY.read(tmp_path, False)[0].text == net.text


@pytest.mark.parametrize("name", ["config.json", "model.txt"])
def test_a_missing_file_is_bad_input(name: str, tmp_path: Path):
    net, table = make()
    FAMILY.write(net, table, tmp_path, True)
    (tmp_path / name).unlink()
    with pytest.raises(BadInput, match=re.escape(name)):
        FAMILY.read(tmp_path, False)


def test_a_table_that_does_not_fit_the_text_is_bad_input(tmp_path: Path):
    net, table = make()
    FAMILY.write(net, table, tmp_path, True)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["table"]["columns"].pop()
    path.write_text(json.dumps(config))
    with pytest.raises(BadInput, match="max_feature_idx"):
        FAMILY.read(tmp_path, False)


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch):
    net, _ = make()
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(BadInput, match=r"onnuri\[tabular\]"):
        Forest(net.text, 2)


@pytest.mark.parametrize("config", [{"round": 8}, {"rounds": 0}, {"leaves": 2.5}, {"learning_rate": 0}])
def test_wrong_settings_are_named(config: dict):
    with pytest.raises(BadSettings, match=next(iter(config))):
        FAMILY.start(config, FAMILY.toy(20, 0), seed())
