"""Export: what the exporter's rules would silently change, and which runtime is kept."""

import numpy as np
import pytest
import torch

from onnuri import measure, run
from onnuri.errors import BadSettings, Refusal
from onnuri.graph import optimize, rename

ort = pytest.importorskip("onnxruntime")


class Scaled(torch.nn.Module):
    """Root-mean-square scaling: only the small term keeps a row of zeros from being divided by zero."""

    def __init__(self, small: float):
        super().__init__()
        self.small = small

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.small)


@pytest.mark.parametrize("small", [1e-8, 1e-10, 1e-5])
def test_a_small_term_stays(small):
    program = torch.onnx.export(Scaled(small).eval(), (torch.ones(2, 3),), dynamo=True, optimize=False, verbose=False)
    optimize(program)
    rename(program.model.graph, ["x"], ["values"])
    session = ort.InferenceSession(program.model_proto.SerializeToString())
    x = np.array([[0, 0, 0], [1, 2, 3]], dtype=np.float32)
    [found] = session.run(["values"], {"x": x})
    assert np.isfinite(found).all() and np.allclose(found[1], [0.4629, 0.9258, 1.3887], atol=1e-3)


# ---------------------------------------------------------------------------------------------------- whichever is quickest


def test_what_answers_soonest_is_kept(table, tmp_path, monkeypatch):
    """By what each was measured to take; and what could not take the net is named."""
    took = {"TableNet": 3.0, "OnnxSession": 2.0, "OpenvinoSession": 5.0}
    real, asked = measure.latency, []

    def latency(model, records, seed):
        asked.append(type(model.net).__name__)
        return real(model, records, seed) | {"p50": took[asked[-1]]}

    monkeypatch.setattr("onnuri.operations.export.measure.latency", latency)
    inputs = {"model": str(table), "data": "builtin:wine"}
    line = run.execute("export", {"to": "fastest"}, inputs, tmp_path / "x", quiet=True)
    assert asked[:2] == ["TableNet", "OnnxSession"] and line["after"]["runtime"] == "onnx"
    assert line["bars"]["milliseconds of an answer"].items() >= {"torch": 3.0, "onnx": 2.0}.items()
    assert any("gguf: llama.cpp computes language models" in text for text in line["warnings"])
    assert not any("torch is quicker" in text for text in line["warnings"])
    took["OnnxSession"] = 4.0
    line = run.execute("export", {"to": "fastest"}, inputs, tmp_path / "y", quiet=True)
    assert any("torch is quicker here: 3 ms an answer, onnx 4" in text for text in line["warnings"])


def test_where_no_runtime_can_it_is_refused(table, tmp_path):
    with pytest.raises(Refusal, match="no runtime here computes this net in fp16: gguf"):
        run.execute(
            "export",
            {"to": "fastest", "precision": "fp16"},
            {"model": str(table), "data": "builtin:wine"},
            tmp_path / "x",
            quiet=True,
        )


def test_a_setting_that_no_runtime_knows_is_refused(table, tmp_path):
    settings = {"to": "fastest", "precision": "fp16", "opset": 18}
    with pytest.raises(BadSettings, match="reads no ONNX"):
        run.execute("export", settings, {"model": str(table), "data": "builtin:wine"}, tmp_path / "x", quiet=True)
