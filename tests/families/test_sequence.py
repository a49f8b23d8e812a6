"""Forecasts: folders, independence of the batch, scales, scores, the nets against their definitions, ETTh1."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from onnuri.data import Records, records_of
from onnuri.errors import BadInput, BadSettings, Refusal
from onnuri.families import series
from onnuri.families.sequence import FAMILY
from onnuri.model import Model, open_model, write_model
from onnuri.nets.sequence_net import SequenceNet
from onnuri.run import execute
from onnuri.sources import open_data
from onnuri.weights.attach import bake, pack
from onnuri.weights.matrices import weights

DESIGNS = ("linear", "gru", "lstm", "tcn")


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def make(design: str = "lstm", records: Records | None = None, **config):
    if design != "linear":
        config = FAMILY.tiny() | config
    return FAMILY.start(config | {"design": design}, records or FAMILY.toy(60, 0), seed())


def series_records(rows: list[tuple[np.ndarray, np.ndarray]]) -> Records:
    """Records of (past, future)."""
    made = [{"past": past.astype(np.float32), "future": future.astype(np.float32)} for past, future in rows]
    return records_of(made, {"past": "series", "future": "series"}, "future")


def fit(net, assets, records: Records, steps: int) -> list[float]:
    """The mean loss before each step."""
    batch, optimizer = FAMILY.collate(records, assets, []), torch.optim.AdamW(net.parameters(), 1e-2)
    losses = []
    for _ in range(steps):
        total, count = FAMILY.loss(net, batch, "net")
        optimizer.zero_grad()
        (total.sum() / count.sum()).backward()
        optimizer.step()
        losses.append((total.sum() / count.sum()).item())
    return losses


# ------------------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("design", DESIGNS)
def test_folder_gives_back_what_was_written(design: str, tmp_path: Path):
    net, assets = make(design)
    FAMILY.write(net, assets, tmp_path, True)
    again, found = FAMILY.read(tmp_path, False)
    assert FAMILY.claims(tmp_path) and found == assets
    assert net.state_dict().keys() == again.state_dict().keys()
    batch = FAMILY.collate(FAMILY.toy(4, 1), assets, [])
    assert torch.equal(FAMILY.outputs(net, batch)[0], FAMILY.outputs(again, batch)[0])
    FAMILY.write(net, assets, tmp_path / "empty", False)
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["config.json"]


@pytest.mark.parametrize("design", DESIGNS)
def test_packed_weights_are_what_is_computed_with(design: str, tmp_path: Path):
    """int8 changes the answers a little, survives the folder bit by bit, and is what baking leaves."""
    net, assets = make(design)
    batch = FAMILY.collate(FAMILY.toy(8, 1), assets, [])
    with torch.no_grad():
        before = net(batch)
        for weight in weights(net):
            pack(weight, "int8")
        packed = net(batch)
        write_model(Model(FAMILY, net, assets), tmp_path)
        assert 0 < (packed - before).abs().max() < 0.05
        assert torch.equal(open_model(tmp_path).net(batch), packed)
        bake(net)
        # sums of the linear layers are scaled after adding when packed, before when baked
        assert torch.allclose(net(batch), packed, atol=1e-5)


@pytest.mark.parametrize("design", ["lstm", "gru"])
def test_zeroed_matrices_silence_recurrent_layers(design: str):
    net, _ = make(design, layers=1)
    for weight in weights(net):
        if "cells" in weight.name:
            weight.value.data.zero_()
    for name, value in net.named_parameters():
        if "cells" in name and "bias" in name:
            value.data.zero_()
    x = torch.randn(2, 1, 6, 16)
    assert torch.equal(net.get_submodule("body.layers.0")(x), x), "a cell without weights adds nothing"


@pytest.mark.parametrize(
    "change,words",
    [
        ({"net": None}, "'net' must hold"),
        ({"net": {"design": "lstm"}}, "'net' must hold"),
        ({"net": {"design": "transformer"}}, "'net' must hold|must be one of"),
        ({"series": None}, "'series' must hold"),
        ({"series.past": 0}, "'past' must be a whole number"),
        ({"series.mean": [1, "x"]}, "'mean' must list a finite number"),
        ({"series.mean": [1]}, "'deviation' lists 2 of 1"),
        ({"series.deviation": [1, 0]}, "'deviation' must be above 0"),
        ({"series.num_forecast": 3}, "'num_forecast' must be a whole number from 1 to 2"),
        ({"net.reach": [1, 10**9]}, "'reach' must list"),
        ({"net.width": "16"}, "'width' must be"),
        ({"net.width": 8}, "mismatched tensor"),
    ],
)
def test_a_malformed_folder(change: dict, words: str, tmp_path: Path):
    FAMILY.write(*make(), tmp_path, True)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for name, value in change.items():
        *outer, inner = name.split(".")
        (config[outer[0]] if outer else config)[inner] = value
    path.write_text(json.dumps(config))
    with pytest.raises(BadInput, match=words):
        open_model(tmp_path)


# -------------------------------------------------------------------------------------------------------------- making


def test_new_weights_follow_from_the_generator_alone():
    state = torch.get_rng_state()
    one, other = make()[0].state_dict(), make()[0].state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "config,words",
    [
        ({"design": "rnn"}, "'design' must be one of linear, gru, lstm, tcn"),
        ({"normalize": "batch"}, "'normalize' must be one of"),
        ({"design": "linear", "width": 8}, "'width' has no effect on design linear"),
        ({"design": "tcn", "rank": 8}, "'rank' has no effect on design tcn"),
        ({"design": "gru", "mix": 1}, "'mix' must be one of false, true"),
        ({"design": "gru", "layers": 0, "patch": 0}, "'patch'.*\n.*'layers'"),
        ({"desing": "gru"}, "did you mean design"),
    ],
)
def test_settings_that_make_no_net(config: dict, words: str):
    with pytest.raises(BadSettings, match=words):
        FAMILY.start(config, FAMILY.toy(20, 0), seed())


@pytest.mark.parametrize("design", ["gru", "lstm", "tcn"])
def test_like_scales_the_width(design: str):
    net, assets = make(design)
    half, same = FAMILY.like(net, assets, 0.5, seed(1))[0], FAMILY.like(net, assets, 1.0, seed(1))[0]
    assert {k: v.shape for k, v in same.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}
    assert half.design["width"] == 8 and half.design["reach"] == net.design["reach"]


def test_a_linear_map_is_all_head_and_its_width_is_its_rank(tmp_path: Path):
    net, assets = make("linear")
    assert FAMILY.like(net, assets, 1.0, seed())[0].design == net.design
    half, _ = FAMILY.like(net, assets, 0.5, seed())
    trend = half.get_submodule("body.trend")
    assert half.design["rank"] == 3 and torch.linalg.matrix_rank(trend[1].weight @ trend[0].weight) == 3
    FAMILY.write(half, assets, tmp_path, True)
    assert FAMILY.read(tmp_path, False)[0].design == half.design
    with pytest.raises(Refusal):
        FAMILY.adopt(tmp_path, FAMILY.toy(20, 0), seed())
    with pytest.raises(Refusal):
        FAMILY.keep(net, assets, ["body.trend"])


def test_another_past_and_future_keep_the_body(tmp_path: Path):
    net, assets = make("tcn")
    FAMILY.write(net, assets, tmp_path, True)
    draw = np.random.default_rng(0)
    records = series_records([(draw.normal(9, 2, (40, 1)), draw.normal(9, 2, (3, 1))) for _ in range(8)])
    new, found = FAMILY.adopt(tmp_path, records, seed())
    assert (found.past, found.future, found.num_forecast) == (40, 3, 1) and found.mean[0] == pytest.approx(9, abs=0.3)
    one, other = net.get_submodule("body.layers").state_dict(), new.get_submodule("body.layers").state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert FAMILY.outputs(new, FAMILY.collate(records, found, []))[0].shape == (8, 3, 1)


@pytest.mark.parametrize("design", ["lstm", "tcn"])
def test_kept_layers_are_those_of_the_whole(design: str, tmp_path: Path):
    net, assets = make(design, layers=3)
    x = torch.randn(2, 1, 6, 16)
    expected = net.get_submodule("body.layers.2")(net.get_submodule("body.layers.0")(x))
    kept, _ = FAMILY.keep(net, assets, ["body.layers.0", "body.layers.2"])
    FAMILY.write(kept, assets, tmp_path, True)
    again, _ = FAMILY.read(tmp_path, False)
    found = again.get_submodule("body.layers.1")(again.get_submodule("body.layers.0")(x))
    assert torch.equal(found, expected) and len(FAMILY.blocks(again)) == 2 and len(FAMILY.blocks(net)) == 3


# ------------------------------------------------------------------------------------------------------------ learning


def test_scales_of_windows_are_those_of_the_rows(tmp_path: Path):
    """Windows overlap; each row of the training part still counts once, as in a scaler fitted to these rows."""
    rows = np.random.default_rng(0).normal([1e4, -3], [5, 0.1], (200, 2)).cumsum(0)
    lines = ["a,b", *(f"{a!r},{b!r}" for a, b in rows.tolist())]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    train = open_data(str(tmp_path / "t.csv"), window="20,5").split("train")
    found = series.learn(train, 0)
    part = rows[:140]
    np.testing.assert_allclose(found.mean, part.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.deviation, part.std(0), rtol=1e-4)  # float32 holds the rows to 6e-8
    np.testing.assert_allclose(found.change, np.abs(np.diff(part, axis=0)).mean(0), rtol=1e-4)
    one = series.learn(open_data(str(tmp_path / "t.csv"), window="20,5", answer="a").split("train"), 0)
    assert one.num_forecast == 1 and one.deviation[1] == pytest.approx(found.deviation[0])
    past_rows = rows[:135]  # the last future is no past
    assert one.deviation[0] == pytest.approx(past_rows[:, 1].std(), rel=1e-4)


def test_a_channel_that_stands_still_has_scale_one():
    past, future = np.full((4, 1), 7.0), np.full((2, 1), 7.0)
    net, assets = make("linear", series_records([(past, future)] * 5))
    assert assets.deviation == (1.0,) and assets.change == (0.0,)
    [answer] = FAMILY.sample(net, assets, [{"past": past}], [])
    assert np.isfinite(answer["future"]).all()
    assert FAMILY.score([{"future": future}], [answer], assets).keys() == {"mse", "mae", "mae_in_units"}


@pytest.mark.parametrize(
    "rows,words",
    [
        ([((4, 1), (2, 1)), ((4, 2), (2, 1))], "row 1 has other channels"),
        ([((4, 1), (2, 1)), ((4, 1), (3, 1))], "row 1 has other channels"),
        ([((4, 1), (2, 2))], "has 2 channels, but continues"),
    ],
)
def test_records_of_unlike_forms(rows: list, words: str):
    with pytest.raises(BadInput, match=words):
        make("linear", series_records([(np.zeros(past), np.zeros(future)) for past, future in rows]))


def test_data_without_series():
    table = records_of([{"x": 1.0, "y": 2.0}], {"x": "number", "y": "number"}, "y")
    with pytest.raises(BadInput, match=r"x \(number\), y \(number\)\n.*--window PAST,FUTURE"):
        make("linear", table)


# ----------------------------------------------------------------------------------------------------------- computing


@pytest.mark.parametrize("design", DESIGNS)
def test_a_record_does_not_depend_on_its_batch(design: str):
    net, assets = make(design)
    records = FAMILY.toy(6, 1).list()
    records[3] = {**records[3], "past": records[3]["past"] * 1e4}
    together = FAMILY.loss(net, FAMILY.collate(records, assets, []), "net")[0]
    alone = torch.cat([FAMILY.loss(net, FAMILY.collate([r], assets, []), "net")[0] for r in records])
    torch.testing.assert_close(together, alone)


def test_longer_pasts_are_cut_and_shorter_ones_refused():
    net, assets = make()
    record = FAMILY.toy(1, 1)[0]
    longer = {"past": np.concatenate([np.full((5, 2), 99, np.float32), record["past"]])}
    one, other = FAMILY.sample(net, assets, [{"past": record["past"]}, longer], [])
    assert np.array_equal(one["future"], other["future"])
    for past in (record["past"][1:], record["past"][:, :1]):
        with pytest.raises(BadInput, match="24 steps or more and 2 channels"):
            FAMILY.sample(net, assets, [{"past": past}], [])
    with pytest.raises(BadInput, match="future of 6 steps"):
        FAMILY.collate([{**record, "future": record["future"][1:]}], assets, [])
    assert FAMILY.collate([{"past": record["past"]}], assets, []).keys() == {"past"}


def test_the_linear_net_is_dlinear():
    """Against the paper's own form: a moving average of 25 with repeated ends, one matrix for it and one for the rest."""
    torch.manual_seed(0)
    net = SequenceNet(3, 3, 30, 7, design="linear", normalize="none").eval()
    past = torch.randn(4, 30, 3)
    ends = torch.cat([past[:, :1].repeat(1, 12, 1), past, past[:, -1:].repeat(1, 12, 1)], dim=1)
    trend = torch.stack([ends[:, i : i + 25].mean(1) for i in range(30)], dim=1)
    trend_matrix, rest_matrix = net.get_submodule("body.trend"), net.get_submodule("body.rest")
    expected = trend_matrix(trend.transpose(1, 2)) + rest_matrix((past - trend).transpose(1, 2))
    torch.testing.assert_close(net({"past": past}), expected.transpose(1, 2))


