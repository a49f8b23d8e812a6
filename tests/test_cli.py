"""The commands as they must read, their exit codes, and what they put on stdout."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from safetensors import safe_open

from command import SMALL, leftovers, onnuri, process, refused
from onnuri import ledger, registry
from onnuri.fit import loop as fit
from onnuri.run import execute

NEW = {"family": "tabular", "config": SMALL, "steps": 20}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A small model; tests do not change it."""
    folder = tmp_path_factory.mktemp("cli") / "model"
    execute("train", NEW, {"data": "builtin:iris"}, folder, quiet=True)
    return folder


# ------------------------------------------------------------------------------------------------------------- commands


def test_train_and_evaluate_as_processes(tmp_path):
    trained = process(
        *("train", "--family", "tabular", "--data", "builtin:iris", "--steps", 5, "--out", "m", "--json"),
        folder=tmp_path,
    )
    assert trained.code == 0 and json.loads(trained.out)["operation"] == "train", trained
    assert process("verify", "m", folder=tmp_path).code == 0
    measured = process("evaluate", "m", "--data", "builtin:iris", "--json", folder=tmp_path)
    assert measured.code == 0 and "Traceback" not in measured.err
    report = json.loads(measured.out)
    assert report["operation"] == "evaluate" and report["records"] == 27, "the test split of data it was trained on"
    assert not leftovers(tmp_path)


SETTINGS = {
    "train": ["--steps", "3"],
    "adapt": ["--steps", "3"],
    "distill": ["--steps", "3", "--size", "0.5"],
    "extrapolate": ["--nets", "1", "--amounts", "4"],  # too narrow a model for three sizes
}


TEXT_ONLY = ("generate", "extend")
TAKERS = [
    name
    for name in registry.entries("operations")
    if "model" in registry.operation(name).takes and name not in TEXT_ONLY
]
"""Operations on models, of tables too; the others are on data alone, or refuse what is no text."""


@pytest.fixture(scope="module")
def begin(model, tmp_path_factory):
    """operation -> the words that name its models: an adapter to bake, a baked model to unbake, a second one to merge."""
    root = tmp_path_factory.mktemp("begin")

    def made(operation: str, source: Path, name: str, *words: str) -> Path:
        if not (root / name).exists():
            assert onnuri(operation, source, "--data", "builtin:iris", *words, "--out", root / name).code == 0
        return root / name

    def words(operation: str) -> list:
        more = ["--other", made("train", model, "other", "--steps", "2")] if operation == "merge" else []
        if operation not in ("bake", "unbake"):
            return [model, *more]
        adapter = made("adapt", model, "adapter", "--steps", "2")
        return [adapter if operation == "bake" else made("bake", adapter, "baked")]

    return words


@pytest.mark.parametrize("name", TAKERS)
def test_every_operation_has_the_same_form(name, begin, tmp_path):
    operation = registry.operation(name)
    out = tmp_path / ("out.jsonl" if operation.gives == "records" else "out")
    words = [name, *begin(name), "--data", "builtin:iris", *SETTINGS.get(name, []), "--out", out]
    as_text = onnuri(*words)
    assert as_text.code == 0 and (str(out) in as_text.out or operation.gives == "report"), as_text
    before = out.stat().st_mtime_ns
    refused(onnuri(*words), "already exists", "--out")
    assert out.stat().st_mtime_ns == before and not leftovers(tmp_path)
    if operation.gives == "model":
        assert onnuri("verify", out).code == 0 and onnuri("show", out).code == 0
        life = [line["operation"] for line in ledger.read(out)]
        assert life[0] == "train" and life[1:-1] in ([], ["adapt"], ["adapt", "bake"]) and life[-1] == name


