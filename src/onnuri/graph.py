"""A model as one ONNX graph: the family's `outputs`, a batch's entries in, values (B, T, D) and mask (B, T) out.

A net that keeps a memory of what it has read can be the family's `steps` instead: the memory's tensors go in and come out too.
Packed weights stay packed: an int8 initializer with a DequantizeLinear node, so that the file is as small as the folder it
came from. Every runtime that reads ONNX is fed from here.
"""

import copy
import logging
import math
import warnings

import torch
from torch import Tensor, nn

from . import hub
from .data import Record, Records
from .errors import Refusal, needs_extra
from .model import Model, count_parameters, with_net
from .weights.attach import bake, is_packed, packed_weights

LARGEST = 1_900_000_000  # bytes that one protobuf file can hold, with room for the graph
NEAR_ZERO = 1e-6  # numbers below it are taken for zero somewhere in the exporter's rules, from 1e-8 on
SHORT = 8  # letters of a short text
LEAST_ROW = 3  # numbers in a row from which lying on a grid of int8 steps is no accident
MEMORY = "memory."
"""What the names of a memory's tensors begin with, before their number; those that come out end in `.next`."""

OPSETS = range(18, 24)
"""Versions of the ONNX operator set that the exporter writes."""

USUAL, STEPPING = 20, 23
"""Those that are written where nothing is said: ONNX Runtime's quantizers do not know the attention of 23, which is one node and
a fifth quicker where one token follows another."""


def graph_of(model: Model, records: Records, opset: int, stepping: bool = False, packing: bool = True):
    """The graph, computing in fp32. `stepping`: that of `steps`, where the net keeps a memory. `packing`: packed matrices are in
    codes. Refusal where one file cannot hold all in float, or the exporter cannot follow the net."""
    if count_parameters(model.net) * 4 > LARGEST:
        raise Refusal("what ONNX is made from holds 2 GB at most", "export --to gguf, or prune and distill first")
    graph = trace(in_float(model), records, opset, stepping)
    if packing and is_packed(model.net):
        pack_initializers(graph)
    return graph


def in_float(model: Model) -> Model:
    """A copy whose packed weights are float again, all in fp32, which every processor computes; factors stay apart."""
    net = copy.deepcopy(model.net)
    for _, base in packed_weights(net).values():
        base.dtype = torch.float32  # codes times scales, not rounded to a shorter type in between
    bake(net, factors=False)
    hub.plain_experts(net)
    return with_net(model, net.float())


class Graph(nn.Module):
    """A net as a function from a batch, and a memory that is not empty, to what the family's `steps` gives; or to its outputs."""

    def __init__(self, model: Model):
        super().__init__()
        self.net, self.family = model.net, model.family

    def forward(self, batch: dict, memory: list) -> tuple:
        if not memory:
            values, mask = self.family.outputs(self.net, batch)
            return values.float(), mask
        (values, mask), kept = self.family.steps(self.net, batch, memory)
        return values.float(), mask, *kept


