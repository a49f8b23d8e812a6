"""Vocabularies learnt from texts, as fast tokenizers of transformers.

bpe: pairs of bytes merged, the commonest first (Sennrich et al. 2016, arXiv:1508.07909; over bytes Radford et al. 2019).
unigram: the likeliest pieces (`unigram.py`, Kudo 2018, arXiv:1804.10959), and a piece for each byte of what has none. Every
text comes back from both as it went in, but for one that spells a mark. characters: pairs of characters merged, NFC and [UNK]
for what is unknown; programs without Python can follow it. Not WordPiece, whose trainer numbers its tokens differently in
every process.

Before anything is learnt texts are cut by a pattern, across which no token reaches: SPLITS. A token has the space before it.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import propose
from . import unigram

MOST_TEXTS = 200_000  # more of them no longer change the merges that matter
END = "<|endoftext|>"
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
ENTRIES = ("vocab_size", "max_length", "tokenizer", "pre_split")
"""What a config says of a tokenizer that is to be learnt."""

SPELLING = "<>0123456789ABCDEFx"  # what BYTES are written with: a text that holds one must have other pieces for it

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
SPACES = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
HANGUL, HAN = r"\p{Hangul}\p{M}*", r"\p{Han}\p{M}*"
SCRIPTS = (
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)| ?(?:{HANGUL})+| ?(?:{HAN})+| ?(?:(?!\p{{Hangul}}|\p{{Han}})\p{{L}}\p{{M}}*)+|"
)
PARTICLES = (
    "에서는|에서도|으로는|에게는|까지는|이라는|에서|에게|으로|까지|부터|처럼|보다|이나|"
    "은|는|이|가|을|를|의|에|도|만|와|과|로|랑|나"
)
SPLITS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": rf"{WORDS}\p{{N}}{{1,3}}{SPACES}",
    "qwen2": rf"{WORDS}\p{{N}}{SPACES}",
    "scripts": rf"{SCRIPTS}\p{{N}}{{1,3}}{SPACES}",
    "particles": rf" ?(?:\p{{Hangul}}){{2,}}?(?=(?:{PARTICLES})(?!\p{{Hangul}}))|{SCRIPTS}\p{{N}}{{1,3}}{SPACES}",
}
"""{name: the pattern of what is cut apart}. gpt2: words, numbers and signs; llama3 and qwen2: as those models do, digits in threes
or singly; scripts: Hangul, Han characters and all other letters apart as well, digits in threes; particles: also the commonest
Korean particles from their words, by their spelling alone."""

SPLIT = "llama3"


@dataclass(frozen=True)
class Marks:
    """Tokens that stand for no text. `roles`: {role: token}; `before` and `after` stand around each text."""

    roles: Mapping[str, str]
    before: str
    after: str = ""

    @property
    def tokens(self) -> list[str]:
        return list(dict.fromkeys(self.roles.values()))

    @property
    def around(self) -> Any:
        from tokenizers import processors

        single, pair = (f"{self.before} {texts} {self.after}".strip() for texts in ("$A", "$A $B"))
        numbers = [(mark, self.tokens.index(mark)) for mark in (self.before, self.after) if mark]
        return processors.TemplateProcessing(single=single, pair=pair, special_tokens=numbers)


READ = Marks(
    {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"},
    "[CLS]",
    "[SEP]",
)
"""Of a model that reads texts."""

WRITTEN = Marks({"bos_token": END, "eos_token": END, "pad_token": "<|pad|>"}, END)
"""Of a model that writes texts: END stands before each, so that its first token is predicted too."""

ANSWERED = Marks(WRITTEN.roles, "", END)
"""Of a model that reads a text and writes another: END stands behind both."""


def faults_of(settings: Mapping[str, Any], marks: Marks) -> list[str]:
    """What is wrong with the entries `tokenizer` and `pre_split` of a config and, in their light, with `vocab_size`."""
    kind, split, size = settings["tokenizer"], settings["pre_split"], settings["vocab_size"]
    kinds = [name for name in KINDS if name != "characters" or "unk_token" in marks.roles]
    if kind not in kinds:
        return [f"'tokenizer' must be {' or '.join(kinds)}, found {kind!r}; {propose(str(kind), kinds)}"]
    if split and kind == "characters":
        return ["'pre_split' has no effect on 'characters', which have their own: tokenizer=bpe or unigram"]
    if split and str(split) not in SPLITS:
        return [f"'pre_split' must be {', '.join(SPLITS)}, found {split!r}; {propose(str(split), SPLITS)}"]
    least = len(marks.tokens) + {"characters": 1, "bpe": len(BYTES), "unigram": len(BYTES) + len(SPELLING)}[kind]
    return [f"'vocab_size' must be {least} or more with {kind}, found {size}"] * (type(size) is int and size < least)


def learnt(
    texts: Iterator[str], marks: Marks, vocab_size: int, max_length: int, tokenizer: str = "bpe", pre_split: str = ""
) -> Any:
    """The tokenizer of at most `vocab_size` tokens, of which `marks` have the first numbers. It says that a text has at most
    `max_length` of them."""
    from transformers import PreTrainedTokenizerFast

    backend = KINDS[tokenizer](texts, vocab_size, pre_split or SPLIT, marks)
    backend.post_processor = marks.around
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=max_length, **marks.roles)


def of_characters(texts: Iterator[str], size: int, split: str, marks: Marks) -> Any:
    """At most `size` tokens; more only where that many characters occur. Text is brought to NFC and keeps its case, a space becomes
    a mark."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    backend: Any = Tokenizer(models.BPE(unk_token=marks.roles["unk_token"]))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    backend.decoder = decoders.Metaspace()
    return merging(backend, texts, size, marks, ())


