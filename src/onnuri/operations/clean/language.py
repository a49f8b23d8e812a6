"""Which language a text is in: Korean or English, by its script and by the small words that stand between the others.

A text in Hangul and Latin letters is Korean where three tenths are Hangul: Korean writes foreign names among its own words. Else
it is in the language of which it has most function words. A short one, as a title or a message is, may have one word fewer of
English than of another language, if no letter has an accent.

Letters: D documents.
"""

from functools import cache

import numpy as np

from .flat import HANGUL, LATIN, LETTER, Flat, flat

LANGUAGES = ("other", "ko", "en")
OTHER, KOREAN, ENGLISH = range(len(LANGUAGES))
HANGUL_SHARE, BOTH_SHARE, SHORT = 0.3, 0.9, 10
FUNCTION_WORDS = {
    "en": "the of and to in is that it was for on are with as be this have from or by not but what all were when we there can",
    "de": "der die und den von zu das mit sich des auf fur ist im dem nicht ein eine als auch es an werden aus er hat dass",
    "fr": "le de un et etre il avoir ne je son que se qui ce dans en du elle au pour pas la les des est une sur avec plus",
    "es": "el de que y la en un ser se no haber por con su para como estar tener le lo todo pero mas los las del una es al",
    "it": "di che e la il un a per in una sono mi non ho lo ha le si ti i con cosa gli della del come piu anche nel alla",
    "pt": "de que nao o a e do da em um para com uma os no se na por mais as dos como mas foi ao ele das tem seu sua ou",
    "nl": "de het een van ik te dat die in je niet zijn is was op aan met als voor had er maar om hem dan zou of wat mijn",
    "id": "yang dan di ini itu dengan untuk tidak dari dalam akan pada juga saya ke karena ada oleh kami bisa sudah",
}
"""Without accents, as normalized texts are."""


def languages(texts: Flat) -> np.ndarray:
    """(D,): the place of each document's language in LANGUAGES."""
    letters = np.maximum(texts.count(texts.kinds & LETTER > 0), 1)
    hangul = texts.count(texts.kinds & HANGUL > 0) / letters
    latin = texts.count(texts.kinds & LATIN > 0) / letters
    korean = hangul >= HANGUL_SHARE
    known = hangul + latin >= BOTH_SHARE
    return np.select([korean & known, known & is_english(texts)], [KOREAN, ENGLISH], OTHER)


def is_english(texts: Flat) -> np.ndarray:
    """(D,) of those in Latin letters."""
    words, (known, spoken) = texts.plain.words, function_words()
    places = np.minimum(np.searchsorted(known, texts.plain.word_hashes), len(known) - 1)
    hits = np.flatnonzero(known[places] == texts.plain.word_hashes)
    owners, said = words.owner[hits], spoken[places[hits]]
    english, *others = (np.bincount(owners, one, minlength=len(texts)) for one in said.T)
    ahead = english - np.max(others, axis=0)
    accents = texts.count((texts.kinds & LATIN > 0) & (texts.codes > 127))
    short = (texts.tally(words) < SHORT) & (accents == 0)
    return np.where(short, ahead >= -1, (ahead >= 0) & (english > 0))


@cache
def function_words() -> tuple[np.ndarray, np.ndarray]:
    """(hashes of all function words (W,), sorted; which languages have each (W, languages), English first)."""
    each = [flat([words]).plain.word_hashes for words in FUNCTION_WORDS.values()]
    known = np.unique(np.concatenate(each))
    return known, np.stack([np.isin(known, those) for those in each], axis=1)
