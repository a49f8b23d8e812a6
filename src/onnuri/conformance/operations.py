"""Checks of an operation: its record, its settings one by one, and that the same seed gives the same result."""

import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import product
from typing import Any, Literal, get_args, get_origin

from .. import plan, registry
from ..errors import BrokenPromise, OnnuriError
from ..operation import STAGES, Operation, Promise, Settings, Way
from .bench import SMALL
from .subject import require
from .trial import Trial

TAKEN = ("model", "model?", "body", "body?", "data", "data?", "data to answer?", "data whole", "data whole?")
FLAT = (int, float, str, bool, dict)
MOST = 1 / 3  # of a role's weights: so few that are left alone were forgotten; more, and it is a choice


# ------------------------------------------------------------------------------------------------------------ the record


def record(operation: Operation) -> str:
    """Everything that an operation states of itself is there and fits together."""
    fields, faults = operation.settings.model_fields, []
    if not issubclass(operation.settings, Settings) or not operation.settings.model_config.get("frozen"):
        faults.append("settings must be frozen: a subclass of onnuri.operation.Settings")
    faults += [f"setting '{name}' has no description" for name, info in fields.items() if not info.description]
    faults += [f"setting '{name}' has no default" for name, info in fields.items() if info.is_required()]
    faults += [
        f"setting '{name}' is not flat: {info.annotation}"
        for name, info in fields.items()
        if info.annotation not in FLAT and get_origin(info.annotation) is not Literal
    ]
    faults += [
        f"takes '{role}': no input is of kind {kind!r}" for role, kind in operation.takes.items() if kind not in TAKEN
    ]
    body = any(kind.startswith("body") for kind in operation.takes.values())
    faults += [
        f"takes a body, but has no setting '{n}'" for n in ("family", "new_head", "seed") if body and n not in fields
    ]
    if operation.gives not in get_args(inspect.get_annotations(Operation)["gives"]):
        faults.append(f"gives {operation.gives!r}; it must be model, data, records or report")
    faults += faults_of_apply(operation) + faults_of_promises(operation.promises) + faults_of_ways(operation)
    line = registry.summary("operations", operation.name)
    if not line.endswith((".", "?")) or line == operation.name:
        faults.append("the first line of its module's docstring must be a sentence that says what it does")
    require(not faults, "; ".join(faults))
    numbers = f"{len(fields)} settings, {len(operation.promises)} promises"
    return f"takes {', '.join(operation.takes)}, gives {operation.gives}; {numbers}"


def faults_of_apply(operation: Operation) -> list[str]:
    """`apply` must take settings, log and every input by its name, and may do without those that may be left out; `at_rest`,
    where there is one, the same without the data, and no data may be missing where there is none."""
    faults = faults_of_call("apply", operation.apply, operation.takes, {"data"} if operation.at_rest else set())
    if operation.at_rest:
        models = {role: kind for role, kind in operation.takes.items() if not kind.startswith("data")}
        faults += faults_of_call("at_rest", operation.at_rest, models, set())
        faults += ["data must be `data?` where it can be done at rest"] * (operation.takes.get("data") != "data?")
    return faults


def faults_of_call(name: str, call: Callable, takes: Mapping[str, str], always: Collection[str]) -> list[str]:
    """`always`: inputs that are there whenever it is called, though they may be left out."""
    found = inspect.signature(call).parameters
    wanted = ("settings", "log", *takes)
    if set(found) != set(wanted):
        return [f"{name} takes {', '.join(found)}; it must take {', '.join(wanted)}"]
    return [
        f"{name} needs '{role}', which may be left out"
        for role, kind in takes.items()
        if kind.endswith("?") and role not in always and found[role].default is inspect.Parameter.empty
    ]


def faults_of_promises(promises: Sequence[Promise]) -> list[str]:
    faults = [f"{promise!r:.60} is no Promise" for promise in promises if not isinstance(promise, Promise)]
    texts = [promise.text for promise in promises if isinstance(promise, Promise)]
    faults += [f"a promise is stated twice: {text}" for text in dict.fromkeys(texts) if texts.count(text) > 1]
    return faults + [
        f"promise '{promise.text}' must be at most or at least something, not {promise.sense!r}"
        for promise in promises
        if isinstance(promise, Promise) and promise.sense not in ("at most", "at least")
    ]


def faults_of_ways(operation: Operation) -> list[str]:
    """What a search is offered must be legal, each choice with each other one, and make a model from a model."""
    faults = [f"offers a search {way!r:.60}, which is no Way" for way in operation.shrinks if not isinstance(way, Way)]
    for way in [way for way in operation.shrinks if isinstance(way, Way)]:
        if way.stage not in STAGES:
            faults.append(f"offers a search the stage {way.stage!r}; known: {', '.join(STAGES)}")
        if way.role not in operation.takes or way.role == "data" or operation.gives != "model":
            faults.append(f"offers a search to make a model from '{way.role}', which it does not")
        for values in product(*way.choices.values()):
            try:
                plan.settings_of(operation, dict(zip(way.choices, values)))
            except OnnuriError as error:
                faults.append(f"offers a search what is illegal: {error.faults[0]}")
    return faults


