"""What a piece of work costs, found by watching every operator that torch executes: FLOPs, bytes moved, bytes alive.

How long it takes is foretold elsewhere, from the tasks that are noted here, one for each operator (`tasks.py`).
"""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .flops import LOOKUPS, PRODUCTS, base_name, is_linear, python_kernel
from .tasks import Task, task_of

COPYING = frozenset(("convolution", "convolution_backward"))
"""Operators that, on a processor, copy what they read and write into a layout of their own and hold both."""


def workspace(tensors: list[Tensor]) -> int:
    """Bytes of those copies; none where channels lie innermost already."""
    pictures = [tensor for tensor in tensors if tensor.dim() >= 3 and not tensor.is_cuda]
    return sum(tensor.nbytes for tensor in pictures if tensor.is_contiguous())


# ---------------------------------------------------------------------------------------------- lines over the records


@dataclass(frozen=True)
class Cost:
    """`flops` by type; `moved`: bytes of weights read, and of what is made, written and read; `calls` of operators, each
    of which is one of the `tasks`; `known`: bytes of the known tensors that are read, each counted once."""

    flops: dict[torch.dtype, float]
    moved: float
    calls: float
    tasks: tuple[Task, ...] = ()
    known: float = 0.0

    def at(self, other: "Cost", sizes: tuple[float, float], n: int) -> "Cost":
        """With n records, when self is the cost of sizes[0] and `other` that of sizes[1]."""

        def on_line(one: float, two: float) -> float:
            return one + (two - one) / (sizes[1] - sizes[0]) * (n - sizes[0])

        flops = {kind: on_line(self.flops.get(kind, 0), other.flops.get(kind, 0)) for kind in other.flops}
        moved, calls, known = (
            on_line(getattr(self, name), getattr(other, name)) for name in ("moved", "calls", "known")
        )
        return Cost(flops, moved, calls, self.tasks_at(other, (n - sizes[0]) / (sizes[1] - sizes[0])), known)

    def between(self, start: int, end: int) -> "Cost":
        """Of these tasks alone, whatever they read coming from memory."""
        tasks, flops = self.tasks[start:end], Counter[torch.dtype]()
        for task in tasks:
            flops[task.dtype] += task.flops  # type: ignore[assignment]
        return Cost(+flops, sum(task.moved for task in tasks), len(tasks), tasks, self.known)  # type: ignore[arg-type]

    def tasks_at(self, other: "Cost", place: float) -> tuple[Task, ...]:
        """Each task on its own line; where another batch makes other operators, those of the larger one, all grown alike."""
        if [task.kind for task in self.tasks] == [task.kind for task in other.tasks]:
            return tuple(one.at(two, place) for one, two in zip(self.tasks, other.tasks))
        nothing = (replace(task, flops=0.0, read=0.0, written=0.0) for task in other.tasks)
        return tuple(one.at(two, (1 + place) / 2) for one, two in zip(nothing, other.tasks))


class Line:
    """Bytes alive after each operator as lines over the number of records, on top of what is `fixed`. Where another
    batch makes other operators, only the peak is one."""

    def __init__(self, courses: Sequence[Sequence[float]], sizes: tuple[float, float], fixed: float):
        alike = len(courses[0]) == len(courses[1])
        low, high = (np.array(one if alike else [max(one)], dtype=float) for one in courses)
        self.slope = (high - low) / (sizes[1] - sizes[0])
        self.start, self.fixed = low - self.slope * sizes[0], fixed

    @staticmethod
    def of(watches: Sequence["Watch"], sizes: tuple[float, float], fixed: float, held: float = 1.0) -> "Line":
        """`held`: bytes that the allocator takes for each byte alive."""
        return Line([[held * alive for alive in watch.course] or [0.0] for watch in watches], sizes, fixed)

    def at(self, n: int) -> float:
        """Bytes at the peak with n records."""
        return self.fixed + float((self.start + self.slope * n).max())

    def most(self, memory: float) -> int | None:
        """The most records whose peak stays below `memory`, 0 where not even one does; None where they take none."""
        rising = self.slope > 0
        room = (memory - self.fixed - self.start[rising]) / self.slope[rising]
        return max(0, int(room.min())) if rising.any() else None


# ------------------------------------------------------------------------------------------------------------ the watcher


