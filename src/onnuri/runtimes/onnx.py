"""ONNX Runtime: executes `onnuri/model.onnx` of a model folder on the processor."""

from pathlib import Path
from typing import Any

import torch

from ..data import Records
from ..errors import BadInput, needs_extra
from ..family import Batch, Outputs, Session
from ..graph import OPSETS, graph_of
from ..model import Model
from ..operation import Log
from ..runtime import Choice, Runtime
from . import integers

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
        self.inputs = [entry.name for entry in self.session.get_inputs()]

    def __deepcopy__(self, memo: dict) -> "OnnxSession":
        copy = OnnxSession(self.graph)
        copy.original = self.original
        return copy

    def forward(self, batch: Batch) -> Outputs:
        values, mask = self.session.run(None, {name: batch[name].detach().cpu().numpy() for name in self.inputs})
        return torch.from_numpy(values), torch.from_numpy(mask)

    def get_extra_state(self) -> bytes:
        """What stands for the weights, so that digests see it."""
        return self.graph

    def save(self, folder: Path) -> None:
        (folder / ARTEFACT).parent.mkdir(exist_ok=True)
        (folder / ARTEFACT).write_bytes(self.graph)


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
    if choice.precision == "int8":
        return make_int8(model, records, choice, log)
    return OnnxSession(graph_of(model, records, choice.opset).SerializeToString())


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


RUNTIME = Runtime("onnx", ARTEFACT, ("fp32", "int8"), OPSETS, make, open_folder)
