"""The only training loop. What is trained and by which loss comes from outside; how it is trained is decided here.

Exact by construction: losses are sums with counts, divided once per step, so that micro-batches and several processes
give the gradient of the whole batch (dropout off). Batch order and noise are functions of (seed, epoch, record), and what
a net draws itself runs under a seed of (seed, step, micro-batch, player, process): resuming needs no generator's state.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil, cos, pi
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from . import checkpoint, doctor, machine, speed
from .data import Record, Records
from .errors import BadSettings, BrokenPromise
from .family import Batch, Generators, mix
from .operation import Finding, Log, Settings
from .speed import Loss
from .weights import typical_size, weights, zeros_of

VALIDATION_RECORDS = 2048
SAVING = 30  # times as long as saving a state takes is trained before the next one: about 3 % of the time at most


class FitSettings(Settings):
    """The settings of every operation that trains."""

    epochs: float = Field(10, gt=0, description="passes over the training records")
    steps: int = Field(0, ge=0, description="optimizer steps; 0: as many as the epochs make")
    batch_size: int = Field(64, ge=1, description="records per optimizer step, over all processes")
    micro_batch: int = Field(0, ge=0, description="records in memory at once; 0: the whole batch")
    learning_rate: float = Field(0.0, ge=0, description="0: 0.002 for a new net, 0.0001 for a trained one")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decay of matrices")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps over which the learning rate rises")
    clip: float = Field(1.0, ge=0, description="largest gradient norm; 0: no clipping")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 for larger nets where the processor has it"
    )
    compile: bool = Field(False, description="compile the loss, kept only if it pays")
    patience: int = Field(
        0, ge=0, description="stop after so many validations without a new best, and return to it; 0: never"
    )
    seed: int = Field(0, ge=0, description="the same seed on the same machine gives the same tensors")
    save_every: float = Field(
        5.0,
        ge=0,
        description="seconds between the states kept for resuming, longer where saving is slow; 0: every step",
    )


@dataclass(frozen=True)
class Objective:
    """What `fit` lowers. `parts`: {player: module} trained in turn; `collate`: (records, generators) -> batch;
    `loss`: (batch, player) -> (total (B,), count (B,)); `pruned`: names of weights whose zeros must stay; `companions`:
    nets that the loss asks and that are not trained."""

    net: nn.Module
    parts: dict[str, nn.Module]
    collate: Callable[[Sequence[Record], Sequence[torch.Generator]], Batch]
    loss: Loss
    pruned: tuple[str, ...] = ()
    companions: tuple[nn.Module, ...] = ()


@dataclass
class Progress:
    """All that a resumed run needs beside the tensors."""

    step: int = 0
    best: float = float("inf")
    since_best: int = 0
    stopped: bool = False
    curves: dict[str, list[tuple[int, float]]] = field(
        default_factory=lambda: {"loss": [], "validation": [], "learning_rate": [], "gradient_norm": []}
    )
    findings: dict[str, tuple[str, str]] = field(default_factory=dict)


def fit(
    objective: Objective, train: Records, validation: Records | None, settings: FitSettings, log: Log, fresh: bool
) -> Progress:
    """Train `objective.net` in place; it ends in eval mode, in its own dtype. `fresh`: the net starts from random.

    Raises BrokenPromise, with the doctor's cure, when the loss is no longer a number.
    """
    if settings.patience and len(objective.parts) > 1:
        raise BadSettings(
            "'patience' has no effect: the losses of players against each other say nothing of quality",
            hint="--patience 0, and --steps",
        )
    machine.keep_memory()
    loop = Loop(objective, train, validation, settings, log, fresh)
    dtypes = {name: tensor.dtype for name, tensor in stored(objective.net)}
    speed.widen(objective.net)
    with torch.random.fork_rng():
        loop.run()
    objective.net.zero_grad(set_to_none=True)
    for name, tensor in stored(objective.net):
        tensor.data = tensor.data.to(dtypes[name])
    objective.net.eval()
    return loop.progress


def stored(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name."""
    yield from net.named_parameters()
    yield from net.named_buffers()


