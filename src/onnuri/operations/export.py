"""Write a model for another runtime: ONNX, run by ONNX Runtime, with the same answers as the original.

The graph computes the family's `outputs`: a batch's entries in, values (B, T, D) and mask (B, T) out. Packed weights stay
packed: an int8 initializer with a DequantizeLinear node, so the file is as small as the folder it came from.
"""

import copy
import logging
import warnings
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from .. import measure
from ..attach import bake, packed_weights
from ..data import Data, Records
from ..errors import Refusal, needs_extra
from ..family import Session
from ..model import Model, count_parameters, with_net
from ..operation import Log, Operation, Promise, Result
from ..operation import Settings as Base

LARGEST = 1_900_000_000  # bytes that one protobuf file can hold, with room for the graph


class Settings(Base):
    to: Literal["onnx"] = Field("onnx", description="the runtime to write for")
    opset: int = Field(20, ge=18, le=23, description="version of the ONNX operator set")


def apply(settings: Settings, log: Log, model: Model, data: Data) -> Result:
    """The same model executed by ONNX Runtime."""
    if isinstance(model.net, Session):
        raise Refusal("this model is exported already", "export the model it was made from")
    if not count_parameters(model.net):
        raise Refusal(
            "this model holds no tensors that a graph could compute with", "predict and evaluate run it as it is"
        )
    if count_parameters(model.net) * 4 > LARGEST:
        raise Refusal("an ONNX file holds 2 GB at most", "quantize or distill first")
    log.progress(0, 3, "tracing")
    plain = in_float(model)
    graph = trace(plain, data.records, settings.opset)
    log.progress(1, 3, "packing")
    pack_initializers(graph, model.net)
    log.progress(2, 3, "opening in ONNX Runtime")
    from ..runtimes.onnx import OnnxSession

    session = OnnxSession(graph.SerializeToString())
    session.original = plain.net.to("meta")
    return Result(model=with_net(model, session))


def in_float(model: Model) -> Model:
    """A copy whose packed weights are float again, all in fp32, which every processor computes."""
    net = copy.deepcopy(model.net)
    bake(net)
    return with_net(model, net.float())


class Graph(nn.Module):
    """A net as a function from a batch to the family's outputs."""

    def __init__(self, model: Model):
        super().__init__()
        self.net, self.outputs = model.net, model.family.outputs

    def forward(self, batch: dict) -> tuple:
        values, mask = self.outputs(self.net, batch)
        return values.float(), mask


def trace(model: Model, records: Records, opset: int):
    """The ONNX graph of `model`. Which axes may change is seen from batches of unlike records."""
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise needs_extra("export", "onnxscript") from None
    question = model.family.fields(model.assets)[0]
    records = records[:64]
    batches = [
        without_answers(model, records, slice(i, i + 2 + i % 3), question)
        for i in range(0, max(1, len(records) - 4), 4)
    ]
    example = max(batches, key=lambda batch: sum(t.numel() for t in batch.values()))
    axes = {
        name: {axis: torch.export.Dim.DYNAMIC for axis in range(t.dim()) if axis == 0 or varies(batches, name, axis)}
        for name, t in example.items()
    }
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it reports that torchvision is absent, as it should be
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Graph(model).eval(),
            kwargs={"batch": example},
            dynamo=True,
            dynamic_shapes={"batch": axes},
            opset_version=opset,
            input_names=list(example),
            output_names=["values", "mask"],
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    for part in [
        *graph.graph.node,
        *graph.graph.input,
        *graph.graph.output,
        *graph.graph.value_info,
        graph.graph,
        *graph.functions,
    ]:
        part.ClearField(
            "metadata_props"
        )  # the exporter's stack traces: paths of this machine, and most of a small file
        part.ClearField("doc_string")
    used = {name for node in graph.graph.node for name in node.input}
    for unused in [entry for entry in graph.graph.input if entry.name not in used]:
        graph.graph.input.remove(unused)  # an entry of the batch that only the loss reads
    return graph


def without_answers(model: Model, records: Records, part: slice, question: dict) -> dict:
    """A batch of these records; those entries that only the answers give are left out where the questions suffice."""
    asked = [{name: record[name] for name in question if name in record} for record in records.list(part)]
    return model.collate(asked if question else records.list(part))


def varies(batches: list[dict], name: str, axis: int) -> bool:
    return len({batch[name].shape[axis] for batch in batches}) > 1


def pack_initializers(graph, net: nn.Module) -> None:
    """Replace each initializer that equals a packed weight, as stored or turned, by its codes and a DequantizeLinear."""
    from onnx import helper, numpy_helper

    packed = packed_forms(net)
    for initializer in list(graph.graph.initializer):
        array, name = numpy_helper.to_array(initializer), initializer.name
        if (array.shape, array.tobytes()) not in packed:
            continue
        codes, scale, axis = packed[array.shape, array.tobytes()]
        graph.graph.initializer.remove(initializer)
        parts = {f"{name}.codes": codes, f"{name}.scale": scale}
        graph.graph.initializer.extend(
            numpy_helper.from_array(part.contiguous().numpy(), n) for n, part in parts.items()
        )
        node = helper.make_node("DequantizeLinear", list(parts), [name], name=f"{name}.dequantize", axis=axis)
        graph.graph.node.insert(0, node)


def packed_forms(net: nn.Module) -> dict[tuple, tuple[Tensor, Tensor, int]]:
    """{(shape, bytes) of a packed weight's value: (codes, scales, axis of the scales)}, each matrix turned as well."""
    forms = {}
    for weight, base in packed_weights(net).values():
        if base.scale.shape[0] > 1:
            continue  # fused experts have a scale per expert and row, which one node cannot say
        value, scale, axis = weight.value.detach().float(), base.scale[0, :, 0], base.view.rows[0]
        forms[tuple(value.shape), value.contiguous().numpy().tobytes()] = (base.codes, scale, axis)
        if value.dim() == 2:
            forms[tuple(value.t().shape), value.t().contiguous().numpy().tobytes()] = (base.codes.t(), scale, 1 - axis)
    return forms


def parity(settings: Settings, inputs: dict, result: Result) -> float:
    assert result.model is not None
    return measure.largest_difference(in_float(inputs["model"]), result.model, inputs["data"].split("test")[:64])


OPERATION = Operation(
    "export",
    Settings,
    {"model": "model", "data": "data"},
    "model",
    apply,
    (Promise("largest relative difference to the original's outputs on real records", "at most", 1e-4, parity),),
)
