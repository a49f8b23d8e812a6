"""Extend the vocabulary of a model by tokens that its texts want; what it knows of the others stays.

Which tokens are new, says `pairs.py`; how its tokenizer takes them, the family. New rows begin as the mean of the rows of their
parts, or by what the model says of the parts itself (`rows.py`). `--steps` trains the new rows alone. Texts take fewer tokens, so
that a step of `train` reads more of them.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from ...data import Data, Records
from ...errors import BadSettings, Refusal
from ...family import Segmentation, Session, Vocabulary
from ...fit.loop import FitSettings, fit
from ...fit.objective import objective_of
from ...model import Model
from ...observe import mean_loss
from ...operation import Log, Operation, Promise, Result
from ...tokens import texts_of
from ...weights.attach import require_plain
from ...weights.units import TOLERANCE, apart, changed_axes
from ..train import trained, validation_of
from . import pairs, rows

AT_ONCE = 1024  # records whose texts are cut
MOST = 200_000  # records that are gone through


class Settings(FitSettings):
    tokens: int = Field(1000, ge=1, description="new tokens")
    least: int = Field(10, ge=2, description="times that a new token must occur in the training records")
    start: Literal["best", "mean", "likelihood"] = Field(
        "best", description="what new rows begin as; best: what gives the lower loss"
    )
    calibration: int = Field(128, ge=1, description="records that the start is found on")
    epochs: float = Field(0, ge=0, description="passes over the training records that train the new rows alone")
    weight_decay: float = Field(0.0, ge=0, le=0, description="0: it would move the rows that stay")

    @model_validator(mode="after")
    def have_an_effect(self) -> "Settings":
        if self.start == "mean" and self.changed("calibration"):
            raise ValueError("calibration has no effect on the mean")
        own = Settings.__annotations__.keys() | {"seed", "steps"}
        idle = [name for name in FitSettings.model_fields if name not in own and self.changed(name)]
        if idle and not self.steps and not self.epochs:
            raise ValueError(f"{', '.join(idle)} have no effect without --steps or --epochs, which train the new rows")
        return self


def apply(settings: Settings, log: Log, model: Model, data: Data) -> Result:
    """The model with new tokens, their rows begun and, with steps, trained."""
    require_plain(model.net, "extend")
    if isinstance(model.net, Session):
        raise Refusal("another runtime executes this model, and its tables are written", "the folder before its export")
    how = model.family.segmentation(model.assets)
    known = model.family.vocabulary(model.net, model.assets) if how else None
    if how is None or known is None:
        raise Refusal(
            "this model does not read texts as tokens that could be joined",
            "a model that reads texts as tokens, with a fast tokenizer",
        )
    train, first = data.split("train"), len(known.rows)
    joins = pairs.learnt(words_of(model, how, train), how, first, settings.tokens, settings.least)
    require_enough(settings, joins)
    bigger, losses = begun(settings, model, known, train, joins)
    progress = None
    if settings.steps or settings.epochs:
        with new_rows_alone(bigger.net, model.net, first):
            progress = fit(objective_of(bigger), train, validation_of(data), settings, log, True)
    more = bigger.family.segmentation(bigger.assets)
    assert more is not None
    report = {
        "entry": known.entries[-1],
        "losses": losses,
        "joined": [more.joined([first + i]) for i in range(len(joins))],
    }
    return replace(trained(bigger, progress) if progress else Result(model=bigger), report=report)


def words_of(model: Model, how: Segmentation, records: Records) -> Counter[tuple[int, ...]]:
    """{tokens of a word: how often it occurs}"""
    found = Counter[tuple[int, ...]]()
    for start in range(0, min(len(records), MOST), AT_ONCE):
        for text in how.words(texts_of(model, records.list(slice(start, start + AT_ONCE)))):
            found.update(map(tuple, text))
    return found


def require_enough(settings: Settings, joins: Sequence[pairs.Pair]) -> None:
    """Refusal where nothing is worth a token, BadSettings where less is than was asked for."""
    if not joins:
        raise Refusal(
            f"no two tokens of a word stand in a row {settings.least} times in the training records",
            "more texts, or a smaller --least",
        )
    if len(joins) < settings.tokens:
        raise BadSettings(
            f"'tokens' {settings.tokens:,}: only {len(joins):,} occur {settings.least} times in the training records",
            hint=f"--tokens {len(joins)}, more texts, or a smaller --least",
        )


# --------------------------------------------------------------------------------------------------- what new rows begin as


def begun(
    settings: Settings, model: Model, known: Vocabulary, train: Records, joins: Sequence[pairs.Pair]
) -> tuple[Model, dict[str, float]]:
    """(the model that knows the new tokens, {what their rows may begin as: its loss}, none where nothing was compared)"""
    mean = grown(model, known, joins)
    if settings.start == "mean":
        return mean, {}
    likely, some = grown(model, known, joins), train.some(settings.calibration)
    if not rows.by_likelihood(model, likely.net, some, known.entries[-1], len(known.rows), joins):
        if settings.start == "likelihood":
            raise Refusal(
                "this model has no one layer that says from left to right which token is next", "--start mean"
            )
        return mean, {}
    losses = {"mean": mean_loss(mean, some), "likelihood": mean_loss(likely, some)}
    return (likely if settings.start == "likelihood" or losses["likelihood"] < losses["mean"] else mean), losses


def grown(model: Model, known: Vocabulary, joins: Sequence[pairs.Pair]) -> Model:
    net, assets = known.grown(joins)
    # other files of the folder may list the tokens as they were
    return replace(model, net=net, assets=assets, baked={}, folder=None)


@contextmanager
def new_rows_alone(net: nn.Module, old: nn.Module, first: int) -> Iterator[None]:
    """Inside, only rows from `first` on, of the parameters that have more of them than those of `old`, get a gradient."""
    axes: dict[str, list[int]] = {}
    for name, axis in changed_axes(net, old):
        axes.setdefault(name, []).append(axis)
    named = dict(net.named_parameters())
    frozen = [value for name, value in named.items() if value.requires_grad and name not in axes]
    hooks = [value.register_hook(behind(axes[name], first)) for name, value in named.items() if name in axes]
    for value in frozen:
        value.requires_grad_(False)
    try:
        yield
    finally:
        for value in frozen:
            value.requires_grad_(True)
        for hook in hooks:
            hook.remove()


def behind(axes: Sequence[int], first: int) -> Callable[[Tensor], Tensor]:
    """The same gradient, nothing of it before `first` on these axes."""

    def masked(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        for axis in axes:
            gradient.narrow(axis, 0, first).zero_()
        return gradient

    return masked


# ---------------------------------------------------------------------------------------------------------------- promises


def change_of_old_rows(settings: Settings, inputs: dict, result: Result) -> float:
    """The largest change of a number that was there."""
    assert result.model is not None
    old, new = (dict(net.named_parameters()) for net in (inputs["model"].net, result.model.net))
    both = [(value.detach(), new[name].detach()) for name, value in old.items() if value.numel()]
    return max(float((after[tuple(map(slice, before.shape))] - before).abs().max()) for before, after in both)


def unlike_old(settings: Settings, inputs: dict, result: Result) -> float:
    """How far the answers to texts cut as before are from those of the model as it was, relative to the largest; of answers for
    each token, those for the old ones."""
    assert result.model is not None
    batch = inputs["model"].collate(inputs["data"].split("test").some(32).list())
    wanted, found = inputs["model"].outputs(batch)[0], result.model.outputs(batch)[0]
    return apart([wanted], [found[..., : wanted.shape[-1]]])


def cut(model: Model, records: Records) -> tuple[list[str], int]:
    """(the texts of the records as they come back, their tokens)"""
    how = model.family.segmentation(model.assets)
    assert how is not None
    numbers = [[number for word in words for number in word] for words in how.words(texts_of(model, records))]
    return [how.joined(ids) for ids in numbers], sum(map(len, numbers))


def texts_lost(settings: Settings, inputs: dict, result: Result) -> float:
    """The share of test texts that come back otherwise than from the tokenizer as it was."""
    assert result.model is not None
    some = inputs["data"].split("test").some(1000)
    before, after = cut(inputs["model"], some)[0], cut(result.model, some)[0]
    return sum(one != other for one, other in zip(before, after)) / max(1, len(before))


def tokens_left(settings: Settings, inputs: dict, result: Result) -> float:
    """The tokens of the training texts, relative to how many they were."""
    assert result.model is not None
    some = inputs["data"].split("train").some(1000)
    return cut(result.model, some)[1] / max(1, cut(inputs["model"], some)[1])


OPERATION = Operation(
    "extend",
    Settings,
    {"model": "model", "data": "data"},
    "model",
    apply,
    (
        Promise("largest change of a number that was there", "at most", 0.0, change_of_old_rows),
        Promise("answers to texts cut as before, unlike those before, relative", "at most", TOLERANCE, unlike_old),
        Promise("share of test texts that come back otherwise than before", "at most", 0.0, texts_lost),
        Promise("tokens of training texts, relative to those before", "at most", 0.9999, tokens_left),
    ),
)
