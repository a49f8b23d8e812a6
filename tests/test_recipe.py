"""Recipes: each step once, whatever is changed, tampered with or killed; a recipe that is none is one message."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from command import SMALL, leftovers, onnuri, process, refused
from onnuri import ledger, recipe
from onnuri.data import SPLITS, digest_of, records_of
from onnuri.errors import BadSettings, BrokenPromise, OnnuriError, Refusal
from onnuri.recipe import read_recipe, run_recipe
from onnuri.sources import Data
from test_cli import imported
from test_ledger import JSON

SHORT = {
    "data": "builtin:iris",
    "start": "tabular",
    "steps": {
        "base": {"train": {"config": SMALL, "steps": 5}},
        "pruned": {"prune": {"model": "base"}},
        "packed": {"quantize": {"model": "pruned"}},
        "other": {"quantize": {"model": "base"}},
    },
}


def written(text: dict | str, path: Path) -> Path:
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(text, sort_keys=False))
    return path


def rerun(result: dict) -> list[str]:
    return [step["name"] for step in result["steps"] if not step["cached"]]


def tensors(result: dict) -> dict[str, str]:
    return {step["name"]: step["tensors"] for step in result["steps"]}


@pytest.fixture
def short(tmp_path) -> tuple[Path, Path]:
    """A recipe that was run: its path and its folder."""
    path, out = written(SHORT, tmp_path / "short.yaml"), tmp_path / "out"
    assert len(rerun(run_recipe(str(path), out, quiet=True))) == 4
    return path, out


# ---------------------------------------------------------------------------------------------------------------- caching


def test_the_second_run_is_cached_without_torch(short):
    path, out = short
    again = process("run", path, "--out", out, "--json", python=("-X", "importtime"))
    result = json.loads(again.out)
    assert again.code == 0 and rerun(result) == [] and not {"torch", "numpy", "polars"} & imported(again.err)
    page = Path(result["report"]).read_text(encoding="utf-8")
    assert all(name in page for name in SHORT["steps"]) and not leftovers(out)
    assert all(not ledger.verify(Path(step["path"])) for step in result["steps"])
    as_text = onnuri("run", path, "--out", out)
    assert as_text.code == 0 and as_text.out.count(" cached\n") == 4 and "report.html" in as_text.out


def test_a_changed_setting_reruns_its_step_and_what_follows(short):
    path, out = short
    before = tensors(run_recipe(str(path), out, quiet=True))
    changed = json.loads(json.dumps(SHORT))
    changed["steps"]["pruned"]["prune"]["share"] = 0.25
    written(changed, path)
    after = run_recipe(str(path), out, quiet=True)
    assert rerun(after) == ["pruned", "packed"]
    assert {name for name in before if before[name] != tensors(after)[name]} == {"pruned", "packed"}
    assert (out / "pruned.previous").is_dir() and not ledger.verify(out / "pruned.previous")


@pytest.mark.parametrize("harm", ["changed", "added", "removed", "ledger", "gone", "key"])
def test_a_harmed_step_is_noticed_and_made_again(short, harm):
    path, out = short
    before, weights = tensors(run_recipe(str(path), out, quiet=True)), out / "pruned" / "model.safetensors"
    if harm == "changed":
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    elif harm == "added":
        (out / "pruned" / "x").write_text("")
    elif harm == "removed":
        weights.unlink()
    elif harm == "ledger":
        (out / "pruned" / ledger.FILE).write_text("[")
    elif harm == "gone":
        shutil.rmtree(out / "pruned")
    else:
        (out / ".keys" / "pruned").write_bytes(b"\xff")
    after = run_recipe(str(path), out, quiet=True)
    assert rerun(after) == ["pruned", "packed"], "what was made from the harmed step refers to its ledger"
    assert tensors(after) == before
    assert rerun(run_recipe(str(path), out, quiet=True)) == []


def test_changed_data_rerun_all(tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("a,label\n" + "".join(f"{i % 9},{'xy'[i % 2]}\n{i},x\n" for i in range(60)))
    path, out = written(SHORT, tmp_path / "r.yaml"), tmp_path / "out"
    words = ("run", path, "--out", out, "--set", f"data={rows}", "--json")
    assert len(rerun(json.loads(onnuri(*words).out))) == 4
    assert rerun(json.loads(onnuri(*words).out)) == []
    rows.write_text(rows.read_text() + "3,y\n")
    assert len(rerun(json.loads(onnuri(*words).out))) == 4
    shutil.rmtree(out / "other")
    (out / "report.html").unlink()
    assert rerun(json.loads(onnuri(*words).out)) == ["other"] and (out / "report.html").exists()


def test_a_fault_in_a_later_step_is_told_before_the_first_one_runs(tmp_path):
    for name, body, says in (
        ("x", {"prune": {"model": "base", "shar": 0.1}}, "did you mean share"),
        ("x", {"prune": {"modl": "base"}}, "prune needs a MODEL"),
        ("x", {"prune": {"model": "bsae"}}, "did you mean base"),
        ("x", {"prune": {"model": "later"}}, "no step before it"),
        ("x", {"prune": {"model": "x"}}, "no step before it"),
        ("x", {"prune": {"model": "base", "data": "no.csv"}}, "do not exist"),
        ("x", {"prunes": {"model": "base"}}, "did you mean prune"),
        ("x", {"prune": ["base"]}, "{OPERATION: {SETTING: VALUE}}"),
        ("x", {"prune": {}, "train": {}}, "{OPERATION: {SETTING: VALUE}}"),
        ("../x", {"prune": {"model": "base"}}, "its name letters"),
        ("x", {"prune": {"model": "base", "share": 2}}, "less than 1"),
        ("x", {"evaluate": {"model": "base"}}, "makes no model"),
        ("x", {"distill": {"model": "base", "family": "tabuler"}}, "did you mean tabular"),
        (
            "x",
            {"distill": {"model": "base", "family": "tabular", "config": {"widht": 8}}},
            "'widht'; did you mean width",
        ),
        ("x", {"train": {"family": "tabular", "config": {"width": 0}}}, "'width' must be a whole number from 1"),
    ):
        steps = {"base": {"train": {"steps": 2}}, name: body, "later": {"prune": {"model": "base"}}}
        path = written({"data": "builtin:iris", "start": "tabular", "steps": steps}, tmp_path / "r.yaml")
        refused(onnuri("run", path, "--out", tmp_path / "out"), f"step '{name}'", says)
        assert not (tmp_path / "out").exists()


def test_what_was_finished_stays_when_a_later_step_fails(tmp_path):
    steps = {"base": {"train": {"config": SMALL, "steps": 2}}, "q": {"quantize": {"model": "base"}}}
    steps |= {"again": {"quantize": {"model": "q"}}, "never": {"prune": {"model": "base"}}}
    path, out = (
        written({"data": "builtin:iris", "start": "tabular", "steps": steps}, tmp_path / "r.yaml"),
        tmp_path / "out",
    )
    refused(onnuri("run", path, "--out", out, "--json"), "packed")
    kept = {name: ledger.read(out / name)[-1]["digest"] for name in ("base", "q")}
    refused(onnuri("run", path, "--out", out), "step 'again' (quantize): ", "packed")
    assert kept == {name: ledger.read(out / name)[-1]["digest"] for name in ("base", "q")}
    assert not (out / "again").exists() and not leftovers(out)


@pytest.mark.parametrize(
    "error",
    [BadSettings("one fault", "another", hint="this"), Refusal("one fault", "this"), BrokenPromise("one fault")],
)
def test_a_fault_found_while_a_step_runs_names_the_step(error, tmp_path, monkeypatch):
    """It stays the error that it was, with its hint, so that the command ends as it would have without a recipe."""

    def fails(*given):
        raise error

    monkeypatch.setattr("onnuri.run.execute", fails)
    hint, count = error.hint, len(error.faults)
    with pytest.raises(type(error)) as caught:
        run_recipe(str(written(SHORT, tmp_path / "short.yaml")), tmp_path / "out", quiet=True)
    assert caught.value is error and error.hint == hint and len(error.faults) == count
    assert str(error).startswith("step 'base' (train): one fault")
    assert all(fault.startswith("step 'base' (train): ") and fault in str(error) for fault in error.faults)
    if isinstance(error, Refusal):
        assert (error.why, error.instead) == ("step 'base' (train): one fault", "this")


def test_a_step_named_as_the_report(tmp_path):
    steps = {"report": {"train": {"config": SMALL, "steps": 2}}}
    path = written({"data": "builtin:iris", "start": "tabular", "steps": steps}, tmp_path / "r.yaml")
    assert rerun(run_recipe(str(path), tmp_path / "out", quiet=True)) == ["report"]
    assert rerun(run_recipe(str(path), tmp_path / "out", quiet=True)) == []


# ------------------------------------------------------------------------------------------------------------------ kills


def test_killed_between_a_folder_and_its_key(short, monkeypatch):
    """The one moment in which a step is whole but its key is not bound to it yet."""
    path, out = short
    digest = ledger.read(out / "pruned")[-1]["digest"]
    text = (out / ".keys" / "pruned").read_text()
    (out / ".keys" / "pruned").write_text(text.split()[0])
    assert rerun(run_recipe(str(path), out, quiet=True)) == [] and ledger.read(out / "pruned")[-1]["digest"] == digest


# ---------------------------------------------------------------------------------------------------------------- reading


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi")
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must be a mapping"),
        ("- a\n", "must be a mapping"),
        ("data: [", "is not a recipe"),
        ("\x00", "is not a recipe"),
        ("data: builtin:iris\n", "needs 'steps'"),
        ("dta: x\nstep: 1\n", "no entry 'dta'"),
        ("data: x\nsteps: [a]\n", "'steps' must be"),
        ("data: {a: 1}\nsteps: {a: {train: {}}}\n", "'data' must be a text"),
        ("data: builtin:iris\nfields: [a]\nsteps: {a: {train: {}}}\n", "'fields' must be"),
        ("data: builtin:iris\nname: ../x\nsteps: {a: {train: {}}}\n", "'name' must be"),
        ("data: builtin:iris\nsteps: {a: {train: {}}, a: {train: {}}}\n", "'a' occurs twice"),
        ("data: builtin:iris\nsteps: &s {a: *s}\n", "nested too deeply"),
        ("data: builtin:iris\nsteps: {a: {train: &t {config: *t}}}\n", "nested too deeply"),
        (BOMB + "data: *i\nsteps: *i\n", "stands for too much"),
        ("data: builtin:iris\nsteps: {a: {train: {seed: 2020-01-01}}}\n", "no text, number"),
        ("data: builtin:iris\nsteps: {a: {train: {seed: !!set {x}}}}\n", "no text, number"),
        ("data: builtin:iris\nsteps: {a: {train: {seed: 2020-99-99}}}\n", "is not a recipe"),
        ("data: !!python/object/apply:os.system [ls]\nsteps: 1\n", "is not a recipe"),
        ('data: "\\ud800"\nsteps: {a: {train: {}}}\n', "is no character"),
        ("[" * 5000, "is not a recipe"),
        ("x" * 2**21, "larger than"),
    ],
)
def test_what_is_no_recipe(text, says, tmp_path):
    refused(onnuri("run", written(text, tmp_path / "r.yaml"), "--out", tmp_path / "out"), says)
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_is_not_text(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    refused(onnuri("run", tmp_path / "r.yaml"), "is not a recipe")
    (tmp_path / "d.yaml").mkdir()
    refused(onnuri("run", tmp_path / "d.yaml"), "is not a recipe")


STEPS = st.dictionaries(
    st.sampled_from(["base", "x", "1", ""]) | st.text(max_size=3),
    st.dictionaries(
        st.sampled_from(["train", "prune", "quantise"]),
        st.dictionaries(st.sampled_from(["model", "data", "seed"]), JSON),
    )
    | JSON,
    max_size=3,
)
RECIPES = st.fixed_dictionaries({"data": st.just("builtin:iris") | JSON, "steps": STEPS | JSON}) | st.dictionaries(
    st.sampled_from(recipe.RECIPE_KEYS) | st.text(max_size=3), JSON, max_size=5
)
YAMLISH = st.text("abz019:-[]{},&*!|>'\"#%?@ \n\t~<=.éё한\x00\x85\u2028\ud800", max_size=60)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(RECIPES.map(lambda value: json.dumps(value)) | YAMLISH | YAMLISH.map(lambda t: f"data: {t}\nsteps:\n a: {t}"))
@example("? [a]\n: b")
@example("steps: {a: {train: {1: 2}}}\ndata: builtin:iris")
def test_any_text_is_a_recipe_or_an_error(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "r.yaml"
    path.write_bytes(ledger.encoded(text))
    try:
        read_recipe(str(path), {})
    except OnnuriError as error:
        assert error.faults and all(error.faults)


# ----------------------------------------------------------------------------------------------------------------- splits


ROWS = st.lists(
    st.fixed_dictionaries({"a": st.floats(allow_nan=False) | st.none(), "b": st.text(max_size=3) | st.none()}),
    max_size=40,
)


def opened(rows: list) -> Data:
    records = records_of(rows, {"a": "number", "b": "category"}, "b")
    return Data("x", records, {}, records)


@given(ROWS, st.randoms(use_true_random=False))
def test_splits_do_not_ask_for_the_order(rows, draw):
    turned = draw.sample(rows, len(rows))
    one, other = (opened(part) for part in (rows, turned))
    assert one.digest == other.digest
    for name in SPLITS:
        assert sorted(map(digest_of, one.records[one.parts[name]])) == sorted(
            map(digest_of, other.records[other.parts[name]])
        )
    assert sum(len(part) for part in one.parts.values()) == len(rows)


def test_a_step_may_give_data_that_later_steps_learn_from(tmp_path):
    words = ["고양이가 집에서 잔다", "아이가 밖에서 읽는다", "강아지가 학교에서 논다", "할머니가 시장에서 웃는다"]
    rows = [{"text": f"{words[i % 4]} {words[i // 4 % 4]} {'가나다라마바사아'[i % 8]}"} for i in range(120)]
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    config = "{hidden_size: 16, num_layers: 1, num_heads: 2, vocab_size: 300, max_length: 32}"
    recipe = tmp_path / "language.yaml"
    recipe.write_text(f"""
data: {tmp_path / "raw.jsonl"}
steps:
  corpus:
    clean: {{bands: 0}}
  model:
    train: {{data: corpus, answer: text, family: causal_lm, steps: 2, config: {config}}}
  packed:
    quantize: {{data: corpus, answer: text, model: model}}
""")
    first = run_recipe(str(recipe), tmp_path / "out", quiet=True)
    assert [step["cached"] for step in first["steps"]] == [False] * 3
    assert "documents kept" in first["steps"][0]["found"] and first["steps"][2]["scores"]
    again = run_recipe(str(recipe), tmp_path / "out", quiet=True)
    assert [step["cached"] for step in again["steps"]] == [True] * 3
    page = (tmp_path / "out" / "report.html").read_text()
    assert "corpus" in page and "documents removed" in page
    recipe.write_text(recipe.read_text().replace("bands: 0", "bands: 0, languages: ko"))
    changed = run_recipe(str(recipe), tmp_path / "out", quiet=True)
    assert [step["cached"] for step in changed["steps"]] == [False] * 3
