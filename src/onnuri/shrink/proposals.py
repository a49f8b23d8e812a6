"""What a search for a smaller model may try, found in what the operations state, and which of it to try next.

A chain holds one way of a stage at most, in the order of the stages. What is tried first are the ways alone, each at its
likeliest; then the tree-structured Parzen estimator for several objectives (Ozaki et al., JAIR 73, 2022), as optuna has it,
proposes. Differences: numbers are proposed by their rank among the choices; the better of 2 candidates is taken, not of 24,
since among few choices the best of many is always the same one; a chain is tried once, and where nothing new is proposed TRIES
times in a row, one that is new is drawn at random. It sees only what is told: the same seed and the same values, those that
an earlier run measured included, give the same proposals.
"""

import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, cast

from .. import plan, registry
from ..errors import BadSettings, needs_extra, propose
from ..operation import STAGES, Operation, Way

CANDIDATES, TRIES, DRAWS = 2, 20, 500
NONE = "-"  # a stage that is left out; no way is called so


@dataclass(frozen=True)
class Move:
    """One operation of a chain: its settings, and `inputs`: {model that it takes: "" for the one made so far, "model" for the
    one that the chain began with}."""

    operation: str
    way: str
    settings: dict[str, Any]
    inputs: dict[str, str]

    def __str__(self) -> str:
        return " ".join([self.operation, *(f"{name}={value}" for name, value in self.settings.items())])


Chain = tuple[Move, ...]
Values = tuple[float, ...]
"""What is to be small, of one chain."""


@dataclass(frozen=True)
class Offer:
    """A way of an operation, with what was fixed for it."""

    name: str
    operation: Operation
    way: Way
    fixed: dict[str, Any]

    @property
    def open(self) -> dict[str, tuple[Any, ...]]:
        """The settings that are still to be chosen; numbers by size."""
        many = {name: each for name, each in self.way.choices.items() if name not in self.fixed and len(each) > 1}
        return {name: each if isinstance(each[0], str) else tuple(sorted(each)) for name, each in many.items()}

    def move(self, chosen: dict[str, Any]) -> Move:
        """The move with these settings, and with the likeliest where none is chosen."""
        settings = {name: values[0] for name, values in self.way.choices.items()} | chosen | self.fixed
        models = [role for role, kind in self.operation.takes.items() if not kind.startswith("data")]
        others = [role for role in models if role != self.way.role and not self.operation.takes[role].endswith("?")]
        return Move(self.operation.name, self.name, settings, {**dict.fromkeys(others, "model"), self.way.role: ""})


def offers(changes: dict[str, Any]) -> list[Offer]:
    """Every way that an operation states. `changes`: {SETTING or OPERATION.SETTING: value} for all that have such a setting.
    BadSettings for a setting that none has, or a value that it does not take."""
    found = [registry.operation(name) for name in registry.entries("operations")]
    found = [operation for operation in found if operation.shrinks]
    known = [name for one in found for each in one.settings.model_fields for name in (each, f"{one.name}.{each}")]
    faults = [
        f"no operation that makes a model smaller has a setting '{name}'; {propose(name, known)}"
        for name in changes
        if name not in known
    ]
    if faults:
        raise BadSettings(*faults, hint="--set NAME=VALUE or --set OPERATION.NAME=VALUE")
    return [offer for operation in found for offer in offers_of(operation, changes)]


def offers_of(operation: Operation, changes: dict[str, Any]) -> list[Offer]:
    """The ways of an operation that go together with what is set for it. BadSettings where none does."""
    fixed = {name.removeprefix(f"{operation.name}."): value for name, value in changes.items()}
    fixed = {name: value for name, value in fixed.items() if name in operation.settings.model_fields}
    found: list[Offer] = []
    faults: list[BadSettings] = []
    for number, way in enumerate(operation.shrinks):
        offer = Offer(f"{operation.name}-{number + 1}", operation, way, fixed)
        try:
            plan.settings_of(operation, offer.move({}).settings)
            found.append(offer)
        except BadSettings as error:
            faults.append(error)
    if faults and not found:
        raise faults[0]
    return found


def singles(found: list[Offer]) -> list[tuple[Offer, Chain]]:
    """Each way that makes a model smaller by itself, alone, at its likeliest."""
    return [(offer, (offer.move({}),)) for offer in found if offer.way.stage != "repair" and offer.way.alone]


def pairs(found: list[Offer]) -> list[Chain]:
    """Each way that is there after each of the other stages, both at their likeliest: only the first one of a last stage."""
    last = [offer for offer in found if offer.way.stage == STAGES[-1]][:1]
    first = [offer for offer in found if offer.way.stage not in (STAGES[-1], "repair") and offer.way.alone]
    return [(one.move({}), other.move({})) for one in first for other in last]