# ------------------------------------------------------------------------------------------------------- setting by setting


def alternatives(operation: Operation, name: str) -> list[Any]:
    """Other legal values of a setting, found from its type, its default and its bounds."""
    info = operation.settings.model_fields[name]
    default, choices = info.default, get_args(info.annotation)
    if get_origin(info.annotation) is Literal:
        found: list[Any] = list(choices)
    elif info.annotation is bool:
        found = [not default]
    elif info.annotation is str:
        found = ["x", next(iter(registry.entries("families")))]
    elif info.annotation is dict:
        found = [{"x": 1}]
    else:
        found = [default * 2, 0, default / 2, default + 0.4, default + 1, 1, 3]
        found = [round(value) if info.annotation is int else float(value) for value in found]
    legal = [value for value in found if value != default and is_legal(operation, name, value)]
    return [value for place, value in enumerate(legal) if value not in legal[:place]]


def is_legal(operation: Operation, name: str, value: Any) -> bool:
    try:
        plan.settings_of(operation, {name: value})
    except OnnuriError:
        return False
    return True


RESTLESS = {"learning_rate": 0.1, "epochs": 20, "batch_size": 16, "temperature": 1.0}
"""Settings under which a training goes wrong, for those that watch over it; and under which answers are drawn."""


def has_effect(trials: list[Trial], name: str) -> str:
    """Another legal value of a setting changes what comes out, or is refused, on one family at least. Tried with the
    quick settings first, then with the operation's own defaults and in a restless training: some settings hide others."""
    operation = trials[0].operation
    values = alternatives(operation, name)
    if not values:
        return "only one value is legal"
    default = operation.settings.model_fields[name].default
    for rest in contexts(operation, name):
        for trial in trials:
            for value in values:
                if what := changed(trial, rest, {name: value}):
                    return f"{value!r} in place of {default!r}: {what}, {trial.bench.family}"
    raise BrokenPromise(
        f"'{name}' has no effect: {', '.join(map(repr, values))} give what the default gives, on every family"
    )


def contexts(operation: Operation, name: str) -> list[dict[str, Any]]:
    """The other settings with which a setting is tried, each once."""
    known = operation.settings.model_fields.keys() - {name}
    found = [{key: value for key, value in rest.items() if key in known} for rest in (SMALL, {}, RESTLESS)]
    return [rest for place, rest in enumerate(found) if rest not in found[:place]]


def changed(trial: Trial, rest: dict[str, Any], other: dict[str, Any]) -> str:
    """What a setting changes in the outcome, "" where nothing. What differs from run to run, as times do, is no change."""
    before, after = trial.outcome(rest), trial.outcome(rest | other)
    found = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if "refusal" in found:
        return f"refused ({after['refusal']:.60})" if "refusal" in after else "no longer refused"
    for settings, outcome in ((rest, before), (rest | other, after)) if found else ():
        again = trial.outcome(settings, again=True)
        found = [name for name in found if outcome.get(name) == again.get(name)]
    return f"{found[0]} changes" if found else ""


def repeats(trial: Trial) -> str:
    """Carried out twice with the same settings: the same tensors, the same records."""
    settings = trial.bench.settings(trial.operation)
    first, second = trial.outcome(settings), trial.outcome(settings, again=True)
    for name in ("refusal", "tensors", "records"):
        require(first.get(name) == second.get(name), f"the same seed gives other {name} when it is carried out again")
    return "the same " + next((name for name in ("tensors", "records", "refusal") if name in first), "report")


def whole(trials: list[Trial]) -> str:
    """An operation that changes nearly all weights of a role, over all families, changes every one of them but those that
    its warnings name; one that gives no model changes none."""
    faults, changed, left = list[str](), Counter[str](), dict[str, list[str]]()
    for trial in trials:
        family, outcome = trial.bench.family, trial.outcome(trial.bench.settings(trial.operation))
        if outcome.get("spoiled"):
            faults.append(f"{family}: it only looks, and yet it changes '{outcome['spoiled']}'")
        for role, (some, others) in json.loads(outcome.get("touched", "{}")).items():
            changed[role] += len(some)
            told = set(re.findall(r"[\w.]+", outcome.get("warnings", "")))
            left.setdefault(role, []).extend(f"{name} of {family}" for name in others if name not in told)
    for role, names in left.items():
        if 0 < len(names) <= MOST * (changed[role] + len(names)):
            faults.append(f"{changed[role]} {role} weights are changed; forgotten: {', '.join(names)}")
    require(not faults, "; ".join(faults))
    return f"{sum(changed.values())} weights changed, none forgotten, on {len(trials)} families"


def checks_of(trials: list[Trial]) -> dict[str, Any]:
    """{name: check} of all that is checked on the benches of all families."""
    found: dict[str, Any] = {
        f"setting {name}": lambda _, name=name: has_effect(trials, name)
        for name in trials[0].operation.settings.model_fields
    }
    found |= {f"same seed, {trial.bench.family}": lambda _, trial=trial: repeats(trial) for trial in trials}
    return {"nothing half done": lambda _: whole(trials), **found}
