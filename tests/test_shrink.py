"""shrink: its front against brute force, its points against their own recipes, its limits, the split that must not choose."""

import json
import random
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from command import leftovers, onnuri, process, refused, some
from onnuri import ledger, registry
from onnuri.conformance.bench import Bench
from onnuri.conformance.operations import faults_of_ways
from onnuri.errors import BadSettings, Refusal
from onnuri.operation import STAGES, Way
from onnuri.recipe import run_recipe
from onnuri.run import execute
from onnuri.shrink import Wish, shrink
from onnuri.shrink.front import Limits, best_of, front_of, limits_of
from onnuri.shrink.points import Point
from onnuri.shrink.proposals import Chain, Move, Search, offers, pairs, singles, text_of
from onnuri.sources import open_data
from test_architecture import SOURCE, words

QUICK = {"steps": 6, "epochs": 1}
"""A training of a moment; its epochs are fixed, so that no two chains are the same work."""

DATA = "builtin:wine"
TRIALS = 14  # models: the ways alone, pairs of them, and some that are proposed


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shrink") / "model"
    new = {"family": "tabular", "config": {"width": 32, "bins": 8, "embedding": 4}, "steps": 40}
    execute("train", new, {"data": DATA}, folder, quiet=True)
    return folder


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory) -> tuple[Path, dict]:
    """A search that was never disturbed: its folder, and what it found."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, shrink(str(model), DATA, out, Wish(score=0.5, trials=TRIALS), QUICK, quiet=True)


def seen(result: dict, *parts: str) -> list:
    """What is the same in every run of the same search: not times, energy or places."""
    for part in parts:
        result = result[part]
    return [(one["point"], one["chain"], one["tensors"], one.get("fault"), *figures(one)) for one in (result or [])]


def figures(one: dict) -> tuple:
    found = one.get("validation")
    return (found["scores"], found["bytes"]) if found else ()


# -------------------------------------------------------------------------------------------------------- what comes of it


def test_the_front_is_what_nothing_beats_and_the_winner_is_within_the_limits(whole, model):
    out, result = whole
    assert result == json.loads((out / "front.json").read_text())
    made = [one for one in result["points"] if "validation" in one]
    front = {one["point"] for one in result["front"]}
    assert len(made) == 1 + TRIALS and len(front) > 1

    def beats(one: dict, other: dict) -> bool:
        mine, theirs = ((-one["scores"]["accuracy"], one["bytes"]) for one in (one["validation"], other["validation"]))
        return mine != theirs and mine[0] <= theirs[0] and mine[1] <= theirs[1]

    for one in made:
        twins = [two["point"] for two in made if figures(two)[1] == figures(one)[1] and two["point"] < one["point"]]
        beaten = any(beats(other, one) for other in made)
        assert (one["point"] in front) == (not beaten and not (set(twins) & front)), one["chain"]

    winner = result["winner"]
    fine = [one for one in made[1:] if one["validation"]["scores"]["accuracy"] >= 0.5]
    assert winner["validation"]["bytes"] <= 1.02 * min(one["validation"]["bytes"] for one in fine)
    assert winner["test"]["records"] == len(open_data(DATA).split("test"))
    assert not ledger.verify(out / "winner") and not leftovers(out)
    line = ledger.read(out / "winner")[-1]
    assert line["output"]["tensors"] == winner["tensors"] and line["after"] == winner["test"]
    page, picture = ((out / name).read_text(encoding="utf-8") for name in ("report.html", "front.svg"))
    assert all(f"onnuri run {out}/points/{one['point']:03d}.yaml" in page for one in made[1:])
    assert picture.startswith("<svg") and "<script src" not in page and f"{made[0]['chain']}: " in picture
    assert {p.name for p in (out / "work").iterdir() if p.is_dir()} == {
        step for one in result["front"] if one["point"] for step in steps_of(out, one["point"])
    } | {".keys"}


def steps_of(out: Path, number: int) -> list[str]:
    import yaml

    return list(yaml.safe_load((out / "points" / f"{number:03d}.yaml").read_text())["steps"])


def test_every_point_is_made_again_by_its_one_command(whole, tmp_path, monkeypatch):
    out, result = whole
    monkeypatch.chdir(tmp_path)  # the recipe means the same from everywhere
    for one in result["front"]:
        if one["point"]:
            again = run_recipe(str(out / "points" / f"{one['point']:03d}.yaml"), quiet=True)
            assert again["steps"][-1]["tensors"] == one["tensors"]
            assert again["steps"][-1]["scores"] == one["test"]["scores"]
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_ways_alone_come_first_then_pairs(whole):
    _, result = whole
    chains = [one["operations"] for one in result["points"][1:]]
    alone = [len(chain) for chain in chains[: len(singles(offers({})))]]
    assert set(alone) == {1} and len(chains[len(alone)]) == 2
    assert max(map(len, chains)) >= 2 and all(chain for chain in chains)


# ---------------------------------------------------------------------------------------------------- again, and further


def test_the_same_seed_finds_the_same_and_another_one_something_else(whole, model, tmp_path):
    _, result = whole
    for seed, same in ((0, True), (1, False)):
        wish = Wish(score=0.5, trials=TRIALS, seed=seed)
        again = shrink(str(model), DATA, tmp_path / str(seed), wish, QUICK, quiet=True)
        assert (seen(again, "points") == seen(result, "points")) == same
        assert not same or seen(again, "front") == seen(result, "front")


def test_what_is_known_is_not_made_again_and_more_trials_go_further(whole, model, tmp_path):
    out, result = tmp_path / "out", whole[1]
    shutil.copytree(whole[0], out)
    stamps = {path: path.stat().st_mtime_ns for path in (out / "points").glob("*.json")}
    again = shrink(str(model), DATA, out, Wish(score=0.5, trials=TRIALS), QUICK, quiet=True)
    assert seen(again, "points") == seen(result, "points") and seen(again, "front") == seen(result, "front")
    more = shrink(str(model), DATA, out, Wish(score=0.5, trials=TRIALS + 2), QUICK, quiet=True)
    known = len(result["points"])
    assert seen(more, "points")[:known] == seen(result, "points") and len(more["points"]) >= known + 2
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}


def test_the_test_split_chooses_nothing(tmp_path):
    """Two sources that differ in the answers of their test rows alone: the same points, front and winner."""
    frame = pl.DataFrame([dict(record) for record in open_data("builtin:iris").records])
    results = []
    frame = frame.sample(fraction=1, shuffle=True, seed=0)
    for name in ("right", "wrong"):
        folder = tmp_path / name
        folder.mkdir()
        test = frame[100:] if name == "right" else frame[100:].with_columns(pl.col("label").reverse())
        frame[:100].write_csv(folder / "train.csv")
        test.write_csv(folder / "test.csv")
        if name == "right":
            new = {"family": "tabular", "config": {"width": 16, "bins": 8}, "steps": 40}
            execute("train", new, {"data": str(folder)}, tmp_path / "model", quiet=True)
        wish = Wish(score=0.3, trials=8)
        results.append(shrink(str(tmp_path / "model"), str(folder), tmp_path / f"out-{name}", wish, QUICK, quiet=True))
    one, other = results
    assert seen(one, "points") == seen(other, "points") and one["winner"]["point"] == other["winner"]["point"]
    assert one["winner"]["test"]["scores"] != other["winner"]["test"]["scores"], "the answers were changed"
    assert one["winner"]["validation"]["records"] == len(open_data(str(tmp_path / "right")).split("validation"))


# ------------------------------------------------------------------------------------------------------------------ limits


def point(number: int, score: float, size: int, ms: float = 1.0, better: str = "up", metric: str = "accuracy") -> Point:
    measured = {"headline": [metric, better], "scores": {metric: score}, "bytes": size, "latency_ms": {"p50": ms}}
    return Point(number, str(number), "x", ("x",), measured | {"interval": [score - 0.1, score + 0.1]})


def asked(original: Point, size: str = "", latency: float | None = None, score: float | None = None) -> Limits:
    return limits_of(original.measured, size, latency, score)


def test_the_best_score_within_the_limits_or_the_smallest_that_keeps_it():
    whole = point(0, 0.9, 1000)
    points = [
        point(1, 0.89, 400),
        point(2, 0.895, 500, 3.0),
        point(3, 0.88, 90),
        point(4, 0.5, 10),
        point(5, 0.89, 401),
    ]
    for limits, best in (
        (asked(whole), 1),
        (asked(whole, score=0.6), 3),
        (asked(whole, size="0.5"), 2),
        (asked(whole, size="499"), 1),
        (asked(whole, size="0.1kB"), 3),
        (asked(whole, size="10B"), 4),
        (asked(whole, latency=2.0), 1),
        (asked(whole, size="0.1", latency=2.0, score=0.88), 3),
        (asked(whole, size="0.05", score=0.88), None),
        (asked(whole, size="9"), None),
    ):
        found = best_of(points, limits)
        assert (found and found.number) == best, limits
    assert [one.number for one in front_of(points, asked(whole))] == [4, 3, 1, 2]
    assert [one.number for one in front_of(points, asked(whole, latency=2.0))] == [4, 3, 1, 2]


def test_a_byte_more_does_not_outweigh_a_score():
    points = [point(1, 0.891, 4000), point(2, 0.899, 4001), point(3, 0.9, 5000)]
    assert best_of(points, asked(point(0, 0.9, 10000))) is points[1]
    assert best_of(points[::-1], asked(point(0, 0.9, 10000), size="4000")) is points[0]


def test_of_a_score_that_is_better_when_low_the_limits_are_upper_ones():
    whole = point(0, 3.0, 1000, better="down", metric="perplexity")
    points = [point(n, s, b, better="down", metric="perplexity") for n, s, b in ((1, 3.05, 500), (2, 3.2, 100))]
    for limits, best in (
        (asked(whole), 1),  # within the interval
        (asked(whole, score=3.3), 2),
        (asked(whole, size="0.9"), 1),
        (asked(whole, score=2.9), None),
    ):
        found = best_of(points, limits)
        assert (found and found.number) == best, limits


def test_equal_points_are_one_and_every_front_is_what_brute_force_finds():
    draw, whole = random.Random(0), point(0, 0.9, 1000)
    for latency in (None, 2.0):
        limits = asked(whole, latency=latency)
        for _ in range(40):
            points = [point(n, draw.randint(0, 4) / 4, draw.randint(1, 5), draw.randint(1, 3)) for n in range(12)]

            alone = {}
            for one in points:
                facts = one.measured
                size, ms = facts["bytes"], facts["latency_ms"]["p50"]
                alone.setdefault((-facts["scores"]["accuracy"], size, *([ms] if latency else [])), one)
            best = {
                one.number
                for mine, one in alone.items()
                if not any(other != mine and all(b <= a for a, b in zip(mine, other)) for other in alone)
            }
            assert {one.number for one in front_of(points, limits)} == best


def test_limits_are_kept_and_what_nothing_meets_says_what_came_closest(whole, model, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    search = (
        "shrink",
        model,
        "--data",
        DATA,
        "--trials",
        TRIALS,
        "--set",
        "steps=6",
        "--set",
        "epochs=1",
        "--out",
        out,
    )
    sizes = sorted(one["validation"]["bytes"] for one in whole[1]["points"][1:] if "validation" in one)
    found = onnuri(*search, "--size", sizes[2], "--json")
    assert found.code == 0 and json.loads(found.out)["winner"]["validation"]["bytes"] <= sizes[2]
    said = refused(onnuri(*search, "--size", "100B"), "a size of at most", "closest came point", "onnuri run")
    assert f"{out}/points/" in said
    report = json.loads((out / "front.json").read_text())
    made = [one for one in report["points"] if "validation" in one]
    assert report["winner"] is None and len(made) == TRIALS + 1
    assert "No model within the limits" in (out / "report.html").read_text(encoding="utf-8")
    refused(onnuri(*search, "--score-at-least", 1.01, "--json"), "accuracy of at least 101.0")
    assert onnuri(*search, "--latency", 10000, "--score-at-least", 0.5).code == 0


def test_what_is_asked_wrongly_is_told_before_anything_is_spent(model, tmp_path):
    base = ("shrink", model, "--data", DATA, "--out", tmp_path / "out")
    for more, *says in (
        (("--set", "epoch=1"), "epochs", "--set NAME=VALUE"),
        (("--set", "steps=many"), "setting 'steps'"),
        (("--size", "small"), "neither bytes nor a share"),
        (("--size", "0"), "neither bytes nor a share"),
        (("--size", "nan"), "neither bytes nor a share"),
        (("--latency", "0", "--minutes", "-1"), "'latency': must be a number above 0", "'minutes'"),
        (("--latency", "nan", "--score-at-least", "inf"), "'latency'", "'score_at_least': must be a number"),
        (("--trials", "0"), "--trials"),
        (("--trial", "3"), "--trials"),
    ):
        refused(onnuri(*base, *more), *says)
        assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    refused(onnuri(*base[:-1], tmp_path / "mine"), "holds no search")
    refused(onnuri("shrink", tmp_path / "no", "--data", DATA, "--out", tmp_path / "out"), "is not a folder")
    refused(onnuri("shrink", model, "--data", "no.csv", "--out", tmp_path / "out"), "no.csv")
    assert not (tmp_path / "out").exists()


def test_without_its_library_it_names_the_extra(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    refused(onnuri("shrink", model, "--data", DATA, "--out", tmp_path / "out"), "pip install 'onnuri[search]'")


def test_minutes_end_a_search(model, tmp_path):
    result = shrink(str(model), DATA, tmp_path / "out", Wish(score=0.0, minutes=1e-6), QUICK, quiet=True)
    assert len(result["points"]) == 2, "a point that was begun is finished"


def test_the_command_says_what_it_found_as_a_process(model, tmp_path):
    words = ("shrink", model, "--data", DATA, "--trials", 3, "--score-at-least", 0.3, "--set", "steps=4", "--out", "o")
    done = process(*words, folder=tmp_path)
    assert done.code == 0 and "* the winner: o/winner, again by onnuri run o/points/" in done.out, done
    assert "optuna" not in done.err and "Warning" not in done.err and "001  " in done.err
    again = process("run", done.out.split("again by onnuri run ")[1].split()[0], "--json", folder=tmp_path)
    assert again.code == 0, again


# ------------------------------------------------------------------------------------------------------------ every family


@pytest.mark.parametrize("family", some(registry.entries("families"), ("causal_lm", "forest", "gan", "tabular")))
def test_every_family_is_searched_or_refused_from_emptiness(family, tmp_path):
    bench, data = Bench(family, tmp_path), f"toy:{family}"
    try:
        metric, better = shrink_worst(bench.model)
        trials = 7 if family == "diffusion" else 12  # its answers take many steps each
        wish = Wish(score=-1e9 if better == "up" else 1e9, trials=trials)
        result = shrink(str(bench.model), data, tmp_path / "out", wish, QUICK | {"size": 0.5}, quiet=True)
    except Refusal as error:
        assert "nothing that makes a model smaller can be done to this one" in str(error)
        assert all(name in str(error) for name in {offer.operation.name for offer, _ in singles(offers({}))})
        return
    assert result["winner"]["validation"]["bytes"] < result["points"][0]["validation"]["bytes"]
    assert result["winner"]["test"]["headline"][0] == metric and not ledger.verify(tmp_path / "out" / "winner")
    assert any(len(one["operations"]) > 1 for one in result["points"] if "validation" in one)


def shrink_worst(folder: Path) -> list[str]:
    return ledger.read(folder)[-1]["after"]["headline"]


# --------------------------------------------------------------------------------------------------- proposals and offers


def test_what_operations_offer_is_legal():
    stages = set()
    for name in registry.entries("operations"):
        operation = registry.operation(name)
        assert faults_of_ways(operation) == []
        stages |= {way.stage for way in operation.shrinks}
    assert {"design", "repair", "format"} <= stages <= set(STAGES)


@pytest.mark.parametrize(
    "way, says",
    [
        (Way("size", {}), "known: design"),  # type: ignore[arg-type]
        (Way("format", {}, "data"), "make a model from 'data'"),
        (Way("format", {"scheme": ("int8", "bf16"), "group": (0, 32)}), "group"),
        (Way("format", {"schem": ("int8",)}), "did you mean scheme"),
        ({"scheme": ("int8",)}, "no Way"),
    ],
)
def test_an_offer_that_is_illegal_is_found(way, says):
    operation = replace(registry.operation("quantize"), shrinks=(way,))
    assert any(says in fault for fault in faults_of_ways(operation))


def test_a_chain_is_what_its_picks_say():
    search = Search(offers({}), 0, 2)
    chains = {text_of(chain): chain for chain in (search.drawn() for _ in range(300)) if chain}
    assert len(chains) > 100
    for chain in chains.values():
        picks = search.picks(chain)
        again = search.chain_of(
            lambda name, picks=picks: (
                picks[name] if isinstance(picks[name], str) else search.values_of(name)[picks[name]]
            )
        )
        assert again == chain
        order = [STAGES.index(next(o.way.stage for o in search.found if o.name == move.way)) for move in chain]
        assert order == sorted(set(order)) and STAGES[order[0]] != "repair"


def test_proposals_are_new_and_end_when_all_were_tried():
    found = [offer for offer in offers({"epochs": 1}) if offer.way.stage in ("format", "repair")]
    search = Search(found, 0, 2)
    tried = []
    for chain in search.proposals():
        tried.append(text_of(chain))
        search.tell(chain, (0.0, 0.0), {})
    every = {text_of(chain) for chain in (search.drawn() for _ in range(2000)) if chain}
    assert len(tried) == len(set(tried)) and set(tried) == every


def test_what_refuses_the_result_of_a_way_is_not_tried_behind_it_again():
    search = Search(offers({}), 0, 2)
    first, last = pairs(search.found)[0]
    search.tell_fault((first, last), False)
    assert any(search.is_new(chain) and both(chain, first, last) for chain in (search.drawn() for _ in range(500)))
    search.tell_fault((first, last), True)
    drawn = [chain for chain in (search.drawn() for _ in range(500)) if search.is_new(chain)]
    assert len(drawn) > 50 and not any(both(chain, first, last) for chain in drawn)


def both(chain: Chain, one: Move, other: Move) -> bool:
    return one.way in {move.way for move in chain} and other.operation in {move.operation for move in chain}


def test_proposals_turn_to_what_was_found_good():
    """Of all chains a third end with the way that is good here; of what is proposed after a while, most do."""

    def is_good(chain: Chain) -> bool:
        return chain[-1].way == ends[-1]

    ends = [offer.name for offer in offers({}) if offer.way.stage == STAGES[-1]]
    search, found = Search(offers({}), 0, 2), []
    by_chance = [is_good(chain) for chain in (search.drawn() for _ in range(500)) if chain]
    for chain in search.proposals():
        found.append(is_good(chain))
        search.tell(chain, (0.0 if found[-1] else 1.0, 0.0), {})
        if len(found) == 40:
            break
    assert sum(by_chance) < 0.45 * len(by_chance) and sum(found[20:]) >= 0.6 * 20


def test_what_is_set_holds_for_every_operation_that_has_it_or_for_one():
    for offer in offers({"epochs": 2, "quantize.scheme": "bf16", "distill.seed": 3}):
        settings = offer.move({}).settings
        if "epochs" in offer.operation.settings.model_fields:
            assert settings["epochs"] == 2 and "epochs" not in offer.open
        assert offer.operation.name != "quantize" or settings["scheme"] == "bf16"
        assert settings.get("seed", 0) == (3 if offer.operation.name == "distill" else 0)
    with pytest.raises(BadSettings, match=r"distill\.epochs"):
        offers({"distil.epochs": 1})


def test_pairs_join_every_other_stage_with_the_last():
    found = offers({})
    ends = {one.name for one in found if one.way.stage == STAGES[-1]}
    assert all(chain[1].way in ends and chain[0].way not in ends for chain in pairs(found)) and pairs(found)
    assert pairs([offer for offer in found if offer.name not in ends]) == []


@pytest.mark.parametrize("path", sorted(SOURCE.glob("shrink/*.py")), ids=lambda path: path.name)
def test_the_searcher_names_no_operation_and_no_family(path):
    assert not words(path) & (set(registry.entries("operations")) | set(registry.entries("families")))
