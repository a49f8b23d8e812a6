"""Rules of quality: a figure of each document, and the bounds within which it must lie.

Gopher: Rae et al. (arXiv:2112.11446, appendix A1). C4: Raffel et al. (arXiv:1910.10683). FineWeb: Penedo et al.
(arXiv:2406.17557). Where we differ from these:
1. Words are what stands between white space, and runs of words those of the normalized text.
2. Korean has shorter words, and no stop words that stand alone: it is asked for words that end as its particles and verbs do.
3. Of runs of five to ten words the characters of the repeats count, those of the first time do not.
4. Of C4 the rule that a line must end with a mark is left out, as FineWeb leaves it out: Korean pages would lose half; so are its
   list of bad words, and lines of few words, which stay in a page that has better ones.
5. Two rules are ours and hold for short texts as well: enough of the characters are letters, and few of these repeat one letter.

Letters: D documents, W words.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from .copies import runs_of
from .flat import BASE, LETTER, SPACE, Flat, Spans, flat, mixed
from .language import KOREAN

BULLETS, TERMINAL, ELLIPSIS = "•‣▶●◦▪-*ㆍ·○□■", ".!?。…\"'”’」』)", "…"
ENDINGS = "은는이가을를에의도로와과서고며면지다요죠까네"
SHORT_LINE, RUN = 30, 4
INFINITE = float("inf")


@dataclass(frozen=True)
class Rule:
    """`least` and `most`: what the figure must lie between; `korean`: the least of Korean texts, where it is another."""

    name: str
    origin: str
    measure: Callable[[Flat], np.ndarray]
    least: float = -INFINITE
    most: float = INFINITE
    korean: float | None = None
    short: bool = False
    """Whether it holds for reviews, messages and titles too."""

    def broken(self, figures: np.ndarray, languages: np.ndarray) -> np.ndarray:
        """(D,) bool."""
        least = np.where(languages == KOREAN, self.least if self.korean is None else self.korean, self.least)
        return (figures < least) | (figures > self.most)

    def told(self, figure: float, language: int) -> str:
        """Why a text breaks it."""
        least = self.korean if language == KOREAN and self.korean is not None else self.least
        return f"{figure:.3g}, at {f'least {least:g}' if figure < least else f'most {self.most:g}'}"


def chosen(rules: str, limits: dict[str, float]) -> list[Rule]:
    """The rules of the set `web`, `short` or `none`, with other bounds where `limits` says so."""
    some = [rule for rule in RULES if rules == "web" or rule.short] if rules != "none" else []
    return [bounded(rule, limits[rule.name]) if rule.name in limits else rule for rule in some]


def bounded(rule: Rule, limit: float) -> Rule:
    """The same with another bound: the least where there is one, and else the most."""
    if rule.least > -INFINITE:
        return Rule(rule.name, rule.origin, rule.measure, limit, rule.most, None, rule.short)
    return Rule(rule.name, rule.origin, rule.measure, rule.least, limit, None, rule.short)


def broken(texts: Flat, languages: np.ndarray, rules: list[Rule]) -> Iterator[tuple[Rule, np.ndarray, np.ndarray]]:
    """(rule, which documents break it (D,), their figures (D,)), rule after rule."""
    for rule in rules:
        figures = rule.measure(texts)
        yield rule, rule.broken(figures, languages), figures


# ---------------------------------------------------------------------------------------------------------- figures


def over(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0 where there is nothing."""
    return part / np.maximum(whole, 1)


def characters(texts: Flat) -> np.ndarray:
    """(D,): those that are no white space."""
    return texts.count(texts.kinds & SPACE == 0)


def words(texts: Flat) -> np.ndarray:
    return texts.tally(texts.words)


def word_length(texts: Flat) -> np.ndarray:
    return over(characters(texts), words(texts))


def letter_share(texts: Flat) -> np.ndarray:
    return over(texts.count(texts.kinds & LETTER > 0), characters(texts))


