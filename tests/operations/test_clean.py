"""clean against plain Python: what is counted, compared and masked; its identities; and whole runs with their evidence."""

import json
import random
import unicodedata
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from command import onnuri, process, refused
from onnuri import ledger
from onnuri.data import records_of
from onnuri.errors import BadInput, Refusal
from onnuri.operation import Quiet
from onnuri.operations.clean import apply, reading
from onnuri.operations.clean.copies import Held, Orders, Owners, grams, shingles
from onnuri.operations.clean.edits import edited, tidy
from onnuri.operations.clean.flat import flat
from onnuri.operations.clean.language import LANGUAGES, languages
from onnuri.operations.clean.personal import KINDS, masked
from onnuri.operations.clean.reading import column_of
from onnuri.operations.clean.rules import RULES
from onnuri.operations.clean.scores import balance
from onnuri.operations.clean.settings import Settings
from onnuri.sources import open_data, open_documents

TEXTS = st.lists(st.text(st.sampled_from("aB가나힣é7 .!\n\t😀ㅋ"), max_size=40), min_size=1, max_size=6)
RULE = {rule.name: rule for rule in RULES}


def cleaned(texts, against=None, **settings):
    """(texts kept, {text removed: reason}, report) without a runner."""
    data = open_memory(texts)
    held = open_memory(against) if against else None
    result = apply(Settings(**settings), Quiet(), data, held)
    parts = list(result.parts)
    kept = [record["text"] for part in parts for record in part.kept]
    removed = {one["text"]: one["removed_reason"] for part in parts for one in part.removed}
    return kept, removed, result.report


def open_memory(texts):
    from onnuri.data import Data

    records = records_of([{"text": text} for text in texts], {"text": "text"}, "text")
    return Data("memory", records, {}, records)


def words(draw, count):
    """Made-up words of two syllables: digits would all be the same when texts are compared."""
    return ["".join(chr(0xAC00 + draw.randrange(2000)) for _ in range(2)) for _ in range(count)]


# --------------------------------------------------------------------------------------------------------- characters


@given(TEXTS)
def test_words_lines_and_paragraphs_are_those_of_python(texts):
    found = flat(texts)
    for spans, cut in (
        (found.words, str.split),
        (found.lines, lambda text: [x.strip() for x in text.split("\n") if x.strip()]),
    ):
        pieces = [(i, piece) for i, text in enumerate(texts) for piece in cut(text)]
        codes = [found.codes[a:b].tobytes().decode("utf-32-le") for a, b in zip(spans.first, spans.last)]
        assert pieces == list(zip(spans.owner.tolist(), codes))
    assert found.count(found.kinds > 0).tolist() == [len(text) for text in texts]


@given(TEXTS)
def test_equal_spans_have_equal_hashes_wherever_they_stand(texts):
    found = flat(["padding ", *texts, *texts])
    seen = {}
    for a, b, key in zip(found.words.first, found.words.last, found.word_hashes.tolist()):
        word = found.codes[a:b].tobytes()
        assert seen.setdefault(word, key) == key
    assert len(set(seen.values())) == len(seen)  # 64 bits: a clash of so few is no chance


def test_a_normalized_text_has_no_case_accents_digits_or_marks():
    plain = flat(["Café 2024년, «영화»!😀"]).plain
    assert plain.codes.tobytes().decode("utf-32-le") == "cafe 0000년   영화   "


# -------------------------------------------------------------------------------------------------------------- copies


@given(st.lists(st.lists(st.integers(0, 30), max_size=20), max_size=12))
def test_owners_are_those_of_a_dictionary(batches):
    owners, known, number = Owners(), {}, 0
    for batch in batches:
        documents = np.arange(number, number + len(batch))
        found = owners.first(np.array(batch, np.uint64), documents)
        assert found.tolist() == [known.setdefault(key, document) for key, document in zip(batch, documents.tolist())]
        number += len(batch)
    lengths = [len(keys) for keys, _ in owners.runs]
    assert all(one >= 2 * other for one, other in pairwise(lengths))
    assert sum(lengths) == len(known)


