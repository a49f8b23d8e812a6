"""The narrow waist: what every kind of model states about itself, and nothing about what will be done with it.

Letters in the signatures: B records in a batch, T places in a record, D the values at one place.
"""

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from .data import Kind, Record, Records

if TYPE_CHECKING:
    from torch import Tensor

Batch = dict[str, "Tensor"]
Outputs = tuple["Tensor", "Tensor"]
Collate = Callable[[Sequence[Record], Any, Sequence[torch.Generator]], Batch]
Memory = Sequence["Tensor"]
"""What a net keeps of the places it has read: tensors with B first, each of which grows along one axis; none at first."""


@dataclass(frozen=True)
class Size:
    """A number of a model's description: how many units of a kind its net has wherever it has any of them."""

    name: str
    units: Literal["channels", "heads", "experts"]
    count: int
    made: Callable[[int], nn.Module]
    """The net of this design with another number of them, tensors without storage. Refusal where there is none."""

    step: int = 1
    """The number should stay a multiple of it."""

    run: int = 1
    """As many units in a row belong together: a norm takes them as one group."""

    sections: int = 1
    """Into so many parts of one length they are divided, of which each must keep as many: groups of a norm."""

    least: int = 1
    """Fewer of them could not answer."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that a model reads, whatever it calls them; their numbers stand in its batches."""

    entries: Sequence[str]
    """The entries of a batch that hold the numbers."""

    rows: "Tensor"
    """(V, W): what the net reads for each number."""

    needed: Collection[int]
    """Without these a record could not be read, or would not end: marks, single characters."""

    parts: Mapping[int, Sequence[int]]
    """{number of a token: those that it is put together from}, without which it is never met."""

    kept: Callable[["Tensor"], tuple[nn.Module, Any]]
    """(numbers that stay, ascending, with all that is needed) -> (net, assets): the same model that knows no others."""

    grown: Callable[[Sequence[tuple[int, int]]], tuple[nn.Module, Any]]
    """(two tokens, of which each may be a new one already) of each new token, numbered from V on -> (net, assets): the same model
    that knows these as well, wherever it would have met the two in a row within a word. Wherever the net has a row for each token
    a new one's is the mean of those of its parts. Refusal where its design or its tokenizer takes no more."""


@dataclass(frozen=True)
class Segmentation:
    """How a text is cut into tokens, one after another, and put together again."""

    words: Callable[[Sequence[str]], list[list[list[int]]]]
    """texts -> of each its words, across which no token reaches, as the numbers of their tokens. No marks stand around them."""

    joined: Callable[[Sequence[int]], str]
    """What is written with these tokens: the text itself where nothing of it is lost."""

    unknown: Collection[int]
    """They stand for all that the model does not know."""

    parts_of_characters: Collection[int]
    """Each is one byte of a character that takes several."""

    alone: Collection[int]
    """They are joined to no other: marks, and what spells a character for want of a token."""

    spelled: Mapping[int, str]
    """{number of a token: how the vocabulary writes it}"""

    join: Callable[[str, str], str]
    """How the vocabulary would write two tokens as one."""


@dataclass(frozen=True)
class Writing:
    """How a net writes an answer token by token. Tokens are numbers below the size of `outputs`' last axis."""

    tokenizer: Any
    """Of transformers: what the tokens written stand for."""

    question: str
    """The field that is read before an answer is written."""

    prompts: Callable[[Sequence[Record]], list[list[int]]]
    """What is read before each answer is written, in tokens, however long."""

    batch: Callable[[list[list[int]], list[list[int]]], Batch]
    """(prompts, what is written after each) -> a batch that `step` reads from nothing; `predicted` at the last place alone."""

    following: Callable[[list[list[int]]], Batch]
    """Tokens that follow those a memory is of -> a batch; `predicted` at each of them."""

    step: Callable[[Batch, Memory], tuple[Outputs, Memory]]
    """The family's `steps` of this net, on whatever device it lies."""

    alone: "Callable[[list[list[int]], int, Choose], None] | None"
    """(prompts, most, choose): writes after each, `most` tokens or fewer up to one of `stops`, where the net or its library
    goes on by itself; then nobody calls `step`."""

    text: Callable[[Sequence[int]], str]
    """What tokens stand for, marks left out."""

    stops: tuple[int, ...]
    """Any of these ends an answer."""

    longest: int
    """Places of what is written, and of a prompt before it where both stand in one row."""

    room: Callable[[int], int]
    """Tokens of an answer -> those that its prompt may have; less than 1 where there is no place for such an answer."""

    shortened: Callable[[list[int], int], list[int]]
    """(a prompt, tokens that it may have) -> what of it is read, as training cuts it."""

    most: int
    """Tokens of an answer where nothing else is said."""


Choose = Callable[["Tensor", Sequence[int]], "Tensor"]
"""(logits (N, V), which of the answers they go on) -> (N, V), the largest of which is the token that is written next."""