def run_share(texts: Flat) -> np.ndarray:
    """Of characters that are letters in a run of RUN or more of the same."""
    same = np.zeros(len(texts.codes), bool)
    same[1:] = (texts.codes[1:] == texts.codes[:-1]) & (texts.kinds[1:] & LETTER > 0)
    same[texts.starts[:-1][texts.starts[:-1] < len(same)]] = False  # what stands before is another document's
    runs = texts.spans(same)
    long = runs.chosen(runs.lengths >= RUN - 1)
    return over(texts.tally(long, long.lengths + 1), characters(texts))


def per_word(marks: str) -> Callable[[Flat], np.ndarray]:
    return lambda texts: over(texts.count(among(texts.codes, marks)), words(texts))


def ellipses_per_word(texts: Flat) -> np.ndarray:
    return over(texts.count(texts.codes == ord(ELLIPSIS)) + texts.tally(three_dots(texts)), words(texts))


def three_dots(texts: Flat) -> Spans:
    dots = texts.spans(texts.codes == ord("."))
    return dots.chosen(dots.lengths >= 3)


def words_with_letters(texts: Flat) -> np.ndarray:
    letters = np.concatenate([[0], np.cumsum(texts.kinds & LETTER > 0)])
    some = letters[texts.words.last] > letters[texts.words.first]
    return over(texts.tally(texts.words, some), words(texts))


def function_words(texts: Flat) -> np.ndarray:
    """Different ones: of the eight English ones, and Korean words of two or more characters that end as particles and verbs do."""
    plain = texts.plain
    ends = among(plain.codes[plain.words.last - 1], ENDINGS) & (plain.words.lengths > 1)
    some = plain.words.chosen(ends | np.isin(plain.word_hashes, stop_words()))
    return texts.tally(some, ~again(plain, some))


@cache
def stop_words() -> np.ndarray:
    return flat(["the be to of and that have with"]).plain.word_hashes


def among(codes: np.ndarray, marks: str) -> np.ndarray:
    return np.isin(codes, np.array([ord(mark) for mark in marks], np.uint32))


def line_share(chosen: Callable[[Flat], np.ndarray]) -> Callable[[Flat], np.ndarray]:
    """The share of lines for which `chosen` (N,) is true."""
    return lambda texts: over(texts.tally(texts.lines, chosen(texts)), texts.tally(texts.lines))


def bulleted(texts: Flat) -> np.ndarray:
    return among(texts.codes[texts.lines.first], BULLETS)


def trailing_off(texts: Flat) -> np.ndarray:
    ends = np.isin(texts.lines.last, three_dots(texts).last)
    return ends | (texts.codes[texts.lines.last - 1] == ord(ELLIPSIS))


def punctuated(texts: Flat) -> np.ndarray:
    return among(texts.codes[texts.lines.last - 1], TERMINAL)


def short(texts: Flat) -> np.ndarray:
    return texts.lines.lengths < SHORT_LINE


def again(texts: Flat, spans: Spans) -> np.ndarray:
    """(N,): whether the same span stands earlier in its document."""
    keys = mixed(texts.hashes(spans) + spans.owner.astype(np.uint64) * np.uint64(BASE))
    order = np.argsort(keys, kind="stable")
    repeats = np.zeros(len(keys), bool)
    repeats[order[1:]] = keys[order[1:]] == keys[order[:-1]]
    return repeats


def repeated_share(parts: Callable[[Flat], Spans]) -> Callable[[Flat], np.ndarray]:
    def measure(texts: Flat) -> np.ndarray:
        spans = parts(texts)
        return over(texts.tally(spans, again(texts, spans)), texts.tally(spans))

    return measure


def repeated_characters(parts: Callable[[Flat], Spans]) -> Callable[[Flat], np.ndarray]:
    def measure(texts: Flat) -> np.ndarray:
        spans = parts(texts)
        return over(texts.tally(spans, again(texts, spans) * spans.lengths), np.diff(texts.starts))

    return measure