def test_a_pair_is_found_as_often_as_its_likeness_says():
    """1 - (1 - s^rows)^bands; 400 pairs of each likeness: three standard errors are 0.075 at most."""
    draw, orders = random.Random(0), Orders(14, 8, 5)
    for changed in (2, 6, 14, 30):
        texts, likeness = [], []
        for _ in range(400):
            one = words(draw, 60)
            other = list(one)
            for place in draw.sample(range(60), changed // 2):
                other[place] = "다른말"
            sets = [{tuple(each[i : i + 5]) for i in range(56)} for each in (one, other)]
            likeness.append(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
            texts += [" ".join(one), " ".join(other)]
        keys = orders.keys(flat(texts))
        found = (keys[::2] == keys[1::2]).any(1).mean()
        expected = np.mean([1 - (1 - s**8) ** 14 for s in likeness])
        assert abs(found - expected) < 0.075, (changed, found, expected)


def test_signatures_are_least_shingles_whatever_the_lengths():
    draw = random.Random(1)
    texts = [" ".join(words(draw, count)) for count in (0, 1, 4, 5, 6, 63, 68, 69, 200, 1000)]
    orders, found = Orders(2, 3, 5), flat(texts)
    hashes, documents = shingles(found.words, found.word_hashes, len(texts), 5)
    least = orders.signatures(hashes, documents, len(texts))
    for place in range(len(texts)):
        alone = orders.signatures(hashes[documents == place], np.zeros((documents == place).sum(), np.int64), 1)
        assert (least[place] == alone[0]).all()
    counts = np.bincount(documents, minlength=len(texts)).tolist()
    assert counts == [0, 1, 1, 1, 2, 59, 64, 65, 196, 996]


def test_runs_of_words_stay_inside_their_document():
    found = flat(["a b c", "a b", "c d e f"])
    keys, owners = grams(found.word_hashes, found.words.owner, 3)
    assert owners.tolist() == [0, 2, 2] and len(set(keys.tolist())) == 3


def test_of_copies_the_first_stays_and_what_it_is_like_is_told():
    one = "아침 일찍 일어나 산에 올랐더니 구름이 발아래 깔려 있었고 멀리 바다가 보였다"
    near = one.replace("바다가 보였다", "바다가 보였다!!")
    kept, removed, _ = cleaned([one, one + " ", near, "전혀 다른 이야기를 여기에 적어 둔다"])
    assert kept == [one, "전혀 다른 이야기를 여기에 적어 둔다"]
    assert removed == {one: "copy", near: "near_copy"}
    assert cleaned([one, near], bands=0)[0] == [one, near]


FOOTER = "이 페이지의 모든 글은 작성자에게 있으며 함부로 옮길 수 없습니다"


def test_long_lines_that_stood_before_are_left_out_and_what_is_left_is_judged_again():
    texts = [f"첫 글의 내용은 이렇습니다\n{FOOTER}", f"둘째 글은 다릅니다\n{FOOTER}\n끝", f"{FOOTER}\n{FOOTER}"]
    kept, removed, report = cleaned(texts)
    assert kept == [texts[0], "둘째 글은 다릅니다\n끝"]
    assert removed == {texts[2]: "empty"} and report["edited"]["documents with repeated lines"] == 1
    assert cleaned(texts, lines=False)[0] == texts


def test_of_two_texts_that_losing_lines_makes_equal_the_first_stays():
    first, body = (
        f"처음 문서입니다\n{FOOTER}",
        "같은 본문이 여기에 있고 서른 글자를 넘도록 길게 이어서 씁니다\n그리고 끝",
    )
    kept, removed, _ = cleaned([first, f"{FOOTER}\n{body}", body])
    assert kept == [first, body] and removed == {body: "copy"}


def test_a_line_of_a_document_that_goes_is_kept_elsewhere():
    draw = random.Random(6)
    base, line = "\n".join(" ".join(words(draw, 12)) for _ in range(9)), " ".join(words(draw, 16))
    texts = [base, f"{base}\n{line}", f"{line}\n{' '.join(words(draw, 9))}"]
    kept, removed, _ = cleaned(texts, rules="short")
    assert kept == [texts[0], texts[2]] and list(removed.values()) == ["near_copy"]


def test_texts_without_words_are_no_copies_of_each_other():
    texts = ["!!!???", "*** ---", "😀😀"]
    assert cleaned(texts, rules="none", languages="all")[0] == texts


def test_an_evaluation_set_takes_out_what_holds_it():
    draw = random.Random(2)
    long, short = " ".join(words(draw, 20)), "짧은 평가 문장 하나"
    holding = " ".join([*words(draw, 9), *long.split()[3:17], *words(draw, 9)])
    almost = " ".join([*words(draw, 9), *long.split()[3:15], *words(draw, 9)])
    texts = [holding, almost, short + "!", f"여기에 {short} 들어 있다"]
    kept, removed, _ = cleaned(texts, against=[long, short])
    assert kept == [almost, texts[3]] and set(removed.values()) == {"held_out"}
    assert cleaned(texts, against=[long, short], overlap=12)[0] == [texts[3]]


def test_all_columns_of_an_evaluation_set_are_kept_out(tmp_path):
    rows = [
        {"question": "하늘은 왜 파란색으로 보이는지 설명하시오", "answer": "짧은 파장의 빛이 더 많이 흩어지기 때문이다"}
    ]
    pl.DataFrame(rows * 2).write_ndjson(tmp_path / "exam.jsonl")
    data = open_memory([*rows[0].values(), "다른 글"])
    result = apply(Settings(), Quiet(), data, open_documents(str(tmp_path / "exam.jsonl")))
    assert [record["text"] for part in result.parts for record in part.kept] == ["다른 글"]


def test_the_row_of_the_evaluation_set_is_told():
    held = Held(3)
    held.add(flat(["하나 둘 셋 넷", "다섯 여섯"]), np.array([7, 8]))
    assert held.rows(flat(["영 하나 둘 셋", "다섯 여섯", "다섯 여섯 일곱", ""])).tolist() == [7, 8, -1, -1]


# --------------------------------------------------------------------------------------------------------------- rules


def top_run(text, count):
    """The share of the commonest run, as the rule has it, in plain Python."""
    spans = flat([text]).plain.words
    tokens = [flat([text]).plain.codes[a:b].tobytes() for a, b in zip(spans.first, spans.last)]
    runs = Counter(tuple(tokens[i : i + count]) for i in range(len(tokens) - count + 1))
    best = 0
    for i in range(len(tokens) - count + 1):
        if (times := runs[tuple(tokens[i : i + count])]) > 1:
            first = next(j for j in range(len(tokens)) if tokens[j : j + count] == tokens[i : i + count])
            best = max(best, times * int(spans.last[first + count - 1] - spans.first[first]))
    return best / max(len(text), 1)


def repeated_runs(text, count):
    tokens = text.split()
    covered, seen = set(), set()
    for i in range(len(tokens) - count + 1):
        run = tuple(tokens[i : i + count])
        covered |= set(range(i, i + count)) if run in seen else set()
        seen.add(run)
    return sum(len(tokens[i]) + 1 for i in covered) / max(len(text), 1)


@given(st.lists(st.lists(st.sampled_from(["가", "나다", "라마바"]), max_size=30).map(" ".join), min_size=1, max_size=4))
def test_repeated_runs_of_words_are_counted_as_in_plain_python(texts):
    for count in (2, 3, 4):
        assert RULE[f"top_run_of_{count}"].measure(flat(texts)).tolist() == [top_run(text, count) for text in texts]
    for count in (5, 7):
        found = RULE[f"repeated_runs_of_{count}"].measure(flat(texts))
        np.testing.assert_allclose(found, [repeated_runs(text, count) for text in texts])


@pytest.mark.parametrize(
    ("name", "text", "figure"),
    [
        ("letters", "가나 1!", 0.5),
        ("runs", "ㅋㅋㅋㅋ 웃김....", 0.4),
        ("words", "하나 둘\n셋", 3),
        ("word_length", "하나 둘", 1.5),
        ("hashes_per_word", "#a #b c", 2 / 3),
        ("ellipses_per_word", "음... 글쎄… 네", 2 / 3),
        ("bulleted_lines", "- 하나\n• 둘\n셋", 2 / 3),
        ("lines_trailing_off", "그래서...\n그런데…\n끝.", 2 / 3),
        ("words_with_letters", "one 2 3 four", 0.5),
        ("function_words", "The cat and the dog", 2),
        ("function_words", "나는 집에 간다 밥", 3),
        ("repeated_lines", "같은 줄\n다른 줄\n같은 줄", 1 / 3),
        ("repeated_paragraphs", "한 문단\n둘째 줄\n\n한 문단\n둘째 줄", 1 / 2),
        ("repeated_line_characters", "abc\nabc\nde", 3 / 10),
        ("repeated_paragraph_characters", "abc\n\nabc\n\nde", 3 / 12),
        ("sentences", "One. Two! 셋?\n넷", 4),
        ("curly_brackets", "if (x) { y }", 2),
        ("punctuated_lines", "끝났다.\n아니\n", 1 / 2),
        ("short_lines", "짧다\n" + "길다" * 20, 1 / 2),
        ("characters_of_repeated_lines", "abc\nabc\nde", 3 / 10),
        ("line_breaks_per_word", "a b\nc d", 1 / 4),
    ],
)
def test_figures_of_the_rules(name, text, figure):
    found = RULE[name].measure(flat(["", text, "다른 글"]))
    assert found[1] == pytest.approx(figure) and np.isfinite(found).all()


def test_pages_are_held_to_all_rules_and_reviews_to_few():
    draw = random.Random(3)
    page = "\n".join(" ".join(f"{word}은" for word in words(draw, 9)) + "." for _ in range(8))
    assert cleaned([page], rules="web")[0] == [page]
    assert cleaned(["정말 재미있는 영화였다"], rules="short")[0] == ["정말 재미있는 영화였다"]
    with pytest.raises(BadInput, match=r"1 for words \(4, at least 50\)") as error:
        cleaned(["정말 재미있는 영화 였다"], rules="web")
    assert "--limits words=NUMBER" in error.value.hint
    assert cleaned(["정말 재미있는 영화 였다"], rules="short", limits={"letters": 0.9})[0]
    assert cleaned(["정말 재미있는 영화였다"] * 30 + [page], rules="auto")[2]["rules"]["set"] == "short"
    assert cleaned([page, page[::-1], "글 하나"], rules="auto")[2]["rules"]["set"] == "web"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The two walk off together into the night.", "en"),
        ("Super Junior♥", "en"),
        ("i love Summer", "en"),
        ("오늘은 날씨가 좋다", "ko"),
        ("Netflix에서 본 영화", "ko"),
        ("Der Mann geht mit dem Hund in die Stadt und kauft ein Brot", "other"),
        ("Le chat est dans la maison avec les enfants", "other"),
        ("これは映画です", "other"),
        ("这是一部电影", "other"),
        ("Это хороший фильм", "other"),
        ("...", "other"),
        ("", "other"),
    ],
)
def test_languages(text, language):
    assert LANGUAGES[languages(flat(["앞", text]))[1]] == language