@pytest.mark.parametrize("kind", ["last", "window"])
@pytest.mark.parametrize("mix", [False, True])
def test_a_shifted_past_shifts_the_forecast(kind: str, mix: bool):
    net, assets = make("gru", normalize=kind, mix=mix)
    past = FAMILY.collate(FAMILY.toy(3, 1), assets, [])["past"]
    shift = torch.tensor([3.0, -2.0])
    found = net({"past": past + shift})
    torch.testing.assert_close(found, net({"past": past}) + shift, atol=1e-5, rtol=0)
    if kind == "window":  # all but the small number that is added to the variance
        torch.testing.assert_close(net({"past": 2 * past}), 2 * net({"past": past}), atol=1e-3, rtol=0)


def test_apart_each_channel_is_read_alone_and_mixed_all_are():
    past = FAMILY.collate(FAMILY.toy(3, 1), make()[1], [])["past"]
    other = past.clone()
    other[:, :, 0] += torch.randn(3, 24)
    for mix in (False, True):
        net, _ = make("tcn", mix=mix)
        same = torch.equal(net({"past": past})[:, :, 1], net({"past": other})[:, :, 1])
        assert same is not mix


def test_convolutions_do_not_look_ahead():
    layer = make("tcn", layers=2)[0].get_submodule("body.layers.1")
    x = torch.randn(1, 1, 8, 16)
    later = x.clone()
    later[:, :, 5:] += 1
    assert torch.equal(layer(x)[:, :, :5], layer(later)[:, :, :5])
    assert not torch.equal(layer(x)[:, :, 5:], layer(later)[:, :, 5:])