def of_bytes(texts: Iterator[str], size: int, split: str, marks: Marks) -> Any:
    """At most `size` tokens; every byte is one of them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    backend: Any = Tokenizer(models.BPE())
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split == "gpt2")
    backend.pre_tokenizer = whole if split == "gpt2" else pre_tokenizers.Sequence([pattern(split), whole])
    backend.decoder = decoders.ByteLevel()
    return merging(backend, texts, size, marks, sorted(pre_tokenizers.ByteLevel.alphabet()))


def merging(backend: Any, texts: Iterator[str], size: int, marks: Marks, alphabet: Sequence[str]) -> Any:
    """`marks` have the first numbers, then comes the `alphabet`, then what is merged."""
    from tokenizers import trainers

    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=marks.tokens, initial_alphabet=list(alphabet), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def of_pieces(texts: Iterator[str], size: int, split: str, marks: Marks) -> Any:
    """At most `size` tokens: the likeliest pieces, and one for each byte of a character that has none."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    cut = pattern(split)
    words = Counter[str]()
    for text in texts:
        words.update(part for part, _ in cut.pre_tokenize_str(text))
    known = [*marks.tokens, *BYTES]
    pieces = [pair for pair in unigram.learnt(words, size - len(known), SPELLING) if pair[0] not in known]
    least = pieces[-1][1] - 1000  # never chosen for a text that spells one
    backend: Any = Tokenizer(models.Unigram([(each, least) for each in known] + pieces, 0, True))
    backend.pre_tokenizer = cut
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks.tokens])
    return backend


def pattern(split: str) -> Any:
    """Cuts a text apart and loses nothing of it."""
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(SPLITS[split]), "isolated")


KINDS = {"bpe": of_bytes, "unigram": of_pieces, "characters": of_characters}


def digest_of(tokenizer: Any, rows: int) -> str:
    """Compares for the tokens of a net that has so many `rows` for them."""
    return hashlib.sha256(json.dumps([rows, sorted(tokenizer.get_vocab().items())]).encode()).hexdigest()


def encoding(tokenizer: Any) -> dict[str, Any]:
    """What a tokenizer does, in the words of `encoding_text.py`; {} for one that is not like those of `of_characters`."""
    if not tokenizer.is_fast or tokenizer.truncation_side != "right":
        return {}
    file = json.loads(tokenizer.backend_tokenizer.to_str())
    model, steps, template = file["model"], file["pre_tokenizer"], file["post_processor"] or {}
    likeness = json.loads(of_characters(iter(("a",)), 1, "", READ).to_str())
    same = all(file[part] == likeness[part] for part in ("normalizer", "pre_tokenizer"))
    same &= {**model, "vocab": 0, "merges": 0} == {**likeness["model"], "vocab": 0, "merges": 0}
    plain = ("single_word", "lstrip", "rstrip", "normalized")
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    same &= template.get("type") == "TemplateProcessing"
    if not same or any(each[name] for each in file["added_tokens"] for name in plain):
        return {}
    if [model["vocab"][token] for token in tokens] != list(range(len(tokens))):
        return {}
    around = [part.get("SpecialToken", {}).get("id") for part in template["single"]]
    ids = [template["special_tokens"][name]["ids"] if name else [] for name in around]
    place = around.index(None)
    return {
        "marks": {each["content"]: each["id"] for each in file["added_tokens"]},
        "space": steps["pretokenizers"][0]["replacement"],
        "vocabulary": tokens,
        "merges": [" ".join(pair) for pair in model["merges"]],
        "unknown": model["vocab"][model["unk_token"]],
        "before": [number for each in ids[:place] for number in each],
        "after": [number for each in ids[place + 1 :] for number in each],
    }
