"""Tokens that are taken out of what a model reads: the rows of its tables, and the entries of its vocabulary."""

from dataclasses import replace

import torch
from torch import Tensor

from ...data import Records
from ...errors import BadSettings, Refusal
from ...family import Vocabulary
from ...model import Model
from ...operation import Result
from ...weights.units import apart
from .settings import Settings

AT_ONCE = 256  # records


def fewer_tokens(settings: Settings, model: Model, seen: Records | None) -> Result:
    """The model with fewer tokens, and in the report which stayed. `seen`: the records whose tokens are counted."""
    found = model.family.vocabulary(model.net, model.assets)
    if found is None:
        raise Refusal("this model reads no tokens that could be left out", "--units channels")
    left = left_of(found, settings.share)
    kept = staying(found, scores(found, model, seen), left)
    net, assets = found.kept(kept)
    # other files of the folder may list the tokens as they were
    less = replace(model, net=net, assets=assets, baked={}, folder=None)
    return Result(model=less, report={"tokens": (found.entries, kept, left)})


def left_of(one: Vocabulary, share: float) -> int:
    """How many tokens stay. BadSettings where that is all, or fewer than cannot be spared; Refusal where hardly any can."""
    count, least = len(one.rows), len(one.needed)
    left, most = round(count * (1 - share)), int(1000 * (1 - least / count)) / 1000
    if not most:
        raise Refusal(f"no text can be read without {least:,} of its {count:,} tokens", "--units channels")
    if left == count:
        raise BadSettings(f"'share' {share:g} has no effect: there are {count:,} tokens", hint="a larger --share")
    if left < least:
        raise BadSettings(
            f"'share' {share:g} would leave {left:,} of {count:,} tokens; {least:,} of them no text can be read without",
            hint=f"--share {most:g} or less",
        )
    return left


def scores(one: Vocabulary, model: Model, seen: Records | None) -> Tensor:
    """(V,): how large a token's row is, times the root of how often it is read, as of any number and its input; the size alone
    decides among those that are never read, and where nothing is looked at."""
    size = one.rows.float().norm(dim=1).cpu()
    if seen is None:
        return size
    counts = torch.zeros(len(size))
    for start in range(0, len(seen), AT_ONCE):
        batch = model.collate(seen.list(slice(start, start + AT_ONCE)))
        counts += sum(torch.bincount(batch[entry].flatten().long(), minlength=len(size)) for entry in one.entries)
    return size * counts.sqrt() + size / size.max().clamp_min(1e-30) * 1e-6


def staying(one: Vocabulary, scores: Tensor, left: int) -> Tensor:
    """(left,) or a few less: the numbers of the tokens of the highest scores that stay, with all that they are made of."""
    kept = set(one.needed)
    for number in scores.argsort(descending=True, stable=True).tolist():
        if len(kept) >= left:
            break
        with_parts = needed_by(number, one) - kept
        if len(kept) + len(with_parts) <= left:
            kept |= with_parts
    return torch.tensor(sorted(kept))


def needed_by(number: int, one: Vocabulary) -> set[int]:
    """The token itself and all that it is put together from."""
    found, pending = set[int](), [number]
    while pending:
        if (each := pending.pop()) not in found:
            found.add(each)
            pending += one.parts.get(each, ())
    return found


# ------------------------------------------------------------------------------------------------------------- promises


def tokens_too_many(settings: Settings, inputs: dict, result: Result) -> float | None:
    """How many more are left than were asked for."""
    if settings.units != "tokens":
        return None
    _, kept, left = (result.report or {})["tokens"]
    return float(len(kept) - left)


def unlike_whole(settings: Settings, inputs: dict, result: Result) -> float | None:
    """How far the answers are from those of the large net that is given the same tokens, relative to the largest."""
    assert result.model is not None
    if settings.units != "tokens":
        return None
    entries, kept, _ = (result.report or {})["tokens"]
    batch = result.model.collate(inputs["data"].split("test").some(32).list())
    told = batch | {entry: kept[batch[entry].long()].to(batch[entry].dtype) for entry in entries}
    answers, wanted = result.model.outputs(batch)[0], inputs["model"].outputs(told)[0]
    if wanted.shape[-1] != answers.shape[-1]:  # one for each token
        wanted = wanted[..., kept]
    return apart([wanted], [answers])
