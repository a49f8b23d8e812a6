"""Export in 8 bits: integers are multiplied, the way is chosen by measuring, the folder opens as it was saved."""

import logging

import numpy as np
import pytest

import folders as F
from onnuri import measure, plan, registry, run
from onnuri.errors import Refusal
from onnuri.family import Session
from onnuri.model import open_model, tensor_digest, write_model
from onnuri.operation import Quiet
from onnuri.runtime import ALLOWED
from onnuri.runtimes import integers
from onnuri.weights.attach import pack
from onnuri.weights.matrices import weights

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from onnuri.runtimes import onnx as runtime  # noqa: E402

EXPORT = registry.operation("export")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """name -> (model, data) of a tiny folder, or of a new table net."""
    root, known = tmp_path_factory.mktemp("folders"), {}

    def make(name: str):
        if name not in known:
            if name == "tabular":
                run.execute("train", {"family": name, "steps": 20}, {"data": "builtin:wine"}, root / name, quiet=True)
                data = "builtin:wine"
            else:
                F.save(name, root / name)
                data = str(
                    F.write_pictures(root / f"{name}-pictures", F.LABELS)
                    if name == "resnet"
                    else F.write_texts(root / f"{name}.jsonl", "text", "label")
                )
            known[name] = (root / name, data)
        folder, data = known[name]
        found = run.opened(EXPORT, EXPORT.settings(), {"model": str(folder), "data": data}, {})
        return found["model"], found["data"]

    return make


@pytest.fixture
def quickest(monkeypatch):
    """quickest(way): what the clock will say."""

    def say(way: str) -> None:
        monkeypatch.setattr(
            integers, "milliseconds", lambda sessions, _: {name: 2 - (name == way) for name in sessions}
        )

    return say


def exported(model, data, log=None, **settings):
    chosen = plan.settings_of(EXPORT, {"precision": "int8", **settings})
    result = EXPORT.apply(chosen, log or Quiet(), model=model, data=data)
    assert result.model is not None
    return result.model


def node_types(session: Session) -> set[str]:
    return {node.op_type for node in onnx.load_from_string(session.graph).graph.node}


@pytest.mark.parametrize(
    ("name", "way", "multiplied"),
    [
        ("tabular", "dynamic", "MatMulInteger"),
        ("tabular", "static", "QuantizeLinear"),
        ("resnet", "static", "QuantizeLinear"),
        ("bert", "dynamic", "MatMulInteger"),
    ],
)
def test_integers_are_multiplied_and_the_answers_stay(name, way, multiplied, opened, quickest, tmp_path, capfd):
    quickest(way)
    model, data = opened(name)
    handlers = list(logging.getLogger().handlers)
    result = exported(model, data)
    assert capfd.readouterr() == ("", "") and logging.getLogger().handlers == handlers, "the quantizers' advice"
    assert multiplied in node_types(result.net)
    apart = measure.largest_difference(model, result, data.split("test"))
    assert apart is not None and 0 < apart < ALLOWED["int8"]
    write_model(result, tmp_path)
    again = open_model(tmp_path)
    assert tensor_digest(again.net) == tensor_digest(result.net)
    assert measure.largest_difference(result, again, data.split("test")) == 0


def test_calibration_is_the_same_each_time(opened, quickest):
    quickest("static")
    one, other = (tensor_digest(exported(*opened("tabular")).net) for _ in range(2))
    assert one == other


def test_a_packed_model_is_multiplied_in_integers_too(opened, quickest):
    quickest("dynamic")
    model, data = opened("tabular")
    plain = opened("tabular")[0]
    for weight in weights(model.net, "linear"):
        pack(weight, "int8")
    result = exported(model, data)
    assert "MatMulInteger" in node_types(result.net)
    assert measure.largest_difference(plain, result, data.split("test")) < ALLOWED["int8"]


# ------------------------------------------------------------------------------------------------ packed alone, or fused


def test_only_a_graph_that_says_so_is_fused(opened, quickest, monkeypatch):
    """A packed model's fp32 export holds codes as well; what they are multiplied with must stay float."""
    model, data = opened("tabular")
    for weight in weights(model.net, "linear"):
        pack(weight, "int8")
    asked, before = [], runtime.inference
    monkeypatch.setattr(
        runtime, "inference", lambda graph, artefact, fused: asked.append(fused) or before(graph, artefact, fused)
    )
    packed = exported(model, data, precision="fp32")
    assert "DequantizeLinear" in node_types(packed.net) and asked == [False]
    assert measure.largest_difference(model, packed, data.split("test")) <= ALLOWED["fp32"]
    quickest("static")
    asked.clear()
    session = exported(*opened("tabular")).net
    asked.clear()
    runtime.OnnxSession(session.graph)
    assert asked == [False, True]


