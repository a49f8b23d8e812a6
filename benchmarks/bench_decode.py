"""Writing text on a processor: a Llama of 79 M exported to GGUF, beside llama.cpp's own loop on the same file and transformers.

The weights are random: what is written says nothing, how fast says all. 4 tokens of prompt, 100 greedy tokens, no stop.
"""

from .harness import Race, Row, Side

MADE = ("python", "{here}/sides/decoding.py", "--data", "{data}", "--kept", "{kept}", "--size", "79")
BESIDE = {"f32": "f32", "f16": "bf16", "Q8_0": "bf16", "Q4_0": "bf16"}
"""{form: what transformers computes in beside it}"""


ON_ONNX = ("f32", "Q8_0", "Q4_0")
SPEED = ("tokens_per_second", "tokens/s", "higher")


def side(name: str, form: str) -> Side:
    command = ("python", "{here}/sides/decoding.py", "--kept", "{kept}", "--side", name, "--form", form)
    names = {"raw": "llama.cpp", "transformers": f"transformers {form}"}
    return Side(names.get(name, "onnuri"), (command,))


def race(form: str) -> Race:
    raw, library = side("raw", form), side("transformers", BESIDE[form])
    rows = {raw.name: (Row(*SPEED, 0.95),), library.name: (Row(*SPEED, 1.0),)}
    return Race(f"79 M Llama, {form}", side("onnuri", form), (raw, library), rows, MADE, repeats=5)


def elsewhere(what: str, ours: Side, form: str) -> Race:
    """On a runtime that takes what llama.cpp does not know, beside transformers."""
    library = side("transformers", BESIDE[form])
    return Race(f"79 M Llama, {what}", ours, (library,), {library.name: (Row(*SPEED, 1.0),)}, MADE, repeats=5)


RACES = (
    *map(race, BESIDE),
    *(elsewhere(f"ONNX Runtime, {form}", side("onnx", form), form) for form in ON_ONNX),
    elsewhere("torch, f32", side("torch", "f32"), "f32"),
)
