"""Vocabularies learnt from texts by merging the commonest pairs, as fast tokenizers of transformers.

Sennrich et al. 2016, arXiv:1508.07909, over characters for a classifier, over bytes (Radford et al. 2019) for a
language model. Not WordPiece, whose trainer numbers its tokens differently in every process.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

MOST_TEXTS = 200_000  # more of them no longer change the merges that matter
MARKS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
END = "<|endoftext|>"


def of_characters(texts: Iterator[str], size: int, max_length: int) -> Any:
    """At most `size` tokens; more only where that many characters occur. Text is brought to NFC and keeps its
    case, a space becomes a mark, so that Korean needs no tool of its own. [CLS] and [SEP] stand around a text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    backend: Any = Tokenizer(models.BPE(unk_token="[UNK]"))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    backend.decoder = decoders.Metaspace()
    numbers = {mark: number for number, mark in enumerate(MARKS.values())}
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(mark, numbers[mark]) for mark in ("[CLS]", "[SEP]")]
    )
    return learnt(backend, texts, size, max_length, MARKS)


def of_bytes(texts: Iterator[str], size: int, max_length: int) -> Any:
    """At most `size` tokens, 258 or more. Every byte is one of them, so any text comes back as it went in. END stands
    before each text, so that its first token is predicted too."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    backend: Any = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", pair=f"{END} $A $B", special_tokens=[(END, 0)]
    )
    marks = {"bos_token": END, "eos_token": END, "pad_token": "<|pad|>"}
    return learnt(backend, texts, size, max_length, marks, sorted(pre_tokenizers.ByteLevel.alphabet()))


def learnt(
    backend: Any, texts: Iterator[str], size: int, max_length: int, marks: dict[str, str], alphabet: Sequence[str] = ()
) -> Any:
    """The tokenizer with its vocabulary: `marks` {role: token} first, in their order, then `alphabet`, then merges."""
    from tokenizers import trainers
    from transformers import PreTrainedTokenizerFast

    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(dict.fromkeys(marks.values())),
        initial_alphabet=list(alphabet),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=max_length, **marks)


def digest_of(tokenizer: Any, rows: int) -> str:
    """Compares for the tokens of a net that has so many `rows` for them."""
    return hashlib.sha256(json.dumps([rows, sorted(tokenizer.get_vocab().items())]).encode()).hexdigest()


def encoding(tokenizer: Any) -> dict[str, Any]:
    """What a tokenizer does, in the words of `encoding_text.py`; {} for one that is not like those of `of_characters`."""
    if not tokenizer.is_fast or tokenizer.truncation_side != "right":
        return {}
    file = json.loads(tokenizer.backend_tokenizer.to_str())
    model, steps, template = file["model"], file["pre_tokenizer"], file["post_processor"] or {}
    likeness = json.loads(of_characters(iter(("a",)), 1, 8).backend_tokenizer.to_str())
    same = all(file[part] == likeness[part] for part in ("normalizer", "pre_tokenizer"))
    same &= {**model, "vocab": 0, "merges": 0} == {**likeness["model"], "vocab": 0, "merges": 0}
    plain = ("single_word", "lstrip", "rstrip", "normalized")
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    same &= template.get("type") == likeness["post_processor"]["type"]
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
