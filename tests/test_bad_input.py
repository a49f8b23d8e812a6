"""What people and downloads get wrong: one clear message, exit code 2, no trace, nothing finished harmed, nothing left over."""

import json
import os
import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from command import SMALL, leftovers, onnuri, process, refused
from onnuri import ledger
from onnuri.errors import BadInput
from onnuri.run import execute
from onnuri.sources import open_data

TRAIN = ("train", "--family", "tabular", "--steps", 3)


@pytest.fixture(scope="module")
def origin(tmp_path_factory) -> Path:
    """A small model of iris, one packed, one exported; never changed."""
    folder = tmp_path_factory.mktemp("bad")
    iris = {"data": "builtin:iris"}
    execute("train", {"family": "tabular", "config": SMALL, "steps": 20}, iris, folder / "model", quiet=True)
    execute("quantize", {}, {"model": str(folder / "model"), **iris}, folder / "packed", quiet=True)
    execute("export", {}, {"model": str(folder / "model"), **iris}, folder / "onnx", quiet=True)
    return folder


@pytest.fixture
def place(origin, tmp_path) -> Iterator[Path]:
    """A copy of the models; afterwards nothing unfinished lies there and the origin still verifies."""
    for name in ("model", "packed", "onnx"):
        shutil.copytree(origin / name, tmp_path / name)
    yield tmp_path
    assert not leftovers(tmp_path) and not ledger.verify(origin / "model")


def evaluated(folder: Path, *words):
    return onnuri("evaluate", folder, "--data", "builtin:iris", *words)


# --------------------------------------------------------------------------------------------------------------- commands