def test_where_a_past_is_no_multiple_of_a_patch_its_oldest_step_is_repeated():
    net, _ = make("gru", patch=5)
    past = torch.randn(2, 24, 2)
    exact = SequenceNet(2, 2, 25, 6, **net.design).eval()
    exact.load_state_dict(net.state_dict())
    first = torch.cat([past[:, :1], past], dim=1)
    level = [part[:, :, :2] for part in net.level(past)]
    exact.level = lambda _: level
    torch.testing.assert_close(net({"past": past}), exact({"past": first}))


# -------------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("design", DESIGNS)
def test_learns(design: str):
    records, test = FAMILY.toy(200, 0), FAMILY.toy(100, 1)
    net, assets = make(design, records)
    losses = fit(net, assets, records, 60)
    answers = FAMILY.sample(net, assets, test.list(), [])
    scores = FAMILY.score(test.list(), answers, assets)
    assert losses[-1] < 0.5 * losses[0] and scores["mse"] < 0.6
    assert answers[0]["future"].shape == (6, 2) and answers[0]["future"].dtype == np.float32
    assert np.mean([answer["future"][:, 1] for answer in answers]) == pytest.approx(-300, abs=20), "in the data's units"


def test_scores_are_those_of_their_definitions():
    records = FAMILY.toy(30, 0)
    net, assets = make(records=records)
    answers = FAMILY.sample(net, assets, test := FAMILY.toy(20, 1).list(), [])
    scores = FAMILY.score(test, answers, assets)
    batch = FAMILY.collate(test, assets, [])
    given = FAMILY.outputs(net, batch)[0]
    assert scores["mse"] == pytest.approx(functional.mse_loss(given, batch["future"]).item(), rel=1e-5)
    assert scores["mae"] == pytest.approx(functional.l1_loss(given, batch["future"]).item(), rel=1e-5)
    total, count = FAMILY.loss(net, batch, "net")
    assert scores["mse"] == pytest.approx((total.sum() / count.sum()).item(), rel=1e-5)
    error = np.abs(np.stack([a["future"] for a in answers]) - np.stack([t["future"] for t in test]))
    naive = np.mean(
        [np.abs(np.diff(np.concatenate([r["past"], r["future"]]), axis=0)).mean(0) for r in records], axis=0
    )
    assert scores["mae_in_units"] == pytest.approx(error.mean(), rel=1e-5)
    assert scores["mase"] == pytest.approx((error / naive).mean(), rel=1e-5)
    assert FAMILY.headline(assets) == ("mse", "down")


