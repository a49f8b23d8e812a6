"""What makes a training step fast, each thing only where it pays.

The limits of a small machine are page faults (`machine.keep_memory`), products (bf16), the gradient of attention
(`attention.hasten`), the layout of pictures (channels last) and the overhead of many small kernels (compiling). How near
a training came to them is told by its `Pace`.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from .. import attention, company, machine
from ..costs import peaks
from ..errors import BadSettings
from ..family import Batch
from ..operation import Log

Loss = Callable[[Batch, str], tuple[Tensor, Tensor]]
LARGE = 1e9  # FLOPs of a forward pass from which bf16 saves more in products than it costs in casts
GAIN = 0.95  # of the eager time: what compiling must at least come down to
TRIALS = 4
SHORT = 5.0  # seconds of a training about whose pace nothing is said: measuring the peak would take its share


def prepare() -> None:
    """What a training sets for the whole process, from now on."""
    machine.keep_memory()
    attention.hasten()


@contextmanager
def any_types(device: torch.device, asked: bool) -> Iterator[None]:
    """Inside, a product may be in bf16 whatever its inputs are: where the processor has it, or where it was `asked` for. Elsewhere
    not every kernel has a form in bf16, an LSTM for one: BadSettings then."""
    native = peaks.native_bf16(device)
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=native or asked):
            yield
    except RuntimeError as error:
        if native or not asked:
            raise
        why = str(error).partition(".")[0]
        raise BadSettings(f"this processor cannot compute this net in bf16: {why}", hint="--precision auto") from error


def bf16_pays(flops: float, device: torch.device) -> bool:
    """Whether products in bf16 are native here and a forward pass of so many FLOPs is large enough to gain from them."""
    return flops >= LARGE and peaks.native_bf16(device)


def widen(net: nn.Module) -> None:
    """Masters in fp32 for all that is trained: short types would lose the small updates. What is frozen keeps its type."""
    if all(parameter.requires_grad for parameter in net.parameters()):
        net.float()
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def compiled_if_it_pays(loss: Loss, batch: Batch, player: str, log: Log) -> Loss:
    """The compiled loss where forward and backward are faster than eagerly by GAIN on this batch, else the eager one."""
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # where it cannot go on in one piece is for its makers
    company.keep_eager()
    compiled = torch.compile(loss)
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


# ---------------------------------------------------------------------------------------------------------------- layout


def batch_norms(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@contextmanager
def arranged(net: nn.Module) -> Iterator[None]:
    """Inside, the kernels of a convolutional net lie channels last, and so does what they give.

    Only beside batch norms: there it takes 10 to 17 % off a step of a residual net on a processor. Nets of other norms
    and attention between their convolutions lost up to 35 %, since those write the other layout again.
    """
    kernels = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))] if batch_norms(net) else []
    for module in kernels:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        yield
    finally:
        for module in kernels:
            module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


# ------------------------------------------------------------------------------------------------------------------ pace


class Pace:
    """How fast the steps of a training are. Around each step: `with pace`, and `numbers` of its batch set inside.
    `per_number`: FLOPs of a step for each number in its batch."""

    def __init__(self) -> None:
        self.numbers = self.per_number = 0.0
        self.seconds: list[float] = []
        self.rates: list[float] = []

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *_: Any) -> None:
        self.seconds.append(time.perf_counter() - self.began)
        self.rates.append(self.numbers / self.seconds[-1])

    def facts(self, bf16: bool, device: torch.device, batch_size: int) -> dict[str, Any]:
        """Seconds of the median step, records a second, FLOP/s and the share of the best product's, which is measured
        now; {} for a short training, and for one whose FLOPs were not counted."""
        if sum(self.seconds) < SHORT or not self.per_number:
            return {}
        kind = torch.bfloat16 if bf16 else torch.float32
        step, peak = median(self.seconds), peaks.product_peak(kind, device).best
        rate = self.per_number * median(self.rates)
        return {
            "seconds_per_step": step,
            "records_per_second": batch_size / step,
            "flops_per_second": rate,
            "peak_flops_per_second": peak,
            "share_of_peak": rate / peak,
            "precision": "bf16" if bf16 else "fp32",
        }
