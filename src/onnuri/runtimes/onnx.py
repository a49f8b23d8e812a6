"""ONNX Runtime: executes `onnuri/model.onnx` of a model folder on the processor."""

from pathlib import Path

import torch

from ..data import Records
from ..errors import BadInput, needs_extra
from ..family import Batch, Outputs, Session
from ..graph import OPSETS, graph_of
from ..model import Model
from ..operation import Log
from ..runtime import Choice, Runtime

ARTEFACT = "onnuri/model.onnx"


class OnnxSession(Session):
    """Holds the bytes of an ONNX graph whose inputs are named as the batch's entries and whose outputs are values and mask."""

    runtime = "onnx"
    artefact = ARTEFACT

    def __init__(self, graph: bytes):
        super().__init__()
        try:
            import onnxruntime
        except ImportError:
            raise needs_extra("export", "onnxruntime") from None
        onnxruntime.set_default_logger_severity(3)
        options = onnxruntime.SessionOptions()
        # int8 codes become floats once, at opening: left packed, ONNX Runtime rounds what they are multiplied with to
        # 8 bits as well (0.3 % off), or is 2 to 30 times slower
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        self.graph = graph
        try:
            # its fallback would be the same processor again, and print about it
            self.session = onnxruntime.InferenceSession(
                graph, options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
        except Exception as error:  # onnxruntime's own exceptions share no public base class
            raise BadInput(f"{self.artefact} cannot be run: {str(error).splitlines()[0]}") from error
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


def make(model: Model, records: Records, choice: Choice, log: Log) -> OnnxSession:
    return OnnxSession(graph_of(model, records, choice.opset).SerializeToString())


def open_folder(folder: Path) -> OnnxSession:
    return OnnxSession((folder / ARTEFACT).read_bytes())


RUNTIME = Runtime("onnx", ARTEFACT, ("fp32",), OPSETS, make, open_folder)
