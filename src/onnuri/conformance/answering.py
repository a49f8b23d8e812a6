"""Facts of a family about models and answers: making them, asking them, judging them, looking inside."""

import copy
import json
import math
from contextlib import suppress
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import encoding
from ..data import Record, Sound
from ..decoding import Chooser, written
from ..errors import BadSettings, Refusal
from ..family import Batch, Family, Outputs, Session
from ..model import Model, count_parameters, tensor_digest
from ..observe import first
from .computing import KEYS, four
from .reading import fewer_tokens, segmented
from .storing import refuses, tensors
from .subject import ANSWER, TOLERANCE, Subject, chance, gap, require, unlike

STRANGE = ("x", -1, 0.5, 1e308, math.nan, True, [], [None], {}, {"x": 1})
"""Values that hardly an entry of a config can have."""


def new_model(subject: Subject) -> str:
    """`start` depends on config, records and generator alone, and knows every entry of its config."""
    with chance(1):
        one = subject.new(0)
    with chance(2):
        other, third = subject.new(0), subject.new(1)
    require(tensor_digest(one.net) == tensor_digest(other.net), "start with the same generator gives other tensors")
    if one.players:
        require(
            tensor_digest(one.net) != tensor_digest(third.net), "start with another generator gives the same tensors"
        )
    require(not one.net.training, "start must give a net in eval mode")
    require(refuses(lambda: subject.new(0, no_such_entry=1)), "start takes a config entry that does not exist")
    return f"{count_parameters(one.net):,} parameters, the same for the same generator"


def any_config(subject: Subject) -> str:
    """`configured` fills in what a config leaves open, keeps what it says, and refuses by BadSettings an entry that it does not
    know and a value that cannot be."""
    family = subject.family
    tiny, usual = family.tiny(), family.configured({})
    made = family.configured(tiny)
    require(tiny == family.tiny(), "configured changes the config that it is given")
    lost = [name for name, value in tiny.items() if unlike(made.get(name), value, 0)]
    require(not lost, f"configured changes {', '.join(lost)}, which the config says")
    require(json.loads(json.dumps(usual)) == usual, "the entries of a config must be plain values")
    require(refuses(lambda: family.configured({"no_such_entry": 1})), "configured takes an entry that does not exist")
    for name, value in product(usual, STRANGE):
        with suppress(BadSettings):
            family.configured({name: value})
    return f"{len(usual)} entries"


def asked_for(subject: Subject) -> str:
    """`fields` names what the data have, the answer by the data's own name."""
    question, (answer, kind) = subject.family.fields(subject.model.assets)
    have = subject.records.fields
    require(answer == ANSWER, f"the answer of the data is called '{ANSWER}', fields says '{answer}'")
    lacking = [name for name in question if name not in have]
    require(not lacking, f"fields asks for {', '.join(lacking)}; the data have {', '.join(have)}")
    require(answer not in question, "the answer is among the questions")
    subject.model.check(subject.records)
    return f"asks {', '.join(question) or 'nothing'}; answers {kind}"


# --------------------------------------------------------------------------------------------------------- asking, judging


def answers(subject: Subject) -> str:
    """Answers have the right kind; each is its own record's and its own generator's."""
    model, rows = subject.model, four(subject)
    family, (answer, kind) = subject.family, subject.family.fields(subject.model.assets)[1]
    for given in (rows, model.asked(rows)):
        found = model.sample(given, keys=KEYS)
        require(len(found) == len(given), f"{len(given)} records in, {len(found)} out")
        for before, after in zip(given, found):
            lost = [name for name in before if name != answer and unlike(before[name], after.get(name), 0)]
            require(not lost, f"sample changed {', '.join(lost)} of a record")
            require(isinstance(after.get(f"{answer}_scores"), dict), f"sample must fill '{answer}_scores' with a dict")
            value = after.get(answer)
            require(is_kind(value, kind), f"the answer must be {kind}, found {type(value).__name__} {value!r:.40}")
            axis = family.axis(model.assets)
            if kind == "category" and isinstance(axis, tuple):
                require(value in axis, f"the answer {value!r} is none of the labels")
        with chance(9):
            again = model.sample(given, keys=KEYS)
        require(not unlike(found, again), "sample gives other answers with the same generators")
        for i, key in enumerate(KEYS):
            alone = model.sample(given[i : i + 1], keys=[key])
            require(not unlike(found[i], alone[0]), "the answer to a record depends on the other records asked with it")
    if kind != "text":  # a text that is there may be judged instead of being written anew
        asked = model.sample(model.asked(rows), keys=KEYS)
        for shift in range(len(rows)):  # the right answer may be what it finds, so those of the others are given too
            given = [row | {answer: rows[i - shift].get(answer)} for i, row in enumerate(rows)]
            require(
                not unlike(model.sample(given, keys=KEYS), asked), "sample looks at the answer that it is asked for"
            )
    return f"{len(KEYS)} answers of kind {kind}, each its own{noise_of(subject, rows)}"


