"""Writing text on a processor: a Llama of 79 M exported to GGUF, beside llama.cpp's own loop on the same file and transformers.

The weights are random: what is written says nothing, how fast says all. 4 tokens of prompt, 100 greedy tokens, no stop.
"""

from .harness import Race, Row, Side

MADE = ("python", "{here}/sides/decoding.py", "--data", "{data}", "--kept", "{kept}")
BESIDE = {"f32": "f32", "f16": "bf16", "Q8_0": "bf16", "Q4_0": "bf16"}
"""{form: what transformers computes in beside it}"""


def side(name: str, form: str) -> Side:
    command = ("python", "{here}/sides/decoding.py", "--kept", "{kept}", "--side", name, "--form", form)
    names = {"onnuri": "onnuri", "raw": "llama.cpp", "transformers": f"transformers {form}"}
    return Side(names[name], (command,))


def race(form: str) -> Race:
    raw, library = side("raw", form), side("transformers", BESIDE[form])
    speed = ("tokens_per_second", "tokens/s", "higher")
    rows = {raw.name: (Row(*speed, 0.95),), library.name: (Row(*speed, 1.0),)}
    return Race(f"79 M Llama, {form}", side("onnuri", form), (raw, library), rows, MADE, repeats=5)


RACES = tuple(map(race, BESIDE))
