"""One watched forward pass: what flows through a net, found by looking and not by a list of architectures."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

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


# ------------------------------------------------------------------------------------------------- inside of the net


@dataclass
class Seen:
    """What a forward pass showed. `blocks`: {name: features (B, P, D) at its P places}, in order of execution; `attention`:
    queries, keys and values (B, H, T, D) of each attention of a sequence to itself; `real`: {T: which places (B, T) any
    query may see}, the others being padding."""

    blocks: dict[str, Tensor] = field(default_factory=dict)
    attention: list[tuple[Tensor, ...]] = field(default_factory=list)
    real: dict[int, Tensor] = field(default_factory=dict)


@contextmanager
def inside(blocks: Mapping[str, tuple[nn.Module, int]], count: int) -> Iterator[Seen]:
    """Inside, what the blocks put out and what attention is given is noted; of what runs twice, the last. `count`: B; what
    has another number of rows, as windows of pictures have, is left out."""
    seen = Seen()

    def hook(name: str, axis: int) -> Callable:
        def note(_: nn.Module, __: Any, out: Any) -> None:
            if len(first(out)) == count:
                seen.blocks[name] = places(first(out), axis)

        return note

    handles = [module.register_forward_hook(hook(name, axis)) for name, (module, axis) in blocks.items()]
    try:
        with Attending(seen, count):
            yield seen
    finally:
        for handle in handles:
            handle.remove()


def first(out: Any) -> Tensor:
    """The first tensor of what a module gives."""
    return out if isinstance(out, Tensor) else first(next(iter(out.values() if isinstance(out, dict) else out)))


def places(out: Tensor, axis: int) -> Tensor:
    """(B, P, D) of a tensor with its features on `axis`."""
    return out.movedim(axis, -1).reshape(len(out), -1, out.shape[axis])


class Attending(TorchFunctionMode):
    """While it is on, every attention is noted, whatever architecture asks for it: by torch's own function, or by a
    softmax over (B, H, T, T), of which only the padding is known."""

    def __init__(self, seen: Seen, count: int):
        super().__init__()
        self.seen, self.count = seen, count

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        if function is functional.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value", "attn_mask"), args)) | (kwargs or {})
            self.note(given["query"], given["key"], given["value"], given.get("attn_mask"))
        elif function in SOFTMAX and found.dim() == 4 and found.shape[::3] == (self.count, found.shape[2]):
            self.seen.real[found.shape[3]] = (found > 0).flatten(1, 2).any(1)
        return found

    def note(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
        if query.dim() != 4 or len(query) != self.count or query.shape[2] != key.shape[2]:
            return
        self.seen.attention.append((query, key, value))
        if mask is not None:
            shown = mask if mask.dtype == torch.bool else mask > HIDDEN
            shown = shown.expand(len(query), -1, -1, -1) if mask.dim() == 4 else shown.expand(len(query), 1, -1, -1)
            self.seen.real[key.shape[2]] = shown.flatten(1, 2).any(1)


SOFTMAX = (functional.softmax, torch.softmax, Tensor.softmax)
HIDDEN = -1e4  # what masks add to a score is far below, where it is to count for nothing


# -------------------------------------------------------------------------------------------------- units and statistics


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


def reestimated_statistics(model: Model, records: Records, log: Log) -> Model:
    """The model with its batch-norm statistics measured again on `records`, where it has any and where that lowers the
    loss; else as it was. Changing weights shifts what those statistics describe."""
    layers = [
        m for m in model.net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    if not layers:
        return model
    old = [({name: value.clone() for name, value in layer.named_buffers()}, layer.momentum) for layer in layers]
    before = mean_loss(model, records.some(512))
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
                model.outputs(model.collate(part))
    model.net.eval()
    after = mean_loss(model, records.some(512))
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
def mean_loss(model: Model, records: Records) -> float:
    """The first player's mean loss, in eval mode."""
    sums = torch.zeros(2, dtype=torch.float64)
    player = next(iter(model.players))
    for start in range(0, len(records), 64):
        batch = model.collate(records.list(slice(start, start + 64)))
        total, count = model.family.loss(model.net, batch, player)
        sums += torch.stack([total.sum(), count.sum()]).double()
    return float(sums[0] / sums[1].clamp_min(1e-12))


def read_raw(model: Model, records: Records) -> set[str]:
    """The names of the modules out of which the net takes more than their results: it reads their stride and the like, or
    their tensors without ever calling them. Whatever wraps such a module would go unseen, or fail."""
    named = {id(module): name for name, module in model.net.named_modules() if module._parameters}
    taken: dict[int, set[str]] = {key: set() for key in named}
    called: set[int] = set()
    watched = [module for module in model.net.modules() if id(module) in named]
    for module in watched:
        module.__class__ = watching_class(type(module), taken, called)
    try:
        batch = model.collate(records.list(slice(0, 2)))
        with torch.no_grad():
            for player in model.players:
                model.family.loss(model.net, batch, player)
    finally:
        for module in watched:
            module.__class__ = type(module).__mro__[1]
    return {named[key] for key, names in taken.items() if names - WRAPPED or (names and key not in called)}


WRAPPED = {"weight", "bias", "in_features", "out_features"}
"""What a wrapper of a layer shows as well; asking for a type or a size through it is harmless."""


def watching_class(original: type, taken: dict[int, set[str]], called: set[int]) -> type:
    """A subclass that notes what is read of an instance while its forward pass does not run."""
    inside: set[int] = set()

    def forward(self, *args, **kwargs):
        called.add(id(self))
        inside.add(id(self))
        try:
            return original.forward(self, *args, **kwargs)
        finally:
            inside.discard(id(self))

    def read(self, name: str):
        if id(self) not in inside and not name.startswith("_") and name != "training":
            state = object.__getattribute__(self, "__dict__")
            if name in state or name in state["_parameters"]:
                taken[id(self)].add(name)
        return object.__getattribute__(self, name)

    return type(original.__name__, (original,), {"forward": forward, "__getattribute__": read})