def noise_of(subject: Subject, rows: list[Record]) -> str:
    """Where what the net computes for a question holds noise, the answers must follow the generators."""
    model, asked = subject.model, subject.model.asked(rows)
    one, other = (model.outputs(model.collate(asked, seed, KEYS))[0] for seed in (0, 1))
    if gap(one, other) == 0:
        return ""
    same = [not unlike(*pair) for pair in zip(*(model.sample(asked, seed, KEYS) for seed in (0, 1)))]
    require(not any(same), "sample gives the same answers with other generators")
    return ", each from its own generator"


def is_kind(value: Any, kind: str) -> bool:
    """Whether a value is what a record holds for a field of this kind."""
    if kind == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == "image":
        return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim in (2, 3)
    if kind == "series":
        return isinstance(value, np.ndarray) and value.dtype == np.float32 and value.ndim == 2
    return isinstance(value, Sound if kind == "audio" else str)


class Mirror(Session):
    """A runtime that executes nothing but the family's own `outputs`."""

    runtime = "mirror"

    def __init__(self, family: Family, net: torch.nn.Module):
        super().__init__()
        self.family, self.original = family, net

    def forward(self, batch: Batch) -> Outputs:
        return self.family.outputs(self.original, batch)


def runtimes(subject: Subject) -> str:
    """On another runtime, which knows nothing but `outputs`, the same records get the same answers."""
    model, rows = subject.model, four(subject)
    mirror = Model(model.family, Mirror(model.family, model.net), model.assets)
    batch = model.collate(rows, keys=KEYS)
    require(
        gap(model.outputs(batch)[0], mirror.outputs(batch)[0]) == 0,
        "outputs must leave a Session to answer for itself: decorate it with on_any_runtime",
    )
    for given in (rows, model.asked(rows)):
        one, other = model.sample(given, keys=KEYS), mirror.sample(given, keys=KEYS)
        require(
            not unlike(one, other),
            "the answers are not those that outputs give: is an axis swapped, or a label in another place?",
        )
    return "answers made of outputs alone are the same"


@torch.no_grad()
def continuing(subject: Subject) -> str:
    """`steps` from nothing gives what `outputs` gives; what it keeps grows along one axis, each record's own, and is gone on from
    in the same way by every row."""
    model, rows = subject.model, four(subject)
    family, net = model.family, model.net
    batch = model.collate(rows, keys=KEYS)
    (values, mask), memory = family.steps(net, batch, ())
    wanted, wanted_mask = model.outputs(batch)
    require(gap(wanted, values) <= TOLERANCE, "steps from nothing gives other values than outputs")
    require(torch.equal(mask, wanted_mask), "steps from nothing gives another mask than outputs")
    if not memory:
        return "keeps nothing: reads all from the start"
    (after, _), grown = family.steps(net, batch, memory)
    require(len(grown) == len(memory), f"a memory of {len(memory)} tensors went on as one of {len(grown)}")
    for number, (one, two) in enumerate(zip(memory, grown)):
        sizes = [(a, b) for a, b in zip(one.shape, two.shape) if a != b]
        require(one.shape[:1] == two.shape[:1] == (len(rows),), f"tensor {number} of the memory must have B first")
        require(one.dim() == two.dim() and len(sizes) == 1, f"tensor {number} of the memory must grow along one axis")
    require(gap(values, after) > TOLERANCE, "steps does not look at the memory")
    for row in range(len(rows)):
        part = slice(row, row + 1)
        (alone, _), _ = family.steps(net, {k: v[part] for k, v in batch.items()}, [tensor[part] for tensor in memory])
        require(gap(alone, after[part]) <= TOLERANCE, "what follows one record's memory depends on the others")
    return f"{len(memory)} tensors are kept of what was read"


