"""What an embedder is asked: texts as vectors, the losses of pairs of texts, and how well a text finds its like.

A record is one of three things; which, the columns say.
- A text and one that belongs to it, perhaps a third one that does not: InfoNCE (van den Oord et al., arXiv:1807.03748), as in
  supervised SimCSE (Gao et al. 2021, arXiv:2104.08821): among the second and third texts of all records, find one's own.
- A text alone, which belongs to itself: unsupervised SimCSE. The net reads it twice, each time under another dropout.
- Two texts and how alike they are: the squared error of their cosine (Reimers & Gurevych 2019, arXiv:1908.10084).
Shorter vectors are learnt beside the whole ones where `dimensions` lists some: the losses of all these beginnings are added up
(Kusupati et al. 2022, arXiv:2205.13147), and each counts.

A contrastive loss needs other records, and a loss of ours is each record's own. So the others are asked for through
`company.met`: whoever trains lets the records of a step meet, whole and with gradients, however it is cut (in parts of 1 or 5, or
in two processes, the gradient of the whole but for rounding). What else was thought of: a stored bank of texts or vectors would put
training data into the folder and is not resumed with it, anchors that stand still are fled from by all texts together, and
negatives of each record's own cost a pass each.
Where nobody has arranged a meeting, a record's loss is its alignment (Wang & Isola 2020, arXiv:2005.10242): the squared distance of
its two vectors, brought to length 1.
Differing from the papers: a text that equals one's own answer is no negative; no head of its own is trained and thrown away.

Letters: B records, N records of a step, T tokens, D numbers of a vector.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import company
from ..data import Kind, Record, digest_of
from ..errors import BadSettings
from ..family import Batch, Outputs, on_any_runtime
from . import text_tokens
from .next_token import device_of

TEMPERATURE = 0.05  # of both SimCSE and the library's MultipleNegativesRankingLoss (its scale is 20)
OTHER, NEGATIVE = "other ", "negative "  # what the entries of a record's second and third text begin with
PARTS = 4  # into which a batch is cut by length
FEWEST = 4  # texts in one of them
NONE = -1  # in place of a digest, where a record has no third text
SAME = 3e-3  # relative, of what is summed in unlike orders, in bf16 as well; dropout of 0.1 % does ten times as much
HALVES = 4  # of so many texts alone, one is also read up to its middle, to see whether it finds the whole


@dataclass(frozen=True)
class Assets:
    """What surrounds the net. `answer` is `question` where texts stand alone; `other` is the second text of a pair that is told how
    alike it is, in numbers from `low` to `high`; `negative` the text that does not belong. "" where there is none. `axis`: see
    Family.axis; `library` is the rest of the library's own description, as JSON."""

    tokenizer: Any = field(compare=False, repr=False)
    vocabulary: str
    max_length: int
    lower: bool
    prompt: str
    axis: tuple
    dimensions: tuple[int, ...]
    question: str
    answer: str
    other: str
    negative: str
    low: float
    high: float
    pooler: bool
    library: str

    @property
    def alone(self) -> bool:
        return self.answer == self.question


# ----------------------------------------------------------------------------------------- records to numbers


def fields(assets: Assets) -> tuple[dict[str, Kind], tuple[str, Kind]]:
    names = [assets.question, *([assets.other] if assets.other else [])]
    return dict.fromkeys(names, "text"), (assets.answer, "number" if assets.other else "text")


def collate(records: Sequence[Record], assets: Assets, generators: Sequence[torch.Generator]) -> Batch:
    """The tensors of the tokenizer (B, T) for each text of a record, padded on the right. With answers: `score` (B,) from 0 to 1,
    or `twins` (B, 2) int64, which two equal texts share, NONE for a third text that is not there. No noise."""
    batch = encoded([record[assets.question] for record in records], assets)
    if assets.other:
        batch |= named(OTHER, encoded([record[assets.other] for record in records], assets))
        scores = [record.get(assets.answer) for record in records]
        if None in scores:
            return batch
        return batch | {"score": (torch.tensor(scores).float() - assets.low) / (assets.high - assets.low)}
    if not all(assets.answer in record for record in records):
        return batch
    texts = [record[assets.answer] or "" for record in records]
    wrong = [record.get(assets.negative) or "" for record in records]
    if not assets.alone:
        batch |= named(OTHER, encoded(texts, assets))
    if assets.negative:
        batch |= named(NEGATIVE, encoded(wrong, assets))
    twins = [[digest(text), digest(other) if other else NONE] for text, other in zip(texts, wrong)]
    return batch | {"twins": torch.tensor(twins)}


