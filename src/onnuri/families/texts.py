"""The texts that models of texts learn: where they stand in the records, and some to try them on."""

import random
from collections.abc import Collection

from ..data import Records, records_of
from ..errors import BadInput


def column_of(records: Records, others: Collection[str]) -> str:
    """The column of the text to learn: the answer when that is text, else `text`, else the first one of text; none of
    `others`."""
    texts = [name for name, kind in records.fields.items() if kind == "text"]
    choices = [name for name in (records.answer, "text", *texts) if name in texts and name not in others]
    if not choices:
        raise BadInput(
            f"no column holds the text to learn: {', '.join(records.fields)}", hint="--fields NAME=text --answer NAME"
        )
    return choices[0]


def toy(n: int, seed: int) -> Records:
    """Short sentences, English and Korean mixed, of few words in a fixed order."""
    draw = random.Random(seed)
    words = (
        ("고양이가", "the cat", "아이가", "a child"),
        ("집에서", "at home", "학교에서", "outside"),
        ("잔다", "sleeps", "읽는다", "sings"),
    )
    rows = [{"text": " ".join(draw.choice(choices) for choices in words) + "."} for _ in range(n)]
    return records_of(rows, {"text": "text"}, "text")


def toy_pairs(n: int, seed: int) -> Records:
    """Short sentences in English and the same in Korean; beside them one in which a word is another."""
    draw = random.Random(seed)
    words = (
        (("the cat", "고양이가"), ("a child", "아이가"), ("my friend", "친구가"), ("the teacher", "선생님이")),
        (("at home", "집에서"), ("at school", "학교에서"), ("outside", "밖에서"), ("by the sea", "바닷가에서")),
        (("sleeps", "잔다"), ("sings", "노래한다"), ("reads", "읽는다"), ("laughs", "웃는다")),
    )
    rows = []
    for _ in range(n):
        chosen = [draw.choice(choices) for choices in words]
        place = draw.randrange(len(words))
        wrong = [
            draw.choice([w for w in words[i] if w != pair]) if i == place else pair for i, pair in enumerate(chosen)
        ]
        english, korean, other = (
            " ".join(e for e, _ in chosen),
            " ".join(k for _, k in chosen),
            " ".join(k for _, k in wrong),
        )
        rows.append({"text": english + ".", "positive": korean + ".", "negative": other + "."})
    return records_of(rows, {"text": "text", "positive": "text", "negative": "text"}, "positive")


def toy_translations(n: int, seed: int) -> Records:
    """Short Korean sentences and what they say in English, where the verb stands elsewhere; some have no place."""
    draw = random.Random(seed)
    words = (
        (("고양이가", "the cat"), ("아이가", "a child"), ("학생이", "the student"), ("누나는", "my sister")),
        (("", ""), ("집에서", "at home"), ("학교에서", "at school"), ("밖에서 매일", "outside every day")),
        (("잔다", "sleeps"), ("읽는다", "reads"), ("노래한다", "sings"), ("웃는다", "laughs")),
    )
    rows = []
    for _ in range(n):
        who, where, what = (draw.choice(choices) for choices in words)
        text, target = f"{who[0]} {where[0]} {what[0]}", f"{who[1]} {what[1]} {where[1]}"
        rows.append({"text": " ".join(text.split()), "target": " ".join(target.split())})
    return records_of(rows, {"text": "text", "target": "text"}, "target")
