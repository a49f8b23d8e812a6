"""8 bits on trained classifiers, one record and sixteen at once, beside torch, ONNX Runtime and OpenVINO on the same model.

What is timed is the net alone, from a batch to its outputs. Each side also tells its score on the same test records, since
a quantizer may be quick and wrong.
"""

from importlib.util import find_spec

from .harness import Found, Race, Row, Side
from .lives import headline

DATA: dict[str, tuple[str, ...]] = {
    "BERT": ("--data", "{data}/nsmc", "--fields", "document=text,label=category", "--answer", "label"),
    "ViT": ("--data", "{data}/cifar10", "--answer", "label"),
    "ConvNet": ("--data", "{data}/cifar10", "--answer", "label"),
}
GOALS = {"torch, fp32": 3.0, "torch, bf16": 1.0, "ONNX Runtime, fp32": 1.7, "ONNX Runtime's quantizer": 1.0}
CONVOLUTIONS = 4.0  # times as fast as torch in fp32, where the net is made of convolutions


def timed(name: str, way: str, model: str) -> tuple[str, ...]:
    return ("python", "{here}/sides/latency.py", way, "--model", model, *DATA[name])


def ours(name: str) -> Side:
    export = (
        "onnuri",
        "export",
        f"{{kept}}/{name}",
        "--precision",
        "int8",
        *DATA[name],
        "--out",
        "{work}/int8",
        "--json",
    )
    return Side("onnuri, int8", (export, timed(name, "onnuri", "{work}/int8")), found)


def found(lines: list[Found]) -> Found:
    export, times = lines
    return {**times, "points_lost": 100 * (headline({"after": export["before"]}) - headline(export))}


def peers(name: str) -> tuple[Side, ...]:
    """{kept}/NAME is the model, {kept}/NAME-onnx the same exported in fp32."""
    ways = {
        "torch, fp32": ("torch", f"{{kept}}/{name}"),
        "torch, bf16": ("torch-bf16", f"{{kept}}/{name}"),
        "ONNX Runtime, fp32": ("onnxruntime", f"{{kept}}/{name}-onnx"),
        "ONNX Runtime's quantizer": ("onnxruntime-int8", f"{{kept}}/{name}-onnx"),
    }
    if find_spec("openvino"):
        ways["OpenVINO, as it comes"] = ("openvino", f"{{kept}}/{name}-onnx")
    return tuple(Side(side, (timed(name, *how),)) for side, how in ways.items())


def race(name: str) -> Race:
    goals = GOALS | ({"torch, fp32": CONVOLUTIONS} if name == "ConvNet" else {})
    others, score = peers(name), Row("score", "", "higher")
    rows = {
        side.name: (*(Row(f"ms_batch_{size}", "ms", "lower", goals.get(side.name, 1.0)) for size in (1, 16)), score)
        for side in others
    }
    rows[""] = (Row("points_lost", "points", "lower", 0.5, "ours"),)
    prepare = ("python", "{here}/sides/latency_models.py", name, "--data", "{data}", "--kept", "{kept}")
    return Race(f"{name}, int8", ours(name), others, rows, prepare, repeats=3)


RACES = tuple(race(name) for name in DATA)
