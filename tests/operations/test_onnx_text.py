"""Language models as ONNX graphs: they go on from what they keep of a text, and their weights lie in codes of 4 and 8 bits."""

import numpy as np
import pytest
import torch
from torch import nn

import folders as F
from command import some
from onnuri import measure, plan, registry, run
from onnuri.data import records_of
from onnuri.decoding import Chooser, written
from onnuri.errors import Refusal
from onnuri.families.next_token import writing
from onnuri.model import open_model, with_net, write_model
from onnuri.operation import Quiet, Result
from onnuri.weights.attach import pack, packed_weights
from onnuri.weights.matrices import weights

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from onnuri.runtimes import groups  # noqa: E402
from onnuri.runtimes import onnx as runtime  # noqa: E402

EXPORT = registry.operation("export")
KINDS = ("llama", "gemma2", "gpt2")
pytestmark = pytest.mark.xdist_group("onnx text")  # a graph that is made serves many tests
TEXTS = ["a", "the book was a joy", "정말 좋아요", "a walk in the rain is awful and dull"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("text")


@pytest.fixture(scope="module")
def exported(place):
    """(kind, precision) -> (model, data, exported model)."""
    known = {}

    def make(kind: str, precision: str = "fp32"):
        folder = place / kind
        if not folder.exists():
            F.save(kind, folder)
        if (kind, precision) not in known:
            texts = F.write_texts(place / "texts.jsonl", "text")
            settings = plan.settings_of(EXPORT, {"precision": precision})
            found = run.opened(EXPORT, settings, {"model": str(folder), "data": str(texts)}, {})
            known[kind, precision] = (found, EXPORT.apply(settings, Quiet(), **found).model)
        found, result = known[kind, precision]
        return found["model"], found["data"], result

    return make


def continued(net, assets, count=12):
    prompts = [assets.tokenizer(text).input_ids for text in TEXTS]
    with torch.no_grad():
        return written(writing(net, assets), prompts, count, Chooser([None] * len(prompts), ()))


@pytest.mark.parametrize("kind", some(KINDS, ("gemma2",)))
def test_a_text_goes_on_from_what_the_graph_keeps(kind, exported):
    """Prompts of unlike lengths in one batch, with attention that slides as well; and nothing before the new token is read."""
    model, data, other = exported(kind)
    assert measure.largest_difference(model, other, data.split("test")) < 1e-4
    read, real = [], other.net.session.run
    other.net.__dict__["session"] = type(
        "Spy", (), {"run": lambda _, outputs, given: read.append(given) or real(outputs, given)}
    )()
    try:
        assert continued(other.net, model.assets) == continued(model.net, model.assets)
    finally:
        other.net.__dict__["session"] = real.__self__
    first, rest = read[:2], read[2:]  # one prompt tells how many scores there are, then come the others
    assert [len(given["input_ids"]) for given in first] == [1, len(TEXTS) - 1]
    assert [given["input_ids"].shape for given in rest] == [(len(TEXTS), 1)] * 11
    longest = max(len(model.assets.tokenizer(text).input_ids) for text in TEXTS)
    assert [given["memory.0"].shape[1] for given in read] == [0, 0, *range(longest, longest + 11)]


@pytest.mark.parametrize("precision", some(("int8", "int4"), ()))
def test_a_model_packed_as_usual_is_exported(precision, exported):
    """int8, a scale for each row: the codes are taken over, of whatever width was asked for."""
    model, data, _ = exported("llama")
    packed = open_model(model.folder)
    for weight in weights(packed.net):
        pack(weight, "int8")
    settings = plan.settings_of(EXPORT, {"precision": precision})
    other = EXPORT.apply(settings, Quiet(), model=packed, data=data).model
    assert measure.largest_difference(packed, other, data.split("test")) < 0.02
    found = [each for each in onnx.load_from_string(other.net.graph).graph.initializer if each.name.endswith(".codes")]
    assert len(found) == len(weights(packed.net))


def test_what_stays_in_float_is_told(exported, monkeypatch):
    """Experts are multiplied all at once, by no product of one matrix."""
    model, data, _ = exported("mixtral")
    log = Quiet()
    EXPORT.apply(plan.settings_of(EXPORT, {"precision": "int4"}), log, model=model, data=data)
    assert any("tensors that are multiplied in other ways stay in float" in text for text in log.warnings)


@pytest.mark.parametrize("precision, bits", some({"int8": 8, "int4": 4}.items(), [("int4", 4)]))
def test_weights_lie_in_codes_and_a_shared_table_lies_there_once(precision, bits, exported):
    model, data, other = exported("llama_tied", precision)
    assert measure.largest_difference(model, other, data.split("test")) < {8: 0.05, 4: 0.5}[bits]
    graph = onnx.load_from_string(other.net.graph).graph
    found = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    codes = {name: array for name, array in found.items() if name.endswith(".codes")}
    matrices = {weight.name: weight.matrix[0].shape for weight in weights(model.net)}
    assert len(codes) == len(matrices) and all(array.dtype == np.uint8 for array in codes.values())
    assert not [
        name for name, array in found.items() if array.dtype == np.float32 and array.ndim == 2 and ".scale" not in name
    ]
    table = model.net.get_input_embeddings().weight.shape
    assert sum(array.shape[0] == table[0] and array.nbytes >= table.numel() for array in codes.values()) == 1
    stored = sum(array.nbytes for array in codes.values())
    groups_of = [rows * -(-columns // 32) * 32 for rows, columns in matrices.values()]
    head = table[0] * -(-table[1] // 32) * 32
    assert stored == (sum(groups_of) - head) * bits // 8 + head
    assert {node.op_type for node in graph.node} & {"MatMul", "Gemm"} == set()


def test_codes_of_a_packed_model_go_in_as_they_are(place, exported):
    model, data, _ = exported("llama")
    packed = open_model(model.folder)
    for weight in weights(packed.net):
        pack(weight, "int4", 16 if weight.name.endswith("down_proj.weight") else 32)
    settings = plan.settings_of(EXPORT, {"precision": "int4"})
    graph = onnx.load_from_string(EXPORT.apply(settings, Quiet(), model=packed, data=data).model.net.graph).graph
    found = [numpy_helper.to_array(each) for each in graph.initializer if each.name.endswith(".codes")]
    wanted = [
        base.codes[0] for _, base in packed_weights(packed.net).values() if base.scale.shape[2] * 32 == base.shape[-1]
    ]
    assert wanted
    for codes in wanted:
        assert (
            sum(array.size == codes.numel() and np.array_equal(array.ravel(), codes.numpy().ravel()) for array in found)
            >= 1
        )


@pytest.mark.parametrize("precision", some(("fp32", "int4"), ("int4",)))
def test_a_folder_gives_what_was_exported(precision, exported, tmp_path):
    model, data, other = exported("llama", precision)
    write_model(other, tmp_path / "x")
    again = open_model(tmp_path / "x")
    assert continued(again.net, again.assets) == continued(other.net, model.assets)
    batch = model.collate(data.split("test").list())
    assert torch.equal(again.outputs(batch)[0], other.outputs(batch)[0])


def test_the_promise_of_what_follows_a_memory_can_be_broken(exported, monkeypatch):
    model, data, other = exported("llama")
    settings, inputs, result = EXPORT.settings(), {"model": model, "data": data}, Result(model=other)
    promise = next(promise for promise in EXPORT.promises if "follows a memory" in promise.text)
    assert promise.measure(settings, inputs, result) <= promise.bound
    real = type(other.net).steps
    monkeypatch.setattr(
        type(other.net), "steps", lambda net, batch, memory: real(net, batch, [one * 2 for one in memory])
    )
    assert promise.measure(settings, inputs, result) > 10 * promise.bound


def test_a_memory_is_each_rows_own(exported):
    model, data, other = exported("llama")
    batch = model.collate(data.split("test").list()[:3])
    (_, _), memory = other.net.steps(batch, ())
    (values, _), _ = other.net.steps(batch, memory)
    for row in range(3):
        part = {name: value[row : row + 1] for name, value in batch.items()}
        (alone, _), _ = other.net.steps(part, [tensor[row : row + 1] for tensor in memory])
        torch.testing.assert_close(alone, values[row : row + 1], rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- the codes


def computed(graph, **given):
    return runtime.inference(graph.SerializeToString(), "graph", fused=False).run(None, given)[0]


def graph_with(nodes, inputs, shape, **tensors):
    entries = [helper.make_tensor_value_info(name, kind, size) for name, (kind, size) in inputs.items()]
    made = helper.make_graph(
        nodes, "g", entries, [helper.make_tensor_value_info("values", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )  # fmt: skip
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


@pytest.mark.parametrize("columns", [32, 40, 96])
@pytest.mark.parametrize("form", ["MatMul", "turned", "Gemm"])
def test_products_are_those_of_the_rounded_matrix(columns, form):
    """Any number of columns, however the matrix lies in the file. What is multiplied is rounded to 8 bits: a part in a hundred."""
    draw = np.random.default_rng(0)
    rows = draw.standard_normal((24, columns)).astype(np.float32)
    x, bias = draw.standard_normal((5, columns)).astype(np.float32), draw.standard_normal(24).astype(np.float32)
    names = ["x", "turn"] if form == "turned" else ["x", "matrix"]
    nodes = [helper.make_node("Transpose", ["matrix"], ["turn"], perm=[1, 0])] if form == "turned" else []
    nodes.append(
        helper.make_node("Gemm", [*names, "bias"], ["product"], transB=1)
        if form == "Gemm"
        else helper.make_node("MatMul", names, ["product"])
    )
    nodes.append(helper.make_node("Relu", ["product"], ["values"]))
    matrix = rows.T.copy() if form == "MatMul" else rows
    graph = graph_with(nodes, {"x": (TensorProto.FLOAT, [5, columns])}, [5, 24], matrix=matrix, bias=bias)
    groups.in_groups(graph, 4, [])
    held = {each.name: numpy_helper.to_array(each) for each in graph.graph.initializer}
    low, high = held["matrix.groups.codes"] & 15, held["matrix.groups.codes"] >> 4
    codes = np.stack([low, high], -1).reshape(24, -1, 32).astype(np.float32) - 8
    rounded = (codes * held["matrix.groups.scale"][..., None]).reshape(24, -1)[:, :columns]
    assert np.abs(rounded - rows).max() < 0.5
    wanted = np.maximum(x @ rounded.T + (bias if form == "Gemm" else 0), 0)
    assert np.abs(computed(graph, x=x) - wanted).max() < 0.02 * np.abs(wanted).max()
    assert "matrix" not in held


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("columns", [32, 72])
def test_rows_of_a_shared_table_are_those_of_its_codes(scheme, columns):
    torch.manual_seed(0)
    table = nn.Embedding(50, columns)
    (weight,) = weights(table)
    group = 8 if columns % 32 else 32
    pack(weight, scheme, group)
    numbers = weight.value.detach().numpy()
    nodes = [
        helper.make_node("Gather", ["table", "places"], ["rows"]),
        helper.make_node("Transpose", ["table"], ["turn"], perm=[1, 0]),
        helper.make_node("MatMul", ["rows", "turn"], ["product"]),
        helper.make_node("ReduceSum", ["product"], ["none"]),
        helper.make_node("Identity", ["rows"], ["values"]),
    ]
    graph = graph_with(nodes, {"places": (TensorProto.INT64, [2, 3])}, [2, 3, columns], table=numbers)
    graph.graph.output.append(helper.make_tensor_value_info("none", TensorProto.FLOAT, None))
    bases = [base for _, base in packed_weights(table).values()]
    groups.in_groups(graph, 4, bases)
    places = np.array([[0, 49, 7], [7, 1, 2]])
    apart = np.abs(computed(graph, places=places) - numbers[places]).max()
    assert (
        apart == 0 if columns == 32 else apart < 0.02 * np.abs(numbers).max()
    )  # in groups of 8 no codes can be taken over


def test_a_net_without_products_is_refused():
    nodes = [helper.make_node("Relu", ["x"], ["values"])]
    graph = graph_with(nodes, {"x": (TensorProto.FLOAT, [2, 2])}, [2, 2])
    with pytest.raises(Refusal, match="multiplies with no matrix that could be kept in 4 bits"):
        groups.in_groups(graph, 4, [])


def test_texts_are_written_by_the_graph(exported):
    """What predict asks of a model, without a text of its own."""
    model, _, other = exported("llama")
    records = records_of([{"prompt": text} for text in TEXTS], {"prompt": "text"}, "text").list()
    one, two = (each.sample(records, keys=range(len(records))) for each in (model, with_net(model, other.net)))
    assert [row["text"] for row in one] == [row["text"] for row in two]


def test_a_head_has_8_bits_whatever_stands_behind_its_product():
    matrix = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "inner"], ["product"]),
        helper.make_node("Relu", ["product"], ["active"]),
        helper.make_node("MatMul", ["active", "matrix"], ["logits"]),
        helper.make_node("Mul", ["logits", "factor"], ["scaled"]),
        helper.make_node("Tanh", ["scaled"], ["values"]),
    ]
    graph = graph_with(
        nodes, {"x": (TensorProto.FLOAT, [2, 32])}, [2, 64], matrix=matrix, inner=matrix[:, :32].copy(),
        factor=np.array(0.1, np.float32),
    )  # fmt: skip
    groups.in_groups(graph, 4, [])
    bits = {
        node.input[1]: next(a.i for a in node.attribute if a.name == "bits")
        for node in graph.graph.node
        if "NBits" in node.op_type
    }
    assert bits == {"inner.groups.codes": 4, "matrix.groups.codes": 8}


def test_a_table_that_is_multiplied_the_other_way_is_read_as_it_was():
    table = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "places"], ["rows"]),
        helper.make_node("MatMul", ["rows", "table"], ["product"]),
        helper.make_node("ReduceSum", ["product"], ["none"]),
        helper.make_node("Identity", ["rows"], ["values"]),
    ]
    graph = graph_with(nodes, {"places": (TensorProto.INT64, [2])}, [2, 32], table=table)
    graph.graph.output.append(helper.make_tensor_value_info("none", TensorProto.FLOAT, None))
    groups.in_groups(graph, 4, [])
    found = computed(graph, places=np.array([3, 5]))
    assert np.abs(found - table[[3, 5]]).max() < 0.01 * np.abs(table).max()
