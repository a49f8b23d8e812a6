"""Writing with a language model of 20 M, one text and sixteen at once, beside transformers' own `generate` in the same precision.

The weights are random: what is written says nothing, how fast says all. 4 tokens of prompt, 100 greedy tokens, no stop. `unlike`
counts the texts that leave the reference's where that is no near tie (`sides/decoding.py`).
"""

from .harness import Race, Row, Side

MADE = ("python", "{here}/sides/decoding.py", "--data", "{data}", "--kept", "{kept}", "--size", "20")
SPEED = ("tokens_per_second", "tokens/s", "higher")
NAMES = {"onnuri": "llama.cpp", "onnx": "ONNX Runtime", "torch": "torch", "compiled": "torch, compiled"}
GOALS = {1: {"onnuri": 4.0, "onnx": 4.0, "compiled": 2.5}, 16: dict.fromkeys(("onnuri", "onnx", "compiled"), 2.3)}
"""The goals are of the best runtime, and of torch the faster way; eagerly it has to keep up."""


def side(name: str, batch: int, called: str) -> Side:
    command = (
        "python",
        "{here}/sides/decoding.py",
        "--kept",
        "{kept}",
        "--size",
        "20",
        "--side",
        name,
        "--batch",
        str(batch),
    )
    return Side(called, (command,))


def race(runtime: str, batch: int) -> Race:
    library = side("transformers", batch, "transformers")
    rows = {
        library.name: (Row(*SPEED, GOALS[batch].get(runtime, 1.0)),),
        "": (Row("unlike", "texts", "lower", 0.0, "ours"),),
    }
    case = f"20 M Llama, fp32, {batch} at once, by {NAMES[runtime]}"
    return Race(case, side(runtime, batch, "onnuri"), (library,), rows, MADE, repeats=3)


RACES = tuple(race(runtime, batch) for batch in GOALS for runtime in NAMES)
