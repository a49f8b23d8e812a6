"""Answers bound to a form: a JSON Schema, a grammar, a regular expression. The library llguidance says which tokens may come.

It knows what each token of a tokenizer stands for, in bytes, and so keeps to the form whatever the tokens are.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import BadSettings, Refusal, needs_extra
from ..family import Writing

Form = Literal["json_schema", "grammar", "regex"]
"""A JSON Schema; a grammar as Lark or llama.cpp (GBNF) write it; a regular expression of Rust's."""


@dataclass
class Bound:
    """A rule (see `choosing.Rule`) of one answer: how far it is in the form."""

    matcher: Any

    def allowed(self, width: int) -> Tensor:
        bits = np.frombuffer(self.matcher.compute_bitmask(), np.uint8)
        there = np.zeros(width, bool)  # a net may have rows that no token uses
        known = np.unpackbits(bits, bitorder="little")[:width]
        there[: len(known)] = known
        if not there.any():
            reason = self.matcher.get_error() or "it asks for what the vocabulary lacks"
            raise BadSettings(f"no token can go on in the form: {first_line(reason)}")
        return torch.from_numpy(there)

    def take(self, token: int) -> None:
        self.matcher.consume_token(token)

    def copy(self) -> "Bound":
        return Bound(self.matcher.deep_copy())

    @property
    def complete(self) -> bool:
        return self.matcher.is_accepting() or (self.matcher.is_stopped() and not self.matcher.is_error())


def require_form(form: Form, text: str) -> str:
    """The form as llguidance writes it. BadSettings for one that is malformed, or that nothing can meet."""
    lib = library()
    try:
        found = described(lib, form, text)
    except (ValueError, TypeError) as error:
        raise BadSettings(f"'{form}' cannot be read: {first_line(error)}") from error
    if fault := lib.LLMatcher.validate_grammar(found):
        raise BadSettings(f"'{form}' cannot be {'read' if 'parse error' in fault else 'met'}: {first_line(fault)}")
    return found


def described(lib: Any, form: Form, text: str) -> str:
    if form == "json_schema":  # blanks that mean nothing would be written for ever by a net that likes them
        return lib.LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_flexible": False})
    return lib.grammar_from(form, text)


def first_line(fault: Any) -> str:
    """What is wrong, in a line: the one that says so, where there is such."""
    lines = (str(fault).strip() or type(fault).__name__).splitlines()
    return next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])


def bound(writing: Writing, form: str) -> Bound:
    """The rule of an answer that is not begun, from what `require_form` gave. Others are copies of it."""
    lib = library()
    if not writing.stops:
        raise Refusal("no token of this model ends an answer, so none could be complete", "a model with an end mark")
    if not writing.tokenizer.is_fast:
        raise Refusal("the tokenizer does not state what its tokens stand for", "a folder with a tokenizer.json")
    from llguidance.hf import from_tokenizer

    try:
        tokens = from_tokenizer(writing.tokenizer, eos_token=list(writing.stops))
    except ValueError as error:
        raise Refusal(
            f"llguidance does not read this tokenizer: {first_line(error)}", "a model whose tokens are bytes or pieces"
        ) from error
    matcher = lib.LLMatcher(tokens, form)
    if matcher.is_error():
        raise BadSettings(f"the form cannot be met: {first_line(matcher.get_error())}")
    rule = Bound(matcher)
    begins = set(rule.allowed(len(writing.tokenizer)).nonzero().flatten().tolist())
    if not rule.complete and begins <= set(writing.stops):
        raise BadSettings("the form cannot be met: no text begins it")
    return rule


def library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise needs_extra("grammar", "llguidance") from None
    return llguidance