def test_only_the_languages_asked_for_stay():
    texts = ["오늘은 날씨가 좋다", "the cat is on the table", "これは映画です"]
    assert cleaned(texts)[0] == texts[:2]
    assert cleaned(texts, languages="ko")[0] == texts[:1]
    assert cleaned(texts, languages="all")[0] == texts


# -------------------------------------------------------------------------------------------------------- personal data


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("메일은 hong.gil+a@mail.example.co.kr 입니다", "메일은 [email] 입니다"),
        ("주민번호 800101-1234567", "주민번호 [resident]"),
        ("번호 8001011000007", "번호 8001011000007"),  # no hyphen, and the check digit is wrong
        ("번호 8001011000008", "번호 [resident]"),
        ("번호 801301-1234567", "번호 801301-1234567"),  # no such month
        ("카드 4111-1111-1111-1111 로", "카드 [card] 로"),
        ("카드 4111111111111112", "카드 4111111111111112"),  # Luhn
        ("amex 3782 822463 10005", "amex [card]"),
        ("전화 010-1234-5678, 01012345678", "전화 [phone], [phone]"),
        ("02-123-4567 (02) 1234-5678", "[phone] [phone]"),
        ("+82 10-1234-5678 +44 20 7946 0958 (212) 555-0187", "[phone] [phone] [phone]"),
        ("8.8.8.8 과 192.168.0.1, 1.2.3.400", "[address] 과 192.168.0.1, 1.2.3.400"),
        ("2024-11-22에 1,234,567원 12:30:45", "2024-11-22에 1,234,567원 12:30:45"),
        ("김철수 씨가 왔다. 손글씨, 이번 주말 날씨", "[name] 씨가 왔다. 손글씨, 이번 주말 날씨"),
        ("sizes 256 512 1024 bytes, UTC+9 2024-01-15 10:00", "sizes 256 512 1024 bytes, UTC+9 2024-01-15 10:00"),
        ("0.0101234567 300.400.5000 0.4111111111111111", "0.0101234567 300.400.5000 0.4111111111111111"),
        ("010 - 1234 - 5678, 82-10-1234-5678, +82 (0)10-1234-5678", "[phone], [phone], [phone]"),
        ("010–1234–5678 4111.1111.1111.1111 8.8.8.8.", "[phone] [card] [address]."),
        ("외국인 8501015123450", "외국인 [resident]"),
        ("Mr. John Smith met Dr. Brown", "Mr. [name] met Dr. [name]"),
    ],
)
def test_personal_data_are_masked(text, left):
    found = Counter()
    assert masked(text, KINDS, found) == left
    assert found.total() == left.count("[")


