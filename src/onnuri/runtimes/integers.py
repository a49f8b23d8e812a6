"""Graphs that multiply in integers of 8 bits, made of a graph in fp32 by ONNX Runtime's quantizers.

Weights are int8 with a scale per channel, activations uint8: with ranges found anew in each batch (`dynamic`), or fixed by
what real records gave (`static`). Neither is best for all nets, so both are made and measured. Tables that rows are only
looked up in are int8 with a scale per row in both.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..data import Records
from ..errors import Refusal
from ..family import Batch, Session
from ..graph import graph_of, in_float, numbers_of, root_cause
from ..measure import largest_difference
from ..model import Model, with_net
from ..operation import Log
from ..runtime import ALLOWED, Choice
from ..weights.calibration import batches_of

LOOKED_AT = 128  # records whose activations say the ranges
BATCHES = (1, 16)  # records at once for which a graph must be quick
ROUNDS, SECONDS = 30, 4.0  # of timing, at most
LEAST_ROUNDS = 5
QUICKER = 0.9  # of the time, from which on a difference is no accident
MARGIN = 0.8  # of the difference that is allowed, since other records may differ more
MULTIPLYING = ["MatMul", "Gemm", "Conv"]
Make = Callable[[Any, list[Batch]], Any]
Open = Callable[[Any, str], Session]


def quickest(model: Model, records: Records, choice: Choice, ways: dict[str, Make], begin: Open, log: Log) -> Session:
    """Of the `ways` to compute the net's ONNX graph in integers that which `kept` keeps. `begin`: (graph, way) -> what executes
    it. Refusal where no way leads to integers, or to nearly the same answers."""
    plain = in_float(model)
    graph = graph_of(plain, records, choice.opset)
    whole = begin(graph, "")
    return kept(plain, whole, candidates(plain, graph, records, ways, begin), records, log)


def kept(plain: Model, whole: Session, made: dict[str, Session], records: Records, log: Log) -> Session:
    """Of those that were `made` the one that is quickest on this machine, beside the `whole` in fp32. Refusal where none gives
    nearly the same answers."""
    gaps = {way: gap(with_net(plain, whole), with_net(plain, net), records.some(64)) for way, net in made.items()}
    right = {way: made[way] for way, apart in gaps.items() if apart <= MARGIN * ALLOWED["int8"]}
    if not right:
        raise Refusal(
            f"in integers of 8 bits the outputs differ by {min(gaps.values()):.2g} of the largest, where "
            f"{ALLOWED['int8']:g} is promised",
            "export it in fp32; quantize packs its matrices and leaves what they are multiplied with in float",
        )
    batches = [plain.collate(records.some(size).list(), keys=range(min(size, len(records)))) for size in BATCHES]
    return right[chosen(right, milliseconds({"": whole, **right}, batches), log)]


def candidates(plain: Model, graph: Any, records: Records, ways: dict[str, Make], begin: Open) -> dict[str, Session]:
    """{way: what executes the graph that it made}, of those ways that put integers into it."""
    made, faults = dict[str, Session](), list[str]()
    batches = batches_of(plain, records.some(LOOKED_AT), BATCHES[-1])
    del graph.graph.value_info[:]  # the exporter's shapes are not those that the quantizers infer
    tables_in_bytes(graph)
    for way, make in ways.items():
        try:
            found = make(graph, batches)
            if holds_integers(found):
                made[way] = begin(found, way)
        except Exception as error:  # whatever a graph has that a quantizer did not think of
            faults.append(f"{way}: {root_cause(error)}")
    if not made:
        raise no_integers("; ".join(faults) or "it has no matrices and no tables")
    return made


def no_integers(why: str) -> Refusal:
    return Refusal(
        f"nothing of this net can be computed in integers of 8 bits ({why})",
        "export it in fp32; quantize makes a packed file of it",
    )


def holds_integers(graph: Any) -> bool:
    from onnx import TensorProto

    kinds = (TensorProto.INT8, TensorProto.UINT8)
    return any(each.data_type in kinds and len(each.dims) > 1 for each in graph.graph.initializer)


# -------------------------------------------------------------------------------------------------------- the quantizers


def dynamic(graph: Any, batches: list[Batch]) -> Any:
    """Ranges are those of the batch that is computed. Not for convolutions, which are many times slower so."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    types = [kind for kind in MULTIPLYING if kind != "Conv"]
    return through_files(
        graph, lambda a, b: quantize_dynamic(a, b, types, per_channel=True, weight_type=QuantType.QInt8)
    )


def static(graph: Any, batches: list[Batch]) -> Any:
    """Ranges are the least and the largest number that the records gave."""
    from onnxruntime.quantization import QuantType, quantize_static

    options = {"MatMulConstBOnly": True}
    names = [entry.name for entry in graph.graph.input]
    reader = Reader([{name: batch[name].detach().cpu().numpy() for name in names} for batch in batches])
    return through_files(
        graph,
        lambda a, b: quantize_static(
            a,
            b,
            reader,  # type: ignore[arg-type]  # anything with `get_next` is one
            op_types_to_quantize=MULTIPLYING,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options=options,
        ),
    )