@pytest.mark.parametrize("name", TAKERS)
def test_json_is_one_value_and_nothing_else(name, begin, tmp_path):
    out = tmp_path / ("out.jsonl" if registry.operation(name).gives == "records" else "out")
    done = onnuri(name, *begin(name), "--data", "builtin:iris", *SETTINGS.get(name, []), "--out", out, "--json")
    assert done.code == 0 and json.loads(done.out, parse_constant=pytest.fail)["operation"] == name
    assert done.out.count("\n") == 1
    refused(onnuri(name, *begin(name), "--data", "builtin:iris", "--out", out, "--json"), "already exists")


def test_every_help_page_opens():
    for name in [
        *registry.entries("operations"),
        "run",
        "shrink",
        "show",
        "verify",
        "families",
        "operations",
        "matrix",
        "check",
    ]:
        assert onnuri(name, "--help").code == 0
    for name in ("families", "operations"):
        assert set(onnuri(name).out.split()) > set(registry.entries(name))
    assert onnuri("--version").code == 0 and onnuri().code == 2
    pages = process("--help", python=("-X", "importtime"))
    assert pages.code == 0 and not {"torch", "numpy", "polars"} & imported(pages.err)


def test_what_the_config_of_a_new_model_can_say():
    said = json.loads(onnuri("families", "causal_lm", "--config", "parameters=20e6,max_length=64", "--json").out)
    assert said["hidden_size"] > 256 and said["max_length"] == 64 and "parameters" not in said
    text = onnuri("families", "speech_classifier").out
    assert "--family speech_classifier --config" in text and "mels               40" in text and "from the data" in text
    refused(onnuri("families", "causal_lm", "--config", "depht=2"), "no config entry 'depht'; did you mean depth")
    refused(onnuri("families", "casual_lm", "--json"), "did you mean causal_lm")
    refused(onnuri("families", "--config", "depth=2"), "need the NAME of a family")


def imported(importtime: str) -> set[str]:
    return {line.split("|")[-1].strip() for line in importtime.splitlines() if line.startswith("import time")}


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_predict_writes_the_answers_beside_the_questions(ending, model, tmp_path):
    out = tmp_path / "deep" / f"answers.{ending}"
    done = onnuri("predict", model, "--data", "builtin:iris", "--out", out, "--json")
    assert json.loads(done.out) == {"operation": "predict", "records": 150, "out": str(out)}
    read = {"jsonl": pl.read_ndjson, "csv": pl.read_csv, "parquet": pl.read_parquet}[ending]
    rows = read(out).to_dicts()
    assert len(rows) == 150 and rows[0].keys() >= {"petal width (cm)", "label", "label_scores"}
    scores = rows[0]["label_scores"] if ending == "jsonl" else json.loads(rows[0]["label_scores"])
    assert max(scores, key=scores.get) == rows[0]["label"] and sum(scores.values()) == pytest.approx(1, abs=1e-5)
    assert [*out.parent.iterdir()] == [out]


def test_predict_needs_no_answers_and_reads_none(model, tmp_path):
    rows = pl.DataFrame(json.loads(line) for line in questions(model, tmp_path).read_text().splitlines())
    for name, frame in {
        "none": rows.drop("label"),
        "unknown": rows.with_columns(label=pl.lit("a label of nowhere")),
        "empty": rows.with_columns(label=pl.lit(None, pl.String)),
    }.items():
        frame.write_csv(tmp_path / f"{name}.csv")
        out = tmp_path / f"{name}.jsonl"
        done = onnuri("predict", model, "--data", tmp_path / f"{name}.csv", "--out", out)
        assert done.code == 0, done
        assert out.read_text().count('"label"') == 150


def test_a_column_of_the_user_is_not_overwritten_by_the_scores(model, tmp_path):
    rows = pl.DataFrame(json.loads(line) for line in questions(model, tmp_path).read_text().splitlines())
    rows.with_columns(label_scores=pl.lit("mine")).write_csv(tmp_path / "mine.csv")
    out = tmp_path / "out.jsonl"
    refused(onnuri("predict", model, "--data", tmp_path / "mine.csv", "--out", out), "'label_scores'", "rename")
    assert not out.exists()