@torch.no_grad()
def token_by_token(subject: Subject) -> str:
    """`writing`: a prompt and what follows it are read alike at once and one after the other, a text in a batch as alone; and what
    is written ends at a stop."""
    model, rows = subject.model, subject.model.asked(four(subject))
    writing = model.family.writing(model.net, model.assets)
    if writing is None:
        return "an answer comes at once"
    whole, room = writing.prompts(rows), writing.room(4)
    prompts = [writing.shortened(ids, room) for ids in whole]
    fits = all(len(short) == min(len(ids), room) for ids, short in zip(whole, prompts))
    require(fits, "`shortened` must leave as many tokens as there is room for")
    require(all(prompts), "a prompt of no token: nothing says what is next")
    require(0 < writing.most <= writing.longest and writing.room(writing.most) > 0, "there is no room for an answer")
    require(writing.room(2 * writing.longest) < 1, "there is room for an answer of any length")
    first = Chooser([None] * len(rows), writing.stops)
    made = written(writing, prompts, 4, first)
    for row, ids in enumerate(made):
        require(0 < len(ids) <= 4, f"{len(ids)} tokens were written where 4 were asked for")
        require(not set(ids[:-1]) & set(writing.stops), "a token that ends an answer was written within one")
        require(isinstance(writing.text(ids), str), "`text` must give a text")
        alone = written(writing, [prompts[row]], 4, Chooser([None], writing.stops))[0]
        require(alone == ids, "what is written after one prompt depends on the others")
    if writing.alone is not None:
        return f"writes by itself, {writing.longest} tokens at most"
    (once, mask), _ = writing.step(writing.batch(prompts, [ids[:1] for ids in made]), ())
    (_, place), memory = writing.step(writing.batch(prompts, [[] for _ in made]), ())
    require(bool((mask.sum(1) == 1).all() & (place.sum(1) == 1).all()), "`batch` must ask at one place of each text")
    if memory:
        (then, there), _ = writing.step(writing.following([ids[:1] for ids in made]), memory)
        require(gap(once[mask], then[there]) <= TOLERANCE, "a token that follows is read otherwise than at once")
    return f"{writing.longest} tokens at most, {len(writing.stops)} end an answer"


def described(subject: Subject) -> str:
    """`encoding`, followed without the family, gives the entries that `collate` gives and all that `outputs` reads."""
    model, said = subject.model, subject.family.encoding(subject.model.assets)
    if not said:
        return "says nothing, so that only Python can ask"
    said = json.loads(json.dumps(said, allow_nan=False))
    for key, record in zip(KEYS, model.asked(four(subject))):
        batch, made = model.collate([record], keys=[key]), encoding.encode(said, record)
        require(
            made.keys() <= batch.keys(), f"encoding makes {', '.join(made.keys() - batch.keys())}, collate does not"
        )
        apart = encoding.apart(made, batch)
        require(apart <= TOLERANCE, f"what encoding says makes entries that are {apart:.2g} off those of collate")
        alone = model.outputs({name: torch.from_numpy(values) for name, values in made.items()})[0]
        require(gap(model.outputs(batch)[0], alone) <= TOLERANCE, "outputs reads more than encoding makes")
    return f"{', '.join(said)}: as collate makes them"


def scores(subject: Subject) -> str:
    """`score` gives finite numbers, the headline among them, whatever the order of the records."""
    model, rows = subject.model, subject.rows
    metric, direction = subject.family.headline(model.assets)
    require(direction in ("up", "down"), f"a headline goes up or down, found {direction!r}")
    found = model.sample(rows)
    given = subject.family.score(rows, found, model.assets)
    require(metric in given, f"the headline is {metric}, score gives {', '.join(given)}")
    odd = [name for name, value in given.items() if not isinstance(value, (int, float)) or not math.isfinite(value)]
    require(not odd, f"scores that are no finite number: {', '.join(odd)}")
    turned = subject.family.score(rows[::-1], found[::-1], model.assets)
    require(not unlike(given, turned), "score depends on the order of the records")
    return f"{', '.join(f'{name} {value:.3g}' for name, value in given.items())}; headline {metric}, {direction}"


# ------------------------------------------------------------------------------------------------------ other sizes, inside