@dataclass(frozen=True)
class Family:
    """A kind of model. Every fact is total: there is no optional member."""

    name: str
    tag: str
    """The Hugging Face Hub's pipeline tag that it answers."""

    kind: Callable[[Any], Literal["logits", "values"]]
    """assets -> what `outputs` holds: scores before a softmax over the last axis, or plain quantities."""

    claims: Callable[[Path], bool]
    """Is this folder mine? Looks at the folder's own description, loads nothing."""

    read: Callable[[Path, bool], tuple[nn.Module, Any]]
    """(folder, empty) -> (net, assets). `empty`: the right modules, weights not loaded. The library's own loader,
    its loading report checked: a missing, unexpected or unlike tensor is BadInput."""

    write: Callable[[nn.Module, Any, Path, bool], None]
    """(net, assets, folder, weights): the inverse of `read`. weights=False writes config and processors only."""

    configured: Callable[[dict], dict]
    """config -> all entries of a new model's config: what it says, and the family's defaults for the rest. None stands for what
    only records can tell. An unknown entry, and a value that no records could make right, are BadSettings."""

    start: Callable[[dict, Records, torch.Generator], tuple[nn.Module, Any]]
    """(config, records, generator) -> (net, assets): a new model, as `configured` fills the config. Labels, columns, scales and
    vocabulary are learnt from the records first."""

    adopt: Callable[[Path, Records, torch.Generator], tuple[nn.Module, Any]]
    """(folder, records, generator) -> (net, assets): another family's folder, or mine with other labels: the body is
    kept, the head is new, the labels are those of the records."""

    like: Callable[[nn.Module, Any, float, torch.Generator], tuple[nn.Module, Any]]
    """(net, assets, scale, generator) -> (net, assets): a fresh net of the same design that answers the same question;
    every width times `scale`. scale 1 has exactly the same shapes."""

    fields: Callable[[Any], tuple[dict[str, Kind], tuple[str, Kind]]]
    """assets -> (question {name: kind}, answer (name, kind))."""

    axis: Callable[[Any], Hashable]
    """assets -> what the last axis of `outputs` means: the tuple of labels, a vocabulary's digest, pixels."""

    collate: Collate
    """(records, assets, generators) -> batch, tensors with B first. Data noise enters here, one generator per record,
    so that a batch can be cut anywhere. The answer may be absent."""

    pieces: Callable[[Records, Any], Records]
    """(records, assets) -> what is learnt from one at a time, which `collate` and `packed` take as well: the parts of the
    records that can be read at once. `undivided` where a record always can."""

    packed: Callable[[nn.Module, Any], Collate]
    """(net, assets) -> what a training of this net has for `collate`: a row of the batch may hold several records, if this
    very net keeps them apart. The loss, summed over the rows, is the same. `one_a_row` where a row is a record."""

    lengths: Callable[[Sequence[Record], Any], list[int]]
    """(records, assets) -> about how many places each takes in a batch, with its answer where it has one: those of like length
    are put side by side, so that little is padding. `of_one_length` where none is padded."""

    encoding: Callable[[Any], dict[str, dict]]
    """assets -> {entry of the batch: how it is made of a record's question}, in the words of `encoding.py`, for programs
    without Python; {} where these cannot say it. Entries that `outputs` does not read are left out."""

    loss: Callable[[nn.Module, Batch, str], tuple["Tensor", "Tensor"]]
    """(net, batch, player) -> (total (B,), count (B,)): per example a sum and a count, never a mean."""

    outputs: Callable[[nn.Module, Batch], Outputs]
    """(net, batch) -> (values (B, T, D), mask (B, T) bool). Answers in the batch are not read."""

    steps: Callable[[nn.Module, Batch, Memory], tuple[Outputs, Memory]]
    """(net, batch, memory) -> (outputs of the batch's places, which follow those that the memory is of; the memory of both).
    An empty one again where the net keeps nothing, and has to read everything from the start: `reads_all`."""

    writing: Callable[[nn.Module, Any], Writing | None]
    """(net, assets) -> how it writes an answer token by token; None where an answer comes at once."""

    sample: Callable[[nn.Module, Any, Sequence[Record], Sequence[torch.Generator]], list[Record]]
    """(net, assets, records, generators) -> records with the answer's field and ANSWER_scores filled in."""

    score: Callable[[Sequence[Record], Sequence[Record], Any], dict[str, float]]
    """(records, answers of `sample`, assets) -> {metric: value}, the field's standard metrics."""

    headline: Callable[[Any], tuple[str, Literal["up", "down"]]]
    """assets -> the metric by which promises judge, and its better direction."""

    players: Callable[[nn.Module], dict[str, nn.Module]]
    """net -> {name: module trained by one loss}. {} where nothing follows a gradient. The first judges records."""

    blocks: Callable[[nn.Module], dict[str, tuple[nn.Module, int]]]
    """net -> {name: (module, feature axis)}: where activations can be read."""

    keep: Callable[[nn.Module, Any, Collection[str]], tuple[nn.Module, Any]]
    """(net, assets, names of blocks) -> (net, assets): the same model with only these of its blocks, in their order.
    Raises Refusal where what is left would not fit together."""

    sizes: Callable[[nn.Module, Any], Sequence[Size]]
    """(net, assets) -> the numbers of units that the description states, [] where it states none. Whether a net with
    another number is this one with units left out, is for whoever builds it to find out."""

    vocabulary: Callable[[nn.Module, Any], Vocabulary | None]
    """(net, assets) -> the tokens that it reads, where some can be left out; None where it reads none, or none can."""

    segmentation: Callable[[Any], Segmentation | None]
    """assets -> how it cuts a text into tokens; None where it reads no texts, or not as tokens that follow each other."""

    tiny: Callable[[], dict]
    """A config for `start` that makes a complete model in a moment."""

    toy: Callable[[int, int], Records]
    """(n, seed) -> records on which a tiny model learns something."""


