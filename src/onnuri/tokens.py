"""What a model makes of texts before it reads them: how many tokens, and whether they come back."""

from collections.abc import Sequence

from .data import Record, Records
from .family import Segmentation
from .model import Model

MOST = 2000  # texts that are cut


def texts_of(model: Model, records: Records | Sequence[Record]) -> list[str]:
    """All texts in the fields that the model asks for and answers."""
    question, (answer, kind) = model.family.fields(model.assets)
    names = [name for name, kind in {**question, answer: kind}.items() if kind == "text"]
    rows = records.list() if isinstance(records, Records) else records
    return [text for record in rows for name in names if (text := record.get(name))]


def quality(model: Model, records: Sequence[Record]) -> dict[str, float]:
    """Of at most MOST texts of the records: tokens for each word between blanks, UTF-8 bytes for each token, the shares of texts
    that come back as they went in, of tokens that stand for something unknown, and of tokens that are a byte of a character. {}
    where the model cuts no texts, or where there are none."""
    how = model.family.segmentation(model.assets)
    texts = texts_of(model, records)[:MOST]
    return found_in(how, texts) if how and any(text.split() for text in texts) else {}


def found_in(how: Segmentation, texts: Sequence[str]) -> dict[str, float]:
    numbers = [[number for word in words for number in word] for words in how.words(texts)]
    count = max(1, sum(map(len, numbers)))
    return {
        "tokens_per_word": count / sum(len(text.split()) for text in texts),
        "bytes_per_token": sum(len(text.encode()) for text in texts) / count,
        "texts_that_come_back": sum(how.joined(ids) == text for ids, text in zip(numbers, texts)) / len(texts),
        "unknown": sum(number in how.unknown for ids in numbers for number in ids) / count,
        "parts_of_characters": sum(number in how.parts_of_characters for ids in numbers for number in ids) / count,
    }