def lengths(records: Sequence[Record], assets: Assets) -> list[int]:
    """Of all texts of a record together."""
    names = {assets.question, assets.other or assets.answer, assets.negative} - {""}
    roles = [[record.get(name) for record in records] for name in sorted(names)]
    counts = [text_tokens.lengths(assets.tokenizer, as_read(texts, assets), assets.max_length) for texts in roles]
    return [sum(each) for each in zip(*counts)]


def encoded(texts: Sequence[str | None], assets: Assets) -> Batch:
    return text_tokens.encode(assets.tokenizer, as_read(texts, assets), assets.max_length)


def as_read(texts: Sequence[str | None], assets: Assets) -> list[str]:
    given = [assets.prompt + (text or "") for text in texts]
    return [text.lower() for text in given] if assets.lower else given


def named(role: str, batch: Batch) -> Batch:
    return {role + name: value for name, value in batch.items()}


def role_of(batch: Batch, role: str) -> Batch:
    """The tensors of one text of each record."""
    return {name: batch[role + name] for name in text_tokens.TENSORS if role + name in batch}


def digest(text: str) -> int:
    return digest_of({"": text}) >> 1


def encoding(assets: Assets) -> dict[str, dict]:
    """See Family.encoding; {} also for what is done to a text before it is tokens, and for two texts."""
    return {} if assets.lower or assets.prompt or assets.other else text_tokens.encoding(assets)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- the vectors


@on_any_runtime
def outputs(net: nn.Module, batch: Batch) -> Outputs:
    """(B, 1, D); (B, 2, D) of two texts and how alike they are."""
    roles = ["", *([OTHER] if is_scored(batch) else [])]
    values = torch.stack([net(**role_of(batch, role)) for role in roles], 1).float()
    return values, torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)


def is_scored(batch: Batch) -> bool:
    """Whether the second text of its records is asked about, and not an answer."""
    return f"{OTHER}input_ids" in batch and "twins" not in batch


