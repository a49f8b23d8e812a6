"""ExecuTorch: executes `onnuri/model.pte` of a model folder, for phones and devices; its XNNPACK kernels run on processors.

A device asks for one record, so the program takes one; here a batch is computed row by row. Memory is planned ahead: an axis that
changes with the record, such as the length of a text, has a largest size, which `onnuri/model.pte.json` tells beside the
names of the inputs, for whoever calls the program from an app.
"""

import copy
import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Records
from ..errors import BadInput, Refusal, needs_extra
from ..family import Batch, Outputs, Session
from ..graph import Changing, Graph, in_float, root_cause, seen_batch
from ..hub import read_json
from ..model import Model
from ..operation import Log
from ..runtime import Choice, Runtime
from ..weights.calibration import batches_of
from . import integers

ARTEFACT = "onnuri/model.pte"
INPUTS = "onnuri/model.pte.json"
ROOM, LEAST = 4, 256  # how many times the largest size that was seen an axis may take, and its size at least
Inputs = dict[str, list[int]]
"""{entry of a batch, in the order of the program's inputs: the largest size of each of its axes behind the first}"""


class ExecutorchSession(Session):
    """Holds a program that takes one record, each entry of the batch an input, and gives values and mask."""

    runtime = "executorch"

    def __init__(self, program: bytes, inputs: Inputs):
        super().__init__()
        self.program, self.inputs = program, inputs
        runtime = library().Runtime.get()
        try:
            with silent():
                self.loaded = runtime.load_program(program)
                self.method = self.loaded.load_method("forward")
        except (RuntimeError, ValueError) as error:
            raise BadInput(f"{ARTEFACT} cannot be run: {root_cause(error)}", hint="export the model again") from error
        if self.method is None:
            raise BadInput(f"{ARTEFACT} has no method 'forward'", hint="export the model again")

    def __deepcopy__(self, memo: dict) -> "ExecutorchSession":
        copy = ExecutorchSession(self.program, self.inputs)
        copy.original = self.original
        return copy

    def forward(self, batch: Batch) -> Outputs:
        for name, largest in self.inputs.items():
            if any(size > most for size, most in zip(batch[name].shape[1:], largest)):
                raise BadInput(
                    f"{name} of this record is {tuple(batch[name].shape[1:])}, and the program was made for at most "
                    f"{tuple(largest)}",
                    hint="a shorter record, or export the model again with data that hold records as long as this one",
                )
        rows = [self.row(batch, place) for place in range(len(next(iter(batch.values()))))]
        values, mask = (torch.cat(parts) for parts in zip(*rows))
        return values, mask

    def row(self, batch: Batch, place: int) -> list[Tensor]:
        given = [laid_out(batch[name][place : place + 1]) for name in self.inputs]
        return [found.clone() for found in self.method.execute(given)]  # its own memory is used again

    def get_extra_state(self) -> bytes:
        """What stands for the weights, so that digests see it."""
        return self.program

    def save(self, folder: Path) -> None:
        (folder / ARTEFACT).parent.mkdir(exist_ok=True)
        (folder / ARTEFACT).write_bytes(self.program)
        (folder / INPUTS).write_text(json.dumps(self.inputs, indent=1) + "\n", encoding="utf-8")


def laid_out(value: Tensor) -> Tensor:
    """Its numbers in the order of its axes: of a picture of one channel torch says so where the strides do not."""
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def library() -> Any:
    with silent():
        try:
            import executorch.runtime  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise needs_extra("executorch", "executorch") from None
    return executorch.runtime


