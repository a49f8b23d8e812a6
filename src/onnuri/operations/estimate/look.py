"""What all parts of an estimate share: the model, the records, the ceilings, and the lines of the report that they add to."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ... import machine, measure
from ...costs import peaks
from ...costs.count import Cost, Line, Watch, tensors_of, watched
from ...costs.efficiency import Efficiency, predicted
from ...costs.peaks import Peaks
from ...costs.roofline import Shares, Time, form_of, time_on
from ...costs.targets import Target
from ...data import Record, Records
from ...family import Batch, Session
from ...model import Model, count_parameters
from ...weights.attach import is_trainable, stored_numbers
from ...weights.matrices import weights

LOOKED_AT = 256  # records among which the longest and the shortest are looked for
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int8: "int8"}


class Look:
    """`target`: None for this machine, on which what is predicted is measured as well."""

    def __init__(
        self,
        model: Model,
        records: Records,
        settings: Any,
        best: Peaks,
        report: dict[str, Any],
        found: Efficiency,
        target: Target | None = None,
    ):
        self.model, self.records, self.settings, self.best, self.report = model, records, settings, best, report
        self.found, self.target, self.size = found, target, len(records)
        self.memory = target.room if target else machine.memory_bytes()
        self.made: Callable[[list[Record]], Batch] = model.collate
        self.probes = probes_of(self.size)
        self.process = 0
        """Bytes that this process holds beside the net, once its libraries have loaded what a forward pass needs."""

    def some(self, n: int) -> Records:
        """The first n records, over again where there are fewer."""
        return self.records[[i % self.size for i in range(n)]]

    def batch(self, n: int) -> Batch:
        return self.made(self.some(n).list())

    def learning(self, pieces: Records, made: Callable[[list[Record]], Batch]) -> "Look":
        """The same of a training: what it learns from one at a time, in batches as it makes them."""
        found = copy.copy(self)
        if pieces is not self.records:
            found.records = longest_first(self.model, pieces, self.settings)
        found.made, found.size = made, len(found.records)
        small, large = probes_of(found.size)
        while found.rows(large) <= found.rows(small):
            large += small
        found.probes = (small, large)
        return found

    def rows(self, n: int) -> int:
        """Rows of the batch of n records: fewer where several share one."""
        return len(next(iter(self.batch(n).values())))

    @property
    def sizes(self) -> tuple[float, float]:
        """Of the probes, in records that fill rows as those of the whole batch do."""
        share = self.size / self.rows(self.size)
        small, large = (self.rows(n) * share for n in self.probes)
        return small, large

    def note(self, text: str) -> None:
        self.report["notes"].append(text)

    def watched(self, work: Callable[[], Any], known: list[Tensor]) -> Watch:
        """What `work` costs; what could not be counted is remembered."""
        with watched(known) as watch:
            work()
        self.report["uncounted_operators"] |= watch.unknown
        return watch

    def timed(self, work: Callable[[], Any]) -> float | None:
        """Seconds; None for a target, which is not here."""
        return None if self.target else peaks.timed(work)

    # ---------------------------------------------------------------------------------------------------------- the lines

    def time(self, cost: Cost, calls: float = 0, recorded: bool = False) -> Time:
        """What is predicted. `calls`: of the interpreter; `recorded`: whether a gradient is asked for. A target's price of
        an operator has both in it."""
        if self.target:
            return time_on(self.target, cost, Shares.here(self.found, self.best))
        return Time(predicted(cost, self.best, self.found, calls, recorded), {})

    def ceilings(self, cost: Cost) -> tuple[float, float]:
        """(seconds of the products, seconds of the memory) at the peaks."""
        if self.target is None:
            return self.best.seconds(cost.flops, cost.moved)
        time = sum(flops / self.target.peak(form_of(kind)) for kind, flops in cost.flops.items())
        return time, cost.moved / self.target.bandwidth

    def work(
        self, name: str, records: int, cost: Cost, seconds: float | None, calls: float = 0, recorded: bool = False
    ) -> Time:
        """One line of the roofline: predicted beside measured, what holds it back, and what it draws."""
        products, memory = self.ceilings(cost)
        time = self.time(cost, calls, recorded)
        joules = (time.seconds if seconds is None else seconds) * self.watts
        found: dict[str, Any] = {
            "work": name,
            "records": records,
            "flops": sum(cost.flops.values()) or None,
            "bytes_moved": cost.moved,
            "operators": cost.calls,
            "product_seconds": products,
            "memory_seconds": memory,
            "roofline_seconds": max(products, memory),
            "predicted_seconds": time.seconds,
            "measured_seconds": seconds,
            "predicted_parts": dict(sorted(time.parts.items(), key=lambda part: -part[1])),
            "joules": joules,
            "bottleneck": time.bottleneck if self.target else peaks.bottleneck(products, memory, seconds),
        }
        if not cost.flops:  # what runs elsewhere has its time measured, and nothing to hold that against
            outside = [name for name in found if name.endswith("_seconds") and name != "measured_seconds"]
            found |= dict.fromkeys(("bytes_moved", *outside)) | {"bottleneck": "not executed by torch"}
            found |= {"predicted_parts": {}, "joules": None if self.target else joules}
        self.report["work"].append(found)
        return time

    @property
    def watts(self) -> float:
        return self.target.watts if self.target else self.best.threads * machine.WATTS_PER_CORE

    def fits(self, name: str, line: Line, measured: float | None, records: int | None = None, **parts: float) -> None:
        """One line of memory: predicted beside measured and all that there is, and the largest batch that fits."""
        records = records or self.size
        need = line.at(records)
        self.report["memory"].append(
            {
                "work": name,
                "records": records,
                **parts,
                "predicted_bytes": need,
                "measured_bytes": measured,
                "share_of_machine": need / self.memory,
                "fits": need <= self.memory,
                "largest_batch": line.most(self.memory) if self.report["forward_flops"] else None,
            }
        )


def probes_of(size: int) -> tuple[int, int]:
    """How many records the two batches hold that are watched."""
    small = max(2, size // 8)
    return small, 2 * small


def trainable(model: Model) -> bool:
    return bool(model.players) and is_trainable(model.net)


def longest_first(model: Model, records: Records, settings: Any) -> Records:
    """`batch_size` records, evenly spaced: first the longest, then the shortest, so that every part of them is padded as the whole
    is."""
    records = records.some(settings.batch_size)
    sizes = model.family.lengths(records.some(LOOKED_AT).list(), model.assets)
    places = np.linspace(0, len(records) - 1, len(sizes)).astype(int).tolist()  # as `some` takes them
    ends = [places[sizes.index(max(sizes))], places[sizes.index(min(sizes))]]
    return records[[*dict.fromkeys(ends), *(i for i in range(len(records)) if i not in ends)]]


# ------------------------------------------------------------------------------------------------------ what is stored


def stored(model: Model) -> dict[str, Any]:
    """Parameters by role, bytes by type."""
    net = model.net.original if isinstance(model.net, Session) else model.net
    total, roles = count_parameters(model.net), dict[str, int]()
    for weight in weights(net):
        roles[weight.role] = roles.get(weight.role, 0) + stored_numbers(weight)
    if total > sum(roles.values()):
        roles["rest"] = total - sum(roles.values())
    kinds: dict[str, int] = {}
    for tensor in tensors_of(model.net):
        kind = str(tensor.dtype).removeprefix("torch.")
        kinds[kind] = kinds.get(kind, 0) + tensor.nbytes
    if other := bytes_beside(model.net):
        kinds["other"] = other
    return {
        "parameters": total,
        "parameters_by_role": roles,
        "bytes_on_disk": measure.folder_bytes(model.folder) if model.folder else None,
        "bytes_in_memory": sum(kinds.values()),
        "bytes_in_memory_by_type": kinds,
    }


def bytes_beside(net: nn.Module) -> int:
    """Of a text or graph that stands for weights."""
    values = net.state_dict().values()
    return sum(len(value) if isinstance(value, (bytes, str)) else 0 for value in values)


def ceilings(best: Peaks) -> dict[str, Any]:
    """The peaks of the machine as figures of the report."""
    return {
        "threads": best.threads,
        **{f"peak_{NAMES[kind]}_flops_per_second": peak.best for kind, peak in best.flops.items()},
        "peak_memory_bytes_per_second": best.bandwidth.best,
        "peak_spreads": {
            **{NAMES[kind]: peak.spread for kind, peak in best.flops.items()},
            "memory": best.bandwidth.spread,
        },
        "call_seconds": best.call,
        "machine_memory_bytes": machine.memory_bytes(),
    }