def test_as_a_process_too(tmp_path):
    message = refused(process("train", "--data", "builtin:iris", "--epoch", 3, "--lerning-rate", 1, folder=tmp_path))
    assert "did you mean --epochs" in message and "did you mean --learning-rate" in message
    refused(process(*TRAIN, "--data", "no.csv", "--out", "m", "--json", folder=tmp_path), "no.csv does not exist")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian"], "did you mean train"),
        (["train"], "--data"),
        (["evaluate", "--data", "builtin:iris"], "MODEL"),
        (["train", "--family", "tabular", "--data", "builtin:iris"], "needs --out"),
        (["train", "--data", "builtin:iris", "--out", "m"], "--family"),
        (["train", "--family", "tabluar", "--data", "builtin:iris", "--out", "m"], "did you mean tabular"),
        (["train", "--family", "tabular", "--data", "builtin:irs", "--out", "m"], "did you mean iris"),
        (["train", "--family", "tabular", "--data", "toy:tabluar", "--out", "m"], "did you mean tabular"),
        ([*TRAIN, "--data", "builtin:iris", "--out", "m", "--config", "widht=3,layer=2"], "did you mean width"),
        ([*TRAIN, "--data", "builtin:iris", "--out", "m", "--config", "width"], "not NAME=VALUE"),
        ([*TRAIN, "--data", "builtin:iris", "--out", "m", "--config", "width=["], "cannot be read"),
        ([*TRAIN, "--data", "builtin:iris", "--out", "m", "--config", "width=2020-01-01"], "cannot be read"),
        ([*TRAIN, "--data", "builtin:iris", "--out", "m", "--config", "width=x"], "'width' must be"),
        ([*TRAIN, "--data", "builtin:iris", "--out", "m", "--epochs", "inf"], "finite"),
        ([*TRAIN, "--data", "builtin:iris", "--out", "m", "--epochs", "nan"], "'epochs'"),
        ([*TRAIN, "--data", "builtin:iris", "--out", "m", "--steps", "1.5"], "integer"),
        ([*TRAIN, "--data", "builtin:iris", "--out", "m", "--answer", "labl"], "did you mean label"),
        ([*TRAIN, "--data", "builtin:iris", "--out", "m", "--fields", "label=categori"], "did you mean category"),
        ([*TRAIN, "--data", "builtin:iris", "--out", "m", "--fields", "label=3"], "is no kind"),
        ([*TRAIN, "--data", "builtin:iris", "--out", "."], "already exists"),
        ([*TRAIN, "--data", "builtin:iris", "--out", "no/.."], "no name for a result"),
        ([*TRAIN, "--data", "builtin:iris", "--out", "/proc/no/model"], "cannot be written"),
        ([*TRAIN, "--data", "builtin:iris", "--out", "x" * 300], "too long"),
        ([*TRAIN, "--data", "builtin:iris", "--out", "/etc/hostname/m"], "is not a folder"),
        ([*TRAIN, "no-such-folder", "--data", "builtin:iris", "--out", "m"], "is not a folder"),
        (["run", "quikstart"], "did you mean quickstart"),
        (["run", "quickstart", "--set", "dta=x"], "did you mean data"),
        (["run", "quickstart", "--set", "data"], "not NAME=VALUE"),
        (["run", "quickstart", "--set", "data=[1]"], "'data' must be a text"),
        (["run", "no.yaml"], "there is no recipe"),
        (["show", "no-such-folder"], "is not a folder"),
        (["verify", "no-such-folder"], "is not a folder"),
        (["verify", "--wrong", "x"], "--wrong"),
    ],
)
def test_words(words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(onnuri(*words), says)
    assert not [*tmp_path.iterdir()]


def test_all_the_faults_of_the_settings_at_once(tmp_path):
    out = tmp_path / "m"
    message = refused(onnuri("train", "--data", "builtin:iris", "--epoch", 3, "--stps", 2, "--out", out))
    assert "did you mean --epochs" in message and "did you mean --steps" in message
    message = refused(
        onnuri("train", "--data", "builtin:iris", "--epochs", -1, "--warmup", 2, "--seed", "x", "--out", out)
    )
    assert all(f"setting '{name}'" in message for name in ("epochs", "warmup", "seed"))


def test_out_that_would_change_an_input(place):
    rows = place / "rows"
    rows.mkdir()
    (rows / "train.csv").write_text("a,label\n" + "1,x\n2,y\n" * 30)
    refused(onnuri(*TRAIN, "--data", rows, "--out", rows / "m"), "lies inside")
    refused(onnuri("prune", place / "model", "--data", "builtin:iris", "--out", place / "model" / "p"), "lies inside")
    assert not ledger.verify(place / "model") and [p.name for p in rows.iterdir()] == ["train.csv"]
    (place / "link").symlink_to(place / "nowhere")
    refused(onnuri(*TRAIN, "--data", "builtin:iris", "--out", place / "link"), "already exists")


def test_predict_says_so_before_it_works(place):
    refused(onnuri("predict", place / "model", "--data", "builtin:iris"), "needs --out")
    refused(onnuri("predict", place / "model", "--data", "builtin:iris", "--out", place / "x.xlsx"), ".jsonl")
    refused(onnuri("predict", place / "model", "--data", "builtin:iris", "--out", "/proc/no/x.csv"), "")


# ------------------------------------------------------------------------------------------------------------------- data


ROWS = "".join(f"{i % 7}.5,{'xy'[i % 2]}\n" for i in range(100))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.csv", b"", "is empty"),
        ("head.csv", b"a,label\n", "no rows"),
        ("few.csv", b"a,label\n1,x\n", "split is empty"),
        ("one.csv", b"a,label\n" + b"".join(b"%d,x\n" % i for i in range(60)), "only one class"),
        ("inf.csv", f"a,label\ninf,x\n{ROWS}".encode(), "infinite"),
        (
            "hole.csv",
            b"a,label\n" + b"".join(b"%d,%s\n" % (i, [b"x", b"y", b""][i % 3]) for i in range(60)),
            "is empty in",
        ),
        ("noise.csv", random.Random(0).randbytes(5000), "cannot be read"),
        ("noise.parquet", random.Random(0).randbytes(5000), "cannot be read"),
        ("noise.jsonl", random.Random(0).randbytes(5000), "cannot be read"),
        ("korean.csv", "이름,label\n가,나\n".encode("cp949"), "iconv"),
        ("head.tsv", "이름\tlabel\n1\tx\n2\ty\n".encode("cp949"), "not UTF-8"),
        ("utf16.csv", "a,label\n1,x\n".encode("utf-16"), "not UTF-8"),
        ("ragged.csv", b"a,label\n1,x,3\n2,y\n", "cannot be read"),
        ("cut.jsonl", b'{"a": 1, "label": "x"}\n{"a": ', "cannot be read"),
        ("list.jsonl", b"[1, 2]\n", "cannot be read"),
        ("fraction.csv", b"a,y\n" + b"".join(b"%d,%d.5\n" % (i, i) for i in range(60)) + b"1,\n", "is empty in"),
        ("unknown.xyz", b"a", "unknown ending"),
    ],
)
def test_data_files(name, content, says, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    refused(onnuri(*TRAIN, "--data", path, "--out", tmp_path / "m"), says)
    assert [*tmp_path.iterdir()] == [path]


def test_a_folder_named_like_a_table(tmp_path):
    (tmp_path / "x.csv").mkdir()
    refused(onnuri(*TRAIN, "--data", tmp_path / "x.csv", "--out", tmp_path / "m"), "holds no table")
    refused(onnuri(*TRAIN, "--data", tmp_path, "--out", tmp_path.parent / "m"), "")


@pytest.fixture(scope="module")
def iris(origin) -> pl.DataFrame:
    execute("predict", {}, {"model": str(origin / "model"), "data": "builtin:iris"}, origin / "iris.csv", quiet=True)
    return pl.read_csv(origin / "iris.csv").drop("label_scores")


@pytest.mark.parametrize("name", ["evaluate", "prune", "distill", "train"])
def test_rows_that_a_model_cannot_be_judged_by(name, iris, place):
    broken = {
        "missing column": (iris.rename({"petal width (cm)": "petal"}), "petal width (cm)"),
        "no answers": (iris.drop("label"), "'label'"),
        "an empty answer": (
            iris.with_columns(label=pl.concat([pl.Series([None], dtype=pl.String), iris["label"][1:]])),
            "empty",
        ),
        "unseen": (iris.with_columns(label=pl.concat([pl.Series(["tulip"]), iris["label"][1:]])), "never saw: 'tulip'"),
        "of another kind": (iris.with_columns(pl.lit("wide").alias("petal width (cm)")), "asks for number"),
    }
    for frame, says in broken.values():
        frame.write_csv(place / "rows.csv")
        out = [] if name == "evaluate" else ["--out", place / "out"]
        refused(onnuri(name, place / "model", "--data", place / "rows.csv", *out), says)
        assert not (place / "out").exists()


def test_nan_and_infinity_in_the_rows(iris, place):
    nan = iris.with_columns(
        pl.when(pl.int_range(pl.len()) < 5).then(float("nan")).otherwise(pl.col("petal width (cm)"))
    )
    holes = iris.with_columns(pl.lit(float("nan")).alias("petal width (cm)"))
    holes.write_parquet(place / "holes.parquet")
    assert onnuri("evaluate", place / "model", "--data", place / "holes.parquet", "--json").code == 0, (
        "missing, not wrong"
    )
    nan.with_columns(pl.lit(float("inf")).alias("petal width (cm)")).write_parquet(place / "inf.parquet")
    refused(onnuri("evaluate", place / "model", "--data", place / "inf.parquet"), "'petal width (cm)' holds infinite")
    label = nan.with_columns(label=pl.Series([float("nan"), *[i % 2 for i in range(149)]], dtype=pl.Float64))
    label.write_parquet(place / "label.parquet")
    refused(onnuri(*TRAIN, "--data", place / "label.parquet", "--out", place / "out"), "is empty in 1 of")


# ---------------------------------------------------------------------------------------------------------- model folders


def test_weights_that_were_cut_or_are_none(place):
    path = place / "model" / "model.safetensors"
    good = path.read_bytes()
    header = struct.unpack("<Q", good[:8])[0]
    for bad in (b"", good[:4], good[:-1], good[: 8 + header // 2], good[: 8 + header], good + b"x", b"\x80\x02" * 500):
        path.write_bytes(bad)
        assert "model.safetensors" in refused(evaluated(place / "model"))
        refused(onnuri("prune", place / "model", "--data", "builtin:iris", "--out", place / "p"), "model.safetensors")
    path.unlink()
    refused(evaluated(place / "model"), "model.safetensors")


def test_tensors_missing_left_over_or_of_another_shape(place):
    path = place / "model" / "model.safetensors"
    tensors = load_file(path)
    name = max(tensors, key=lambda key: tensors[key].numel())
    for changed, says in (
        ({key: value for key, value in tensors.items() if key != name}, "missing"),
        (tensors | {"extra": torch.zeros(1)}, "unexpected tensor extra"),
        (tensors | {name: torch.zeros(2, 2)}, "mismatched"),
    ):
        save_file(changed, path)
        refused(evaluated(place / "model"), says)


def test_only_a_pickle(place):
    folder = place / "model"
    marker = place / "ran"

    class Bomb:
        def __reduce__(self):
            return (marker.write_text, ("",))

    (folder / "model.safetensors").unlink()
    torch.save(Bomb(), folder / "pytorch_model.bin")
    assert not marker.exists() or marker.unlink() is None
    refused(evaluated(folder), "pickle", "safe_serialization=True")
    (folder / "config.json").write_text('{"model_type": "bert", "architectures": ["BertForSequenceClassification"]}')
    refused(evaluated(folder), "pickle")
    assert not marker.exists()


@pytest.mark.parametrize(
    "where", ["config.json", "tokenizer_config.json", "unet/config.json", "text/processor_config.json"]
)
def test_a_config_that_names_code(where, place):
    path = place / "model" / where
    path.parent.mkdir(exist_ok=True)
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(config | {"part": {"auto_map": {"AutoModel": "evil.Model"}}}))
    refused(evaluated(place / "model"), "auto_map", where, "runs no code")


def test_paths_that_leave_the_folder(place):
    folder = place / "model"
    index = folder / "model.safetensors.index.json"
    outside = place / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    for name in ("../outside.safetensors", str(outside), "a/../../outside.safetensors", "x\0y"):
        index.write_text(json.dumps({"weight_map": {"w": name}}))
        refused(evaluated(folder), "leads outside the folder")
    for wrong in ({}, {"weight_map": []}, {"weight_map": {"w": []}}, {"weight_map": {"w": 1, "v": "x"}}):
        index.write_text(json.dumps(wrong))
        refused(evaluated(folder), "is no index")
    index.unlink()
    (folder / "model.safetensors").symlink_to(outside)
    refused(evaluated(folder), "leads outside the folder")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "model.safetensors")
    refused(evaluated(folder), "leads outside the folder")
    (folder / "model.safetensors").unlink()
    (folder / "sub").symlink_to(place)
    refused(evaluated(folder), "leads outside the folder")


CONFIGS = {
    "list": "[]",
    "text": '"x"',
    "nothing": "",
    "not JSON": "{",
    "deep": "[" * 100_000,
    "deep object": '{"a":' * 50_000 + "1" + "}" * 50_000,
    "nested": '{"a":' * 900 + "1" + "}" * 900,
    "digits": '{"a": ' + "9" * 5000 + "}",
    "binary": "\x00\x01",
    "unknown": '{"model_type": "no such thing"}',
    "types": '{"model_type": 3, "architectures": {"a": 1}, "_class_name": []}',
    "llama": '{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": "x"}',
    "bert": '{"model_type": "bert", "architectures": ["BertForSequenceClassification"], "hidden_size": -3}',
    "vit": '{"model_type": "vit", "architectures": ["ViTForImageClassification"], "image_size": [], "id2label": 3}',
    "no columns": '{"model_type": "onnuri_table_net", "width": 8, "layers": 2, "embedding": 2, "dropout": 0.0, "table": {}}',
    "no table": '{"model_type": "onnuri_table_net", "table": 5}',
    "forest": '{"model_type": "onnuri_forest", "table": []}',
    "gan": '{"model_type": "onnuri_gan", "latent": "x"}',
    "huge": '{"model_type": "onnuri_table_net", "width": 1000000000, "layers": 2, "embedding": 2, "dropout": 0, "table": {}}',
}


OF_OUR_NETS = ("no columns", "no table", "forest", "gan", "huge")


@pytest.mark.parametrize("name", CONFIGS)
def test_configs(name, place):
    folder = place / "model"
    (folder / "config.json").write_text(CONFIGS[name])
    refused(evaluated(folder), "" if name in OF_OUR_NETS else str(folder))
    refused(onnuri("train", folder, "--data", "builtin:iris", "--steps", 2, "--out", place / "out"))
    assert onnuri("verify", folder).code == 2 and not (place / "out").exists()


def test_a_pipeline_with_a_wrong_index(place):
    (place / "model" / "config.json").unlink()
    for text in (
        "[]",
        '{"_class_name": []}',
        '{"_class_name": "DDPMPipeline", "unet": 3}',
        '{"_class_name": "DDPMPipeline"}',
    ):
        (place / "model" / "model_index.json").write_text(text)
        refused(evaluated(place / "model"))


def test_packed_and_exported_folders(place):
    path = place / "packed" / "onnuri" / "packed.safetensors"
    tensors = load_file(path)
    for kinds in ("[]", "{", '{"x": 1}', '{"no such weight": ["float32", "int8"]}', '{"head": ["load", "int8"]}'):
        save_file(tensors, path, metadata={"weights": kinds})
        refused(evaluated(place / "packed"), "packed.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    refused(evaluated(place / "packed"), "packed.safetensors")
    graph = place / "onnx" / "onnuri" / "model.onnx"
    good = graph.read_bytes()
    for bad in (b"", b"garbage", good[: len(good) // 2]):
        graph.write_bytes(bad)
        refused(evaluated(place / "onnx"), "model.onnx")


def test_a_parent_whose_ledger_is_malformed(place):
    for text in ("{}\n", "[", "null\n"):
        (place / "model" / ledger.FILE).write_text(text)
        refused(onnuri("prune", place / "model", "--data", "builtin:iris", "--out", place / "p"), "ledger.jsonl")
        refused(onnuri("show", place / "model"), "ledger.jsonl")
        refused(onnuri("verify", place / "model"), "ledger.jsonl")


# ----------------------------------------------------------------------------------------------------------- faults of ours


def test_a_full_disk_or_a_fault_of_ours_is_one_message_too(tmp_path, monkeypatch):
    from onnuri import model

    def full(*_):
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr(model, "write_model", full)
    refused(onnuri(*TRAIN, "--data", "builtin:iris", "--out", tmp_path / "m"), "No space left on device")
    monkeypatch.setattr(model, "write_model", lambda *_: {}["x"])
    done = onnuri(*TRAIN, "--data", "builtin:iris", "--out", tmp_path / "m")
    assert done.code == 1 and "a fault of Onnuri itself: KeyError" in done.err and "--debug" in done.err
    assert not os.listdir(tmp_path)


def test_a_label_that_only_held_out_rows_have(tmp_path):
    """Rare labels fall where their hashes fall; a new model cannot learn one that no training row has."""
    path, rows = tmp_path / "rows.csv", "".join(f"{i},{'xy'[i % 2]}\n" for i in range(200))
    for number in range(100):
        path.write_text(f"a,label\n{rows}{1000 + number},rare\n")
        if "rare" in set(open_data(str(path)).split("validation").column("label")):
            break
    with pytest.raises(BadInput, match="rare"):
        execute("train", {"family": "tabular", "steps": 9}, {"data": str(path)}, tmp_path / "m", quiet=True)