def test_only_the_kinds_asked_for_are_masked():
    text = "연락은 010-1234-5678 또는 a@b.co 로 김철수 씨에게"
    assert cleaned([text])[0] == ["연락은 [phone] 또는 [email] 로 김철수 씨에게"]
    assert cleaned([text], mask="name")[0] == ["연락은 010-1234-5678 또는 a@b.co 로 [name] 씨에게"]
    assert cleaned([text], mask="")[0] == [text]


def test_texts_are_tidied():
    pieces = unicodedata.normalize("NFD", "한글")
    assert tidy(f"\ufeff{pieces}  \r\n둘\u200b\r셋\n\n\n\n넷 ") == "한글\n둘\n셋\n\n넷"
    assert tidy("first\u2028second\x0cthird\x85fourth") == "first\nsecond\nthird\nfourth"
    assert tidy("half \ud835 of a character") == "half \ufffd of a character"
    found, page = {}, "본문입니다\n이 사이트는 쿠키를 사용합니다\n끝"
    texts = edited([page, "쿠키를 사용하지 않는다"], Settings(rules="web"), found)
    assert texts == ["본문입니다\n끝", "쿠키를 사용하지 않는다"] and found == {0: {"boilerplate lines": 1}}


# ---------------------------------------------------------------------------------------------------------- identities


