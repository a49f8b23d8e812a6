"""Whether a compiled step is written with: where it says the same and is faster."""

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from ...decoding import compiled
from ...errors import Refusal
from ...family import Writing
from ...operation import Log


@torch.no_grad()
def compiled_if_it_pays(net: nn.Module, writing: Writing, prompts: Sequence[list[int]], log: Log) -> Writing:
    """The same, its step compiled if that pays for as many answers as there are prompts; the user is told of it."""
    began = time.perf_counter()
    log.progress(0, 1, "compiling a step")
    try:
        found = compiled.compiled(net, writing, prompts)
    except Refusal:
        raise
    except Exception as error:  # no compiler on the machine, or a net that it cannot take
        log.warn(f"not compiled, written eagerly: {(str(error).strip() or type(error).__name__).splitlines()[0]}")
        return writing
    log.progress(1, 1, "compiling a step")
    log.warn(
        f"compiled in {time.perf_counter() - began:.0f} s: a step of {found.answers} answers takes {found.seconds * 1e3:.2f} ms, "
        f"it took {found.seconds_eager * 1e3:.2f} ms; scores differ by {found.apart:.0e} of the largest: "
        f"{'kept' if found.pays else 'not kept'}"
    )
    return replace(writing, step=found.step) if found.pays else writing