def two_parts(model: Model, records: Records, count: int) -> tuple[dict, dict]:
    """Two short batches of `count` records, of which one can go on from the other: places are counted on, and a net may not
    know many."""
    question = model.family.fields(model.assets)[0]
    before, after = (without_answers(model, records, slice(0, count), question, cut) for cut in (SHORT // 2, SHORT))
    return before, after


def stepping_example(model: Model, records: Records, most: dict) -> tuple[dict, list[Tensor], list[dict]]:
    """(a short batch, a memory to go on from, the axes along which each of its tensors may change); `most`, the largest batch, and
    nothing to go on from where none is kept."""
    before, after = two_parts(model, records, len(next(iter(most.values()))))
    with torch.no_grad():
        _, once = model.family.steps(model.net, before, ())
        _, twice = model.family.steps(model.net, before, once)
    changing = [
        {axis: torch.export.Dim.DYNAMIC for axis in range(one.dim()) if not axis or one.shape[axis] != two.shape[axis]}
        for one, two in zip(once, twice)
    ]
    # an axis of one place would be taken for one that stays so
    single = any(1 in value.shape for value in after.values())
    return (most if single or not twice else after), list(twice), changing


Changing = dict[str, dict[int, int]]
"""{entry of a batch: {axis behind the first: the largest size seen}} of the axes that differ between batches."""


def seen_batch(model: Model, records: Records) -> tuple[dict, Changing]:
    """The largest of several batches of unlike records, answers left out where the questions suffice; and which axes change, with
    the answers too: what a model writes goes on from its question. Where an axis that changes has one place in that batch, and
    would be taken for one that stays so, it is that of answered records."""
    question = model.family.fields(model.assets)[0]
    records = records.some(64)
    batches = [
        without_answers(model, records, slice(i, i + 2 + i % 3), question)
        for i in range(0, max(1, len(records) - 4), 4)
    ]
    batches.append(without_answers(model, records, slice(0, 3), question, SHORT))
    whole = model.collate(records.list())
    sizes = {
        name: {axis: [batch[name].shape[axis] for batch in (*batches, whole)] for axis in range(1, value.dim())}
        for name, value in batches[0].items()
    }
    changing = {
        name: {axis: max(found) for axis, found in each.items() if len(set(found)) > 1} for name, each in sizes.items()
    }
    largest = max(batches, key=lambda batch: sum(t.numel() for t in batch.values()))
    if any(1 in [largest[name].shape[axis] for axis in each] for name, each in changing.items()):
        largest = {name: whole[name][: len(value)] for name, value in largest.items()}
    return largest, changing


def trace(model: Model, records: Records, opset: int, stepping: bool = False):
    """The ONNX graph of `model`. Which axes may change is seen from batches of unlike records."""
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise needs_extra("export", "onnxscript") from None
    example, changing = seen_batch(model, records)
    axes = {
        name: {axis: torch.export.Dim.DYNAMIC for axis in (0, *sizes) if axis < example[name].dim()}
        for name, sizes in changing.items()
    }
    memory, growing = list[Tensor](), list[dict]()
    if stepping:
        example, memory, growing = stepping_example(model, records, example)
    graph = traced(model, (example, memory), (axes, growing), opset)
    for part in [*graph.graph.node, *graph.graph.input, *graph.graph.output, *graph.graph.value_info, *graph.functions]:
        forget_machine(part)
    forget_machine(graph.graph)
    used = {name for node in graph.graph.node for name in node.input}
    for unused in [entry for entry in graph.graph.input if entry.name not in used]:
        graph.graph.input.remove(unused)  # an entry of the batch that only the loss reads
    return graph


def traced(model: Model, example: tuple[dict, list], axes: tuple[dict, list], opset: int):
    """What torch's exporter makes of the net, given a batch and a memory. Refusal where it cannot follow its forward pass."""
    batch, memory = example
    kept = [f"{MEMORY}{number}" for number in range(len(memory))]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it reports that torchvision is absent, as it should be
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                Graph(model).eval(),
                kwargs={"batch": batch, "memory": memory},
                dynamo=True,
                dynamic_shapes=dict(zip(("batch", "memory"), axes)),
                opset_version=opset,
                optimize=False,
                verbose=False,
            )
            assert program is not None
            optimize(program)
            rename(program.model.graph, [*batch, *kept], ["values", "mask", *(f"{name}.next" for name in kept)])
        except Exception as error:  # whatever a forward pass does that a graph cannot say
            raise Refusal(
                f"torch cannot make one graph of this net for inputs of any size: {root_cause(error)}",
                "predict and evaluate run it as it is; quantize makes it smaller",
            ) from error
    return program.model_proto


def optimize(program) -> None:
    """Let the exporter simplify its graph, but not take a sum with 1e-8 for one with zero, as its rules do: that term is
    what keeps a net from dividing by nothing. Under a name that the rules do not know, such sums are left alone."""
    small = [node for node in program.model.graph if node.op_type == "Add" and any(map(is_small, node.inputs))]
    for node in small:
        node.op_type = "SmallAdd"
    program.optimize()
    for node in program.model.graph:
        if node.op_type == "SmallAdd":
            node.op_type = "Add"


def rename(graph, inputs: list[str], outputs: list[str]) -> None:
    """Name what goes in and what comes out; another value that bears one of these names gets a longer one."""
    for node in graph:
        for value in node.outputs:
            if value.name in (*inputs, *outputs):
                value.name = f"{value.name}_within"
    for value, name in (*zip(graph.inputs, inputs), *zip(graph.outputs, outputs)):
        value.name = name


def is_small(value) -> bool:
    """Whether an input of a node is one constant number near zero."""
    from onnx_ir.convenience import get_const_tensor

    constant = get_const_tensor(value) if value is not None else None
    return constant is not None and constant.size == 1 and 0 < abs(float(constant.numpy().item())) < NEAR_ZERO


def root_cause(error: BaseException) -> str:
    """What the innermost error says, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300] or type(error).__name__


def forget_machine(part) -> None:
    """Drop the exporter's stack traces: paths of the machine, and most of a small file."""
    part.ClearField("metadata_props")
    part.ClearField("doc_string")


def without_answers(model: Model, records: Records, part: slice, question: dict, cut: int = 0) -> dict:
    """A batch of these records; those entries that only the answers give are left out where the questions suffice. `cut`: letters
    that are left of each text."""
    found = records.list(part)
    asked = [{name: record[name] for name in question if name in record} for record in found] if question else found
    return model.collate([shortened(record, cut) for record in asked] if cut else asked)


def shortened(record: Record, cut: int) -> Record:
    """A record whose texts are cut: where all texts fill a model to its limit, none would be seen to vary."""
    return {name: value[:cut] if isinstance(value, str) else value for name, value in record.items()}


def pack_initializers(graph) -> None:
    """Replace each matrix whose numbers lie on a grid of int8 steps, as those of a packed net do, by codes and scales.

    Found by looking, since the exporter turns, renames and rescales matrices (a batch norm goes into its convolution).
    """
    from onnx import TensorProto, helper, numpy_helper

    for initializer in list(graph.graph.initializer):
        if initializer.data_type != TensorProto.FLOAT or len(initializer.dims) < 2:
            continue
        name, values = initializer.name, numbers_of(initializer)
        found = on_a_grid(values)
        if found is None:
            continue
        codes, scale = found
        long = [axis for axis, size in enumerate(scale.shape) if size > 1]
        graph.graph.initializer.remove(initializer)
        parts = {f"{name}.codes": codes, f"{name}.scale": scale if len(long) > 1 else scale.flatten()}
        graph.graph.initializer.extend(
            numpy_helper.from_array(part.numpy(), part_name) for part_name, part in parts.items()
        )
        if len(long) > 1:  # experts have a scale for each of their rows, which DequantizeLinear cannot say
            nodes = [
                helper.make_node(
                    "Cast", [f"{name}.codes"], [f"{name}.float"], name=f"{name}.cast", to=TensorProto.FLOAT
                ),
                helper.make_node("Mul", [f"{name}.float", f"{name}.scale"], [name], name=f"{name}.dequantize"),
            ]
        else:
            axis = long[0] if long else 0
            nodes = [helper.make_node("DequantizeLinear", list(parts), [name], name=f"{name}.dequantize", axis=axis)]
        for node in reversed(nodes):
            graph.graph.node.insert(0, node)


def numbers_of(initializer) -> Tensor:
    """Those of a tensor in the graph."""
    from onnx import numpy_helper

    return torch.from_numpy(numpy_helper.to_array(initializer).copy())


def on_a_grid(values: Tensor) -> tuple[Tensor, Tensor] | None:
    """(int8 codes, scales that broadcast) when `values` are whole multiples, up to 127, of one step per row; rows may lie
    along any axis, or along any two where there are three. None when they are not."""
    axes = [(axis,) for axis in range(values.dim())]
    axes += [(0, 1), (0, 2)] if values.dim() == 3 else []
    for rows in axes:
        others = [axis for axis in range(values.dim()) if axis not in rows]
        if math.prod(values.shape[axis] for axis in others) < LEAST_ROW:
            continue  # a single number is always on a grid
        scale = values.abs().amax(others, keepdim=True).clamp_min(1e-30) / 127
        codes = (values / scale).round()
        if bool(((codes * scale - values).abs() <= 1e-4 * scale).all()):
            return codes.to(torch.int8), scale
    return None
