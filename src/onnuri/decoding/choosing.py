"""Which token is written next: the likeliest, or one drawn; among those that a rule allows; and how likely it was.

A token is drawn by adding noise after Gumbel to the logits and taking the largest (Maddison et al., arXiv:1411.0030). The
noise belongs to an answer and a place in it, whoever asks. So a draft model that is given the same noise guesses the very
token that will be drawn (Daliri et al., arXiv:2408.07978), and what is written does not depend on it.
Letters: N answers, V tokens in the vocabulary, K temperatures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: from the `top_k` likeliest, 0 being all; of these from the fewest that hold `top_p` of the
    probability."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def kept(self, logits: Tensor) -> Tensor:
        """Logits (V,) at the temperature, -inf for tokens that are not drawn."""
        logits = logits / self.temperature
        if self.top_k and self.top_k < len(logits):
            logits = logits.masked_fill(logits < logits.topk(self.top_k).values[-1], -torch.inf)
        if self.top_p < 1:
            shares, order = logits.softmax(-1).sort(descending=True)
            beyond = order[shares.cumsum(-1) - shares >= self.top_p]
            logits = logits.index_fill(-1, beyond, -torch.inf)
        return logits


class Rule(Protocol):
    """What an answer must keep to."""

    def allowed(self, width: int) -> Tensor:
        """(V,) bool: tokens that may stand at the next place."""
        ...

    def take(self, token: int) -> None:
        """This token was written."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the answer could end here."""
        ...


class Noise:
    """Gumbel noise of one answer: (V,) for each place, the same however often it is asked for."""

    def __init__(self, generator: Generator):
        self.generator, self.first, self.kept = generator, 0, list[Tensor]()

    def at(self, place: int, width: int) -> Tensor:
        """Where a place was asked for, those before it may be once more."""
        while self.first + len(self.kept) <= place:
            self.kept.append(-torch.empty(width).exponential_(generator=self.generator).log())
        return self.kept[place - self.first]

    def forget(self, place: int) -> None:
        """None before this place is asked for any more."""
        self.kept, self.first = self.kept[max(0, place - self.first) :], max(place, self.first)


@dataclass
class Answer:
    """One answer as far as it is written. `nats`: (K,) of all its tokens at each temperature; `likeliest`: at each place some
    tokens and their log-probabilities, the likeliest first."""

    noise: Noise | None = None
    rule: Rule | None = None
    tokens: list[int] = field(default_factory=list)
    nats: Tensor = field(default_factory=lambda: torch.zeros(0))
    likeliest: list[list[tuple[int, float]]] = field(default_factory=list)


class Chooser:
    """Chooses the tokens of some answers and keeps them; see `Choose`.

    `drawn`: the generator of each answer, None for one whose tokens are the likeliest; `rules`: what each keeps to; `stops`:
    tokens that end an answer; `temperatures`: those at which the probability of an answer is asked for, among the tokens
    that were allowed; `listed`: of how many of the likeliest tokens the log-probabilities are noted."""

    def __init__(
        self,
        drawn: Sequence[Generator | None],
        stops: Sequence[int],
        sampling: Sampling | None = None,
        rules: Sequence[Rule | None] | None = None,
        temperatures: Sequence[float] = (),
        listed: int = 0,
    ):
        self.sampling, self.stops = sampling or Sampling(), frozenset(stops)
        self.temperatures, self.listed = torch.tensor(temperatures), listed
        self.answers = [
            Answer(generator and Noise(generator), rule, nats=torch.zeros(len(temperatures)))
            for generator, rule in zip(drawn, rules or [None] * len(drawn))
        ]
        self.plain = not (any(drawn) or any(rules or ()) or len(temperatures) or listed)

    def __call__(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        if not self.plain:
            logits = torch.stack([self.chosen(scores, row) for scores, row in zip(logits.float().cpu(), rows)])
        for row, token in zip(rows, logits.argmax(-1).tolist()):
            if not self.ended(row):
                self.take(row, token)
        return logits

    def ended(self, row: int) -> bool:
        tokens = self.answers[row].tokens
        return bool(tokens) and tokens[-1] in self.stops

    def chosen(self, logits: Tensor, row: int) -> Tensor:
        """Logits (V,) of which the largest is the token to write; how likely that is, is noted."""
        answer = self.answers[row]
        if self.ended(row):
            return logits
        if answer.rule is not None:
            logits = logits.masked_fill(~answer.rule.allowed(len(logits)), -torch.inf)
        found = self.disturbed(logits, answer, 0)
        if len(answer.nats):
            heated = logits / self.temperatures[:, None]
            answer.nats += heated.logsumexp(-1) - heated[:, found.argmax()]
        if self.listed:
            best = logits.log_softmax(-1).topk(min(self.listed, len(logits)))
            pairs = zip(best.indices.tolist(), best.values.tolist())
            answer.likeliest.append(
                [pair for pair in pairs if pair[1] > -math.inf]
            )  # what a rule forbids is not likely
        return found

    def disturbed(self, logits: Tensor, answer: Answer, ahead: int) -> Tensor:
        """Logits (V,) of which the largest is a token drawn, where the answer has noise, for the place so many after the next."""
        if answer.noise is None:
            return logits
        return self.sampling.kept(logits) + answer.noise.at(len(answer.tokens) + ahead, len(logits))

    def guessed(self, logits: Tensor, row: int, ahead: int) -> int:
        """What would be written if these were the logits (V,) for the place so many after the next; nothing is kept."""
        return int(self.disturbed(logits.float().cpu(), self.answers[row], ahead).argmax())

    def take(self, row: int, token: int) -> None:
        answer = self.answers[row]
        answer.tokens.append(token)
        if answer.rule is not None:
            answer.rule.take(token)
        if answer.noise is not None:
            answer.noise.forget(len(answer.tokens))
