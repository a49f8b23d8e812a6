"""The only training loop. What is trained and by which loss comes from outside; how it is trained is decided here.

Exact by construction: losses are sums with counts, divided once per step, so that micro-batches and several processes
give the gradient of the whole batch (dropout off); where a loss tells records apart, they meet as `together` says. Batch order
and noise are functions of (seed, epoch, record), and what a net draws itself runs under a seed of (seed, step, micro-batch,
player, process): resuming needs no generator's state.
"""

import random
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from .. import company
from ..costs import count as costs
from ..data import Records
from ..errors import BadSettings, BrokenPromise
from ..family import Batch, mix, seed_torch
from ..operation import Finding, Log, Quiet, Settings
from ..unfinished import Saving, interruptible
from ..weights.matrices import typical_size, weights, zeros_of
from . import checkpoint, descent, doctor, experts, rates, speed, together
from .batches import Batches, moved, numbers_in
from .objective import Objective, Progress, pieces_of
from .speed import Loss

VALIDATION_RECORDS = 2048
READ = 16  # steps after which another device is asked for its losses; to ask is to wait for it


class FitSettings(Settings):
    """The settings of every operation that trains."""

    epochs: float = Field(10, gt=0, description="passes over the training records")
    steps: int = Field(0, ge=0, description="optimizer steps; 0: as many as the epochs make")
    batch_size: int = Field(64, ge=1, description="records per optimizer step, over all processes")
    micro_batch: int = Field(0, ge=0, description="records in memory at once; 0: the whole batch")
    learning_rate: float = Field(0.0, ge=0, description="0: 0.002 for a new net, 0.0001 for a trained one")
    rate: Literal["usual", "measured"] = Field(
        "usual",
        description="measured: short trainings at rates around learning_rate choose it, at half as many steps at most",
    )
    weight_decay: float = Field(0.01, ge=0, description="decay of matrices")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: for the matrices inside blocks; fewer steps, each dearer where batches are small"
    )
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps over which the learning rate rises")
    clip: float = Field(1.0, ge=0, description="largest gradient norm; 0: no clipping")
    balance: float = Field(
        0.0, ge=0, description="weight of an even load of a mixture's experts, text by text; 0.01 is usual"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 for larger batches and nets where the processor has it"
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


def fit(
    objective: Objective, train: Records, validation: Records | None, settings: FitSettings, log: Log, fresh: bool
) -> Progress:
    """Train `objective.net` in place; it ends in eval mode, in its own dtype. `fresh`: the net starts from random.

    Raises BrokenPromise, with the doctor's cure, when the loss is no longer a number.
    """
    if (settings.patience or settings.rate == "measured") and len(objective.parts) > 1:
        raise BadSettings(
            "'patience' and a measured 'rate' follow the loss, and those of players against each other say nothing of quality",
            hint="--steps, and a --learning-rate by hand",
        )
    speed.prepare()
    loop = Loop(objective, train, validation, settings, log, fresh)
    dtypes = {name: tensor.dtype for name, tensor in stored(objective.net)}
    speed.widen(objective.net)
    with torch.random.fork_rng(), speed.arranged(objective.net), closing(loop.batches):
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

        self.objective, self.settings, self.log = objective, settings, log
        some = pieces_of(objective, validation.some(VALIDATION_RECORDS), log) if validation is not None else None
        self.validation = some and some.some(VALIDATION_RECORDS)
        self.processes = PartialState()
        self.device = torch.device(self.processes.device or "cpu")
        for net in (objective.net, *objective.companions):
            net.to(self.device)
        self.batches = Batches(
            pieces_of(objective, train, log),
            objective.collate,
            objective.lengths,
            settings.seed,
            settings.batch_size,
            settings.micro_batch,
            (self.processes.process_index, self.processes.num_processes),
        )
        self.total = settings.steps or max(1, round(settings.epochs * self.batches.per_epoch))
        self.rate, self.fresh = settings.learning_rate or (2e-3 if fresh else 1e-4), fresh
        self.trained = {
            player: [p for p in module.parameters() if p.requires_grad] for player, module in objective.parts.items()
        }
        self.optimizers = descent.optimizers(objective, self.trained, settings, self.rate)
        self.zeros = zeros_of(objective.net, objective.pruned)
        self.frozen_statistics = together.frozen_statistics(self)
        if not speed.batch_norms(objective.net) and not settings.micro_batch:
            self.batches.cut()
        self.loss: Loss = objective.loss
        if settings.balance:
            self.loss = experts.balanced(objective.net, self.loss, settings.balance)
        self.meets: bool | None = None
        """Whether the loss asks for the other records of its step; seen when it is first run."""

        self.progress = Progress()
        self.pace = speed.Pace()
        self.bf16 = settings.precision == "bf16"
        self.unread: list[tuple[int, str, Tensor, Tensor, float]] = []
        self.best_state: dict[str, Tensor] = {}

    # ------------------------------------------------------------------------------------------------------- the course

    def run(self) -> None:
        self.look()
        self.note_loads("before")
        checkpoint.resume(self)
        if self.settings.compile:
            self.compile()
        rates.settle(self)
        saving = Saving(self.settings.save_every)
        with interruptible() as interrupted:
            while self.progress.step < self.total and not self.progress.stopped:
                with self.pace:
                    self.step(ahead=self.progress.step + 1 < self.total)
                self.progress.step += 1
                if self.progress.step % self.batches.per_epoch == 0 or self.progress.step == self.total:
                    self.end_of_epoch()
                if (saving.due() and self.progress.step < self.total) or interrupted:
                    with saving.timed():
                        self.read()
                        checkpoint.save(self)
                if interrupted:
                    raise KeyboardInterrupt
        self.progress.pace = self.pace.facts(self.bf16, self.device, self.settings.batch_size)
        if self.best_state:
            self.objective.net.load_state_dict(self.best_state)
        self.note_loads("after")

    def note_loads(self, when: str) -> None:
        """The load of a mixture's experts on the first batch, to be drawn."""
        if found := self.loads(moved(self.batches.at(0)[0], self.device)):
            self.progress.bars[f"share of the tokens for each expert, {when}"] = experts.shares(found)

    def loads(self, batch: Batch) -> experts.Loads:
        self.objective.net.eval()  # looking must not move batch-norm statistics
        return experts.loads(self.objective.net, self.objective.loss, batch, next(iter(self.objective.parts)))

    def step(self, ahead: bool = False) -> None:
        """One optimizer step of each player on the same records. `ahead`: collate the next ones meanwhile."""
        step = self.progress.step
        batches = [moved(batch, self.device) for batch in self.batches.at(step)]
        if ahead:
            self.batches.prepare(step + 1)
        self.pace.numbers = sum(map(numbers_in, batches))
        self.training_mode()
        for turn, player in enumerate(self.objective.parts):
            with self.only(player):
                sums = self.backward(batches, player, turn)
                norm = descent.scale(self.optimizers[player], self.trained[player], sums, self.settings.clip)
                if step in self.probes():
                    self.examine(player, float(norm), batches[0])
                self.set_rate(player)
                self.optimizers[player].step()
            self.optimizers[player].zero_grad(set_to_none=True)
            self.unread.append((step, player, sums, norm, self.optimizers[player].param_groups[0]["lr"]))
        with torch.no_grad():
            for parameter, zero in self.zeros:
                parameter[zero] = 0
        if self.device.type == "cpu" or step % READ == 0:
            self.read()
        self.log.progress(step + 1, self.total, f"loss {self.progress.curves['loss'][-1][1]:.4g}")

    def training_mode(self) -> None:
        self.objective.net.train()
        for module in self.frozen_statistics:
            module.eval()

    def end_of_epoch(self) -> None:
        """Validate, remember the best, look at the curves."""
        self.read()
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
            drift = sum(rate for _, rate in progress.curves["learning_rate"]) / typical_size(
                p for ps in self.trained.values() for p in ps
            )
            loss, done = progress.curves["loss"], progress.step == self.total
            # with patience the best net is what stays, and there is no overfitting to tell of
            validation = [] if self.settings.patience else progress.curves["validation"]
            self.find(doctor.check_curves(loss, validation, drift, done))

    # ---------------------------------------------------------------------------------------------------- parts of a step

    def backward(self, batches: list[Batch], player: str, turn: int) -> Tensor:
        """Leave the gradient of the summed loss over the whole batch, all processes included; (loss, count) of it."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        shown, before = together.shown(self, batches, player, turn)
        for number, batch in enumerate(batches):
            self.seed(self.progress.step, number, turn)
            with self.autocast(), company.meeting(shown, before + number):
                total, count = self.loss(batch, player)
            total.sum().backward()
            sums += torch.stack([total.detach().sum(), count.detach().sum()]).double()
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.trained[player]]
        self.reduce_gradients(gradients)
        for parameter, gradient in zip(self.trained[player], gradients):
            parameter.grad = gradient
        return self.reduce(sums)

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

    def set_rate(self, player: str) -> None:
        factor = descent.schedule(self.progress.step, self.total, self.settings.warmup)
        for group in self.optimizers[player].param_groups:
            group["lr"] = self.rate * factor

    def validate(self) -> float:
        """Mean loss of the first player over the validation records, in eval mode, without gradients."""
        assert self.validation is not None
        player = next(iter(self.objective.parts))
        sums = torch.zeros(2, dtype=torch.float64)
        self.objective.net.eval()
        self.seed(self.progress.step, 0, -1)
        with torch.no_grad(), self.autocast():
            for batches in self.batches.of(self.validation):
                for total, count in together.held_out(self, batches, player):
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
        seed_torch(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    # ------------------------------------------------------------------------------------------------ decided at the start

    def again(self, **changes: Any) -> "Loop":
        """The same training from its start, with other settings; it says nothing, keeps nothing and validates nothing."""
        settings = self.settings.model_copy(update={"balance": 0.0, **changes})
        objective = replace(self.objective, pieces=lambda records: records)  # they are pieces already
        other = Loop(objective, self.batches.records, None, settings, Quiet(), self.fresh)
        other.loss, other.bf16 = self.loss, self.bf16
        other.meets, other.batches.parts = self.meets, self.batches.parts
        return other

    def look(self) -> None:
        """What the first forward pass costs decides for or against bf16, and tells the pace what a step costs: as much
        again for the gradients of what flows through the net, and for those of the weights that are trained."""
        objective, batch = self.objective, moved(self.batches.at(0)[0], self.device)
        trained = {id(p) for ps in self.trained.values() for p in ps}
        sizes = [(p.numel(), id(p) in trained) for p in objective.net.parameters()]
        share = sum(size for size, known in sizes if known) / max(sum(size for size, _ in sizes), 1)
        self.seed(0, 0, 0)
        objective.net.eval()  # looking must not move batch-norm statistics
        with (
            torch.no_grad(),
            speed.any_types(self.device, self.bf16),
            costs.watched() as watch,
            company.meeting() as heard,
        ):
            for player in objective.parts:
                objective.loss(batch, player)
        together.notice(self, heard)
        if not objective.companions:  # they have no backward pass
            self.pace.per_number = (2 + share) * watch.total_flops / max(numbers_in(batch), 1)
        if self.settings.precision == "auto":
            self.bf16 = speed.bf16_pays(watch.total_flops, self.device)

    def compile(self) -> None:
        """Replace the loss by its compiled form where that pays on the first batch."""
        batch, player = moved(self.batches.at(0)[0], self.device), next(iter(self.objective.parts))
        with self.only(player), self.autocast():
            self.loss = speed.compiled_if_it_pays(self.loss, batch, player, self.log)
        self.objective.net.zero_grad(set_to_none=True)

    # ------------------------------------------------------------------------------------------------------- the doctor

    def probes(self) -> set[int]:
        """The steps at which gradients and units are looked at."""
        return {self.total // 20, self.total // 4, self.total // 2, self.total * 3 // 4}

    def examine(self, player: str, norm: float, batch: Batch) -> None:
        self.find(doctor.probe(weights(self.objective.parts[player]), norm, self.progress.step))
        self.objective.net.eval()  # looking must not move batch-norm statistics
        self.find(doctor.check_units(self.objective.parts[player], lambda: self.objective.loss(batch, player)))
        self.find(doctor.check_experts(self.loads(batch)))
        self.training_mode()

    def find(self, findings: Iterator[Finding]) -> None:
        for finding in findings:
            if finding.name not in self.progress.findings:
                self.log.warn(f"{finding.name}: {finding.evidence}; cure: {finding.cure}")
            self.progress.findings[finding.name] = (finding.evidence, finding.cure)

    def read(self) -> None:
        """Take the losses of the last steps into the curves, the first player's as the ones shown, the others' under
        their own names. BrokenPromise, with the doctor's cure, for one that is no number."""
        curves = self.progress.curves
        for step, player, sums, norm, rate in self.unread:
            mean = float(sums[0] / sums[1].clamp_min(1e-12))
            if not np.isfinite(mean) or not np.isfinite(float(norm)):
                finding = doctor.not_a_number(step, self.batches.at(step)[0], self.objective.net)
                raise BrokenPromise(f"{finding.name}: {finding.evidence}", hint=finding.cure)
            if player == next(iter(self.objective.parts)):
                curves["loss"].append((step + 1, mean))
                curves["gradient_norm"].append((step + 1, float(norm)))
                curves["learning_rate"].append((step + 1, rate))
            else:
                curves.setdefault(f"loss {player}", []).append((step + 1, mean))
        self.unread = []
