"""How fast `train` and `adapt` learn language, and how well, beside TRL, the Trainer, litgpt and a loop by hand.

All learn the same rows by the same Llama, in bf16 where the processor multiplies in it, else in fp32. Peers run as they come and
with our allocator setting too, else the win would be a setting. What is learnt is judged on documents that nobody saw, after as
many tokens, rates and orders of one kind.
"""

import torch

from onnuri.costs import peaks

from .bench_fit import SPEED, prepared, side
from .harness import ALLOCATOR, Race, Row, Side

PRECISION = "bf16" if peaks.native_bf16(torch.device("cpu")) else "fp32"
SCRIPTS = {"TRL": "language_trl", "Trainer": "language_trainer", "litgpt": "language_litgpt"}


def one(name: str, script: str, size: str, batch: int, environment: dict[str, str] | None = None, *how: str) -> Side:
    return side(name, script, size, batch, environment, "--precision", PRECISION, *how)


def speed(size: str, batch: int, peers: tuple[str, ...], *how: str) -> Race:
    sides = [one(name, SCRIPTS[name], size, batch, None, *how) for name in peers]
    sides += [one(f"{name}, our allocator", SCRIPTS[name], size, batch, ALLOCATOR, *how) for name in peers]
    sides += [one("bare loop, our allocator", "language_bare", size, batch, ALLOCATOR, *how)]
    goals = {each.name: 1.0 if "bare" in each.name else 1.05 if "our" in each.name else 1.5 for each in sides}
    rows = {name: (Row("tokens_per_second", SPEED, "higher", goal),) for name, goal in goals.items()}
    what = "LoRA on a Llama" if "--lora" in how else "Llama"
    ours = one("onnuri", "language_onnuri", size, batch, None, *how)
    return Race(f"{what} of {size} M, {batch} x 128 tokens, {PRECISION}", ours, tuple(sides), rows, prepared(size))


def share(size: str, batch: int) -> Race:
    """Ours, compiled, against the best product that the machine does in the same run."""
    how = ("--compile", "--steps", "30")
    ours = one("onnuri --compile", "language_onnuri", size, batch, None, *how)
    bare = one("bare loop, compiled, our allocator", "language_bare", size, batch, ALLOCATOR, *how)
    rows = {
        "": (Row("share_of_peak", f"of the {PRECISION} peak", "higher", 0.55, "ours"),),
        bare.name: (Row("tokens_per_second", SPEED, "higher", 1.0),),
    }
    return Race(f"Llama of {size} M, {batch} x 128 tokens, {PRECISION}, compiled", ours, (bare,), rows, prepared(size))


def judged(size: str, batch: int, steps: int) -> Race:
    """Bits per byte are the same at each turn: one is enough."""
    how = ("--judged", "--steps", str(steps))
    ours = one("onnuri", "language_onnuri", size, batch, None, *how)
    bare = one("bare loop, our allocator", "language_bare", size, batch, ALLOCATOR, *how)
    rows = {bare.name: (Row("bits_per_byte", "bits", "lower", 0.99), Row("tokens_per_second", SPEED, "higher", 1.0))}
    case = f"Llama of {size} M after {steps} steps of {batch} x 128 tokens, {PRECISION}"
    return Race(case, ours, (bare,), rows, prepared(size), repeats=1)


RACES = (
    speed("79", 4, ("TRL", "Trainer", "litgpt")),
    speed("79", 4, ("TRL",), "--lora"),
    share("27", 16),
    judged("6", 16, 250),
)