def reviews(count):
    draw = random.Random(5)
    texts = [" ".join(words(draw, draw.randrange(1, 30))) for _ in range(count)]
    return [
        draw.choice(texts[: i + 1])
        + draw.choice(["", "", "!", f"\n{'반복되는 긴 줄이 여기에 있습니다 정말로 깁니다'}"])
        for i in range(count)
    ]


def test_cleaning_again_takes_nothing_out():
    kept, removed, _ = cleaned(reviews(400))
    assert removed and cleaned(kept)[0] == kept


def test_how_documents_are_cut_into_batches_changes_nothing(monkeypatch):
    whole = cleaned(reviews(400))
    for size in (1, 7):
        monkeypatch.setattr(reading, "FIRST", size)
        monkeypatch.setattr(reading, "MOST", size)
        assert cleaned(reviews(400))[:2] == whole[:2]


def test_scores_are_between_nothing_and_all():
    _, _, report = cleaned([*reviews(60), "これは映画です", "지난 2019년에 본 영화", "2044년의 이야기"])
    assert report["scores"]["accuracy"] == pytest.approx(1 - 1 / 63, abs=1e-4)
    assert 0 < report["scores"]["uniqueness"] < 1 and report["years"] == {"2019": 1}
    assert report["documents"]["read"] == report["documents"]["kept"] + sum(report["removed"].values())
    assert balance(Counter({"a": 5, "b": 5})) == pytest.approx(1) and balance(Counter({"a": 5})) is None


