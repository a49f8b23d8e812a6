"""ExecuTorch: the same answers from a program for devices, in floats and in 8 bits."""

import json

import pytest
import torch

from command import onnuri, refused
from onnuri import measure, registry, run
from onnuri.errors import BadInput, Refusal
from onnuri.model import Model, count_parameters, open_model, tensor_digest, write_model
from onnuri.operation import Quiet
from onnuri.operations.export import Settings
from onnuri.runtime import ALLOWED
from onnuri.sources import open_data

pytest.importorskip("executorch")
from onnuri.runtimes import executorch as runtime

NETS = [name for name in registry.entries("families") if name != "forest"]
WINE = "builtin:wine"


def made(name: str, precision: str = "fp32"):
    data, family = open_data(f"toy:{name}"), registry.family(name)
    model = Model(family, *family.start(family.tiny(), data.records, torch.Generator().manual_seed(0)))
    session = runtime.make(model, data.split("train"), Settings(to="executorch", precision=precision), Quiet())
    return model, data, session


@pytest.mark.parametrize("name", NETS)
def test_every_family_gives_the_same_answers(name):
    model, data, session = made(name)
    gap = measure.largest_difference(model, Model(model.family, session, model.assets), data.split("test"))
    assert gap is None or gap <= ALLOWED["fp32"]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_folder_is_counted_and_opens_as_it_was(precision, table, tmp_path):
    settings = {"to": "executorch", "precision": precision}
    line = run.execute("export", settings, {"model": str(table), "data": WINE}, tmp_path / "x", quiet=True)
    assert all(promise["kept"] for promise in line["promises"]) and len(line["promises"]) == 2
    assert line["after"]["runtime"] == "executorch"
    assert line["after"]["bytes"] == (tmp_path / "x" / runtime.ARTEFACT).stat().st_size
    one, again = (open_model(tmp_path / "x") for _ in range(2))
    assert tensor_digest(one.net) == tensor_digest(again.net)
    assert count_parameters(one.net) == count_parameters(open_model(table).net)
    (tmp_path / "again").mkdir()
    write_model(one, tmp_path / "again")
    assert tensor_digest(open_model(tmp_path / "again").net) == tensor_digest(one.net)


def test_8_bits_are_smaller(table, tmp_path):
    sizes = {}
    for precision in ("fp32", "int8"):
        settings, out = {"to": "executorch", "precision": precision}, tmp_path / precision
        sizes[precision] = run.execute("export", settings, {"model": str(table), "data": WINE}, out, quiet=True)
    assert sizes["int8"]["after"]["bytes"] < 0.4 * sizes["fp32"]["after"]["bytes"]


def test_the_inputs_are_told_for_an_app(tmp_path):
    model, data, session = made("text_classifier")
    session.original = model.net
    write_model(Model(model.family, session, model.assets), tmp_path)
    told = json.loads((tmp_path / runtime.INPUTS).read_text())
    batch = model.collate(model.asked(data.split("test").some(3).list()))
    assert list(told) == [name for name in batch if name in told]
    assert all(size >= most for name in told for size, most in zip(told[name], batch[name].shape[1:]))


def test_a_record_that_is_too_long_is_told_of():
    model, data, session = made("causal_lm")
    batch = model.collate(data.split("test").some(1).list())
    long = {name: value.repeat_interleave(100, 1) for name, value in batch.items() if value.dim() > 1}
    with pytest.raises(BadInput, match="was made for at most"):
        session(long)


def test_what_is_damaged_or_unknown_is_one_message(table, tmp_path):
    done = onnuri("export", table, "--data", WINE, "--to", "executorch", "--out", tmp_path / "x")
    assert done.code == 0 and "cpuinfo" not in done.err and "torchao" not in done.err
    said = refused(
        onnuri("export", table, "--data", WINE, "--to", "executorch", "--precision", "int4", "--out", tmp_path / "y")
    )
    assert "does not compute in int4" in said
    inputs = tmp_path / "x" / runtime.INPUTS
    inputs.write_text('{"numbers": "many"}')
    assert "must list the inputs" in refused(onnuri("evaluate", tmp_path / "x", "--data", WINE))
    inputs.unlink()
    assert "does not exist" in refused(onnuri("evaluate", tmp_path / "x", "--data", WINE))
    inputs.write_text('{"numbers": [13], "missing": [13]}')
    program = tmp_path / "x" / runtime.ARTEFACT
    program.write_bytes(program.read_bytes()[:2000])
    assert "cannot be run" in refused(onnuri("evaluate", tmp_path / "x", "--data", WINE))


def test_a_net_that_no_program_can_say_is_refused():
    data, family = open_data("toy:forest"), registry.family("forest")
    model = Model(family, *family.start(family.tiny(), data.records, torch.Generator().manual_seed(0)))
    with pytest.raises(Refusal, match="ExecuTorch cannot make a program"):
        runtime.make(model, data.split("train"), Settings(to="executorch"), Quiet())


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_language_model_writes_on_from_its_questions(precision, tmp_path):
    """Records with a prompt: what is written is longer than what was asked."""
    rows = [{"prompt": f"{n} and {m} is", "text": str(n + m)} for n in range(12) for m in range(12)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"data": str(tmp_path / "sums.jsonl")}
    config = registry.family("causal_lm").tiny()
    run.execute("train", {"family": "causal_lm", "config": config, "steps": 6}, data, tmp_path / "m", quiet=True)
    settings, inputs = {"to": "executorch", "precision": precision}, data | {"model": str(tmp_path / "m")}
    line = run.execute("export", settings, inputs, tmp_path / "x", quiet=True)
    assert all(promise["kept"] for promise in line["promises"])