@contextmanager
def silent() -> Iterator[None]:
    """Its libraries, and torchao on which it stands, write to the standard error of files that they do not find and of parts
    that are not used here: past Python's logging, so that the stream itself is turned away."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


# --------------------------------------------------------------------------------------------------- making and opening


def make(model: Model, records: Records, choice: Choice, log: Log) -> Session:
    library()
    plain = in_float(model)
    for module in plain.net.modules():  # or torch stumbles over them: a net that is read anew would lack them
        module._non_persistent_buffers_set.clear()
    form = form_of(plain, records)
    net = folded(form, Listed(plain, list(form.example)).eval())
    whole = form.session(net)
    if choice.precision == "fp32":
        return whole
    batches = batches_of(plain, records.some(integers.LOOKED_AT), 1)
    seen = [[batch[name] for name in form.example] for batch in batches]
    made, faults = dict[str, Session](), list[str]()
    for way, dynamic in {"static": False, "dynamic": True}.items():
        try:
            made[way] = form.session(quantized(copy.deepcopy(net), seen, dynamic))
        except Refusal as refusal:
            faults.append(f"{way}: {refusal.why}")
    if not made:
        raise integers.no_integers("; ".join(faults))
    return integers.kept(plain, whole, made, records, log)


class Listed(nn.Module):
    """A graph whose inputs are the entries of a batch, by place: a program has no names for them."""

    def __init__(self, model: Model, names: list[str]):
        super().__init__()
        self.whole, self.names = Graph(model), names

    def forward(self, entries: list[Tensor]) -> tuple:
        return self.whole(dict(zip(self.names, entries)))


@dataclass(frozen=True)
class Form:
    """What a program takes. `example`: one record as a batch; `changing`: its axes whose size the record decides."""

    example: Batch
    changing: Changing

    def exported(self, net: nn.Module) -> Any:
        """torch's own graph of the net, with room for longer records than were seen, as far as the net allows them."""
        axes = [
            {axis: torch.export.Dim.DYNAMIC(max=max(LEAST, ROOM * seen)) for axis, seen in self.changing[name].items()}
            for name in self.example
        ]
        return torch.export.export(net, (list(self.example.values()),), dynamic_shapes=(axes,), strict=False)

    def session(self, net: nn.Module) -> ExecutorchSession:
        """The program of a net, loaded."""
        with refusing():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner  # pyright: ignore[reportMissingImports]
            from executorch.exir import to_edge_transform_and_lower  # pyright: ignore[reportMissingImports]

            graph = self.exported(net)
            largest = dict(zip(self.example, largest_sizes(graph)))
            program = to_edge_transform_and_lower(graph, partitioner=[XnnpackPartitioner()])
            return ExecutorchSession(bytes(program.to_executorch().buffer), largest)


def largest_sizes(graph: Any) -> list[list[int]]:
    """Of each input of an exported graph, the largest size of each axis behind the first."""
    places = {node.name: node.meta["val"].shape[1:] for node in graph.graph.nodes if node.op == "placeholder"}
    bounds = graph.range_constraints
    return [
        [size if isinstance(size, int) else int(bounds[size.node.expr].upper) for size in places[name]]
        for name in graph.graph_signature.user_inputs
    ]


def form_of(model: Model, records: Records) -> Form:
    """With the entries of a batch that the net reads: others steer its training alone."""
    batch, changing = seen_batch(model, records)
    form = Form({name: laid_out(value[:1]) for name, value in batch.items()}, changing)
    with refusing():
        graph = form.exported(Listed(model, list(form.example)).eval())
    used = {node.name for node in graph.graph.nodes if node.users}
    read = [name for name, place in zip(form.example, graph.graph_signature.user_inputs) if place in used]
    return Form({name: form.example[name] for name in read}, changing)


def folded(form: Form, net: nn.Module) -> nn.Module:
    """The net as a graph in which all that no input changes is one tensor: normalized filters, tables of angles."""
    with refusing():
        from torchao.quantization.pt2e.constant_fold import constant_fold  # pyright: ignore[reportMissingImports]

        graph = form.exported(net).module()
        constant_fold(graph)
        return graph


def quantized(net: Any, seen: list[list[Tensor]], dynamic: bool) -> nn.Module:
    """The graph with integers of 8 bits where XNNPACK multiplies in them; fixed ranges are those of what is `seen`."""
    with refusing():
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (  # pyright: ignore[reportMissingImports]
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e  # pyright: ignore[reportMissingImports]

        form = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
        quantizer = XNNPACKQuantizer().set_global(form).set_filter_function(takes_floats)
        quantizer.transform_for_annotation = lambda graph: graph  # it would make floats of the numbers added to places
        watched = prepare_pt2e(net, quantizer)
        for record in seen:
            watched(record)
        found = convert_pt2e(watched)
    if not any("quantize" in str(node.target) for node in found.graph.nodes):
        raise integers.no_integers("it has no matrices that XNNPACK multiplies in them")
    return found


def takes_floats(node: torch.fx.Node) -> bool:
    """Whether an operator computes with floats alone; places in a table are added up as well, and must stay whole."""
    values = [given.meta.get("val") for given in node.all_input_nodes]
    return all(value.is_floating_point() for value in values if isinstance(value, Tensor))


@contextmanager
def refusing() -> Iterator[None]:
    """A Refusal for whatever a net does that a program cannot say."""
    try:
        with silent(), torch.no_grad():
            yield
    except Exception as error:
        raise Refusal(
            f"ExecuTorch cannot make a program of this net: {root_cause(error)}", "--to onnx, or --to openvino"
        ) from error


def open_folder(folder: Path) -> ExecutorchSession:
    inputs = read_json(folder / INPUTS)
    known = all(isinstance(sizes, list) and all(type(size) is int for size in sizes) for sizes in inputs.values())
    if not inputs or not known:
        raise BadInput(f"{folder / INPUTS} must list the inputs of the program", hint="export the model again")
    return ExecutorchSession((folder / ARTEFACT).read_bytes(), inputs)


RUNTIME = Runtime("executorch", ARTEFACT, ("fp32", "int8"), range(0), make, open_folder, elsewhere=True)
