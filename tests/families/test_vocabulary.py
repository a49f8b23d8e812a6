"""Tokenizers that are learnt: every text comes back, the same in each process, and each setting is heeded."""

import hashlib
import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnuri.errors import BadSettings
from onnuri.families import unigram, vocabulary
from onnuri.registry import family

TEXTS = [
    "옛날 추억의 장면이 참 많은 영화네요....",
    "이게 코미디였어? 1%모자람",
    "the cat sleeps, the cat's 12345 books\r\n",
    "漢字와 한글",
] * 5
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
)


def learnt(kind="bpe", split="", size=340, marks=vocabulary.WRITTEN, texts=TEXTS):
    return vocabulary.learnt(iter(texts), marks, size, 64, kind, split)


def back(made, text: str) -> str:
    return made.decode(made(text, add_special_tokens=False).input_ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("split", vocabulary.SPLITS)
def test_every_text_comes_back(kind, split):
    made = learnt(kind, split)
    assert [text for text in (*ODD, *TEXTS) if back(made, text) != text] == []
    assert max(made.get_vocab().values()) < len(made) <= 340


@given(st.text(max_size=30))
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back(text):
    for kind in ("bpe", "unigram"):
        assert back(MADE[kind], text) == text


MADE = {kind: learnt(kind) for kind in ("bpe", "unigram")}


def test_the_same_in_every_process():
    """The trainer of `tokenizers` for unigram models fails this."""
    program = (
        "import hashlib;from onnuri.families import vocabulary as v;"
        f"made = v.learnt(iter({TEXTS!r}), v.WRITTEN, 340, 64, 'unigram');"
        "print(hashlib.sha256(made.backend_tokenizer.to_str().encode()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    assert other == hashlib.sha256(MADE["unigram"].backend_tokenizer.to_str().encode()).hexdigest()


def ways(word: str, pieces: list[str]):
    """All ways to cut a word, tried one by one."""
    for cuts in itertools.product((0, 1), repeat=len(word) - 1):
        bounds = [0, *(i for i, cut in enumerate(cuts, 1) if cut), len(word)]
        parts = [word[a:b] for a, b in itertools.pairwise(bounds)]
        if all(part in pieces for part in parts):
            yield parts


def test_a_lattice_counts_all_ways():
    words, often = ["abcab", "bca", "a"], np.array([3.0, 2.0, 5.0])
    pieces = ["a", "b", "c", "ab", "bc", "abc", "ca"]
    chance = np.array([0.2, 0.1, 0.1, 0.25, 0.15, 0.1, 0.1])
    found = unigram.lattice(words, pieces)
    wanted, best = np.zeros(len(pieces)), np.zeros(len(pieces))
    for word, count in zip(words, often):
        all_ways = [[pieces.index(part) for part in parts] for parts in ways(word, pieces)]
        products = np.array([chance[way].prod() for way in all_ways])
        for way, share in zip(all_ways, products / products.sum()):
            np.add.at(wanted, way, count * share)
        np.add.at(best, all_ways[products.argmax()], count)
    assert np.allclose(found.expected(chance, often), wanted, rtol=1e-12)
    assert np.array_equal(found.used(np.log(chance), often), best)


def test_likely_words_are_one_piece():
    pieces = dict(unigram.learnt({"영화": 100, "영화관": 40, "관객": 30, "객": 2}, 8, "x"))
    assert "영화" in pieces and "x" in pieces and len(pieces) <= 8
    assert sum(np.exp(list(pieces.values()))) == pytest.approx(1, abs=1e-4), "rounded to 6 digits"


@pytest.mark.parametrize(
    "name, config, message",
    [
        ("causal_lm", {"tokenizer": "characters"}, "'tokenizer' must be bpe or unigram"),
        ("causal_lm", {"tokenizer": "bqe"}, "bpe"),
        ("causal_lm", {"pre_split": "gpt3"}, "'pre_split' must be gpt2"),
        ("causal_lm", {"tokenizer": "unigram", "vocab_size": 258}, "'vocab_size' must be 277 or more"),
        ("masked_lm", {"pre_split": "gpt2"}, "has no effect on 'characters'"),
        ("masked_lm", {"tokenizer": "bpe", "vocab_size": 100}, "'vocab_size' must be 261 or more"),
    ],
)
def test_what_cannot_be_learnt_is_refused(name, config, message):
    import torch

    found = family(name)
    with pytest.raises(BadSettings, match=message):
        found.start({**found.tiny(), **config}, found.toy(8, 0), torch.Generator())


def test_patterns_cut_where_they_say():
    def cut(split: str, text: str) -> list[str]:
        return [part for part, _ in vocabulary.pattern(split).pre_tokenize_str(text)]

    assert cut("llama3", "가격 12345") == ["가격", " ", "123", "45"]
    assert cut("qwen2", "12") == ["1", "2"]
    assert cut("gpt2", "漢字와 ok한글") == ["漢字와", " ok한글"]
    assert cut("scripts", "漢字와 ok한글") == ["漢字", "와", " ok", "한글"]
    assert cut("particles", "고양이가 집에서 잔다") == ["고양이", "가", " 집에서", " 잔다"], (
        "집 is one syllable, and stays whole"
    )
