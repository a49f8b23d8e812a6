"""How fast `train` is beside transformers' Trainer, TRL's SFT and a loop written by hand: same model, data and precision.

Peers run twice, as they come and with our allocator setting in their environment: otherwise the win would be a setting.
"""

import math
from dataclasses import replace

from .harness import ALLOCATOR, Found, Race, Row, Side, train

SPEED = "tokens/s"
VENVS = {"language_trl": "trl", "language_litgpt": "litgpt"}
SHAKESPEARE = ("--steps", "1000", "--batch-size", "12", "--config", "hidden_size=128,vocab_size=258,max_length=65")
"""As many layers, widths and characters a step as in nanoGPT's recipe, and half the steps."""


def side(name: str, script: str, size: str, batch: int, environment: dict[str, str] | None = None, *more: str) -> Side:
    command = (
        "python",
        f"{{here}}/sides/{script}.py",
        "--kept",
        "{kept}",
        "--size",
        size,
        "--batch",
        str(batch),
        *more,
    )
    return Side(name, (command,), environment=environment or {}, venv=VENVS.get(script, ""))


def language(size: str, batch: int) -> Race:
    """Ours against four peers, on one Llama."""
    peers = [("Trainer", "language_trainer"), ("TRL SFT", "language_trl")]
    sides = [side(name, script, size, batch) for name, script in peers]
    sides += [side(f"{name}, our allocator", script, size, batch, ALLOCATOR) for name, script in peers]
    sides += [side("bare loop, our allocator", "language_bare", size, batch, ALLOCATOR)]
    goals = {one.name: 1.0 if "bare" in one.name else 1.05 if "our" in one.name else 1.3 for one in sides}
    rows = {name: (Row("tokens_per_second", SPEED, "higher", goal),) for name, goal in goals.items()}
    ours = side("onnuri", "language_onnuri", size, batch)
    return Race(f"Llama of {size} M, {batch} x 128 tokens", ours, tuple(sides), rows, prepared(size))


def prepared(size: str) -> tuple[str, ...]:
    return ("python", "{here}/sides/language.py", "--data", "{data}", "--kept", "{kept}", "--sizes", size)


def share(size: str, batch: int) -> Race:
    """Ours, compiled, against the best product that the machine does in the same run."""
    ours = side("onnuri --compile", "language_onnuri", size, batch, None, "--compile", "--steps", "30")
    bare = side("bare loop, compiled, our allocator", "language_bare", size, batch, ALLOCATOR, "--compile")
    rows = {
        "": (Row("share_of_peak", "of the bf16 peak", "higher", 0.55, "ours"),),
        bare.name: (Row("tokens_per_second", SPEED, "higher", 1.0),),
    }
    return Race(f"Llama of {size} M, {batch} x 128 tokens, compiled", ours, (bare,), rows, prepared(size))


def vision() -> Race:
    """Ours, which prepares pictures as they come, against the Trainer, which does too, and a loop that has them ready."""

    def one(name: str, script: str, environment: dict[str, str] | None = None) -> Side:
        command = ("python", f"{{here}}/sides/{script}.py", "--data", "{data}", "--kept", "{kept}")
        return Side(name, (command,), environment=environment or {})

    trainer, tuned = one("Trainer", "vision_trainer"), one("Trainer, our allocator", "vision_trainer", ALLOCATOR)
    bare = one("bare loop, our allocator", "vision_bare", ALLOCATOR)
    rows = {
        side.name: (Row("records_per_second", "pictures/s", "higher", goal),)
        for side, goal in ((trainer, 1.3), (tuned, 1.05), (bare, 1.0))
    }
    prepare = ("python", "{here}/sides/vision.py", "--data", "{data}", "--kept", "{kept}")
    return Race("ViT of 2.7 M, 128 pictures", one("onnuri", "vision_onnuri"), (trainer, tuned, bare), rows, prepare)


def shakespeare() -> Race:
    """Ours, by the command line, to the validation loss of a recipe that many know. Ours tells bits a byte: every
    character of this text is one byte."""
    how = ("--family", "causal_lm", "--data", "{kept}/shakespeare", "--answer", "text", *SHAKESPEARE)
    mine = Side("onnuri", (train(*how),), nats)
    bare = Side("nanoGPT's recipe, bare loop", (("python", "{here}/sides/shakespeare_bare.py", "--data", "{data}"),))
    loss = Row("nats_per_character", "nats", "lower", 1.886, "ours")
    rows = {"": (loss,), bare.name: (replace(loss, goal=1.0, of="ratio"), Row("wall_seconds", "s", "lower", 1.0))}
    prepare = ("python", "{here}/sides/shakespeare.py", "--data", "{data}", "--kept", "{kept}")
    return Race("tiny shakespeare, 0.8 M", mine, (bare,), rows, prepare)


def nats(lines: list[Found]) -> Found:
    return {"nats_per_character": math.log(2) * lines[-1]["after"]["scores"]["bits_per_byte"]}


RACES = (language("6", 16), language("79", 4), share("27", 16), vision(), shakespeare())