class Watch(TorchDispatchMode):
    """Watches what torch executes inside the block. `known`: tensors that lie in memory before, which are not counted as
    made but as read. Watching changes no result; it makes everything slower."""

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self.flops: Counter[torch.dtype] = Counter()
        self.unknown: Counter[str] = Counter()
        self.tasks: list[Task] = []
        self.read_once = 0
        """Bytes of the known tensors that were read, each part of them once; known when the watch ends."""
        self.read_each = self.made = self.live = self.peak = self.saved = self.peak_saved = 0
        self.course: list[int] = []
        """Bytes alive after each operator."""
        self.known = {storage._cdata: storage for tensor in known if (storage := storage_of(tensor))}
        self.parts: dict[int, dict[Any, int]] = {}
        self.alive: dict[int, int] = {}
        self.kept: dict[int, int] = {}
        self.inside: Any = None

    @property
    def total_flops(self) -> int:
        return sum(self.flops.values())

    @property
    def calls(self) -> int:
        return len(self.tasks)

    def once(self) -> "Cost":
        """The cost where known tensors come from memory once, as weights do in one forward pass."""
        return Cost(dict(self.flops), self.read_once + 2 * self.made, self.calls, tuple(self.tasks), self.read_once)

    def each(self) -> "Cost":
        """The cost where known tensors come from memory whenever they are read."""
        return Cost(dict(self.flops), self.read_each + 2 * self.made, self.calls, tuple(self.tasks), self.read_once)

    def close(self) -> None:
        """Let go of the known tensors: a watch outlives the net that it watched."""
        self.read_once = sum(min(self.known[key].nbytes(), sum(parts.values())) for key, parts in self.parts.items())
        self.known, self.parts = {}, {}

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(operator, torch._ops.HigherOrderOperator):
            self.unknown[str(operator)] += 1
            return operator(*args, **kwargs)
        if base_name(operator) not in PRODUCTS:
            with self:  # what consists of other operators is counted by its parts
                result = operator.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = self.execute(operator, args, kwargs)
        inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        outputs = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        self.note_bytes(operator, inputs, outputs)
        return result

    def execute(self, operator: Any, args: Any, kwargs: Any) -> Any:
        """The operator's result, its FLOPs counted. One that a library wrote in Python is counted by its parts."""
        inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        kernel = python_kernel(operator)
        if kernel is None:
            flops = self.count(operator, args) if inputs else 0
            result = operator(*args, **kwargs)
            if not operator.is_view:
                outputs = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
                self.tasks.append(task_of(base_name(operator), args, inputs, outputs, flops))
            return result
        before = self.total_flops, self.unknown.total()
        with self, torch.no_grad():
            result = kernel(*args, **kwargs)
        if before == (self.total_flops, self.unknown.total()):
            self.unknown[operator._schema.name] += 1
        return result

    def count(self, operator: Any, args: Any) -> int:
        """The operator's FLOPs, added to those of their type; one that no table knows is named."""
        formula = PRODUCTS.get(base_name(operator))
        if formula is not None:
            first = next(value for value in args[1:] if isinstance(value, Tensor))
            flops = int(formula(*args))
            self.flops[first.dtype] += flops
            return flops
        if not is_linear(operator):
            self.unknown[operator._schema.name.removeprefix("aten::")] += 1
        return 0

    # ------------------------------------------------------------------------------------------------------------ memory

    def note_bytes(self, operator: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        for tensor in [*inputs, *outputs]:
            self.note_made(tensor)
        beside = workspace([*inputs, *outputs]) if base_name(operator) in COPYING else 0
        self.peak = max(self.peak, self.live + beside)
        if not operator.is_view:
            for tensor in inputs:
                self.note_read(operator, tensor, outputs)
        self.course.append(self.live + beside)

    def note_made(self, tensor: Tensor) -> None:
        storage = storage_of(tensor)
        if storage is None or storage._cdata in self.known or storage._cdata in self.alive:
            return
        key, size = storage._cdata, storage.nbytes()
        self.alive[key] = size
        self.made += size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.forget, key).atexit = False

    def forget(self, key: int) -> None:
        self.live -= self.alive.pop(key)
        self.saved -= self.kept.pop(key, 0)

    def note_read(self, operator: Any, tensor: Tensor, outputs: list[Tensor]) -> None:
        storage = storage_of(tensor)
        if storage is None or storage._cdata not in self.known:
            return
        parts = self.parts.setdefault(storage._cdata, {})
        if base_name(operator) in LOOKUPS:
            size = min(storage.nbytes(), sum(out.numel() for out in outputs) * tensor.element_size())
            parts["rows"] = parts.get("rows", 0) + size
        else:
            size = min(storage.nbytes(), tensor.numel() * tensor.element_size())
            parts[tensor.storage_offset(), tensor.numel()] = size
        self.read_each += size * (2 if operator._schema.is_mutable else 1)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Inside, what autograd keeps for the backward pass is counted: unique storages, known tensors left out."""

        def pack(tensor: Tensor) -> Tensor:
            storage = storage_of(tensor)
            if storage is not None and storage._cdata not in self.known and storage._cdata not in self.kept:
                self.note_made(tensor)
                self.kept[storage._cdata] = storage.nbytes()
                self.saved += storage.nbytes()
                self.peak_saved = max(self.peak_saved, self.saved)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield


def storage_of(tensor: Tensor) -> Any:
    """The memory behind a tensor; None where it has none of its own, such as on the meta device."""
    return tensor.untyped_storage() if tensor.layout == torch.strided and not tensor.is_meta else None


@contextmanager
def watched(known: Iterable[Tensor] = ()) -> Iterator[Watch]:
    """A Watch in force; layers that torch would fuse into one operator of its own are run part by part."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with Watch(known) as watch, watch.saving():
            yield watch
        watch.close()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def tensors_of(net: nn.Module) -> list[Tensor]:
    """Parameters and buffers, tied ones once."""
    return list({id(tensor): tensor for tensor in [*net.parameters(), *net.buffers()]}.values())


@contextmanager
def passes(net: nn.Module, watch: Watch) -> Iterator[list[int]]:
    """Fills the list with the number of tasks before each pass through the net: each outermost call of it or of a part."""
    inside, depth, starts = {id(module) for module in net.modules()}, 0, list[int]()

    def enter(module: nn.Module, inputs: Any) -> None:
        nonlocal depth
        if id(module) in inside:
            starts.extend([len(watch.tasks)] * (depth == 0))
            depth += 1

    def leave(module: nn.Module, inputs: Any, result: Any) -> None:
        nonlocal depth
        depth -= id(module) in inside

    hooks = (
        register_module_forward_pre_hook(enter),
        register_module_forward_hook(leave, always_call=True),  # type: ignore[call-arg]
    )
    try:
        yield starts
    finally:
        for hook in hooks:
            hook.remove()