class Loop:
    """One training: the state that its steps share."""

    def __init__(
        self,
        objective: Objective,
        train: Records,
        validation: Records | None,
        settings: FitSettings,
        log: Log,
        fresh: bool,
    ):
        from accelerate import PartialState

        self.objective, self.train, self.settings, self.log = objective, train, settings, log
        self.validation = validation.some(VALIDATION_RECORDS) if validation is not None else None
        self.processes = PartialState()
        self.device = torch.device(self.processes.device or "cpu")
        for net in (objective.net, *objective.companions):
            net.to(self.device)
        self.steps_per_epoch = ceil(len(train) / settings.batch_size)
        self.total = settings.steps or max(1, round(settings.epochs * self.steps_per_epoch))
        self.rate = settings.learning_rate or (2e-3 if fresh else 1e-4)
        self.trained = {
            player: [p for p in module.parameters() if p.requires_grad] for player, module in objective.parts.items()
        }
        self.optimizers = {player: self.optimizer(parameters) for player, parameters in self.trained.items()}
        self.zeros = zeros_of(objective.net, objective.pruned)
        self.frozen_statistics = self.must_freeze_statistics()
        self.bf16 = settings.precision == "bf16" or (
            settings.precision == "auto" and speed.bf16_pays(objective.net, self.device)
        )
        self.loss: Loss = objective.loss
        self.progress = Progress()
        self.best_state: dict[str, Tensor] = {}
        self.shuffled = (-1, torch.empty(0))

    # ------------------------------------------------------------------------------------------------------- the course

    def run(self) -> None:
        checkpoint.resume(self)
        if self.settings.compile:
            self.compile()
        saved, wait = time.monotonic(), self.settings.save_every
        with checkpoint.interruptible() as interrupted:
            while self.progress.step < self.total and not self.progress.stopped:
                self.step()
                self.progress.step += 1
                if self.progress.step % self.steps_per_epoch == 0 or self.progress.step == self.total:
                    self.end_of_epoch()
                due = time.monotonic() - saved >= wait and self.progress.step < self.total
                if due or interrupted:
                    began = time.monotonic()
                    checkpoint.save(self)
                    saved = time.monotonic()
                    if wait:
                        wait = max(self.settings.save_every, SAVING * (saved - began))
                if interrupted:
                    raise KeyboardInterrupt
        if self.best_state:
            self.objective.net.load_state_dict(self.best_state)

    def step(self) -> None:
        """One optimizer step of each player on the same records."""
        step = self.progress.step
        records, keys, epoch = self.batch(step)
        self.objective.net.train()
        for module in self.frozen_statistics:
            module.eval()
        mean = 0.0
        for turn, player in enumerate(self.objective.parts):
            with self.only(player):
                mean = self.backward(records, keys, epoch, player, turn)
                norm = self.clip(player)
                if not np.isfinite(mean) or not np.isfinite(norm):
                    self.fail(records, keys, epoch)
                if step in self.probes():
                    self.examine(player, norm, records, keys, epoch)
                self.set_rate(player)
                self.optimizers[player].step()
            self.optimizers[player].zero_grad(set_to_none=True)
            self.note(player, mean, norm)
        with torch.no_grad():
            for parameter, zero in self.zeros:
                parameter[zero] = 0
        self.log.progress(step + 1, self.total, f"loss {mean:.4g}")

    def end_of_epoch(self) -> None:
        """Validate, remember the best, look at the curves."""
        progress = self.progress
        if self.validation is not None:
            value = self.validate()
            progress.curves["validation"].append((progress.step, value))
            progress.since_best = 0 if value < progress.best else progress.since_best + 1
            if value < progress.best:
                progress.best = value
                if self.settings.patience:
                    self.best_state = {k: v.detach().clone() for k, v in self.objective.net.state_dict().items()}
            progress.stopped = 0 < self.settings.patience <= progress.since_best
        if len(self.objective.parts) == 1:  # the losses of players against each other need not fall
            moved = sum(rate for _, rate in progress.curves["learning_rate"]) / typical_size(
                p for ps in self.trained.values() for p in ps
            )
            self.find(doctor.check_curves(progress.curves["loss"], progress.curves["validation"], moved))

    # ---------------------------------------------------------------------------------------------------- parts of a step

    def batch(self, step: int) -> tuple[list[Record], list[int], int]:
        """This process's records of a step, their row numbers, and the epoch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        size = self.settings.batch_size
        whole = self.order(epoch)[place * size : (place + 1) * size]
        rows = whole[self.processes.process_index :: self.processes.num_processes].tolist()
        return self.train[rows].list(), rows, epoch

    def order(self, epoch: int) -> Tensor:
        """The rows of an epoch, shuffled; kept until another epoch is asked for."""
        if self.shuffled[0] != epoch:
            generator = torch.Generator().manual_seed(mix(self.settings.seed, epoch))
            self.shuffled = epoch, torch.randperm(len(self.train), generator=generator)
        return self.shuffled[1]

    def micro_batches(self, records: list[Record], keys: list[int], epoch: int) -> Iterator[Batch]:
        size = self.settings.micro_batch or max(len(records), 1)
        for start in range(0, len(records), size):
            generators = Generators(mix(self.settings.seed, epoch), keys[start : start + size])
            batch = self.objective.collate(records[start : start + size], generators)
            yield {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}

    def backward(self, records: list[Record], keys: list[int], epoch: int, player: str, turn: int) -> float:
        """Leave the gradient of the mean loss over the whole batch, all processes included; return that mean."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for number, batch in enumerate(self.micro_batches(records, keys, epoch)):
            self.seed(self.progress.step, number, turn)
            with self.autocast():
                total, count = self.loss(batch, player)
            total.sum().backward()
            sums += torch.stack([total.detach().sum(), count.detach().sum()]).double()
        sums = self.reduce(sums)
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.trained[player]]
        self.reduce_gradients(gradients)
        for parameter, gradient in zip(self.trained[player], gradients):
            parameter.grad = gradient.div_(max(float(sums[1]), 1e-12))
        return float(sums[0] / sums[1].clamp_min(1e-12))

    def reduce(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        from accelerate.utils import reduce

        return reduce(tensor, "sum") if self.processes.num_processes > 1 else tensor  # type: ignore[return-value]

    def reduce_gradients(self, gradients: list[Tensor]) -> None:
        """Sum each gradient over all processes, in one message."""
        if self.processes.num_processes > 1 and gradients:
            flat = self.reduce(torch.cat([g.flatten() for g in gradients]))
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients])):
                gradient.copy_(part.view_as(gradient))

    def clip(self, player: str) -> float:
        """Clip this player's gradient; the norm before."""
        limit = self.settings.clip or float("inf")
        return float(nn.utils.clip_grad_norm_(self.trained[player], limit)) if self.trained[player] else 0.0

    def set_rate(self, player: str) -> None:
        """Linear warm-up, then a cosine down to a tenth."""
        step, warm = self.progress.step, max(1, round(self.settings.warmup * self.total))
        along = min(1.0, (step - warm) / max(1, self.total - warm))
        factor = (step + 1) / (warm + 1) if step < warm else 0.1 + 0.45 * (1 + cos(pi * along))
        for group in self.optimizers[player].param_groups:
            group["lr"] = self.rate * factor

    def validate(self) -> float:
        """Mean loss of the first player over the validation records, in eval mode, without gradients."""
        assert self.validation is not None
        player = next(iter(self.objective.parts))
        sums = torch.zeros(2, dtype=torch.float64)
        self.objective.net.eval()
        self.seed(self.progress.step, 0, -1)
        size = self.settings.micro_batch or self.settings.batch_size
        with torch.no_grad(), self.autocast():
            for start in range(0, len(self.validation), size):
                records = self.validation.list(slice(start, start + size))
                generators = Generators(self.settings.seed, range(start, start + len(records)))
                batch = {k: v.to(self.device) for k, v in self.objective.collate(records, generators).items()}
                total, count = self.objective.loss(batch, player)
                sums += torch.stack([total.sum(), count.sum()]).double().cpu()
        return float(sums[0] / sums[1].clamp_min(1e-12))

    @contextmanager
    def only(self, player: str) -> Iterator[None]:
        """Inside, gradients are made for this player's parameters and no others."""
        mine = {id(p) for p in self.trained[player]}
        others = [p for player_ in self.trained for p in self.trained[player_] if id(p) not in mine]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)

    def seed(self, step: int, micro: int, turn: int) -> None:
        """Seed every global generator that a net may draw from (dropout, stochastic depth, masking)."""
        seed = mix(self.settings.seed, step, micro, turn, self.processes.process_index)
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    # ------------------------------------------------------------------------------------------------ decided at the start

    def optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW; only matrices decay, since decaying a norm or a bias only hurts."""
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": self.settings.weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            [g for g in groups if g["params"]] or groups[:1], lr=self.rate, betas=(0.9, 0.98), fused=True
        )

    def must_freeze_statistics(self) -> list[nn.Module]:
        """The batch-norm layers whose running statistics must stand still: they see micro-batches, or belong to a base
        that is not trained. One example would otherwise change another's loss."""
        layers = [m for m in self.objective.net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        partial = any(not p.requires_grad for p in self.objective.net.parameters())
        micro = 0 < self.settings.micro_batch < self.settings.batch_size or self.processes.num_processes > 1
        if layers and (partial or micro):
            self.log.warn(
                f"{len(layers)} batch-norm layers keep their statistics: "
                + ("part of the net is frozen" if partial else "a batch is cut into parts")
            )
            return list(layers)
        return []

    def compile(self) -> None:
        """Replace the loss by its compiled form where that pays on the first batch."""
        records, keys, epoch = self.batch(0)
        player = next(iter(self.objective.parts))
        with self.only(player), self.autocast():
            self.loss = speed.compiled_if_it_pays(
                self.loss, next(self.micro_batches(records, keys, epoch)), player, self.log
            )
        self.objective.net.zero_grad(set_to_none=True)

    # ------------------------------------------------------------------------------------------------------- the doctor

    def probes(self) -> set[int]:
        """The steps at which gradients and units are looked at."""
        return {self.total // 20, self.total // 4, self.total // 2, self.total * 3 // 4}

    def examine(self, player: str, norm: float, records: list[Record], keys: list[int], epoch: int) -> None:
        self.find(doctor.probe(weights(self.objective.parts[player]), norm, self.progress.step))
        batch = next(self.micro_batches(records, keys, epoch), None)
        if batch is not None:
            self.objective.net.eval()  # looking must not move batch-norm statistics
            self.find(doctor.check_units(self.objective.parts[player], lambda: self.loss(batch, player)))
            self.objective.net.train()
            for module in self.frozen_statistics:
                module.eval()

    def find(self, findings: Iterator[Finding]) -> None:
        for finding in findings:
            if finding.name not in self.progress.findings:
                self.log.warn(f"{finding.name}: {finding.evidence}; cure: {finding.cure}")
            self.progress.findings[finding.name] = (finding.evidence, finding.cure)

    def fail(self, records: list[Record], keys: list[int], epoch: int) -> None:
        batch = next(self.micro_batches(records, keys, epoch))
        finding = doctor.not_a_number(self.progress.step, batch, self.objective.net)
        raise BrokenPromise(f"{finding.name}: {finding.evidence}", hint=finding.cure)

    def note(self, player: str, mean: float, norm: float) -> None:
        """Add to the curves; the first player's are the ones shown, the others' under their own names."""
        step, curves = self.progress.step + 1, self.progress.curves
        if player == next(iter(self.objective.parts)):
            curves["loss"].append((step, mean))
            curves["gradient_norm"].append((step, norm))
            curves["learning_rate"].append((step, self.optimizers[player].param_groups[0]["lr"]))
        else:
            curves.setdefault(f"loss {player}", []).append((step, mean))