class Session(nn.Module):
    """A net that another runtime executes. Called with a batch it gives what `outputs` gives; it has no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["original"] = None
        self.__dict__["question"] = {}

    runtime: str
    """The runtime's name."""

    original: nn.Module
    """The net it was made from, on the meta device: for the config, never run. Kept out of the sub-modules."""

    question: dict[str, dict]
    """The family's `encoding`, where the runtime carries it along for programs that ask without Python; else {}."""

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__[name] = value

    def forward(self, batch: Batch) -> Outputs:
        raise AssertionError("a runtime overrides this")

    def steps(self, batch: Batch, memory: Memory) -> tuple[Outputs, Memory]:
        """What the family's `steps` gives; a runtime that can keep a memory overrides this."""
        return self(batch), ()

    def save(self, folder: Path) -> None:
        """Write what the runtime executes into the model folder."""
        raise AssertionError("a runtime overrides this")


class Decoder(Session):
    """A session that continues sequences of tokens by itself, keeping what it computed of those before."""

    def continued(self, prompts: Sequence[Sequence[int]], most: int, stops: Sequence[int], choose: "Choose") -> None:
        """Go on from each prompt by what `choose` takes: at most `most` tokens, the last of them one of `stops` where that
        came."""
        raise AssertionError("a runtime overrides this")


def on_any_runtime(outputs: Callable[[nn.Module, Batch], Outputs]) -> Callable[[nn.Module, Batch], Outputs]:
    """Decorates a family's `outputs`: a net that is a Session answers for itself."""

    @wraps(outputs)
    def run(net: nn.Module, batch: Batch) -> Outputs:
        return net(batch) if isinstance(net, Session) else outputs(net, batch)

    return run


def spelled_out(first: int, joins: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
    """Of each new token, numbered from `first` on (see Vocabulary.grown), the old ones that it is put together from."""
    found: list[tuple[int, ...]] = []
    for pair in joins:
        found.append(tuple(part for each in pair for part in ((each,) if each < first else found[each - first])))
    return found


def no_tokens(net: nn.Module, assets: Any) -> None:
    """The `vocabulary` of a family that reads no tokens."""


def at_once(net: nn.Module, assets: Any) -> None:
    """The `writing` of a family whose answers come at once."""


def undivided(records: Records, assets: Any) -> Records:
    """The `pieces` of a family whose records can be read at once."""
    return records


def one_a_row(collate: Collate) -> Callable[[nn.Module, Any], Collate]:
    """The `packed` of a family whose batches hold a record in each row."""
    return lambda net, assets: collate


def of_one_length(records: Sequence[Record], assets: Any) -> list[int]:
    """The `lengths` of a family whose records all take as many places."""
    return [1] * len(records)


def uncut(assets: Any) -> None:
    """The `segmentation` of a family that cuts no texts."""


def reads_all(outputs: Callable[[nn.Module, Batch], Outputs]) -> Callable[[nn.Module, Batch, Memory], Any]:
    """The `steps` of a family whose nets keep nothing."""
    return lambda net, batch, memory: (outputs(net, batch), ())


class Generators(Sequence):
    """One random generator per record, made when asked for. `keys` are the records' own numbers: the same record gets
    the same noise however the batch is cut."""

    def __init__(self, seed: int, keys: Sequence[int]):
        self.seed, self.keys = seed, keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Generators(self.seed, self.keys[index])
        return torch.Generator().manual_seed(mix(self.seed, int(self.keys[index])))


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Inside, what draws from the global random state depends on `generator` alone; that state is then put back."""
    seed = int(torch.randint(2**31, (1,), generator=generator))
    with torch.random.fork_rng():
        seed_torch(seed)
        yield


def seed_torch(seed: int) -> None:
    """torch.manual_seed for the devices that there are. For each kind that there is not it would keep the call and its stack, for
    the day on which one comes: a millisecond at every step, and memory that grows."""
    torch.default_generator.manual_seed(seed)
    if torch.accelerator.is_available():
        torch.get_device_module(torch.accelerator.current_accelerator()).manual_seed_all(seed)


def mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers (splitmix64): near inputs give unlike seeds."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return state >> 1
