"""OpenVINO: the same answers from two files of its own format, in the type that was asked for."""

import pytest
import torch

import folders as F
from command import onnuri, refused
from onnuri import ledger, measure, registry, run
from onnuri.model import open_model, tensor_digest, write_model
from onnuri.runtime import ALLOWED

openvino = pytest.importorskip("openvino")
from onnuri.runtimes import openvino as runtime  # noqa: E402

IN_BF16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
WINE = "builtin:wine"


def apart(one, other, data: str) -> float:
    found = run.opened(registry.operation("export"), None, {"model": str(one), "data": data}, {})
    gap = measure.largest_difference(found["model"], open_model(other), found["data"].split("test"))
    assert gap is not None
    return gap


@pytest.mark.parametrize("precision", ["fp32", "int8", *(["bf16"] if IN_BF16 else [])])
def test_both_files_are_kept_counted_and_open_as_they_were(precision, table, tmp_path):
    settings = {"to": "openvino", "precision": precision}
    line = run.execute("export", settings, {"model": str(table), "data": WINE}, tmp_path / "x", quiet=True)
    assert all(promise["kept"] for promise in line["promises"]) and len(line["promises"]) == 2
    files = [tmp_path / "x" / name for name in (runtime.ARTEFACT, runtime.NUMBERS)]
    assert line["after"]["runtime"] == "openvino"
    assert line["after"]["bytes"] == sum(file.stat().st_size for file in files)
    assert {f"onnuri/{file.name}" for file in files} <= ledger.file_digests(tmp_path / "x").keys()
    difference = apart(table, tmp_path / "x", WINE)
    assert difference <= ALLOWED[precision] and (precision == "fp32" or difference > ALLOWED["fp32"])
    again = open_model(tmp_path / "x")
    (tmp_path / "y").mkdir()
    write_model(again, tmp_path / "y")
    assert tensor_digest(open_model(tmp_path / "y").net) == tensor_digest(again.net) == line["output"]["tensors"]
    assert apart(tmp_path / "x", tmp_path / "y", WINE) == 0


def test_a_changed_number_changes_the_digest(table, tmp_path):
    run.execute("export", {"to": "openvino"}, {"model": str(table), "data": WINE}, tmp_path / "x", quiet=True)
    before, file = tensor_digest(open_model(tmp_path / "x").net), tmp_path / "x" / runtime.NUMBERS
    numbers = bytearray(file.read_bytes())
    numbers[len(numbers) // 2] ^= 1
    file.write_bytes(numbers)
    assert tensor_digest(open_model(tmp_path / "x").net) != before


@pytest.mark.parametrize("name", ["resnet", "bert"])
def test_other_families_answer_alike(name, tmp_path):
    data = (
        F.write_pictures(tmp_path / "p", F.LABELS)
        if name == "resnet"
        else F.write_texts(tmp_path / "t.jsonl", "text", "label")
    )
    F.save(name, tmp_path / "m")
    run.execute(
        "export", {"to": "openvino"}, {"model": str(tmp_path / "m"), "data": str(data)}, tmp_path / "x", quiet=True
    )
    assert apart(tmp_path / "m", tmp_path / "x", str(data)) <= 1e-5


def test_answers_do_not_lie_in_memory_that_the_next_call_uses(table, tmp_path):
    run.execute("export", {"to": "openvino"}, {"model": str(table), "data": WINE}, tmp_path / "x", quiet=True)
    found = run.opened(registry.operation("export"), None, {"model": str(tmp_path / "x"), "data": WINE}, {})
    model, rows = found["model"], found["data"].split("test").list(slice(0, 2))
    first, _ = model.outputs(model.collate(rows[:1]))
    kept = first.clone()
    model.outputs(model.collate(rows[1:]))
    assert torch.equal(first, kept)


def test_what_cannot_be_is_said(table, tmp_path, monkeypatch):
    words = ("export", table, "--data", WINE, "--to", "openvino", "--out", tmp_path / "x")
    refused(onnuri(*words, "--precision", "int4"), "openvino does not compute in int4", "fp32, bf16, int8")

    class Old:
        def get_property(self, device, name):
            return ["FP32", "INT8"]

    with monkeypatch.context() as patch:
        patch.setattr(openvino, "Core", Old)
        refused(onnuri(*words, "--precision", "bf16"), "this processor does not multiply in bf16")
    run.execute("export", {"to": "openvino"}, {"model": str(table), "data": WINE}, tmp_path / "x", quiet=True)
    (tmp_path / "x" / runtime.ARTEFACT).write_text("<net/>")
    refused(
        onnuri("evaluate", tmp_path / "x", "--data", WINE),
        f"{runtime.ARTEFACT} cannot be run",
        "export the model again",
    )
    (tmp_path / "x" / runtime.NUMBERS).unlink()
    refused(onnuri("evaluate", tmp_path / "x", "--data", WINE), f"lacks {runtime.NUMBERS}")