@dataclass
class Search:
    """Proposals over `found`. `told`: the chains that are known, as text; `apart`: {(way, operation)} that refuses its result."""

    found: list[Offer]
    seed: int
    size: int
    """How many values a chain has."""

    told: set[str] = field(default_factory=set)
    apart: set[tuple[str, str]] = field(default_factory=set)

    gone: set[str] = field(default_factory=set)
    """Ways that led somewhere."""

    given_up: set[str] = field(default_factory=set)
    """Ways for chains alone of which the first was refused: nothing else tells that they cannot be gone."""

    def __post_init__(self) -> None:
        self.chained = {offer.name for offer in self.found if not offer.way.alone}
        optuna = quiet_optuna()
        self.draw = random.Random(self.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=self.seed, multivariate=True, group=True, n_ei_candidates=CANDIDATES
            )
        self.study = optuna.create_study(directions=["minimize"] * self.size, sampler=sampler)

    def tell(self, chain: Chain, values: Values, excess: dict[str, float]) -> None:
        """What was found of a chain. `excess`: by how much it is beyond each limit."""
        self.told.add(text_of(chain))
        self.gone |= {move.way for move in chain}
        picks = self.picks(chain)
        spaces = {name: self.space(name) for name in picks}
        make = quiet_optuna().trial.create_trial
        self.study.add_trial(make(params=picks, distributions=spaces, values=list(values), constraints=excess))

    def tell_fault(self, chain: Chain, refused: bool) -> None:
        """A chain could not be made. Where that was a refusal of two moves that can be made alone, they are kept apart."""
        self.told.add(text_of(chain))
        if refused and len(chain) == 2:
            self.apart.add((chain[0].way, chain[1].operation))
        if refused and chain[0].way in self.chained - self.gone:
            self.given_up.add(chain[0].way)

    def proposals(self) -> Iterator[Chain]:
        """Chains that are new, until none is left or DRAWS at random found none; each is to be told before the next."""
        while True:
            chain = next(filter(self.is_new, map(self.asked, range(TRIES))), None)
            chain = chain or next(filter(self.is_new, (self.drawn() for _ in range(DRAWS))), None)
            if chain is None:
                return
            yield chain

    def is_new(self, chain: Chain) -> bool:
        pairs = {(one.way, other.operation) for one, other in combinations(chain, 2)}
        useless = not chain or (len(chain) == 1 and chain[0].way in self.chained)
        if useless or self.given_up & {move.way for move in chain}:
            return False
        return text_of(chain) not in self.told and not pairs & self.apart

    def asked(self, _: int) -> Chain:
        """What the estimator proposes. What is found of it is told by `tell`, so that what was found elsewhere counts alike."""
        optuna = quiet_optuna()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            trial = self.study.ask()
            chain = self.chain_of(lambda name: self.suggested(trial, name))
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return chain

    def drawn(self) -> Chain:
        return self.chain_of(lambda name: self.draw.choice(self.values_of(name)))

    def suggested(self, trial: Any, name: str) -> Any:
        values = self.values_of(name)
        if isinstance(values[0], str):
            return trial.suggest_categorical(name, values)
        return values[trial.suggest_int(name, 0, len(values) - 1)]

    def space(self, name: str) -> Any:
        """The distribution of a pick, as `suggested` makes it."""
        from optuna.distributions import CategoricalDistribution, IntDistribution

        values = self.values_of(name)
        return CategoricalDistribution(values) if isinstance(values[0], str) else IntDistribution(0, len(values) - 1)

    def values_of(self, name: str) -> tuple[Any, ...]:
        """What a pick may be: one of the ways of a stage or none, or a setting of a way, named WAY.SETTING."""
        if name in STAGES:
            return NONE, *(offer.name for offer in self.found if offer.way.stage == name)
        way, _, setting = name.partition(".")
        return next(offer.open[setting] for offer in self.found if offer.name == way)

    def chain_of(self, pick: Any) -> Chain:
        """The chain of these picks. What there is nothing before to repair is left out."""
        moves: list[Move] = []
        for stage in STAGES:
            ways = {offer.name: offer for offer in self.found if offer.way.stage == stage}
            offer = ways.get(pick(stage)) if ways else None
            if offer is not None:
                move = offer.move({name: pick(f"{offer.name}.{name}") for name in offer.open})
                moves += [move] if moves or stage != "repair" else []
        return tuple(moves)

    def picks(self, chain: Chain) -> dict[str, Any]:
        """What leads to a chain, as the study names it."""
        picks: dict[str, Any] = {stage: NONE for stage in STAGES if len(self.values_of(stage)) > 1}
        for move in chain:
            offer = next(one for one in self.found if one.name == move.way)
            picks[offer.way.stage] = offer.name
            for name, values in offer.open.items():
                place = values.index(move.settings[name])
                picks[f"{offer.name}.{name}"] = values[place] if isinstance(values[0], str) else place
        return picks


def text_of(chain: Chain) -> str:
    return ", ".join(map(str, chain))


def quiet_optuna() -> Any:
    """The library, which speaks only where something is wrong."""
    try:
        import optuna
    except ImportError:
        raise needs_extra("search", "optuna") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return cast(Any, optuna)