# ------------------------------------------------------------------------------------------------------------ the choice


class Weighed(Session):
    """A session of which only the size matters."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def get_extra_state(self) -> bytes:
        return bytes(self.size)


@pytest.mark.parametrize(
    ("times", "way", "warned"),
    [
        ({"": 3.0, "dynamic": 2.0, "static": 1.0}, "static", False),
        ({"": 3.0, "dynamic": 1.0, "static": 2.0}, "dynamic", False),
        ({"": 3.0, "dynamic": 1.0, "static": 0.95}, "dynamic", False),
        ({"": 1.0, "dynamic": 1.2, "static": 2.0}, "static", True),
        ({"": 1.0, "dynamic": 0.98, "static": 2.0}, "static", True),
    ],
)
def test_the_quickest_is_kept_or_the_smallest_where_none_is_quicker(times, way, warned):
    log = Quiet()
    made = {"dynamic": Weighed(20), "static": Weighed(10)}
    assert integers.chosen(made, times, log) == way
    assert bool(log.warnings) == warned and all("hardly quicker" in text for text in log.warnings)


def test_a_way_that_is_wrong_is_not_kept_however_quick(opened, quickest, monkeypatch):
    quickest("static")
    differences = iter([0.01, 0.24])
    monkeypatch.setattr(integers, "gap", lambda *_: next(differences))
    assert "MatMulInteger" in node_types(exported(*opened("tabular")).net)


def test_refused_where_no_way_is_right(opened, monkeypatch):
    monkeypatch.setitem(integers.ALLOWED, "int8", 1e-9)
    with pytest.raises(Refusal, match=r"is promised\n.*fp32"):
        exported(*opened("tabular"))


def test_refused_where_no_quantizer_can(opened, monkeypatch):
    def stumble(graph, batches):
        raise ValueError("no such node")

    monkeypatch.setattr(integers, "static", stumble)
    monkeypatch.setattr(integers, "dynamic", lambda graph, batches: graph)
    with pytest.raises(Refusal, match=r"nothing of this net .* \(static: no such node\)"):
        exported(*opened("tabular"))


def test_the_least_time_of_each_counts():
    class Late(Session):
        def __init__(self, *seconds):
            super().__init__()
            self.left = iter(seconds)

        def forward(self, batch):
            clock[0] += next(self.left, 9.0)

    clock = [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integers.time, "perf_counter", lambda: clock[0])
        patch.setattr(integers, "LEAST_ROUNDS", 0)
        found = integers.milliseconds({"a": Late(8, 0.5, 8, 0.001, 8, 8), "b": Late(8, 4, 0.25, 0.004)}, [{}, {}])
    assert found["a"] == pytest.approx(1e3 * (8 * 0.001) ** 0.5) and found["b"] == pytest.approx(
        1e3 * (0.25 * 0.004) ** 0.5
    )


# -------------------------------------------------------------------------------------------------------------- tables


def test_a_table_is_int8_with_a_scale_for_each_row():
    rows = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32) * np.logspace(-3, 3, 50)[:, None]
    rows[7] = 0
    other = np.ones((8, 3), np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["found"], axis=0),
        helper.make_node("MatMul", ["found", "other"], ["values"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", d]) for name, d in (("found", 8), ("values", 3))],
        [numpy_helper.from_array(rows.astype(np.float32), "table"), numpy_helper.from_array(other, "other")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    integers.tables_in_bytes(model)
    kinds = {each.name: each.data_type for each in model.graph.initializer}
    assert kinds == {"other": TensorProto.FLOAT, "table.codes": TensorProto.INT8, "table.scale": TensorProto.FLOAT}
    onnx.checker.check_model(model)
    session = runtime.inference(model.SerializeToString(), "a graph", fused=True)
    found, values = session.run(None, {"ids": np.arange(50)})
    step = np.abs(rows).max(1, keepdims=True) / 127
    assert (np.abs(found - rows) <= 0.501 * step).all() and np.abs(found - rows).max() > 0
    assert np.allclose(values, found @ other, rtol=1e-5)