def test_whole_numbers_come_back_as_they_went_in(model, tmp_path):
    rows = pl.DataFrame(json.loads(line) for line in questions(model, tmp_path).read_text().splitlines())
    ids = pl.Series([None, 1000, *range(2**60 + 1, 2**60 + len(rows) - 1)])
    rows.with_columns(id=ids).write_csv(tmp_path / "ids.csv")
    onnuri("predict", model, "--data", tmp_path / "ids.csv", "--out", tmp_path / "out.jsonl")
    found = [json.loads(line)["id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found == ids.to_list() and {type(one) for one in found[1:]} == {int}
    onnuri("predict", model, "--data", tmp_path / "ids.csv", "--out", tmp_path / "out.csv")
    assert pl.read_csv(tmp_path / "out.csv")["id"].to_list() == ids.to_list()


def questions(model: Path, folder: Path) -> Path:
    out = folder / "all.jsonl"
    onnuri("predict", model, "--data", "builtin:iris", "--out", out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    out.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "label_scores"}) + "\n" for row in rows))
    return out


def test_flags_have_a_no(model, tmp_path):
    done = onnuri("quantize", model, "--data", "builtin:iris", "--no-embeddings", "--out", tmp_path / "q", "--json")
    assert json.loads(done.out)["settings"]["embeddings"] is False


# -------------------------------------------------------------------------------------------------------- show and verify


def test_show(model, tmp_path):
    shown = onnuri("show", model)
    assert shown.code == 0 and "train" in shown.out and "builtin:iris" in shown.out
    (line,) = json.loads(onnuri("show", model, "--json").out)
    assert line == ledger.read(model)[-1]
    refused(onnuri("show", tmp_path), "has no ledger")
    refused(onnuri("show", tmp_path / "nowhere"), "is not a folder")
    pages = process("show", model, python=("-X", "importtime"))
    assert pages.code == 0 and "torch" not in imported(pages.err)


