"""How a tokenizer of transformers cuts texts and puts them together again, whatever it was made by."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ..family import Segmentation


def segmentation_of(tokenizer: Any) -> Segmentation:
    """See Family.segmentation."""
    file = file_of(tokenizer)
    numbers = tokenizer.get_vocab()
    spelled = {number: token for token, number in numbers.items()}
    fallback = {number for token, number in numbers.items() if is_byte(token)}
    marks = {each["id"] for each in file.get("added_tokens", [])} | set(tokenizer.all_special_ids)
    unknown = {tokenizer.unk_token_id} - {None} if can_miss(file) else set()
    prefix = file.get("model", {}).get("continuing_subword_prefix") or ""
    return Segmentation(
        lambda texts: words_of(tokenizer, list(texts)),
        lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False),
        unknown,
        fallback | ({number for number, token in spelled.items() if is_part(token)} if reads_bytes(file) else set()),
        marks | fallback | unknown,
        spelled,
        lambda one, other: one + other.removeprefix(prefix),
    )


def file_of(tokenizer: Any) -> dict[str, Any]:
    """What tokenizer.json would hold; {} for a tokenizer without such a file."""
    return json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}


def is_byte(token: str) -> bool:
    """Whether it spells one byte of a character that has no token."""
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def reads_bytes(file: Mapping[str, Any]) -> bool:
    """Whether characters are taken apart into bytes before anything is merged."""
    steps = file.get("pre_tokenizer") or {}
    return any(step.get("type") == "ByteLevel" for step in steps.get("pretokenizers", [steps]))


def is_part(token: str) -> bool:
    """Whether a token of bytes is a single one that is no character."""
    from tokenizers import decoders

    return len(token) == 1 and decoders.ByteLevel().decode([token]) == "\ufffd"


def can_miss(file: Mapping[str, Any]) -> bool:
    """Whether anything can be unknown: where bytes are read, or spelled, nothing is."""
    return not reads_bytes(file) and not file.get("model", {}).get("byte_fallback")


def words_of(tokenizer: Any, texts: list[str]) -> list[list[list[int]]]:
    """See Segmentation.words. One word for a tokenizer that does not tell."""
    if not texts:
        return []
    with settings_kept(tokenizer):
        found = tokenizer(texts, add_special_tokens=False)
    if not tokenizer.is_fast:
        return [[ids] if ids else [] for ids in found["input_ids"]]
    return [grouped(each.ids, each.word_ids) for each in found.encodings]


def grouped(ids: Sequence[int], places: Sequence[int | None]) -> list[list[int]]:
    """Tokens of one place together; one without a place is a word of its own."""
    words: list[list[int]] = []
    before: int | None = None
    for number, place in zip(ids, places):
        if place is None or place != before:
            words.append([])
        words[-1].append(number)
        before = place
    return words


@contextmanager
def settings_kept(tokenizer: Any) -> Iterator[None]:
    """A call leaves its cutting and padding in a fast tokenizer; its file must not get them."""
    backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
    before = (backend.truncation, backend.padding) if backend else (None, None)
    try:
        yield
    finally:
        if backend:
            backend.enable_truncation(**before[0]) if before[0] else backend.no_truncation()
            backend.enable_padding(**before[1]) if before[1] else backend.no_padding()
