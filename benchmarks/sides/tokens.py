"""Tokenizers learnt from the same texts: how they cut texts that were held out, and whether these come back.

python benchmarks/sides/tokens.py nsmc|shakespeare WHO SIZE; WHO: bpe, unigram or characters, with :PRE_SPLIT behind it;
sentencepiece-bpe or sentencepiece-unigram where that package is; tokenizers-unigram. One JSON line.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

TRAINED, HELD = 100_000, 5_000
ODD = (
    "오늘 🙂👍🏽 좋다👨‍👩‍👧‍👦",
    "漢字와 한글 李先生",
    "\t탭\t그리고  두 칸",
    "   앞의 빈칸",
    "줄\r\n바꿈\r\n\r\n",
    "각 한국어",
    "e\u0301 \u0301alone",
    "a\u200db \u200d \u200c \ufeff",
    "<0x41><0x0A>",
    "▁mark ▁▁",
    "ㅋㅋㅋㅋㅠㅠ",
    "\x00\x07\x7f",
    " ",
    "",
    "\n",
    "𠮷野家 ﷺ",
    "1234567 3.14 １２３",
    "ＡＢＣ",
    "it's Don'T",
    "नमस्ते ภาษาไทย עברית",
)


def texts_of(name: str, folder: Path) -> tuple[list[str], list[str]]:
    """(to learn from, held out)"""
    if name == "nsmc":
        import polars

        table = [t for t in polars.read_parquet(folder / "nsmc/unlabelled.parquet")["text"].to_list() if t]
        return table[:TRAINED], table[-HELD:]
    lines = (folder / "tinyshakespeare/input.txt").read_text().split("\n\n")
    return lines[:-700], lines[-700:]


Cut = Callable[[str], list[int]]


def onnuri(who: str, size: int, texts: list[str]) -> tuple[Cut, Callable, set[int]]:
    from onnuri.families import vocabulary

    kind, _, split = who.partition(":")
    marks = vocabulary.READ if kind == "characters" else vocabulary.WRITTEN
    made = vocabulary.learnt(iter(texts), marks, size, 10**6, kind, split)
    numbers = made.get_vocab()
    small = {numbers[each] for each in vocabulary.BYTES if each in numbers}
    return (
        lambda text: made(text, add_special_tokens=False).input_ids,
        lambda ids: made.decode(ids, clean_up_tokenization_spaces=False),
        small | ({made.unk_token_id} - {None}),
    )


def sentencepiece(who: str, size: int, texts: list[str]) -> tuple[Cut, Callable, set[int]]:
    import io

    import sentencepiece as library

    model = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=size, model_type=who.split("-")[1],
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
        num_threads=2, minloglevel=2,
    )  # fmt: skip
    made = library.SentencePieceProcessor(model_proto=model.getvalue())
    return made.encode, made.decode, {i for i in range(len(made)) if made.is_byte(i) or made.is_unknown(i)}


def tokenizers_unigram(who: str, size: int, texts: list[str]) -> tuple[Cut, Callable, set[int]]:
    from tokenizers import Tokenizer, decoders, models, trainers

    from onnuri.families import vocabulary

    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = vocabulary.pattern(who.partition(":")[2] or vocabulary.SPLIT)
    made.decoder = decoders.Fuse()
    made.train_from_iterator(
        texts,
        trainers.UnigramTrainer(vocab_size=size, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False),
    )
    return lambda text: made.encode(text).ids, made.decode, {0}


def main(name: str, who: str, size: str, data: str = "") -> None:
    import os

    learnt, held = texts_of(name, Path(data or os.environ["ONNURI_DATA"]))
    maker = (
        sentencepiece
        if who.startswith("sentencepiece")
        else tokenizers_unigram
        if who.startswith("tokenizers")
        else onnuri
    )
    began = time.perf_counter()
    cut, joined, small = maker(who, int(size), learnt)
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    numbers = [cut(text) for text in held]
    speed = time.perf_counter() - began
    count = sum(map(len, numbers))
    size_bytes = sum(len(text.encode()) for text in held)
    found = {
        "texts": name, "who": who, "size": int(size), "seconds": round(seconds, 1),
        "tokens_per_word": count / sum(len(text.split()) for text in held),
        "tokens_per_character": count / sum(map(len, held)), "bytes_per_token": size_bytes / count,
        "fallback_share": sum(i in small for ids in numbers for i in ids) / count,
        "held_lost": sum(joined(ids) != text for ids, text in zip(numbers, held)),
        "odd_lost": [text for text in ODD if joined(cut(text)) != text],
        "cut_mb_per_s": round(size_bytes / speed / 1e6, 2),
    }  # fmt: skip
    short = {key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()}
    print(json.dumps(short, ensure_ascii=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