def test_verify_finds_any_change(model, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    assert onnuri("verify", copy).code == 0
    for path in [p for p in sorted(copy.rglob("*")) if p.is_file()]:
        good = path.read_bytes()
        for place in {0, len(good) // 2, len(good) - 1}:
            path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
            assert verified(copy) == 2, f"byte {place} of {path}"
        for changed in (good[:-1], good + b" ", good + b"\n", b""):
            path.write_bytes(changed)
            assert verified(copy) == 2, f"{len(changed)} of {len(good)} bytes of {path}"
        path.unlink()
        assert verified(copy) == 2, f"{path} is gone"
        path.write_bytes(good)
    for added in (copy / "added.txt", copy / "onnuri" / "x.json", copy / ".hidden"):
        added.write_text("")
        assert verified(copy) == 2, added
        added.unlink()
    (copy / "link").symlink_to("/etc")
    assert verified(copy) == 2
    (copy / "link").unlink()
    assert verified(copy) == 0


def verified(folder: Path) -> int:
    """The exit code; whichever it is, there is no trace, and with --json one value or one message."""
    done = onnuri("verify", folder, "--json")
    assert (done.out == "") != (done.err == ""), done
    assert done.err or json.loads(done.out)["verified"] is (done.code == 0)
    return done.code


def test_verify_finds_an_edited_life(model, tmp_path):
    grown = tmp_path / "grown"
    execute("prune", {}, {"model": str(model), "data": "builtin:iris"}, grown, quiet=True)
    path = grown / ledger.FILE
    lines = ledger.read(grown)
    for number in range(2):
        changed = [dict(line) for line in lines]
        changed[number]["seconds"] += 1
        path.write_text("".join(ledger.canonical(line) + "\n" for line in changed))
        done = onnuri("verify", grown)
        assert done.code == 2 and f"line {number + 1} was changed" in done.out
        changed[number]["digest"] = ledger.digest(changed[number])  # a forger who knows the rule for one line
        path.write_text("".join(ledger.canonical(line) + "\n" for line in changed))
        assert onnuri("verify", grown).code == (2 if number == 0 else 0), "only the last line can be forged unsigned"
    path.write_text(ledger.canonical(lines[1]) + "\n")
    assert onnuri("verify", grown).code == 2, "a life without its beginning"


# ------------------------------------------------------------------------------------------------------- Ctrl-C, kills


LONG = {"family": "tabular", "config": SMALL, "steps": 300, "save_every": 0.0}


def test_ctrl_c_keeps_the_state_and_the_same_command_goes_on(tmp_path, monkeypatch):
    config = ",".join(f"{name}={value}" for name, value in SMALL.items())
    words = [
        "--family",
        "tabular",
        "--config",
        config,
        "--steps",
        "300",
        "--save-every",
        "0.0",
        "--data",
        "builtin:iris",
    ]
    command = [sys.executable, "-m", "onnuri", "train", *words, "--out", "m", "--json"]
    state = tmp_path / ".m.partial" / "state.safetensors"
    running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: state.exists() and step_of(state) >= 5, running)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 2 and out == "" and "Traceback" not in err
    assert err.count("onnuri: stopped") == 1 and "the same command goes on" in err
    assert state.exists() and not (tmp_path / "m").exists()

    steps, step = [], fit.Loop.step
    monkeypatch.setattr(
        fit.Loop, "step", lambda loop, ahead=False: (steps.append(loop.progress.step), step(loop, ahead))
    )
    monkeypatch.chdir(tmp_path)
    resumed = onnuri("train", *words, "--out", "m", "--json")
    assert resumed.code == 0 and steps[0] >= 5 and steps[-1] == 299 and not leftovers(tmp_path)
    whole = execute("train", LONG, {"data": "builtin:iris"}, Path("whole"), quiet=True)
    assert json.loads(resumed.out)["output"]["tensors"] == whole["output"]["tensors"]
    assert json.loads(resumed.out)["curves"] == whole["curves"]


def step_of(state: Path) -> int:
    with safe_open(state, "pt") as file:
        return json.loads(file.metadata()["facts"])["step"]


def wait_for(condition, running: subprocess.Popen) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert running.poll() is None and time.monotonic() < end, running.communicate()
        time.sleep(0.005)


def test_ctrl_c_before_anything_was_done(tmp_path):
    for delay in (0.3, 1.0):
        command = [
            sys.executable,
            "-m",
            "onnuri",
            "train",
            "--family",
            "tabular",
            "--data",
            "builtin:iris",
            "--out",
            "m",
        ]
        running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(delay)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
        assert "Traceback" not in err
        if running.returncode == 0:  # a library swallowed it in an import: then the work is whole
            assert not ledger.verify(tmp_path / "m")
            shutil.rmtree(tmp_path / "m")
        else:
            assert running.returncode == 2 and out == "" and not (tmp_path / "m").exists(), err


def test_two_commands_do_not_write_one_folder(tmp_path):
    import fcntl

    (tmp_path / ".m.partial").mkdir()
    with open(tmp_path / ".m.partial" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        words = ["train", "--family", "tabular", "--data", "builtin:iris", "--steps", "2", "--out", tmp_path / "m"]
        refused(onnuri(*words), "another process is writing")
    assert onnuri(*words).code == 0


def test_a_reader_that_has_seen_enough(model):
    line = f"{sys.executable} -m onnuri show {model} | head -c 1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=os.environ, timeout=60)
    assert done.stderr == ""


def test_a_change_is_not_covered_up_by_the_next_operation(tmp_path):
    """The fault that verify finds goes into the next ledger line, and the timeline shows it."""
    base = tmp_path / "base"
    execute("train", {"family": "tabular", "steps": 3}, {"data": "builtin:iris"}, base, quiet=True)
    with open(base / "README.md", "a") as file:
        file.write("!")
    line = execute("prune", {}, {"model": base, "data": "builtin:iris"}, tmp_path / "next", quiet=True)
    assert any("README.md was changed" in text for text in line["warnings"])
