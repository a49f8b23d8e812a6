"""A model of transformers with fewer tokens, or more: which its tokenizer can spare, and the net and the tokenizer without them.

No architecture is named. A tokenizer that merges can lose a token together with the merges that make it (Sennrich et al.,
arXiv:1508.07909), one that looks pieces up simply loses them: what was written with one such token is written with several
others. Marks and single characters stay, so that every text is read as before. Numbers are closed up, in the net, its config
and the tokenizer; rows of the net that no token stands for go first. How tokens are added says `more_tokens.py`.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from ..errors import Refusal
from ..family import Size, Vocabulary
from ..weights.units import Axis, Cut, Place, changed_axes, taken_out
from . import more_tokens, segmentation, sizes
from .depth import empty, parts_of

KINDS = ("BPE", "WordPiece", "Unigram")
ENTRY = "vocab_size"
PLACE = "tokens"
NAMES = ("token_id", "token_ids")
"""How the names of a config's entries end that are numbers of tokens."""

Numbers = Mapping[int, int]
"""{number of a token as it was: as it will be}"""


def vocabulary_of(
    net: Any, tokenizer: Any, again: Callable[[nn.Module, Any], Any], entries: Sequence[str] = ("input_ids",)
) -> Vocabulary | None:
    """See Family.vocabulary. `again`: (net, tokenizer) -> the assets."""
    file = segmentation.file_of(tokenizer)
    table = net.get_input_embeddings()
    if file.get("model", {}).get("type") not in KINDS or not isinstance(table, nn.Embedding):
        return None
    model, made, known = file["model"], parts_by_merging(file["model"]), numbers_of(file["model"])
    others = [each for each in net.modules() if isinstance(each, nn.Embedding) and each.weight is not table.weight]
    if any(each.num_embeddings >= len(known) for each in others):
        return None  # read by the same numbers, whatever the config calls how many there are
    needed = {number for token, number in known.items() if is_needed(token, number, model, made)}
    needed |= {each["id"] for each in file["added_tokens"]}
    needed |= {number for number in mentioned(net) if number < len(table.weight)}

    rows = table.weight.detach().clone()
    rows[sorted(set(range(len(rows))) - needed - set(known.values()))] = 0  # no token stands for them

    def kept(numbers: Tensor) -> tuple[nn.Module, Any]:
        new = {number: place for place, number in enumerate(numbers.tolist())}
        smaller = smaller_net(net, numbers, new)
        return smaller, again(smaller, smaller_tokenizer(tokenizer, file, new))

    def grown(joins: Sequence[tuple[int, int]]) -> tuple[nn.Module, Any]:
        join = segmentation.segmentation_of(tokenizer).join
        bigger, more = more_tokens.grown(net, tokenizer, file, designs(net, {}), joins, join)
        return bigger, again(bigger, more)

    return Vocabulary(entries, rows, needed, made, kept, grown)


def numbers_of(model: dict) -> dict[str, int]:
    """{token: its number}"""
    if isinstance(model["vocab"], dict):
        return model["vocab"]
    return {piece: number for number, (piece, _) in enumerate(model["vocab"])}


def merges_of(model: dict) -> Iterator[tuple[list[str], str]]:
    """(two tokens, what they are merged into)"""
    prefix = model.get("continuing_subword_prefix") or ""
    for each in model.get("merges") or []:
        pair = each.split(" ") if isinstance(each, str) else each
        yield pair, pair[0] + pair[1].removeprefix(prefix)


def parts_by_merging(model: dict) -> dict[int, list[int]]:
    """{number of a token: the two that are merged into it}"""
    vocabulary, made = numbers_of(model), dict[int, list[int]]()
    for pair, whole in merges_of(model):
        if whole in vocabulary:
            made.setdefault(vocabulary[whole], [vocabulary[part] for part in pair])
    return made


def is_needed(token: str, number: int, model: dict, made: Mapping[int, Any]) -> bool:
    """Whether a text could not be read without it: a character or a byte, or what stands for all that is unknown."""
    if token == model.get("unk_token") or number == model.get("unk_id"):
        return True
    if model["type"] == "BPE":
        return number not in made
    single = token.removeprefix(model.get("continuing_subword_prefix") or "").removeprefix("\u2581")
    return len(single) <= 1 or (token.startswith("<0x") and token.endswith(">"))


