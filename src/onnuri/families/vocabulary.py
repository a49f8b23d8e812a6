"""Vocabularies learnt from texts by merging the commonest pairs, as fast tokenizers of transformers.

Sennrich et al. 2016, arXiv:1508.07909, over characters for a classifier, over bytes (Radford et al. 2019) for a
language model. Not WordPiece, whose trainer numbers its tokens differently in every process.
"""

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
