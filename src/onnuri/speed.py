"""What makes a training step fast, each thing only where it pays.

The limits of a small machine are page faults (`machine.keep_memory`), products (bf16) and the overhead of many small
kernels (compiling).
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .family import Batch
from .operation import Log

Loss = Callable[[Batch, str], tuple[Tensor, Tensor]]
LARGE_NET = 1_000_000  # parameters from which bf16 saves more in products than it costs in casts
GAIN = 0.95  # of the eager time: what compiling must at least come down to
TRIALS = 4


def bf16_pays(net: nn.Module, device: torch.device) -> bool:
    """Whether products in bf16 are native here and the net is large enough to gain from them."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported()
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return native and sum(p.numel() for p in net.parameters()) >= LARGE_NET


def widen(net: nn.Module) -> None:
    """Masters in fp32 for all that is trained: short types would lose the small updates. What is frozen keeps its type."""
    if all(parameter.requires_grad for parameter in net.parameters()):
        net.float()
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def compiled_if_it_pays(loss: Loss, batch: Batch, player: str, log: Log) -> Loss:
    """The compiled loss where forward and backward are faster than eagerly by GAIN on this batch, else the eager one."""
    compiled = torch.compile(loss, dynamic=False)
    eager = seconds(loss, batch, player)
    try:
        fast = seconds(compiled, batch, player)
    except Exception as error:  # no compiler on the machine, or a net that it cannot take
        log.warn(f"not compiled, trained eagerly: {(str(error) or type(error).__name__).splitlines()[0]}")
        return loss
    pays = fast < GAIN * eager
    log.warn(f"compiled {fast * 1e3:.1f} ms against {eager * 1e3:.1f} ms a batch: {'kept' if pays else 'not kept'}")
    return compiled if pays else loss


def seconds(loss: Loss, batch: Batch, player: str) -> float:
    """The best of several forward and backward passes; the first one, which compiles, does not count."""
    times = []
    for _ in range(TRIALS):
        began = time.perf_counter()
        loss(batch, player)[0].sum().backward()
        times.append(time.perf_counter() - began)
    return min(times[1:])