# --------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture
def table(tmp_path):
    rows = [{"id": i, "document": text, "label": i % 2} for i, text in enumerate(reviews(300))]
    pl.DataFrame(rows).write_parquet(tmp_path / "raw.parquet")
    return tmp_path / "raw.parquet"


def test_a_folder_of_clean_data_with_its_evidence(table, tmp_path):
    out = tmp_path / "clean"
    done = onnuri("clean", "--data", table, "--out", out, "--json")
    assert done.code == 0, done
    line = json.loads(done.out)
    assert all(promise["kept"] for promise in line["promises"]) and len(line["promises"]) == 2  # no evaluation set
    raw, kept = pl.read_parquet(table), pl.read_parquet(out / "data" / "*.parquet")
    removed = pl.read_parquet(out / "removed" / "*.parquet")
    assert kept.schema == raw.schema and len(kept) + len(removed) == len(raw)
    assert removed["removed_reason"].value_counts().sort("count", descending=True)["count"][0] == max(
        line["found"]["removed"].values()
    )
    copy = removed.filter(pl.col("removed_reason") == "copy").row(0, named=True)
    assert tidy(raw["document"][copy["removed_like"]]) == tidy(raw["document"][copy["removed_row"]])
    assert ledger.verify(out) == [] and "documents kept" in (out / "README.md").read_text()
    assert "near_copy" in (out / "onnuri" / "reports" / "001-clean.html").read_text()
    assert "documents kept" in onnuri("show", out).out
    again = onnuri("clean", "--data", out, "--out", tmp_path / "again", "--json")
    assert json.loads(again.out)["found"]["removed"] == {} and len(ledger.read(tmp_path / "again")) == 2
    assert not (tmp_path / "again" / "removed").exists()
    assert onnuri("verify", tmp_path / "again").code == 0


def test_a_model_learns_from_the_folder(table, tmp_path):
    from onnuri.run import execute

    execute("clean", {}, {"data": str(table)}, tmp_path / "clean", quiet=True)
    data = open_data(str(tmp_path / "clean"))
    assert data.records.fields == {"id": "number", "document": "text", "label": "category"}
    tiny = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 300, "max_length": 32}
    line = execute(
        "train",
        {"family": "causal_lm", "steps": 2, "config": tiny},
        {"data": str(tmp_path / "clean")},
        tmp_path / "model",
        {"answer": "document", "fields": {"document": "text"}},
        quiet=True,
    )
    assert line["inputs"][0]["digest"] == open_data(str(tmp_path / "clean"), "document", {"document": "text"}).digest


def test_large_results_lie_in_pieces_and_open_as_one(table, tmp_path, monkeypatch):
    from onnuri import data_folder
    from onnuri.run import execute

    monkeypatch.setattr(data_folder, "PIECE", 2000)
    monkeypatch.setattr(reading, "MOST", 16)
    execute("clean", {}, {"data": str(table)}, tmp_path / "clean", quiet=True)
    pieces = sorted((tmp_path / "clean" / "data").glob("*.parquet"))
    assert len(pieces) > 2 and pieces[0].name == "train-00000.parquet"
    kept = pl.concat(pl.read_parquet(piece) for piece in pieces)
    assert [record["document"] for record in open_documents(str(tmp_path / "clean")).records] == kept[
        "document"
    ].to_list()


def test_data_as_the_hub_cuts_them_are_divided_as_they_are(tmp_path):
    (tmp_path / "data").mkdir()
    for name, rows in (
        ("train-00000-of-00002", 5),
        ("train-00001-of-00002", 4),
        ("test-00000-of-00001", 3),
        ("validation-00000-of-00001", 2),
    ):
        frame = pl.DataFrame({"text": [f"{name} 문장 번호 {i} 입니다 조금 길게" for i in range(rows)]})
        frame.write_parquet(tmp_path / "data" / f"{name}.parquet")
    data = open_data(str(tmp_path))
    assert {name: len(rows) for name, rows in data.parts.items()} == {"train": 9, "validation": 2, "test": 3}
    assert all(record["text"].startswith("test") for record in data.split("test"))