class Reader:
    """Batches one after another, then None, as the calibration asks for them."""

    def __init__(self, batches: list[dict]):
        self.left = iter(batches)

    def get_next(self) -> dict | None:
        return next(self.left, None)


def through_files(graph: Any, quantize: Callable[[Path, Path], None]) -> Any:
    """What a quantizer that reads and writes files makes of the graph."""
    import onnx

    with TemporaryDirectory(prefix="onnuri-") as folder, silent():
        before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
        onnx.save(graph, before)
        quantize(before, after)
        found = onnx.load(after)
    del found.metadata_props[:]
    return found


@contextmanager
def silent() -> Iterator[None]:
    """The quantizers advise programmers through the root logger, which would set itself up to print."""
    root, handler = logging.getLogger(), logging.NullHandler()
    before = logging.root.manager.disable
    root.addHandler(handler)
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
        root.removeHandler(handler)


def tables_in_bytes(graph: Any) -> None:
    """Replace each float matrix of which rows are only looked up by int8 codes and a scale per row."""
    from onnx import TensorProto, helper, numpy_helper

    users: dict[str, list] = {}
    for node in graph.graph.node:
        for place, name in enumerate(node.input):
            users.setdefault(name, []).append((node, place))
    for table in list(graph.graph.initializer):
        reading = users.get(table.name, [])
        if table.data_type != TensorProto.FLOAT or len(table.dims) != 2 or table.dims[1] < 2 or not reading:
            continue
        if not all(looks_up_rows(node, place) for node, place in reading):
            continue
        rows = numbers_of(table)
        scale = rows.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
        codes = (rows / scale).round().to(torch.int8)
        name = table.name
        graph.graph.initializer.remove(table)
        graph.graph.initializer.extend(
            numpy_helper.from_array(part.numpy(), f"{name}.{kind}")
            for kind, part in (("codes", codes), ("scale", scale))
        )
        for node, _ in reading:
            values, rest = node.output[0], list(node.input[1:])
            found = [
                helper.make_node(
                    "Gather", [f"{name}.codes", *rest], [f"{values}.codes"], f"{values}.look.codes", axis=0
                ),
                helper.make_node(
                    "Gather", [f"{name}.scale", *rest], [f"{values}.scale"], f"{values}.look.scale", axis=0
                ),
                helper.make_node(
                    "Cast", [f"{values}.codes"], [f"{values}.float"], f"{values}.cast", to=TensorProto.FLOAT
                ),
                helper.make_node("Mul", [f"{values}.float", f"{values}.scale"], [values], f"{values}.dequantize"),
            ]
            replace(graph.graph, node, found)


def replace(graph: Any, node: Any, nodes: list[Any]) -> None:
    """Put nodes in the place of one."""
    place = next(place for place, each in enumerate(graph.node) if each is node or each == node)
    graph.node.remove(node)
    for each in reversed(nodes):
        graph.node.insert(place, each)


def looks_up_rows(node: Any, place: int) -> bool:
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    return node.op_type == "Gather" and place == 0 and axis == 0


# ------------------------------------------------------------------------------------------------------------ the choice


def chosen(made: dict[str, Session], times: dict[str, float], log: Log) -> str:
    """The way that is clearly quickest, or the first of those that are alike, so that chance seldom decides. Where none is
    quicker than fp32 ("" in `times`) the smallest, with a warning."""
    first, *others = made
    for other in others:
        first = other if times[other] < QUICKER * times[first] else first
    if times[first] <= QUICKER * times[""]:
        return first
    log.warn(
        f"in 8 bits this net is hardly quicker on this machine: {times[first]:.3g} ms, in fp32 {times['']:.3g}; "
        "the smallest file is kept"
    )
    return min(made, key=lambda way: stored(made[way]))


def stored(session: Session) -> int:
    """Bytes of what stands for the weights."""
    return len(session.get_extra_state())


def gap(one: Model, other: Model, records: Records) -> float:
    found = largest_difference(one, other, records)
    return 0.0 if found is None else found


def milliseconds(sessions: dict[str, Session], batches: list[Batch]) -> dict[str, float]:
    """The geometric mean over the batches of each session's least time. They take turns, so that all see the same machine."""
    least = {name: [math.inf] * len(batches) for name in sessions}
    began = time.perf_counter()
    for number in range(-2, ROUNDS):
        for name, session in sessions.items():
            for place, batch in enumerate(batches):
                start = time.perf_counter()
                session(batch)
                least[name][place] = min(least[name][place], time.perf_counter() - start)
        if time.perf_counter() - began > SECONDS and number >= LEAST_ROUNDS:
            break
    return {name: 1e3 * math.prod(found) ** (1 / len(found)) for name, found in least.items()}
