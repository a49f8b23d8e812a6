"""ONNX Runtime: executes `onnuri/model.onnx` of a model folder on the processor."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data import Records
from ..errors import BadInput, needs_extra
from ..family import Batch, Memory, Outputs, Session
from ..figures import size_text
from ..graph import MEMORY, OPSETS, STEPPING, graph_of
from ..model import Model
from ..operation import Log
from ..runtime import Choice, Runtime
from ..weights.attach import packed_weights
from . import integers
from .groups import in_groups

ARTEFACT = "onnuri/model.onnx"
IN_INTEGERS = "onnuri.computes"
"""The entry of a graph's metadata that says how it multiplies in integers, where it does."""


class OnnxSession(Session):
    """Holds the bytes of an ONNX graph whose inputs are named as the batch's entries and whose outputs are values and mask."""

    runtime = "onnx"
    artefact = ARTEFACT

    def __init__(self, graph: bytes):
        super().__init__()
        self.graph, self.session = graph, opened(graph, self.artefact)
        entries = {entry.name: entry for entry in self.session.get_inputs()}
        self.memory = [entry for name, entry in entries.items() if name.startswith(MEMORY)]
        self.inputs = [name for name in entries if not name.startswith(MEMORY)]

    def __deepcopy__(self, memo: dict) -> "OnnxSession":
        copy = OnnxSession(self.graph)
        copy.original = self.original
        return copy

    def forward(self, batch: Batch) -> Outputs:
        return self.steps(batch, ())[0]

    def steps(self, batch: Batch, memory: Memory) -> tuple[Outputs, Memory]:
        given = {name: batch[name].detach().cpu().numpy() for name in self.inputs}
        kept = [tensor.numpy() for tensor in memory] or [empty(entry, batch) for entry in self.memory]
        given |= {entry.name: one for entry, one in zip(self.memory, kept)}
        values, mask, *kept = map(torch.from_numpy, self.session.run(None, given))
        return (values, mask), kept

    def get_extra_state(self) -> bytes:
        """What stands for the weights, so that digests see it."""
        return self.graph

    def save(self, folder: Path) -> None:
        (folder / ARTEFACT).parent.mkdir(exist_ok=True)
        (folder / ARTEFACT).write_bytes(self.graph)


def empty(entry: Any, batch: Batch) -> np.ndarray:
    """What a memory's tensor is before anything is read: axes of any size are empty, but for that of the records."""
    rows = len(next(iter(batch.values())))
    shape = [size if isinstance(size, int) else 0 for size in entry.shape[1:]]
    return np.zeros((rows, *shape), np.int64 if entry.type == "tensor(int64)" else np.float32)


def opened(graph: bytes, artefact: str) -> Any:
    """ONNX Runtime's session, which multiplies in integers where the graph says that it does."""
    session = inference(graph, artefact, fused=False)
    return (
        inference(graph, artefact, fused=True)
        if IN_INTEGERS in session.get_modelmeta().custom_metadata_map
        else session
    )


def inference(graph: bytes, artefact: str, fused: bool) -> Any:
    """`fused`: codes between a QuantizeLinear and a DequantizeLinear are multiplied as they are. Else int8 codes become
    floats once, at opening: a net of which only the weights are packed would otherwise have what they are multiplied with
    rounded to 8 bits as well (0.3 % off), or be 2 to 30 times slower."""
    try:
        import onnxruntime
    except ImportError:
        raise needs_extra("export", "onnxruntime") from None
    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "0" if fused else "1")
    try:
        # its fallback would be the same processor again, and print about it
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # onnxruntime's own exceptions share no public base class
        raise BadInput(f"{artefact} cannot be run: {str(error).splitlines()[0]}") from error


# --------------------------------------------------------------------------------------------------- making and opening


def make(model: Model, records: Records, choice: Choice, log: Log) -> Session:
    """In 8 bits a net that keeps a memory, whose time goes into reading its weights, has only those in codes."""
    stepping, whole = keeps_memory(model, records), choice.precision == "fp32"
    if choice.precision == "int8" and not stepping:
        return make_int8(model, records, choice, log)
    opset = STEPPING if stepping and "opset" not in choice.model_fields_set else choice.opset
    graph = graph_of(model, records, opset, stepping, packing=whole)
    if not whole:
        packed = [base for _, base in packed_weights(model.net).values()]
        left = in_groups(graph, int(choice.precision.removeprefix("int")), packed)
        if left:
            log.warn(
                f"{len(left)} tensors that are multiplied in other ways stay in float: {size_text(sum(left.values()))}"
            )
    return OnnxSession(graph.SerializeToString())


def keeps_memory(model: Model, records: Records) -> bool:
    with torch.no_grad():
        return bool(model.family.steps(model.net, model.collate(records.list(slice(0, 1))), ())[1])


def make_int8(model: Model, records: Records, choice: Choice, log: Log) -> Session:
    """Of the ways to compute in integers that which is quickest here, and right."""
    ways = {"dynamic": integers.dynamic, "static": integers.static}
    return integers.quickest(model, records, choice, ways, lambda graph, way: OnnxSession(marked(graph, way)), log)


def marked(graph: Any, way: str) -> bytes:
    """The graph's bytes, with the entry that it multiplies in integers where a way to do so is named."""
    from onnx import helper

    if way:
        helper.set_model_props(graph, {IN_INTEGERS: f"int8, {way}"})
    return graph.SerializeToString()


def open_folder(folder: Path) -> OnnxSession:
    return OnnxSession((folder / ARTEFACT).read_bytes())


RUNTIME = Runtime("onnx", ARTEFACT, ("fp32", "int8", "int4"), OPSETS, make, open_folder)
