"""Whether a compiled step is written with: where it says the same and is faster."""

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...costs.peaks import timed
from ...decoding.compiled import compiled
from ...errors import Refusal
from ...family import Writing
from ...operation import Log

GAIN = 0.95  # of the eager time: what a compiled step must at least come down to
NEAR = 1e-3  # of the largest score: sums in another order differ by 1e-5, a wrong program by far more


@torch.no_grad()
def compiled_if_it_pays(net: nn.Module, writing: Writing, prompts: Sequence[list[int]], log: Log) -> Writing:
    """The same, its step compiled if that pays for as many answers as there are prompts; the user is told of it."""
    began = time.perf_counter()
    log.progress(0, 1, "compiling a step")
    try:
        step, batch, memory = compiled(net, writing, prompts)
        steps = (writing.step, step)
        wanted, found = (each(batch, memory)[0][0].float() for each in steps)
    except Refusal:
        raise
    except Exception as error:  # no compiler on the machine, or a net that it cannot take
        log.warn(f"not compiled, written eagerly: {(str(error).strip() or type(error).__name__).splitlines()[0]}")
        return writing
    took = time.perf_counter() - began
    log.progress(1, 1, "compiling a step")
    # a device has ended when its number is there
    before, now = (timed(lambda each=each: float(each(batch, memory)[0][0].flatten()[0])) for each in steps)
    apart = difference(found, wanted)
    pays = apart < NEAR and now < GAIN * before
    log.warn(
        f"compiled in {took:.0f} s: a step of {len(memory[0])} answers takes {now * 1e3:.2f} ms, it took {before * 1e3:.2f} ms; "
        f"scores differ by {apart:.0e} of the largest: {'kept' if pays else 'not kept'}"
    )
    return replace(writing, step=step) if pays else writing


def difference(found: Tensor, wanted: Tensor) -> float:
    """The largest between two steps' scores, as a share of the largest score; of those that are finite."""
    there = wanted.isfinite()
    return float((found - wanted)[there].abs().max() / wanted[there].abs().max())
