"""One watched forward pass: what flows through a net, found by looking and not by a list of architectures."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .data import Records
from .model import Model
from .operation import Log

Watcher = Callable[[str, nn.Module, Tensor], None]


@contextmanager
def watching(net: nn.Module, watch: Watcher, kinds: tuple[type, ...]) -> Iterator[None]:
    """Inside, `watch(name, module, input)` is called for each module of these kinds, in order of execution."""

    def hook(name: str) -> Callable:
        return lambda module, inputs: watch(name, module, inputs[0]) if inputs else None

    handles = [
        module.register_forward_pre_hook(hook(name))
        for name, module in net.named_modules()
        if isinstance(module, kinds)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def dead_units(net: nn.Module, forward: Callable[[], object]) -> dict[str, float]:
    """{layer: share of its input units that are exactly zero throughout one forward pass}.

    Looking at inputs sees functional activations too. The first layer is left out: what it sees is the data, where
    constant zeros (the border of a picture) are no fault.
    """
    shares: dict[str, float] = {}

    def watch(name: str, module: nn.Module, x: Tensor) -> None:
        axis = 1 if isinstance(module, nn.modules.conv._ConvNd) else x.dim() - 1
        others = [d for d in range(x.dim()) if d != axis]
        alive = (x != 0).sum(others) > 0
        shares[name] = 1 - float(alive.float().mean())

    with torch.no_grad(), watching(net, watch, (nn.Linear, nn.modules.conv._ConvNd)):
        forward()
    return dict(list(shares.items())[1:])


def reestimated_statistics(model: Model, records: Records, seed: int, log: Log) -> Model:
    """The model with its batch-norm statistics measured again on `records`, where it has any and where that lowers the
    loss; else as it was. Changing weights shifts what those statistics describe."""
    layers = [
        m for m in model.net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    if not layers:
        return model
    old = [({name: value.clone() for name, value in layer.named_buffers()}, layer.momentum) for layer in layers]
    before = mean_loss(model, records.some(512), seed)
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average over all batches
    with torch.no_grad():
        model.net.eval()
        for layer in layers:
            layer.train()
        seen = records.some(2048)
        for start in range(0, len(seen), 64):
            part = seen.list(slice(start, start + 64))
            if len(part) > 1:
                model.outputs(model.collate(part, seed))
    model.net.eval()
    after = mean_loss(model, records.some(512), seed)
    better = after < before  # and not so where it is no number
    for layer, (statistics, momentum) in zip(layers, old):
        layer.momentum = momentum
        if not better:
            layer.load_state_dict(statistics, strict=False)
    log.warn(
        f"batch-norm statistics measured again: loss {before:.4g} -> {after:.4g}, {'kept' if better else 'put back'}"
    )
    return model


@torch.no_grad()
def mean_loss(model: Model, records: Records, seed: int) -> float:
    """The first player's mean loss, in eval mode."""
    sums = torch.zeros(2, dtype=torch.float64)
    player = next(iter(model.players))
    for start in range(0, len(records), 64):
        batch = model.collate(records.list(slice(start, start + 64)), seed)
        total, count = model.family.loss(model.net, batch, player)
        sums += torch.stack([total.sum(), count.sum()]).double()
    return float(sums[0] / sums[1].clamp_min(1e-12))