# ----------------------------------------------------------------------------------------------------------- bad input


def written(frame, path):
    frame.write_csv(path)
    return path


def test_data_without_texts_are_refused(tmp_path):
    numbers = records_of([{"a": 1.0}], {"a": "number"}, None)
    with pytest.raises(Refusal, match="no column of texts"):
        apply(Settings(), Quiet(), replace(open_memory(["x"]), records=numbers))
    long = "이것은 글이고 아주 길다, 정말로 길다"
    pl.DataFrame({"one": [long], "two": [f"{long} 또 길다"]}).write_csv(tmp_path / "two.csv")
    refused(
        onnuri("clean", "--data", tmp_path / "two.csv", "--out", tmp_path / "out"),
        "several columns of texts: one, two",
        "--text one",
    )
    ids = pl.DataFrame(
        {"key": [f"a-{i}" for i in range(30)], "글": [f"{long} {i}번째" for i in "가나다라마바사아자차" * 3]}
    )
    assert column_of(open_documents(str(written(ids, tmp_path / "ids.csv"))).records, "") == "글"
    refused(
        onnuri("clean", "--data", tmp_path / "two.csv", "--text", "thre", "--out", tmp_path / "out"), "no column 'thre'"
    )


def test_settings_that_are_wrong_or_have_no_effect(table, tmp_path):
    command = ("clean", "--data", table, "--out", tmp_path / "out")
    refused(onnuri(*command, "--mask", "emial"), "'emial'", "known: email, resident")
    refused(onnuri(*command, "--limits", "word=3"), "there is no rule 'word'; did you mean words")
    refused(onnuri(*command, "--limits", "words=abc"), "'words' must be a number, found 'abc'")
    refused(onnuri(*command, "--overlap", "8"), "without an evaluation set")
    refused(onnuri(*command, "--rules", "none", "--limits", "words=3"), "'limits' has no effect on 'words'")
    refused(onnuri(*command, "--rules", "short", "--limits", "words=3"), "no rule of the set 'short'", "letters, runs")
    refused(onnuri(*command, "--limits", "letters=.nan"), "'letters'")
    refused(onnuri(*command, "--bands", "0", "--rows", "4"), "'rows' has no effect")
    refused(onnuri(*command, "--answer", "label"), "there is no setting '--answer'")
    refused(onnuri(*command, "--against", table), "nothing is left", "held_out (stands in the evaluation set)")
    assert not (tmp_path / "out").exists()


def test_a_text_too_long_for_any_document_is_removed(monkeypatch):
    monkeypatch.setattr(reading, "LONGEST", 30)
    kept, _, report = cleaned(["짧은 글입니다", "긴 글 " * 20])
    assert kept == ["짧은 글입니다"] and report["removed"] == {"unreadable": 1}
    assert report["examples"]["unreadable"][0]["detail"] == "80 characters, at most 30"


def test_columns_stay_as_they_are(tmp_path, monkeypatch):
    from datetime import date

    from onnuri import data_folder
    from onnuri.run import execute

    frame = pl.DataFrame(
        {
            "id": [2**64 - 1 - i for i in range(40)],
            "text": [
                f"문서 하나가 여기에 길게 있습니다 {'가나다라마'[i % 5]}{'바사아자차'[i // 5 % 5]}" for i in range(40)
            ],
            "note": [None if i == 4 else f"연락은 kim{i}@example.com 으로 해 주시면 고맙겠습니다" for i in range(40)],
            "day": [date(2024, 1, 1 + i % 28) for i in range(40)],
            "right": [None if i == 3 else i % 2 == 0 for i in range(40)],
            "tags": [["가", "나"]] * 40,
            "price": [float(i) for i in range(40)],
        },
        schema_overrides={"id": pl.UInt64},
    )
    frame.write_parquet(tmp_path / "raw.parquet")
    monkeypatch.setattr(data_folder, "PIECE", 500)
    monkeypatch.setattr(reading, "FIRST", 8)
    monkeypatch.setattr(reading, "MOST", 8)
    execute("clean", {"text": "text"}, {"data": str(tmp_path / "raw.parquet")}, tmp_path / "out", quiet=True)
    kept, removed = (pl.read_parquet(tmp_path / "out" / name / "*.parquet") for name in ("data", "removed"))
    assert kept.schema == frame.schema and len(kept) == 25 and len(removed) == 15
    others = [name for name in frame.columns if name not in ("text", "note")]
    assert kept.select(others).equals(frame.head(25).select(others))
    assert kept["note"][4] is None
    assert kept["note"].drop_nulls().unique().to_list() == ["연락은 [email] 으로 해 주시면 고맙겠습니다"]
    assert removed["removed_row"].to_list() == list(range(25, 40))