def by_length(run: Callable[[Batch], Tensor], texts: Batch) -> Tensor:
    """What `run` makes of texts, (B, D), the long ones apart from the short ones, so that little of what it reads is padding."""
    lengths = texts["attention_mask"].sum(1)
    size = max(FEWEST, -(-len(lengths) // PARTS))
    order = lengths.argsort(descending=True, stable=True)
    parts = [{name: value[rows] for name, value in texts.items()} for rows in order.split(size)]
    found = [
        run({name: value[:, : int(part["attention_mask"].sum(1).max())] for name, value in part.items()})
        for part in parts
    ]
    return torch.cat(found)[order.argsort()]


def vectors(net: nn.Module, batch: Batch, role: str) -> Tensor:
    return by_length(lambda part: net(**part), role_of(batch, role)).float()


# --------------------------------------------------------------------------------------------------- the losses


def loss(net: Any, batch: Batch, player: str) -> tuple[Tensor, Tensor]:
    """What the first lines say of each record, added over the lengths of vectors that are learnt, and their number."""
    sizes = sizes_learnt(net)
    one, other = both(net, batch)
    wrong = negatives(net, batch, one)
    with torch.autocast(one.device.type, enabled=False):  # a cosine in bf16 is off by 0.004, 20 times which is much
        if "score" in batch:
            total = sum((F.cosine_similarity(one[:, :d], other[:, :d]) - batch["score"]).square() for d in sizes)
        else:
            total = contrasted(one, other, wrong, batch["twins"], sizes)
    return total, torch.full_like(total, len(sizes))  # type: ignore[return-value,arg-type]


def sizes_learnt(net: Any) -> list[int]:
    """The lengths of vectors that are learnt: the whole, and the shorter ones."""
    width = net.most or net.width
    return [*(size for size in net.dimensions if size < width), width]


def both(net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The vectors of a record's two texts, or of one text under two dropouts. BadSettings where these are no two."""
    if f"{OTHER}input_ids" in batch:
        return vectors(net, batch, ""), vectors(net, batch, OTHER)
    twice = {name: torch.cat([value, value]) for name, value in role_of(batch, "").items()}
    one, other = vectors(net, twice, "").chunk(2)
    if net.training and bool((one - other).norm() <= SAME * one.norm()):
        raise BadSettings(
            "this body has no dropout, so that a text alone has nothing to be told apart by",
            hint="records of two texts that belong together: --answer NAME of the second one",
        )
    return one, other


def negatives(net: nn.Module, batch: Batch, one: Tensor) -> Tensor | None:
    """The vectors of third texts, as many and as long as those of the first ones, zeros where a record has none: so all parts of a
    step show each other the same. None where the data have no such texts."""
    if f"{NEGATIVE}input_ids" not in batch:
        return None
    found, there = torch.zeros_like(one), batch["twins"][:, 1] != NONE
    if there.any():
        found[there] = vectors(net, {name: value[there] for name, value in batch.items()}, NEGATIVE)
    return found


def contrasted(one: Tensor, other: Tensor, wrong: Tensor | None, twins: Tensor, sizes: Sequence[int]) -> Tensor:
    """(B,) in nats: how hard it is to tell one's own second text from all others of the step; alone, the alignment."""
    found = company.met(one, other, twins, *([] if wrong is None else [wrong]))
    if found is None:
        return sum((F.normalize(one[:, :d], dim=1) - F.normalize(other[:, :d], dim=1)).square().sum(1) for d in sizes)  # type: ignore[return-value]
    (one, other, twins, *rest), own = found
    losses = sum(info_nce(one[:, :d], [each[:, :d] for each in (other, *rest)], twins) for d in sizes)
    return company.shared(losses, own)  # type: ignore[arg-type]


def info_nce(one: Tensor, others: list[Tensor], twins: Tensor) -> Tensor:
    """(N,): cross entropy of row i of the first of `others` among all their rows. A row whose text is that of row i is none, nor is
    one without a text."""
    cosines = F.normalize(one, dim=1) @ F.normalize(torch.cat(others), dim=1).T
    texts = twins.T.flatten()[None, : cosines.shape[1]]
    same = twins[:, :1] == texts
    same.fill_diagonal_(False)
    scaled = (cosines / TEMPERATURE).masked_fill(same | (texts == NONE), -torch.inf)
    return F.cross_entropy(scaled, torch.arange(len(one), device=one.device), reduction="none")


# ---------------------------------------------------------------------------------------------------- answers


@torch.no_grad()
def sample(
    net: nn.Module, assets: Assets, records: Sequence[Record], generators: Sequence[torch.Generator]
) -> list[Record]:
    """Beside each record {"vector": (D,)}. Of two texts also the second one's, {"other": (D,)}, and how alike they are as the
    answer. A text that belongs to another is kept as the answer and has its vector, {"answer": (D,)}; where it is not there, the
    text itself stands for it. Of some texts alone also the first half's, {"half": (D,)}, for `score`."""
    if assets.other:
        return compared(net, assets, records)
    texts = [record[assets.question] or "" for record in records]
    wanted = [record.get(assets.answer) or "" for record in records]
    more = [half_of(text) if assets.alone else other for text, other in zip(texts, wanted)]
    rows = iter(embedded(net, assets, [*texts, *filter(None, more)]))
    scores = [{"vector": next(rows)} for _ in texts]
    name = "half" if assets.alone else "answer"
    for each, text in zip(scores, more):
        each |= {name: next(rows)} if text else {}
    return [
        {**record, assets.answer: wanted or text, f"{assets.answer}_scores": each}
        for record, text, wanted, each in zip(records, texts, wanted, scores)
    ]


def half_of(text: str) -> str:
    """The first half of the words of one text in HALVES; "" for the others, and where there are no two halves."""
    words = text.split()
    return " ".join(words[: len(words) // 2]) if len(words) > 3 and digest(text) % HALVES == 0 else ""


@torch.no_grad()
def embedded(net: nn.Module, assets: Assets, texts: Sequence[str]) -> np.ndarray:
    """(texts, D) float32."""
    batch = {name: value.to(device_of(net)) for name, value in encoded(texts, assets).items()}
    return by_length(lambda part: outputs(net, part)[0][:, 0], batch).cpu().numpy()


def compared(net: nn.Module, assets: Assets, records: Sequence[Record]) -> list[Record]:
    """Records of two texts with how alike they are, in the data's own numbers."""
    asked = [{name: record[name] for name in (assets.question, assets.other)} for record in records]
    batch = {name: value.to(device_of(net)) for name, value in collate(asked, assets, []).items()}
    values = outputs(net, batch)[0].cpu()
    cosines = F.cosine_similarity(values[:, 0], values[:, 1]).tolist()
    return [
        {
            **record,
            assets.answer: assets.low + cosine * (assets.high - assets.low),
            f"{assets.answer}_scores": {"vector": pair[0], "other": pair[1]},
        }
        for record, cosine, pair in zip(records, cosines, values.numpy())
    ]