# ------------------------------------------------------------------------------------------------------------ the smaller


def named(config: Any) -> dict[str, Any]:
    """{entry of a config: the token, or the tokens, that it names}"""
    return {name: value for name, value in vars(config).items() if name.endswith(NAMES) and value is not None}


def mentioned(net: Any) -> set[int]:
    """The tokens that the configs name."""
    owners = [*parts_of(net.config), *([net.generation_config] if net.can_generate() else [])]
    values = [value for owner in owners for value in named(owner).values()]
    lists = [value if isinstance(value, (list, tuple)) else [value] for value in values]
    return {number for each in lists for number in each if type(number) is int and number >= 0}


def designs(net: Any, new: Numbers) -> Callable[[int], Any]:
    """A number of tokens -> the empty net of this design that has a row for each. Refusal where its design has no such net."""
    rows = len(net.get_input_embeddings().weight)
    entries = {entry: 1 for entry, value in sizes.numbers_of(net.config) if entry[1] == ENTRY and value == rows}
    if not entries:
        raise Refusal(f"the description of this model states no {ENTRY} of {rows}", "--units channels")

    def made(count: int) -> Any:
        config = sizes.edited(net.config, dict.fromkeys(entries, count))
        for part in parts_of(config):
            renumber(part, new)
        smaller = empty(type(net), config, lambda why: Refusal(f"{ENTRY} {count}: {why}", "another --share"))
        if net.can_generate():
            smaller.generation_config = deepcopy(net.generation_config)
            renumber(smaller.generation_config, new)
        return smaller

    return made


def smaller_net(net: Any, numbers: Tensor, new: Numbers) -> Any:
    """The net with these rows wherever it has one for each token."""
    rows, made = len(net.get_input_embeddings().weight), designs(net, new)
    lengths = changed_axes(net, made(len(numbers)))
    axes = tuple(Axis(name, axis, rows) for (name, axis), pair in lengths.items() if pair == (rows, len(numbers)))
    cut = Cut(Size(ENTRY, "channels", rows, made), len(numbers), (Place(PLACE, rows, len(numbers), 1, axes),), True)
    return taken_out(net, cut, {PLACE: numbers})


def renumber(config: Any, new: Numbers) -> None:
    """Put the new numbers of the tokens that it names into a config."""
    for name, value in named(config).items():
        many = isinstance(value, (list, tuple))
        found = [new.get(number, number) for number in (value if many else [value])]
        setattr(config, name, found if many else found[0])


def smaller_tokenizer(tokenizer: Any, file: dict, new: Numbers) -> Any:
    """A copy that knows these tokens alone."""
    from tokenizers import Tokenizer

    file = deepcopy(file)
    model = file["model"]
    known = {token: new[number] for token, number in numbers_of(model).items() if number in new}
    if isinstance(model["vocab"], dict):
        model["vocab"] = dict(sorted(known.items(), key=lambda pair: pair[1]))
    else:
        model["vocab"] = [pair for number, pair in enumerate(model["vocab"]) if number in new]
        model["unk_id"] = new.get(model.get("unk_id"), model.get("unk_id"))
    if "merges" in model:
        model["merges"] = [pair for pair, whole in merges_of(model) if {*pair, whole} <= known.keys()]
    for added in file["added_tokens"]:
        added["id"] = new[added["id"]]
    if file.get("padding"):
        file["padding"]["pad_id"] = new[file["padding"]["pad_id"]]
    file["post_processor"] = with_numbers(file.get("post_processor"), new)
    copy = deepcopy(tokenizer)
    copy._tokenizer = Tokenizer.from_str(json.dumps(file, ensure_ascii=False))
    return copy


def with_numbers(step: Any, new: Numbers) -> Any:
    """What is put around a text, with the new numbers of the marks."""
    if isinstance(step, dict):
        found = {key: with_numbers(value, new) for key, value in step.items()}
        if isinstance(step.get("ids"), list):
            found["ids"] = [new[number] for number in step["ids"]]
        for key in ("sep", "cls"):
            if isinstance(step.get(key), list):
                found[key] = [step[key][0], new[step[key][1]]]
        return found
    return [with_numbers(each, new) for each in step] if isinstance(step, list) else step