def same_design(subject: Subject) -> str:
    """`like`: the same shapes at scale 1, fewer parameters at one half, the same question; or a Refusal where nothing
    could be scaled."""
    model, family = subject.model, subject.family

    def at(scale: float, seed: int = 0) -> Model:
        return Model(family, *family.like(model.net, model.assets, scale, torch.Generator().manual_seed(seed)))

    try:
        same, half = at(1), at(0.5)
    except Refusal as refusal:
        require(not model.players, f"like refuses a model that can be trained: {refusal.why}")
        return f"refuses: {refusal.why}"
    shapes, wanted = ({name: tuple(value.shape) for name, value in tensors(one.net)} for one in (same, model))
    require(shapes == wanted, "like at scale 1 has other shapes")
    require(tensor_digest(same.net) == tensor_digest(at(1).net), "like with the same generator gives other tensors")
    require(tensor_digest(same.net) != tensor_digest(at(1, 1).net), "like does not draw new weights")
    for fact in ("fields", "axis", "kind", "headline"):
        one, other = (getattr(family, fact)(m.assets) for m in (model, half))
        require(one == other, f"like changes {fact}")
    less, full = count_parameters(half.net), count_parameters(model.net)
    require(less < full, f"like at scale 0.5 has {less:,} parameters, the whole has {full:,}")
    half.sample(subject.rows[:2])
    return f"{full:,} parameters, {less:,} at half the width"


def places_inside(subject: Subject) -> str:
    """`blocks` are modules of the net that run, and their features lie on the axis that is said."""
    model = subject.new()
    inside = {id(module) for module in model.net.modules()}
    seen: dict[str, set[tuple]] = {name: set() for name in model.blocks}
    handles = []
    for name, (module, _) in model.blocks.items():
        require(id(module) in inside, f"block {name} is no module of the net")
        handles.append(
            module.register_forward_hook(lambda _, __, out, name=name: seen[name].add(tuple(first(out).shape)))
        )
    for rows in (subject.rows[:3], four(subject)[2:]):
        batch = model.collate(rows)
        model.outputs(batch)
        for player in model.players:
            model.family.loss(model.net, batch, player)
    for handle in handles:
        handle.remove()
    for name, (_, axis) in model.blocks.items():
        require(seen[name], f"block {name} never runs")
        require(
            all(-len(shape) <= axis < len(shape) and axis % len(shape) for shape in seen[name]),
            f"block {name}: axis {axis}",
        )
        sizes = {shape[axis] for shape in seen[name]}
        require(len(sizes) == 1, f"block {name}: axis {axis} holds no features, its size varies: {sorted(sizes)}")
    return f"{len(seen)} blocks, all of which run"


def fewer_blocks(subject: Subject) -> str:
    """`keep`: all blocks is the same model, fewer blocks a smaller one that still answers; or a Refusal."""
    model, rows = subject.model, subject.rows[:3]
    names = list(model.blocks)
    before = model.outputs(model.collate(rows))[0]
    try:
        whole = kept(model, names)
        apart = gap(before, whole.outputs(whole.collate(rows))[0])
        require(apart <= TOLERANCE, f"keep with all blocks changes the outputs by {apart:.2g}")
        less = kept(model, names[:-1])
    except Refusal as refusal:
        require(refusal.why and refusal.instead, "a refusal says why, and what instead")
        return f"refuses: {refusal.why}"
    full, rest = count_parameters(model.net), count_parameters(less.net)
    require(rest < full, f"{len(names) - 1} of {len(names)} blocks have {rest:,} parameters, all have {full:,}")
    less.sample(rows)
    return f"{full:,} parameters in {len(names)} blocks, {rest:,} in {len(names) - 1}"


def kept(model: Model, names: list[str]) -> Model:
    net = copy.deepcopy(model.net)
    return Model(model.family, *model.family.keep(net, model.assets, names))


def other_numbers(subject: Subject) -> str:
    """`sizes`: with its own number of units each net has the shapes of this one; with fewer it is smaller, or a Refusal."""
    model = subject.model
    found = list(model.family.sizes(model.net, model.assets))
    require(len({size.name for size in found}) == len(found), "two sizes of one name")
    told = []
    for size in found:
        same, wanted = shapes(size.made(size.count)), shapes(model.net)
        require(same == wanted, f"{size.name} {size.count}: {sorted(set(same.items()) ^ set(wanted.items()))[:1]}")
        try:
            less = count_parameters(size.made(max(size.step, size.count - size.step)))
        except Refusal:
            continue
        require(less <= count_parameters(model.net), f"{size.name}: fewer {size.units} make a larger net")
        told.append(size.name)
    return f"states {', '.join(told) or 'no number of units'}"


def shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in net.state_dict().items() if isinstance(value, Tensor)}


MAKING = {"configured": any_config, "start": new_model, "fields": asked_for}
ANSWERING = {
    "sample": answers,
    "sample on any runtime": runtimes,
    "steps": continuing,
    "writing": token_by_token,
    "encoding": described,
    "score and headline": scores,
    "like": same_design,
    "blocks": places_inside,
    "keep": fewer_blocks,
    "sizes": other_numbers,
    "vocabulary": fewer_tokens,
    "segmentation": segmented,
}
