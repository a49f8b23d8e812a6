"""extrapolate: the law against one that is known and against scipy, the runs taken up again, and what it cannot say."""

import json
from dataclasses import replace
from xml.dom.minidom import parseString

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from command import onnuri, refused
from onnuri.errors import BadSettings, Refusal
from onnuri.fit.objective import objective_of
from onnuri.model import Model
from onnuri.operation import Quiet
from onnuri.operations.extrapolate import OPERATION, Settings, doubts, runs
from onnuri.operations.extrapolate.law import Law, descended, fit_law, huber, left_out, predicted, slopes, starts
from onnuri.operations.train import Settings as TrainSettings
from onnuri.operations.train import started
from onnuri.registry import family
from onnuri.sources import open_data

GRID = np.array([(n, d) for n in (1e4, 2e4, 4e4, 8e4, 1.6e5) for d in (1e5, 2e5, 4e5)])
FAR = np.array([[6.4e5, 4e5], [1.6e6, 4e6]])
QUICK = {"family": "tabular", "batch_size": 16, "steps": 8, "nets": 3, "amounts": 2}


def known(points: np.ndarray) -> np.ndarray:
    return 1.7 + 40 / points[:, 0] ** 0.34 + 400 / points[:, 1] ** 0.4


# ----------------------------------------------------------------------------------------------------------------- the law


def test_a_known_law_is_found_again():
    law = fit_law(GRID, known(GRID))
    assert law.least == pytest.approx(1.7, rel=1e-6)
    assert law.term(0) == pytest.approx((40, 0.34), rel=1e-6) and law.term(1) == pytest.approx((400, 0.4), rel=1e-6)
    np.testing.assert_allclose(law.loss(FAR), known(FAR), rtol=1e-8)
    alone = fit_law(GRID[::3, :1], 2 + 5 / GRID[::3, 0] ** 0.2)
    assert alone.least == pytest.approx(2, rel=1e-4) and alone.term(0) == pytest.approx((5, 0.2), rel=1e-3)


def test_one_run_that_went_wrong_hardly_moves_it():
    """The Huber loss: a loss that is a tenth too high moves the prediction by a hundredth at most, and the range shows it."""
    losses = known(GRID)
    losses[7] *= 1.1
    law = fit_law(GRID, losses)
    np.testing.assert_allclose(law.loss(FAR[:1]), known(FAR[:1]), rtol=1e-2)
    others = [one.loss(FAR[:1])[0] for one in left_out(law, GRID, losses)]
    assert min(others) <= known(FAR)[0] * 1.001 and len(others) == len(GRID)


def test_slopes_are_those_of_differences():
    numbers, where = starts(known(GRID), 2)[:4], np.log(GRID / GRID.mean(0))
    for place in range(5):
        step = np.zeros(5)
        step[place] = 1e-6
        rise = (predicted(numbers + step, where) - predicted(numbers - step, where)) / 2e-6
        np.testing.assert_allclose(slopes(numbers, where)[:, :, place], rise, atol=1e-8)


def test_no_start_of_another_method_ends_lower():
    """Against scipy's L-BFGS, as the paper has it, from every start, on losses that scatter by one percent."""
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is no dependency")
    losses = known(GRID) * np.exp(0.01 * np.random.default_rng(0).normal(size=len(GRID)))
    where, wanted = np.log(GRID / np.exp(np.log(GRID).mean(0))), np.log(losses)

    def error(numbers: np.ndarray) -> float:
        return float(huber(predicted(numbers[None], where) - wanted).sum())

    begun = starts(losses, 2)
    ours = min(error(one) for one in descended(begun, where, wanted))
    theirs = min(optimize.minimize(error, one, method="L-BFGS-B").fun for one in begun)
    assert ours <= theirs * (1 + 1e-6)


def test_a_law_that_explains_nothing_is_doubted():
    axes, losses = ["parameters", "records"], known(GRID)
    assert not list(doubts(fit_law(GRID, losses), losses, 1e-6, axes))
    flat = Law(np.log([1.0, 1.0, 0.3, 1.0, 1e-5]), np.array([1.0, 1.0]))
    (of_records,) = doubts(flat, losses, 1e-6, axes)
    assert "by records, whose exponent is 1e-05" in of_records
    spread = losses.max() / losses.min() - 1
    (whole,) = doubts(fit_law(GRID, losses), losses, spread, axes)
    assert f"off by up to {spread:.1%} from losses that differ by {spread:.1%}" in whole


# --------------------------------------------------------------------------------------------------------------- the runs


def carried_out(log: Quiet | None = None, data: str = "toy:tabular", model: Model | None = None, **settings) -> dict:
    chosen = Settings.model_validate(QUICK | settings)
    result = OPERATION.apply(chosen, log or Quiet(), open_data(data), model)
    assert result.report and parseString(result.charts[0])
    return result.report


def test_the_prediction_is_checked_by_training_the_design():
    found, plain = carried_out(check=True), carried_out()
    assert {name: found[name] for name in ("law", "predicted")} == {name: plain[name] for name in ("law", "predicted")}
    error = found["predicted"]["loss"] / found["checked"]["loss"] - 1
    assert found["checked"]["error_of_the_prediction"] == pytest.approx(error) and f"{error:+.1%}" in found["summary"]
    assert found["predicted"]["low"] <= found["predicted"]["loss"] <= found["predicted"]["high"]
    assert [run["records"] for run in found["runs"]] == [67, 134] * 3 and [run["steps"] for run in found["runs"]] == [
        4,
        8,
    ] * 3
    sizes = [run["parameters"] for run in found["runs"]]
    assert sizes == sorted(sizes) and sizes[-1] < found["predicted"]["parameters"] == found["checked"]["parameters"]


