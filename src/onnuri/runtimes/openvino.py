"""OpenVINO: executes `onnuri/model.xml` of a model folder, and the numbers beside it, on the processor.

Graphics and neural units of Intel are not used: their answers differ from machine to machine, and no promise was measured on
them. The files are OpenVINO's own format, so its other tools run them there.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..data import Records
from ..errors import BadInput, Refusal, needs_extra
from ..family import Batch, Outputs, Session
from ..graph import OPSETS, graph_of, root_cause
from ..model import Model
from ..operation import Log
from ..runtime import Choice, Precision, Runtime
from . import integers

ARTEFACT = "onnuri/model.xml"
NUMBERS = "onnuri/model.bin"
COMPUTES = ["onnuri", "precision"]
"""The path in a graph's own notes of what it is to be computed in."""

TYPES = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""{precision: the type of what is no integer}. Left to itself OpenVINO takes bf16 wherever the processor has it."""


class OpenvinoSession(Session):
    """Holds the two files of OpenVINO's format: inputs are named as the batch's entries, outputs are values and mask."""

    runtime = "openvino"

    def __init__(self, graph: bytes, numbers: bytes):
        super().__init__()
        self.graph, self.numbers = graph, numbers
        core = library().Core()
        try:
            model = core.read_model(graph, numbers)
            precision = TYPES[model.get_rt_info(COMPUTES).astype(str)]
            self.compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
        except (RuntimeError, KeyError) as error:
            raise BadInput(f"{ARTEFACT} cannot be run: {root_cause(error)}", hint="export the model again") from error
        # the names of a tensor are many, of which any may be called the first; that of its node is the input's own
        self.inputs = [entry.get_node().get_friendly_name() for entry in self.compiled.inputs]

    def __deepcopy__(self, memo: dict) -> "OpenvinoSession":
        copy = OpenvinoSession(self.graph, self.numbers)
        copy.original = self.original
        return copy

    def forward(self, batch: Batch) -> Outputs:
        found = self.compiled([batch[name].detach().cpu().numpy() for name in self.inputs])
        values, mask = (torch.from_numpy(found[place].copy()) for place in range(2))  # its own memory is used again
        return values, mask

    def get_extra_state(self) -> bytes:
        """What stands for the weights, so that digests see it."""
        return self.graph + self.numbers

    def save(self, folder: Path) -> None:
        (folder / ARTEFACT).parent.mkdir(exist_ok=True)
        (folder / ARTEFACT).write_bytes(self.graph)
        (folder / NUMBERS).write_bytes(self.numbers)


def library() -> Any:
    try:
        import openvino  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise needs_extra("openvino", "openvino") from None
    return openvino


# --------------------------------------------------------------------------------------------------- making and opening


def make(model: Model, records: Records, choice: Choice, log: Log) -> Session:
    capabilities = library().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if choice.precision == "bf16" and "BF16" not in capabilities:
        raise Refusal("this processor does not multiply in bf16", "--precision fp32, or int8")
    if choice.precision == "int8":
        ways = {"static": integers.static}  # it computes no matrices whose ranges are found anew
        return integers.quickest(model, records, choice, ways, lambda graph, way: session_of(graph, "int8"), log)
    return session_of(graph_of(model, records, choice.opset), choice.precision)


def session_of(graph: Any, precision: Precision) -> OpenvinoSession:
    """What OpenVINO makes of an ONNX graph. Refusal where it cannot."""
    openvino = library()
    try:
        model = openvino.Core().read_model(graph.SerializeToString())
    except RuntimeError as error:
        raise Refusal(f"OpenVINO cannot read the graph: {root_cause(error)}", "--to onnx") from error
    model.set_rt_info(precision, COMPUTES)
    with TemporaryDirectory(prefix="onnuri-") as folder:
        path = Path(folder, "model.xml")
        openvino.save_model(model, path, compress_to_fp16=False)
        return OpenvinoSession(path.read_bytes(), path.with_suffix(".bin").read_bytes())


def open_folder(folder: Path) -> OpenvinoSession:
    if not (folder / NUMBERS).exists():
        raise BadInput(f"{folder} lacks {NUMBERS}", hint="export the model again; the two files belong together")
    return OpenvinoSession((folder / ARTEFACT).read_bytes(), (folder / NUMBERS).read_bytes())


RUNTIME = Runtime("openvino", ARTEFACT, ("fp32", "bf16", "int8"), OPSETS, make, open_folder)
