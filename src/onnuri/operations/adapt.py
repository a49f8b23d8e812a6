"""Adapt a model by low-rank updates of its matrices (LoRA); the model itself stays as it is.

Hu et al. 2021. Every matrix gets W + alpha / rank * up @ down, whatever layer it belongs to, and only `down` and `up` are
trained. The result is a small folder that names its base: PEFT reads it wherever it has a form for these layers.
"""

import copy
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from .. import measure
from ..data import Data, Records
from ..errors import BadSettings, Refusal, propose
from ..family import mix
from ..fit.loop import FitSettings, fit
from ..fit.objective import objective_of
from ..model import Model
from ..observe import read_raw
from ..operation import Log, Operation, Promise, Result
from ..weights.adapters import Base, base_digest
from ..weights.attach import attach, is_attached, plain_copy, unrounded, updates
from ..weights.lowrank import fresh
from ..weights.matrices import Weight, weights
from ..weights.peft_format import unreadable
from .train import trained, validation_of

ROLES = ("linear", "conv", "expert", "embedding")
Ranked = tuple[Weight, int]
SHAPE = ("rank", "ranks", "alpha", "embeddings", "layout")
"""The settings that say what a new adapter looks like."""


class Settings(FitSettings):
    rank: int = Field(8, ge=1, description="rank of the update of each matrix, or less where the matrix is smaller")
    ranks: dict = Field({}, description="other ranks, as PART_OF_A_NAME=RANK,...; 0 leaves those matrices as they are")
    alpha: float = Field(16.0, gt=0, description="updates are multiplied by alpha / rank")
    embeddings: bool = Field(False, description="adapt embedding tables as well")
    layout: Literal["auto", "peft", "onnuri"] = Field(
        "auto", description="peft: leave out what PEFT has no form for; onnuri: adapt all; auto: peft if that is most"
    )
    learning_rate: float = Field(1e-3, gt=0, description="about ten times what training all weights would take")


def apply(settings: Settings, log: Log, model: Model, data: Data) -> Result:
    """The model with an adapter fitted to the train split; one that is an adapter already is trained onward."""
    train = data.split("train")
    model = onward(settings, model) if model.base else begun(settings, model, train, log)
    adapters = {id(p) for _, update in updates(model.net).values() for p in update.parameters()}
    frozen = [p for p in model.net.parameters() if p.requires_grad and id(p) not in adapters]
    for parameter in frozen:
        parameter.requires_grad_(False)
    progress = fit(objective_of(model), train, validation_of(data), settings, log, True)
    for parameter in frozen:
        parameter.requires_grad_(True)
    return trained(model, progress)


def onward(settings: Settings, model: Model) -> Model:
    """An adapter that is there, to be trained on. BadSettings for what its shape decides already."""
    assert model.base
    if changed := [name for name in SHAPE if name in settings.model_fields_set]:
        raise BadSettings(*(f"'{name}' has no effect on an adapter that exists" for name in changed))
    return model


def begun(settings: Settings, model: Model, records: Records, log: Log) -> Model:
    """The model with updates that are zero at first."""
    chosen = ranked(settings, model.net)
    if not model.players or not chosen:
        raise Refusal("nothing to adapt: no weight matrix follows a gradient", "train a new model from data")
    unread = without_form(model, records, chosen)
    found, peft = laid_out(settings, chosen, unread, log)
    assert model.folder, "an adapter names the folder of its base"
    base = Base(model.folder, base_digest(model.net), peft)
    generator = torch.Generator().manual_seed(mix(settings.seed, 2))
    for weight, rank in found:
        attach(weight, fresh(weight, rank, settings.alpha, generator))
    if set(model.pruned) & {weight.name for weight, _ in found}:
        log.warn("baking this adapter will fill zeros that pruning made")
    return replace(model, base=base, baked={})


def ranked(settings: Settings, net: nn.Module) -> list[Ranked]:
    """The weights to adapt and their ranks. BadSettings for a part of a name that no weight has."""
    found = weights(net, *(ROLES if settings.embeddings else ROLES[:-1]))
    names = [weight.name for weight in found]
    faults = [
        f"'ranks': no weight's name holds '{part}'; {propose(part, {n.split('.')[-2] for n in names if '.' in n})}"
        for part in settings.ranks
        if not any(part in name for name in names)
    ]
    faults += [
        f"'ranks': {part} must be a whole number from 0, found {rank!r}"
        for part, rank in settings.ranks.items()
        if type(rank) is not int or rank < 0
    ]
    if faults:
        raise BadSettings(*faults)
    chosen = [(weight, rank_of(weight.name, settings)) for weight in found]
    return [(weight, rank) for weight, rank in chosen if rank]


def without_form(model: Model, records: Records, found: list[Ranked]) -> set[str]:
    """The weights whose update PEFT could not read, or would put where the net does not see it."""
    if is_attached(model.net):
        return {weight.name for weight, _ in found}  # packed: a base that PEFT cannot open
    raw = read_raw(model, records)
    hidden = {w.name for w, _ in found if w.name.rpartition(".")[0] in raw and w.role != "expert"}
    return hidden | unreadable([weight for weight, _ in found])


def laid_out(settings: Settings, found: list[Ranked], unread: set[str], log: Log) -> tuple[list[Ranked], bool]:
    """(the weights that are adapted, whether PEFT reads the result). What is left out, or kept from PEFT, is said."""
    size = {weight.name: weight.matrix.numel() for weight, _ in found}
    most = sum(size[name] for name in unread) <= sum(size.values()) / 2
    if not unread:
        return found, settings.layout != "onnuri"
    if settings.layout == "onnuri" or (settings.layout == "auto" and not most):
        log.warn(f"written in our own layout: PEFT has no form for {len(unread)} weights, first {min(unread)}")
        return found, False
    left = [(weight, rank) for weight, rank in found if weight.name not in unread]
    if not left:
        raise Refusal("PEFT has no form for an update of any of these weights", "--layout onnuri")
    log.warn(f"{len(unread)} weights that PEFT has no form for stay as they are, first {min(unread)}")
    return left, True


def rank_of(name: str, settings: Settings) -> int:
    """The rank by the longest part of the name that `ranks` knows, else the common one."""
    parts = sorted((part for part in settings.ranks if part in name), key=len)
    return settings.ranks[parts[-1]] if parts else settings.rank


def against_baked(settings: Settings, inputs: dict, result: Result) -> float | None:
    assert result.model is not None
    apart = replace(result.model, net=unrounded(copy.deepcopy(result.model.net).float()))
    baked = replace(apart, net=plain_copy(apart.net), base=None)
    return measure.largest_difference(baked, apart, inputs["data"].split("test").some(64))


OPERATION = Operation(
    "adapt",
    Settings,
    {"model": "model", "data": "data"},
    "model",
    apply,
    (
        Promise(
            "largest relative difference of outputs in fp32, adapter apart against baked in",
            "at most",
            1e-4,
            against_baked,
        ),
    ),
)