def test_an_evaluation_set_that_cannot_be_read_or_holds_nothing_is_an_error(table, tmp_path):
    (tmp_path / "exam").mkdir()
    (tmp_path / "exam" / "one.docx").write_bytes(b"PK nothing")
    command = ("clean", "--data", table, "--out", tmp_path / "out", "--against")
    refused(onnuri(*command, tmp_path / "exam"), "of the evaluation set", "one.docx")
    refused(onnuri(*command, "builtin:iris"), "holds no texts")
    assert not (tmp_path / "out").exists()


def test_divided_data_and_what_was_removed_are_not_cleaned(table, tmp_path):
    (tmp_path / "both").mkdir()
    for name in ("train", "test"):
        pl.read_parquet(table).write_parquet(tmp_path / "both" / f"{name}.parquet")
    refused(onnuri("clean", "--data", tmp_path / "both", "--out", tmp_path / "out"), "is divided", "--against")
    onnuri("clean", "--data", table, "--out", tmp_path / "out")
    refused(
        onnuri("clean", "--data", tmp_path / "out" / "removed", "--out", tmp_path / "again"), "removed by a cleaning"
    )
    (tmp_path / "out" / "more.txt").write_text("다른 글")
    refused(onnuri("clean", "--data", tmp_path / "out", "--out", tmp_path / "again"), "more.txt")


def test_a_changed_folder_is_told_of(table, tmp_path):
    onnuri("clean", "--data", table, "--out", tmp_path / "one")
    piece = tmp_path / "one" / "data" / "train-00000.parquet"
    pl.read_parquet(piece).head(9).write_parquet(piece)
    done = onnuri("clean", "--data", tmp_path / "one", "--out", tmp_path / "two", "--json")
    assert "train-00000.parquet was changed" in json.loads(done.out)["warnings"][0]


def test_long_runs_of_characters_take_no_time():
    """Seconds a million characters, not half an hour: what is measured is that the test ends."""
    assert cleaned(["a1" * 500_000 + "@", " " * 500_000 + "끝", "\t" * 500_000], rules="none", languages="all")[0]


def test_what_cannot_be_read_is_removed_with_its_reason():
    def get(rows, names):
        if 2 in rows and "text" in names:
            raise BadInput("two.pdf is encrypted")
        return [{"text": f"문서 번호 {'가나다라'[row]} 입니다", "source": f"{row}.pdf"} for row in rows]

    from onnuri.data import Data, Records

    records = Records(get, range(4), {"text": "text", "source": "category"}, "text")
    result = apply(Settings(), Quiet(), Data("heap", records, {}, records))
    (part,) = result.parts
    assert part.rows == [0, 1, 3] and [one["text"][6] for one in part.kept] == ["가", "나", "라"]
    assert part.removed[0]["removed_detail"] == "two.pdf is encrypted" and part.removed[0]["removed_row"] == 2


def test_data_are_cleaned_without_loading_torch(table, tmp_path):
    done = process("clean", "--data", table, "--out", tmp_path / "out", python=("-X", "importtime"))
    assert done.code == 0 and (tmp_path / "out" / "data").exists()
    loaded = {line.rsplit("|", 1)[1].strip() for line in done.err.splitlines() if line.startswith("import time:")}
    assert "polars" in loaded and not loaded & {"torch", "transformers"}
