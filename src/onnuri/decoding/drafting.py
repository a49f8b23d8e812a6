"""Writing with a draft: a small net guesses some tokens, the large one reads them all at once and keeps those that are its own.

Leviathan et al. (arXiv:2211.17192), differing in that nothing is drawn anew where a guess fails: both nets have the noise of the
place (see `choosing.py`), so what is written is, token for token, what the large one writes alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import Refusal
from ..family import Memory, Writing
from .choosing import Chooser


@dataclass
class Tally:
    """How many tokens were guessed, and how many of them stayed."""

    guessed: int = 0
    kept: int = 0


@dataclass
class Reader:
    """A net in the middle of one text: how many tokens of the answer it has read, and what it keeps of them."""

    writing: Writing
    prompt: list[int]
    read: int = 0
    memory: Memory = ()

    def go_on(self, answer: list[int]) -> torch.Tensor:
        """(count, V): what comes after each of the tokens of the answer that were not read yet; at first, after the last."""
        fresh = answer[self.read :]
        if self.memory:
            (values, mask), grown = self.writing.step(self.writing.following([fresh]), self.memory)
        else:
            (values, mask), grown = self.writing.step(self.writing.batch([self.prompt], [answer]), ())
        self.before, self.memory, self.read = self.memory, grown, len(answer)
        return values[mask].float()

    def forget(self, length: int) -> None:
        """The answer is these tokens long, and no more of it is kept."""
        extra = self.read - length
        if extra > 0:
            self.memory = [shorter(now, then, extra) for now, then in zip(self.memory, self.before)]
            self.read = length


def shorter(now: torch.Tensor, then: torch.Tensor, extra: int) -> torch.Tensor:
    """A memory's tensor without its last places, along the axis that has grown since."""
    grown = [axis for axis, (one, two) in enumerate(zip(now.shape, then.shape)) if one != two]
    return now.narrow(grown[0], 0, now.shape[grown[0]] - extra) if grown else now


def drafted(
    writing: Writing, draft: Writing, prompts: Sequence[list[int]], most: int, ahead: int, chooser: Chooser
) -> Tally:
    """Answers of at most `most` tokens by `writing`, of which `draft` guesses `ahead` at a time. One after another: of texts
    side by side each would wait for the one whose guesses are the worst."""
    tally = Tally()
    for row, prompt in enumerate(prompts):
        large, small = Reader(writing, prompt), Reader(draft, prompt)
        tokens = chooser.answers[row].tokens
        chooser(large.go_on(tokens), [row])
        require_memory(large)
        while len(tokens) < most and not chooser.ended(row):
            guesses = guessed(small, chooser, row, min(ahead, most - len(tokens) - 1))
            kept = checked(large, chooser, row, guesses)
            tally.guessed, tally.kept = tally.guessed + len(guesses), tally.kept + kept
            for reader in (large, small):
                reader.forget(len(tokens) - 1)
    return tally


def require_memory(reader: Reader) -> None:
    """Refusal where a net keeps nothing: to check a guess it would read all of the text again."""
    if not reader.memory:
        raise Refusal("this net keeps nothing of what it has read, so a draft saves nothing", "leave --draft out")


def guessed(small: Reader, chooser: Chooser, row: int, count: int) -> list[int]:
    """The next tokens as the small net would choose them."""
    tokens, guesses = chooser.answers[row].tokens, list[int]()
    while len(guesses) < count:
        logits = small.go_on([*tokens, *guesses])[-1]
        require_memory(small)
        guesses.append(chooser.guessed(logits, row, len(guesses)))
        if guesses[-1] in chooser.stops:
            break
    return guesses


def checked(large: Reader, chooser: Chooser, row: int, guesses: list[int]) -> int:
    """Write the tokens that the large net chooses, as long as they are the guesses, and the one after; how many were."""
    tokens = chooser.answers[row].tokens
    scores = large.go_on([*tokens, *guesses])
    for place, guess in enumerate(guesses):
        chooser(scores[place : place + 1], [row])
        if tokens[-1] != guess or chooser.ended(row):
            return place + (tokens[-1] == guess)
    chooser(scores[len(guesses) :], [row])
    return len(guesses)
