"""The table net: its folder, its independence of the batch, its scores against scikit-learn's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics

from onnuri.data import Records, records_of
from onnuri.errors import BadInput, BadSettings, Refusal
from onnuri.families import tables
from onnuri.families.tabular import FAMILY
from onnuri.nets.table_net import TableNet


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def make(config: dict | None = None, records: Records | None = None):
    return FAMILY.start(FAMILY.tiny() | (config or {}), records or FAMILY.toy(60, 0), seed())


def houses(n: int, number: int = 0) -> Records:
    """A number for an answer, far from zero and with a spread far from one."""
    draw = np.random.default_rng(number)
    rows = [
        {"rooms": float(rooms), "town": str(town), "note": "", "price": 1e5 * (3 + rooms / 2 + (town == "A"))}
        for rooms, town in zip(draw.uniform(1, 6, n), draw.choice(["A", "B"], n))
    ]
    fields = {"rooms": "number", "town": "category", "note": "text", "price": "number"}
    return records_of(rows, fields, "price")


def shapes(net) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in net.state_dict().items()}


def fit(net, table, records: Records, steps: int, rate: float = 1e-2) -> list[float]:
    """The mean loss before each step."""
    batch, optimizer = FAMILY.collate(records, table, []), torch.optim.AdamW(net.parameters(), rate)
    losses = []
    for _ in range(steps):
        total, count = FAMILY.loss(net, batch, "net")
        optimizer.zero_grad()
        (total.sum() / count.sum()).backward()
        optimizer.step()
        losses.append((total.sum() / count.sum()).item())
    return losses


@pytest.mark.parametrize("records", [FAMILY.toy(60, 0), houses(60)], ids=["labels", "number"])
def test_folder_gives_back_what_was_written(records: Records, tmp_path: Path):
    net, table = make(records=records)
    FAMILY.write(net, table, tmp_path, True)
    again, assets = FAMILY.read(tmp_path, False)
    assert assets == table and FAMILY.claims(tmp_path)
    assert net.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in net.state_dict().items())
    batch = FAMILY.collate(records, table, [])
    torch.testing.assert_close(FAMILY.outputs(net, batch), FAMILY.outputs(again, batch))
    FAMILY.write(net, table, tmp_path / "empty", False)
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["config.json"]
    empty, _ = FAMILY.read(tmp_path / "empty", True)
    assert shapes(empty) == shapes(net)


def test_new_weights_follow_from_the_generator_alone():
    state = torch.get_rng_state()
    one, other = make()[0].state_dict(), make()[0].state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(state, torch.get_rng_state())


def test_loss_of_a_record_does_not_depend_on_its_batch():
    net, table = make()
    records = FAMILY.toy(12, 1).list()
    together = FAMILY.loss(net, FAMILY.collate(records, table, []), "net")[0]
    alone = torch.cat([FAMILY.loss(net, FAMILY.collate([r], table, []), "net")[0] for r in records])
    torch.testing.assert_close(together, alone)


def test_learns_labels():
    records, test = FAMILY.toy(200, 0), FAMILY.toy(200, 1)
    net, table = make(records=records)
    losses = fit(net, table, records, 30)
    assert losses[-1] < 0.7 * losses[0]
    scores = FAMILY.score(test.list(), FAMILY.sample(net, table, test.list(), []), table)
    assert scores["accuracy"] > 0.78 and scores["auc"] > 0.84


def test_learns_a_number_in_its_own_unit():
    records, test = houses(200), houses(100, 1)
    net, table = make(records=records)
    assert FAMILY.kind(table) == "values" and FAMILY.headline(table) == ("rmse", "down")
    assert fit(net, table, records, 80)[-1] < 0.05
    answers = FAMILY.sample(net, table, test.list(), [])
    scores = FAMILY.score(test.list(), answers, table)
    assert scores["r2"] > 0.9 and 2e5 < answers[0]["price"] < 8e5
    assert answers[0]["price"] == answers[0]["price_scores"]
    truth, found = [r["price"] for r in test], [a["price"] for a in answers]
    assert scores["rmse"] == pytest.approx(metrics.root_mean_squared_error(truth, found))
    assert scores["mae"] == pytest.approx(metrics.mean_absolute_error(truth, found))
    assert scores["r2"] == pytest.approx(metrics.r2_score(truth, found))
    assert FAMILY.score(test[:1].list(), answers[:1], table).keys() == {"rmse", "mae"}


def test_scores_are_those_of_scikit_learn():
    net, table = make()
    test = FAMILY.toy(80, 2).list()
    scores = FAMILY.score(test, answers := FAMILY.sample(net, table, test, []), table)
    truth, found = [r["label"] for r in test], [a["label"] for a in answers]
    chances = np.array([[a["label_scores"][label] for label in table.labels] for a in answers])
    assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(truth, found))
    assert scores["macro_f1"] == pytest.approx(metrics.f1_score(truth, found, average="macro"))
    chances /= chances.sum(1, keepdims=True)  # float32 sums to 1 within 1e-7, at which scikit-learn warns
    assert scores["log_loss"] == pytest.approx(metrics.log_loss(truth, chances), abs=1e-6)
    assert scores["auc"] == pytest.approx(metrics.roc_auc_score(np.array(truth) == "yes", chances[:, 1]))
    total, _ = FAMILY.loss(net, FAMILY.collate(test, table, []), "net")
    assert scores["log_loss"] == pytest.approx(total.mean().item(), abs=1e-6)
    assert "auc" not in FAMILY.score(test[:1], answers[:1], table)


def test_auc_of_many_classes_and_ties():
    draw = np.random.default_rng(0)
    truth, chances = draw.choice(["a", "b", "c"], 90), draw.dirichlet([1, 1, 1], 90).round(1)
    chances /= chances.sum(1, keepdims=True)
    expected = metrics.roc_auc_score(truth, chances, multi_class="ovr", average="macro")
    assert tables.mean_auc(truth, chances, ["a", "b", "c"])["auc"] == pytest.approx(expected)


def test_filled_bins_are_the_place_among_the_edges():
    records = houses(50)
    net, table = make(records=records)
    shares = net.features(FAMILY.collate(records, table, [])).detach()[:, 2 : 2 + len(net.lower)].sum(1)
    edges = table.numbers[0].edges
    expected = np.interp([r["rooms"] for r in records], edges, np.arange(len(edges)))
    np.testing.assert_allclose(shares, expected, atol=1e-4)


def test_bins_see_past_a_value_that_most_rows_share():
    edges = tables.edges_of(np.r_[np.zeros(980), np.arange(1.0, 21.0)], 16)
    assert len(edges) >= 8 and edges[0] == 0 and edges[-1] == 20


def test_values_that_are_missing_unseen_or_of_another_type():
    records = records_of(
        [{"x": float(i), "c": str(i % 3), "y": "ab"[i % 2]} for i in range(12)],
        {"x": "number", "c": "category", "y": "category"},
        "y",
    )
    _, table = make(records=records)
    odd = [
        {"x": None, "c": None},
        {"x": float("nan"), "c": float("nan")},
        {"x": float("inf"), "c": "?"},
        {},
        {"x": 1, "c": 2.0},
        {"x": 1e300, "c": 2},
    ]
    batch = FAMILY.collate(odd, table, [])
    assert batch.keys() == {"numbers", "missing", "codes"}
    assert batch["codes"][:, 0].tolist() == [0, 0, 1, 0, 4, 4]
    assert batch["missing"][:, 0].tolist() == [1, 1, 1, 1, 0, 0]
    assert batch["numbers"].isfinite().all()


def test_what_training_never_showed_has_no_say():
    records = houses(30)
    net, table = make(records=records)
    net.stem.bias.data.zero_()
    features = net.features(FAMILY.collate([{}, {"town": "C"}], table, []))
    assert torch.equal(net.stem(features), torch.zeros(2, 16))


def test_rare_categories_are_unknown_and_frequent_ones_are_kept():
    rows = [{"c": value} for value in ["a"] * 5 + ["b"] * 2 + ["once", None]]
    assert tables.learn_category("c", rows).categories == ("a", "b")


@pytest.mark.parametrize("kind", ["number", "category"])
def test_one_kind_of_column_is_enough(kind):
    rows = [{"x": float(i) if kind == "number" else "pq"[i % 2], "y": "ab"[i % 2]} for i in range(8)]
    records = records_of(rows, {"x": kind, "y": "category"}, "y")
    net, table = make(records=records)
    assert len(FAMILY.sample(net, table, rows, [])) == 8
    assert FAMILY.outputs(net, FAMILY.collate(rows, table, []))[0].shape == (8, 1, 2)


def test_columns_without_values_or_spread():
    rows = [{"none": None, "same": 7.0, "word": None, "y": "ab"[i % 2]} for i in range(8)]
    fields = {"none": "number", "same": "number", "word": "category", "y": "category"}
    net, table = make(records=records_of(rows, fields, "y"))
    assert torch.isfinite(FAMILY.outputs(net, FAMILY.collate(rows, table, []))[0]).all()


def test_text_is_left_out_and_text_alone_is_refused():
    _, table = make(records=houses(20))
    assert FAMILY.fields(table) == ({"rooms": "number", "town": "category"}, ("price", "number"))
    with pytest.raises(BadInput, match="note"):
        make(records=records_of([{"note": "x", "y": "a"}], {"note": "text", "y": "category"}, "y"))


def test_missing_answers_are_named():
    records = houses(5)
    rows = records.list()
    rows[3]["price"] = None
    with pytest.raises(BadInput, match="first in row 3"):
        make(records=records_of(rows, records.fields, "price"))


def test_like_scales_widths_only():
    net, table = make()
    same, assets = FAMILY.like(net, table, 1, seed(1))
    half, _ = FAMILY.like(net, table, 0.5, seed(1))
    assert assets is table
    assert shapes(same) == shapes(net)
    assert not torch.equal(same.stem.weight, net.stem.weight)
    assert sum(p.numel() for p in half.parameters()) < 0.5 * sum(p.numel() for p in net.parameters())
    batch = FAMILY.collate(FAMILY.toy(4, 0), table, [])
    assert FAMILY.outputs(half, batch)[0].shape == FAMILY.outputs(net, batch)[0].shape


def test_adopt_keeps_the_body(tmp_path: Path):
    net, table = make()
    FAMILY.write(net, table, tmp_path, True)
    rows = [{**row, "mood": "xyz"[i % 3]} for i, row in enumerate(FAMILY.toy(30, 1))]
    records = records_of(rows, {**FAMILY.toy(1, 0).fields, "mood": "category"}, "mood")
    new, assets = FAMILY.adopt(tmp_path, records, seed(1))
    assert FAMILY.axis(assets) == ("x", "y", "z") and assets.columns == table.columns
    assert torch.equal(new.stem.weight, net.stem.weight) and new.head.out_features == 3
    with pytest.raises(BadInput, match="cannot be the answer"):
        FAMILY.adopt(tmp_path, records_of(rows, records.fields, "color"), seed(1))
    with pytest.raises(Refusal):
        FAMILY.adopt(tmp_path / "nothing", records, seed(1))


@pytest.mark.parametrize(
    "change",
    [
        {"width": "wide"},
        {"layers": 10**9},
        {"dropout": 1.5},
        {"table": []},
        {"table": {"columns": []}},
        {"width": 8},
        {"embedding": None},
    ],
)
def test_malformed_config_is_bad_input(change: dict, tmp_path: Path):
    net, table = make()
    FAMILY.write(net, table, tmp_path, True)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadInput):
        FAMILY.read(tmp_path, False)


@pytest.mark.parametrize(
    "column",
    [{"scale": 0.0}, {"mean": float("nan")}, {"edges": [2, 1]}, {"kind": "text"}, {"edges": "ab"}, {"name": "weight"}],
)
def test_malformed_table_is_bad_input(column: dict, tmp_path: Path):
    net, table = make()
    FAMILY.write(net, table, tmp_path, True)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["table"]["columns"][0] |= column
    path.write_text(json.dumps(config))
    with pytest.raises(BadInput):
        FAMILY.read(tmp_path, False)


def test_truncated_weights_are_bad_input(tmp_path: Path):
    net, table = make()
    FAMILY.write(net, table, tmp_path, True)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadInput):
        FAMILY.read(tmp_path, False)


@pytest.mark.parametrize("config", [{"widht": 8}, {"width": 0}, {"bins": 2.5}, {"dropout": "much"}])
def test_wrong_settings_are_named(config: dict):
    with pytest.raises(BadSettings, match=next(iter(config))):
        FAMILY.start(config, FAMILY.toy(20, 0), seed())


def test_outputs_can_be_traced_for_any_number_of_records():
    net, table = make()

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, batch):
            return FAMILY.outputs(self.net, batch)

    batch, other = (FAMILY.collate([{**row, "label": None} for row in FAMILY.toy(n, 0)], table, []) for n in (6, 9))
    rows = {name: {0: torch.export.Dim("rows", min=1)} for name in batch}
    program = torch.export.export(Wrapped(), (batch,), dynamic_shapes={"batch": rows})
    torch.testing.assert_close(program.module()(other), FAMILY.outputs(net, other))


def test_a_net_without_bins_or_layers():
    net = TableNet([[], [1.0]], [3], 2, 0.0, 1.0, width=4, layers=0, embedding=2, dropout=0.0)
    zeros = torch.zeros(2, 2)
    assert net({"numbers": zeros, "missing": zeros, "codes": zeros[:, :1].long()}).shape == (2, 2)


def test_quantiles_that_differ_by_rounding_make_no_bin():
    """hours_per_week of Adult: interpolated quantiles of 40 and 40 + 1e-14 once made a bin of width 0, and NaN."""
    values = np.array([0.0, 40.0, np.nextafter(40.0, 41.0), 40.0, 99.0] * 40)
    edges = tables.edges_of(values, 16)
    assert np.diff(edges.astype(np.float32)).min() > 0
