"""What lm-evaluation-harness asks of a language model, answered from what a family says of writing token by token.

Texts become tokens, windows and stops as in its own HFLM, so that the figures are the same. Imported only where it is installed.
Letters: B requests, T places, V tokens in the vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # pyright: ignore[reportMissingImports]

from ...decoding import Chooser, written
from ...decoding.loop import AT_ONCE
from ...errors import BadInput
from ...family import Writing
from ...operation import Log

MOST = 256  # tokens of an answer where a task does not say; HFLM's own default
Pair = tuple[Any, list[int], list[int]]


class Until(Chooser):
    """The likeliest tokens, up to one that completes any of some texts."""

    def __init__(self, writing: Writing, count: int, until: Sequence[str]):
        super().__init__([None] * count, writing.stops)
        self.text, self.until = writing.text, list(filter(None, until))
        self.known: dict[int, tuple[int, bool]] = {}

    def ended(self, row: int) -> bool:
        length, before = self.known.get(row, (-1, False))
        tokens = self.answers[row].tokens
        if length != len(tokens):
            before = super().ended(row) or any(stop in self.text(tokens) for stop in self.until)
            self.known[row] = len(tokens), before
        return before


class Tokens(TemplateLM):
    """A model as the harness sees it."""

    def __init__(self, writing: Writing, batch_size: int, log: Log):
        super().__init__()
        self.writing, self.batch_size, self.log = writing, batch_size, log
        self.tokenizer = writing.tokenizer

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that nothing stands before."""
        begins = self.tokenizer.bos_token_id
        return self.eot_token_id if begins is None else begins

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        if add_special_tokens is None and string.startswith(self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return self.tokenizer.encode(string, **special)

    # ------------------------------------------------------------------------------------------------- how likely a text is

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests: list[Pair], **_: Any) -> list[tuple[float, bool]]:
        """(nats of the continuation, whether it is what would be written) of each, the longest first so that memory is known."""
        order = sorted(range(len(requests)), key=lambda row: -len(requests[row][1]) - len(requests[row][2]))
        found: dict[int, tuple[float, bool]] = {}
        while len(found) < len(order):
            _, before, wanted = requests[order[len(found)]]
            size = AT_ONCE // (
                len(self.tokenizer) * (len(before) + len(wanted))
            )  # the logits of all places are there at once
            rows = order[len(found) :][: max(1, min(size, self.batch_size))]
            found |= zip(rows, self.judged([requests[row][1:] for row in rows]))
            self.log.progress(len(found), len(requests), "texts judged")
        return [found[row] for row in range(len(requests))]

    def judged(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """What the last place of each says is the last token; the places before it say those before."""
        longest = self.writing.longest
        if over := [len(wanted) for _, wanted in pairs if len(wanted) > longest]:
            raise BadInput(f"a task's answer has {max(over)} tokens, and this model reads {longest} at most")
        before = [context[-(longest + 1 - len(wanted)) :] for context, wanted in pairs]
        batch = self.writing.batch(before, [wanted[:-1] for _, wanted in pairs])
        (values, mask), _ = self.writing.step(batch, ())
        ends = mask.int().argmax(1).tolist()
        return [
            judgment(row[end + 1 - len(wanted) : end + 1], wanted) for row, end, (_, wanted) in zip(values, ends, pairs)
        ]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Nats of whole texts, each token from as much of what stands before as the model reads."""
        windows = [self.windows(request.args[0]) for request in requests]
        judged = iter(self._loglikelihood_tokens([window for one in windows for window in one]))
        return [sum(next(judged)[0] for _ in one) for one in windows]

    def windows(self, text: str) -> list[Pair]:
        """(None, what is read, what is judged) of each part of a text."""
        parts = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.writing.longest, 1)
        return [(None, *make_disjoint_window(part)) for part in parts]

    # -------------------------------------------------------------------------------------------------------------- writing

    @torch.no_grad()
    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The likeliest text after each context, up to what its task says ends it."""
        found: list[str] = []
        for start in range(0, len(requests), self.batch_size):
            part = [request.args for request in requests[start : start + self.batch_size]]
            groups = {str(asked): asked for _, asked in part}
            texts = {
                name: iter(self.continued([c for c, one in part if str(one) == name], groups[name])) for name in groups
            }
            found += [next(texts[str(asked)]) for _, asked in part]
            self.log.progress(len(found), len(requests), "texts written")
        return found

    def continued(self, contexts: list[str], asked: dict[str, Any]) -> list[str]:
        most = int(asked.get("max_gen_toks") or asked.get("max_new_tokens") or MOST)
        room = self.writing.longest - most
        if asked.get("do_sample"):
            raise BadInput(
                "a task asks for texts that are drawn; only the likeliest one is written", hint="do_sample: false"
            )
        if room < 1:
            raise BadInput(
                f"a task asks for {most} new tokens, and this model reads {self.writing.longest} with the question",
                hint=f"in the task, generation_kwargs: {{max_gen_toks: {self.writing.longest // 2}}}",
            )
        given = asked.get("until") or []
        until = [*([given] if isinstance(given, str) else given), self.tokenizer.decode(self.eot_token_id)]
        prompts = [self.tok_encode(context)[-room:] for context in contexts]
        texts = map(self.writing.text, written(self.writing, prompts, most, Until(self.writing, len(prompts), until)))
        return [before(text, until) for text in texts]


def judgment(logits: torch.Tensor, wanted: list[int]) -> tuple[float, bool]:
    """(nats of the tokens `wanted`, whether each is the likeliest) by the logits (T, V) of the places that they are asked of."""
    chances, tokens = logits.float().log_softmax(-1), torch.tensor(wanted, device=logits.device)
    return float(chances.gather(1, tokens[:, None]).sum()), bool((chances.argmax(1) == tokens).all())


def before(text: str, until: Sequence[str]) -> str:
    """A text up to the first of what ends it."""
    for stop in filter(None, until):
        text = text.split(stop)[0]
    return text