def test_etth1_as_the_literature_has_it(real_data, tmp_path: Path):
    """Two passes bring the default near DLinear's 0.375 and 0.399 (Zeng et al. 2022, table 2); the scores are those of
    a scaler on the training rows and plain numpy."""
    source, options = str(real_data / "ett" / "ETTh1.csv"), {"window": "336,96,8640,2880,2880"}
    settings = {"family": "sequence", "epochs": 2, "config": {"past": 336}}
    line = execute("train", settings, {"data": source}, tmp_path / "m", options, quiet=True)
    rows = np.loadtxt(source, delimiter=",", skiprows=1, usecols=(1, 2, 5, 6, 3, 4, 7))  # by name
    model, test = open_model(tmp_path / "m"), open_data(source, **options).split("test")
    answers = np.stack([answer["future"] for answer in model.sample(model.asked(test.list()))])
    truth = np.stack([rows[i : i + 96] for i in range(11520, 14400 - 96 + 1)])
    error = (answers - truth) / rows[:8640].std(0)
    scores = line["after"]["scores"]
    assert scores["mse"] == pytest.approx((error**2).mean(), rel=1e-4)
    assert scores["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-4)
    assert scores["mse"] < 0.40 and scores["mae"] < 0.42


def test_a_column_that_was_renamed_is_another(tmp_path):
    """A model of a table knows its columns by name; their order in the table says nothing."""

    def table(*names: str) -> str:
        lines = [",".join(names), *(f"{i % 7},{100 + i % 5},{-i % 3}" for i in range(200))]
        (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
        return str(tmp_path / "rows.csv")

    options, out = {"window": "12,3", "answer": "b"}, tmp_path / "m"
    execute("train", {"family": "sequence", "steps": 3}, {"data": table("a", "b", "c")}, out, options, quiet=True)
    assert execute("evaluate", {}, {"model": str(out), "data": table("a", "b", "c")}, None, options, quiet=True)[
        "scores"
    ]
    with pytest.raises(BadInput, match="made for the channels a,c,b; found a,d,b"):
        execute("evaluate", {}, {"model": str(out), "data": table("a", "b", "d")}, None, options, quiet=True)
    with pytest.raises(BadInput, match="made for the channels a,c,b; found a,b,c"):
        execute("evaluate", {}, {"model": str(out), "data": table("a", "b", "c")}, None, {"window": "12,3"}, quiet=True)