def lines(texts: Flat) -> Spans:
    return texts.lines


def paragraphs(texts: Flat) -> Spans:
    return texts.paragraphs


def top_run(count: int) -> Callable[[Flat], np.ndarray]:
    """The share of characters in the commonest run of `count` words, where it comes more than once."""

    def measure(texts: Flat) -> np.ndarray:
        runs, spans, most = runs_of(texts, count), texts.plain.words, np.zeros(len(texts))
        if len(runs.starts):
            groups = np.flatnonzero(runs.first)
            first, times = runs.starts[groups], np.diff(groups, append=len(runs.starts))
            lengths = (spans.last[first + count - 1] - spans.first[first]) * times
            np.maximum.at(most, spans.owner[first], lengths)
        return over(most, np.diff(texts.starts))

    return measure


def repeated_runs(count: int) -> Callable[[Flat], np.ndarray]:
    """The share of characters in runs of `count` words that stand earlier in the document."""

    def measure(texts: Flat) -> np.ndarray:
        runs, spans = runs_of(texts, count), texts.plain.words
        later = runs.starts[~runs.first]
        edges = np.bincount(later, minlength=len(spans.first) + count) * 1
        edges[count:] -= edges[:-count].copy()
        covered = np.flatnonzero(np.cumsum(edges)[: len(spans.first)] > 0)
        lengths = np.bincount(spans.owner[covered], spans.lengths[covered] + 1, minlength=len(texts))
        return over(lengths, np.diff(texts.starts))

    return measure


def sentences(texts: Flat) -> np.ndarray:
    """Runs of marks that end a sentence, and lines that end without one."""
    return texts.tally(texts.spans(among(texts.codes, ".!?。…"))) + texts.tally(texts.lines, ~punctuated(texts))


def line_breaks_per_word(texts: Flat) -> np.ndarray:
    return over(texts.count(texts.codes == ord("\n")), words(texts))


RULES = (
    Rule("letters", "ours", letter_share, least=0.3, short=True),
    Rule("runs", "ours", run_share, most=0.5, short=True),
    Rule("words", "Gopher", words, least=50, most=100_000),
    Rule("word_length", "Gopher", word_length, least=3, most=10, korean=2),
    Rule("hashes_per_word", "Gopher", per_word("#"), most=0.1),
    Rule("ellipses_per_word", "Gopher", ellipses_per_word, most=0.1),
    Rule("bulleted_lines", "Gopher", line_share(bulleted), most=0.9),
    Rule("lines_trailing_off", "Gopher", line_share(trailing_off), most=0.3),
    Rule("words_with_letters", "Gopher", words_with_letters, least=0.8),
    Rule("function_words", "Gopher", function_words, least=2),
    Rule("repeated_lines", "Gopher", repeated_share(lines), most=0.3),
    Rule("repeated_paragraphs", "Gopher", repeated_share(paragraphs), most=0.3),
    Rule("repeated_line_characters", "Gopher", repeated_characters(lines), most=0.2),
    Rule("repeated_paragraph_characters", "Gopher", repeated_characters(paragraphs), most=0.2),
    *(Rule(f"top_run_of_{n}", "Gopher", top_run(n), most=most) for n, most in ((2, 0.20), (3, 0.18), (4, 0.16))),
    *(Rule(f"repeated_runs_of_{n}", "Gopher", repeated_runs(n), most=0.20 - n / 100) for n in range(5, 11)),
    Rule("sentences", "C4", sentences, least=5),
    Rule("curly_brackets", "C4", lambda texts: texts.count(among(texts.codes, "{}")), most=0),
    Rule("punctuated_lines", "FineWeb", line_share(punctuated), least=0.12),
    Rule("short_lines", "FineWeb", line_share(short), most=0.67),
    Rule("characters_of_repeated_lines", "FineWeb", repeated_characters(lines), most=0.1),
    Rule("line_breaks_per_word", "FineWeb", line_breaks_per_word, most=0.3),
)
