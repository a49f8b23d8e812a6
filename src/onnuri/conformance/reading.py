"""Facts of a family about the tokens that its models read: how texts are cut, a token less, a token more."""

from itertools import chain, pairwise

import torch

from .. import tokens
from ..model import Model
from .computing import KEYS, four
from .subject import TOLERANCE, Subject, gap, require


@torch.no_grad()
def fewer_tokens(subject: Subject) -> str:
    """`vocabulary`: its entries hold the numbers of the rows; without the last one that can be spared the model answers as the
    whole one that is given the same tokens."""
    model, rows = subject.model, four(subject)
    found = model.family.vocabulary(model.net, model.assets)
    if found is None:
        return "reads no tokens that could be spared"
    count, batch = len(found.rows), model.collate(rows)
    require(found.entries, "tokens that stand in no entry of a batch")
    for entry in found.entries:
        numbers = batch[entry]
        require(not numbers.is_floating_point(), f"'{entry}' must hold whole numbers")
        require(0 <= int(numbers.min()) <= int(numbers.max()) < count, f"'{entry}' holds numbers without a row")
    made_of = {part for parts in found.parts.values() for part in parts}
    spare = [number for number in range(count) if number not in found.needed and number not in made_of]
    require(spare, "no token can be spared: then `vocabulary` is None")
    kept = torch.tensor([number for number in range(count) if number != spare[-1]])
    less = Model(model.family, *found.kept(kept))
    batch = less.collate(rows, keys=KEYS)
    told = batch | {entry: kept[batch[entry].long()].to(batch[entry].dtype) for entry in found.entries}
    values, wanted = less.outputs(batch)[0], model.outputs(told)[0]
    wanted = wanted if wanted.shape == values.shape else wanted[..., kept]
    require(gap(wanted, values) <= TOLERANCE, "with a token less, the others are answered otherwise")
    return f"{count:,} tokens"


def segmented(subject: Subject) -> str:
    """`segmentation`: words of a text are cut one by one, and come back together as what they came from; a token that is put
    together from two stands in their place, and all that was there answers as before."""
    model, rows = subject.model, four(subject)
    how, known = model.family.segmentation(model.assets), model.family.vocabulary(model.net, model.assets)
    if how is None:
        return "cuts no texts"
    texts = tokens.texts_of(model, rows)
    words = how.words(texts)
    require(
        len(words) == len(texts) and all(all(text) for text in words), "words must be those of each text, none empty"
    )
    flat = [number for text in words for word in text for number in word]
    require(set(flat) <= how.spelled.keys(), "a text is cut into a token that is not spelled")
    require(all(how.joined([number for word in text for number in word]) for text in words), "a text is lost")
    pairs = [pair for text in words for word in text for pair in pairwise(word) if not set(pair) & set(how.alone)]
    spelled = set(how.spelled.values())
    pair = next((pair for pair in pairs if how.join(*(how.spelled[each] for each in pair)) not in spelled), None)
    if known is None or pair is None:
        return f"{len(flat)} tokens"
    more = Model(model.family, *known.grown([pair]))
    batch = model.collate(rows, keys=KEYS)
    values, wanted = more.outputs(batch)[0], model.outputs(batch)[0]
    require(
        gap(values[..., : wanted.shape[-1]], wanted) <= TOLERANCE, "with a token more, what was there answers otherwise"
    )
    grown = more.family.segmentation(more.assets)
    require(grown is not None and len(known.rows) in chain(*chain(*grown.words(texts))), "a new token is never met")
    return f"{len(flat)} tokens, and one of two of them"