@pytest.mark.parametrize(
    "settings, axes", [({"nets": 1, "amounts": 4}, ["records"]), ({"nets": 4, "amounts": 1}, ["parameters"])]
)
def test_an_axis_that_does_not_vary_has_no_term(settings, axes):
    assert [name for name in carried_out(**settings)["law"] if name != "least_loss"] == axes


def test_losses_that_follow_no_law_are_told(monkeypatch):
    """One and the same for every run: there is nothing that a size or an amount could explain."""
    trained, log = runs.trained, Quiet()
    monkeypatch.setattr(runs, "trained", lambda *given: replace(trained(*given), loss=0.5))
    carried_out(log)
    assert any(
        "the law explains nothing, since" in text and "no better than the losses" in text for text in log.warnings
    )


def test_a_killed_search_keeps_what_it_finished(monkeypatch):
    whole, log, trained, done = carried_out(), Quiet(), runs.trained, list[int]()

    def stops(run, *others):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(run.parameters)
        return trained(run, *others)

    monkeypatch.setattr(runs, "trained", stops)
    with pytest.raises(KeyboardInterrupt):
        carried_out(log)
    monkeypatch.setattr(runs, "trained", lambda run, *others: done.append(run.parameters) or trained(run, *others))
    again = carried_out(log)
    assert len(done) == 6, "three before and three after"
    assert [run["loss"] for run in again["runs"]] == [run["loss"] for run in whole["runs"]]


def test_long_texts_take_the_steps_of_their_pieces(tmp_path):
    """As many as `train` takes for the same passes over the records."""
    texts = [row["text"] for row in family("causal_lm").toy(40, 0).list()]
    rows = [json.dumps({"text": " ".join(texts[i : i + 8] + texts[: max(0, i - 32)])}) for i in range(40)]
    (tmp_path / "long.jsonl").write_text("\n".join(rows), encoding="utf-8")
    config = {"depth": 1, "vocab_size": 280, "max_length": 16}
    chosen = {"family": "causal_lm", "config": config, "steps": 0, "batch_size": 8, "nets": 1, "amounts": 4}
    found = carried_out(data=str(tmp_path / "long.jsonl"), **chosen)["predicted"]
    train = open_data(str(tmp_path / "long.jsonl")).split("train")
    model = started(TrainSettings(family="causal_lm", config=config), train)
    pieces = len(objective_of(model).pieces(train))
    assert pieces > 3 * len(train) and found["steps"] == round(pieces / 8)


def test_tables_of_embeddings_are_not_counted():
    kind = family("causal_lm")
    net, assets = kind.start(kind.tiny(), kind.toy(32, 0), torch.Generator().manual_seed(0))
    table = net.get_input_embeddings().weight
    assert net.get_output_embeddings().weight is table
    assert runs.outside_embeddings(Model(kind, net, assets)) == sum(p.numel() for p in net.parameters()) - table.numel()


@pytest.mark.parametrize(
    "settings, error, said",
    [
        ({"nets": 3, "amounts": 1}, BadSettings, "3 sizes of nets on 1 amounts of records are too few: the law has 3"),
        ({"nets": 2, "amounts": 3}, BadSettings, "two sizes of nets do not tell a floor from a slope"),
        ({"nets": 3, "smallest": 0.39, "amounts": 3}, BadSettings, "two sizes of nets"),
        ({"nets": 1, "amounts": 3}, BadSettings, "the law has 3 numbers"),
        ({"nets": 1, "largest": 0.3}, ValidationError, "largest say nothing of one net"),
        ({"smallest": 0.5}, ValidationError, "'smallest' 0.5 must be below 'largest' 0.4"),
        ({"family": "forest"}, Refusal, "nothing in this model follows a gradient"),
        ({"family": "gan", "data": "toy:gan"}, Refusal, "players against each other"),
    ],
)
def test_what_it_cannot_say_is_refused(settings, error, said):
    with pytest.raises(error, match=said):
        carried_out(**settings)


def test_the_command_writes_a_page_or_figures(tmp_path):
    words = ["--family", "tabular", "--batch-size", 16, "--steps", 8, "--nets", 3, "--amounts", 2]
    done = onnuri("extrapolate", "--data", "toy:tabular", *words, "--out", tmp_path / "law.html")
    assert done.code == 0 and "predicted" in done.out and "--check" in done.out
    page = (tmp_path / "law.html").read_text(encoding="utf-8")
    assert (
        "<svg" in page
        and "http" not in page.split("<svg")[0].replace("http-equiv", "")
        and "loss on held-out records" in page
    )
    assert onnuri("extrapolate", "--data", "toy:tabular", *words, "--out", tmp_path / "law.json").code == 0
    assert json.loads((tmp_path / "law.json").read_text(encoding="utf-8"))["predicted"]["records"] == 134
    refused(onnuri("extrapolate", "--data", "toy:tabular"), "a new model needs to know its kind")
