"""8 bits and fewer units on trained classifiers, one record and sixteen at once, beside torch, ONNX Runtime and OpenVINO.

What is timed is the net alone, from a batch to its outputs. Each side also tells its score on the same test records, since
a quantizer may be quick and wrong.
"""

from importlib.util import find_spec

from .harness import Found, Race, Row, Side
from .lives import headline

DATA: dict[str, tuple[str, ...]] = {
    "BERT": ("--data", "{data}/nsmc", "--fields", "document=text,label=category", "--answer", "label"),
    "ViT": ("--data", "{data}/cifar10", "--answer", "label"),
    "ResNet": ("--data", "{data}/cifar10", "--answer", "label"),
    "ConvNet": ("--data", "{data}/cifar10", "--answer", "label"),
}
GOALS = {"torch, fp32": 3.0, "torch, bf16": 1.0, "ONNX Runtime, fp32": 1.7, "ONNX Runtime's quantizer": 1.0}
UNITS = ("--units", "channels", "--share", "0.4", "--method", "sparsegpt")
RECOVERY = ("--steps", "200", "--batch-size", "64", "--learning-rate", "0.0003")
CONVOLUTIONS = 4.0  # times as fast as torch in fp32, where the net is made of convolutions


def timed(name: str, way: str, model: str) -> tuple[str, ...]:
    return ("python", "{here}/sides/latency.py", way, "--model", model, *DATA[name])


def exported(name: str, model: str) -> tuple[str, ...]:
    return ("onnuri", "export", model, "--precision", "int8", *DATA[name], "--out", "{work}/int8", "--json")


def ours(name: str) -> Side:
    return Side("onnuri, int8", (exported(name, f"{{kept}}/{name}"), timed(name, "onnuri", "{work}/int8")), found)


def ours_thinner(name: str) -> Side:
    """Some of the hidden units taken out, what was lost learnt back, then 8 bits."""
    commands = (
        ("onnuri", "prune", f"{{kept}}/{name}", *UNITS, *DATA[name], "--out", "{work}/thin", "--json"),
        ("onnuri", "train", "{work}/thin", *RECOVERY, *DATA[name], "--out", "{work}/again", "--json"),
        exported(name, "{work}/again"),
        timed(name, "onnuri", "{work}/int8"),
    )
    return Side("onnuri, fewer units and int8", commands, found)


def found(lines: list[Found]) -> Found:
    """The net's times, and what was lost between the first command and the export."""
    first, export, times = lines[0], *lines[-2:]
    return {**times, "points_lost": 100 * (headline({"after": first["before"]}) - headline(export))}


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


def race(name: str, ours: Side, case: str) -> Race:
    goals = GOALS | ({"torch, fp32": CONVOLUTIONS} if name in ("ResNet", "ConvNet") else {})
    others, score = peers(name), Row("score", "", "higher")
    rows = {
        side.name: (*(Row(f"ms_batch_{size}", "ms", "lower", goals.get(side.name, 1.0)) for size in (1, 16)), score)
        for side in others
    }
    rows[""] = (Row("points_lost", "points", "lower", 0.5, "ours"),)
    prepare = ("python", "{here}/sides/latency_models.py", name, "--data", "{data}", "--kept", "{kept}")
    return Race(f"{name}, {case}", ours, others, rows, prepare, repeats=3)


RACES = (
    *(race(name, ours(name), "int8") for name in DATA),
    *(race(name, ours_thinner(name), "fewer units") for name in DATA),
)
