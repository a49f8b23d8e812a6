"""One side of the race over latency: milliseconds of a model's net on real test records, one and sixteen at once.

    python benchmarks/sides/latency.py WAY --model FOLDER --data DATA [--fields ...] --answer NAME

`onnuri` runs the folder as it is; `torch`, `torch-bf16` a folder of torch; the others begin with its ONNX file in fp32.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from onnuri import measure, open_data, open_model
from onnuri.family import Session
from onnuri.model import Model, with_net

SIZES, RUNS, UNTIMED = (1, 16), 200, 20
SECONDS = 10.0  # at each size, at most
SCORED = 2000  # test records
SEEN = 128  # training records that a static quantizer is shown
Run = Callable[[dict], list]


class Executed(Session):
    """A model's net, executed by a peer."""

    def __init__(self, run: Run):
        super().__init__()
        self.run = run

    def forward(self, batch: dict) -> tuple:
        values, mask = (torch.as_tensor(part) for part in self.run({k: v.numpy() for k, v in batch.items()}))
        return values.float(), mask


# ------------------------------------------------------------------------------------------------------------- the sides


def in_torch(model: Model, _: Any) -> Model:
    return model


class Cast(Session):
    """The net in bf16, weights and activations."""

    def __init__(self, model: Model):
        super().__init__()
        self.net, self.outputs = model.net.to(torch.bfloat16), model.family.outputs

    def forward(self, batch: dict) -> tuple:
        values, mask = self.outputs(
            self.net, {k: v.bfloat16() if v.is_floating_point() else v for k, v in batch.items()}
        )
        return values.float(), mask


def in_bf16(model: Model, _: Any) -> Model:
    return with_net(model, Cast(model))


def in_onnxruntime(model: Model, _: Any) -> Model:
    import onnxruntime

    graph: bytes = model.net.graph
    return with_net(model, Executed(runner(onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]))))


def runner(session: Any) -> Run:
    names = [entry.name for entry in session.get_inputs()]
    return lambda batch: session.run(None, {name: batch[name] for name in names})


def quantized(model: Model, records: Any) -> Model:
    """ONNX Runtime's quantizers as they come: dynamic ranges, or, for convolutions, fixed ones, as its pages advise."""
    import onnx
    import onnxruntime
    from onnxruntime.quantization import quantize_dynamic, quantize_static

    graph = onnx.load_from_string(model.net.graph)
    del graph.graph.value_info[:]  # or the quantizers end with an error
    convolutions = sum(node.op_type == "Conv" for node in graph.graph.node)
    with TemporaryDirectory() as folder:
        before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
        onnx.save(graph, before)
        if convolutions > 1:  # one alone cuts a ViT's patches
            quantize_static(before, after, Reader(model, records, [entry.name for entry in graph.graph.input]))
        else:
            quantize_dynamic(before, after)
        session = onnxruntime.InferenceSession(after, providers=["CPUExecutionProvider"])
    return with_net(model, Executed(runner(session)))


class Reader:
    """What quantize_static asks for its batches."""

    def __init__(self, model: Model, records: Any, names: list[str]):
        rows = records.some(SEEN).list()
        batches = [model.collate(rows[i : i + 16]) for i in range(0, len(rows), 16)]
        self.left = iter([{name: batch[name].numpy() for name in names} for batch in batches])

    def get_next(self) -> dict | None:
        return next(self.left, None)


def in_openvino(model: Model, _: Any) -> Model:
    import openvino

    compiled = openvino.Core().compile_model(openvino.Core().read_model(model.net.graph), "CPU")
    names = [entry.get_node().get_friendly_name() for entry in compiled.inputs]

    def run(batch: dict) -> list:
        found = compiled([batch[name] for name in names])
        return [found[0].copy(), found[1].copy()]

    return with_net(model, Executed(run))


WAYS: dict[str, Callable[[Model, Any], Model]] = {
    "onnuri": in_torch,
    "torch": in_torch,
    "torch-bf16": in_bf16,
    "onnxruntime": in_onnxruntime,
    "onnxruntime-int8": quantized,
    "openvino": in_openvino,
}

# ---------------------------------------------------------------------------------------------------------------- the clock


def milliseconds(model: Model, records: Any, size: int) -> float:
    batch = model.collate(model.asked(records.some(size).list()))
    times: list[float] = []
    for number in range(-UNTIMED, RUNS):
        began = time.perf_counter()
        model.outputs(batch)
        if number >= 0:
            times.append(time.perf_counter() - began)
        if sum(times) > SECONDS:
            break
    return 1e3 * median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("way", choices=list(WAYS))
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--fields", default="")
    parser.add_argument("--answer", required=True)
    chosen = parser.parse_args()
    fields = dict(part.split("=") for part in chosen.fields.split(",")) if chosen.fields else {}
    data = open_data(chosen.data, answer=chosen.answer, **({"fields": fields} if fields else {}))
    model = WAYS[chosen.way](open_model(chosen.model), data.split("train"))
    test = data.split("test")
    found = {f"ms_batch_{size}": milliseconds(model, test, size) for size in SIZES}
    asked = test.some(SCORED).list()
    scores = model.family.score(asked, measure.answer(model, test.some(SCORED)), model.assets)
    print(json.dumps({**found, "score": scores[model.headline[0]]}))


if __name__ == "__main__":
    main()
