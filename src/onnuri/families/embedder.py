"""Texts to vectors, near for what is alike: any encoder of transformers, as folders of sentence-transformers hold it.

No architecture is named: `modules.json` says that a folder is mine, `sentence_folders.py` reads and writes what it lists. A new
one is the small BERT of `text_tokens.py` under a mean of its tokens; an adopted body that reads from left to right answers at its
last token. What is learnt and asked, says `embedding.py`: texts alone, pairs of texts, or pairs and how alike they are.

The tag is sentence-similarity, as the library itself marks its models: a record is two texts that belong together, of which one
may be the other. feature-extraction would say that vectors come out, and not what makes them near.
The last axis of two embedders means the same where their vectors are as long. More cannot be asked: a single number of a vector
means nothing, and a fresh student of its teacher's design has to be let into the teacher's space.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import hub
from ..data import Record, Records, digest_of
from ..errors import BadInput, BadSettings, Refusal
from ..family import Family, Size, Vocabulary, at_once, one_a_row, reads_all, undivided
from ..hub_blocks import hub_blocks
from ..nets.sentence_net import POOLINGS, SentenceNet, hidden_width
from . import (
    depth,
    embedding,
    fewer_tokens,
    heads,
    retrieval,
    sentence_folders,
    sizes,
    text_tokens,
    texts,
    vocabulary,
    widths,
)
from .embedding import Assets
from .segmentation import segmentation_of

DEFAULTS = text_tokens.DEFAULTS | {"pooling": "mean", "normalize": True, "dimensions": []}
NOTES = ("question", "answer", "other", "negative", "low", "high", "dimensions", "pooler")
COLUMNS: dict[str, Any] = {"question": "text", "answer": "text", "other": "", "negative": "", "low": 0.0, "high": 1.0}


# ---------------------------------------------------------------------------------------------------- folders


def claims(folder: Path) -> bool:
    return sentence_folders.is_mine(folder)


def read(folder: Path, empty: bool) -> tuple[nn.Module, Assets]:
    noted = notes_of(folder)
    pooler = noted.get("pooler", sentence_folders.has_pooler(folder))
    net = sentence_folders.read(folder, pooler, empty)
    return net, assets_of(net, folder, COLUMNS | noted | {"pooler": pooler})


def notes_of(folder: Path) -> dict:
    """What we noted in config.json of a folder of ours, {} where it is not ours. BadInput where it is malformed."""
    noted = hub.peek(folder).get("onnuri_fields", {})
    kinds = {"dimensions": list, "pooler": bool, "low": float, "high": float}
    wrong = not isinstance(noted, dict) or any(
        name not in NOTES or type(value) is not kinds.get(name, str) for name, value in noted.items()
    )
    if (
        wrong
        or not noted.get("low", 0) < noted.get("high", 1)
        or not all(type(size) is int and size > 0 for size in noted.get("dimensions", []))
    ):
        raise BadInput(f"{folder}/config.json: onnuri_fields is malformed: {noted!r:.200}", hint="delete it")
    return noted


def assets_of(net: Any, folder: Path, noted: dict) -> Assets:
    """The assets of a net beside the files of a folder; the net learns which lengths of its vectors are to be learnt."""
    reader, tokenizer = sentence_folders.reader_of(folder), text_tokens.read_tokenizer(folder)
    stated = sentence_folders.entry(reader, "max_seq_length", int, 0, folder / sentence_folders.READER)
    lower = sentence_folders.entry(reader, "do_lower_case", bool, False, folder / sentence_folders.READER)
    room = text_tokens.longest(net.body, tokenizer)
    if stated < 0:
        raise BadInput(f"{folder / sentence_folders.READER}: max_seq_length {stated}")
    found = with_tokenizer(net, tokenizer, noted | {"max_length": min(stated or room, room), "lower": lower})
    library = json.dumps(sentence_folders.library_of(folder), sort_keys=True)
    return replace(found, prompt=sentence_folders.prompt_of(folder), library=library)


def with_tokenizer(net: SentenceNet, tokenizer: Any, noted: dict) -> Assets:
    digest = text_tokens.fitted(net.body, tokenizer)
    net.dimensions = tuple(sorted(noted.get("dimensions") or ()))
    axis = ("vector of a text", net.most or net.width, net.unit)
    given = {name: noted[name] for name in (*COLUMNS, "pooler", "max_length", "lower")}
    return Assets(tokenizer, digest, prompt="", axis=axis, dimensions=net.dimensions, library="{}", **given)


def write(net: Any, assets: Assets, folder: Path, weights: bool) -> None:
    net.body.config.onnuri_fields = {name: getattr(assets, name) for name in NOTES} | {
        "dimensions": list(assets.dimensions)
    }
    reader = {"max_seq_length": assets.max_length, "do_lower_case": assets.lower}
    sentence_folders.write(net, folder, weights, reader, json.loads(assets.library))
    assets.tokenizer.save_pretrained(folder)


# ------------------------------------------------------------------------------------------------- new models


def start(config: dict, records: Records, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    """A BERT whose vocabulary is learnt from the records."""
    settings = configured(config)
    columns = columns_of(records)
    names = {columns[role] for role in ("question", "answer", "other", "negative")} & records.fields.keys()
    some = records[:: -(-len(records) * len(names) // vocabulary.MOST_TEXTS)]
    known = (str(record[name] or "") for record in some for name in sorted(names) if records.fields[name] != "number")
    tokenizer = vocabulary.learnt(known, vocabulary.READ, **{name: settings[name] for name in vocabulary.ENTRIES})
    made = text_tokens.design(settings, tokenizer)
    body = widths.fresh(sentence_folders.auto_for(made, False), made, 1, generator, torch.float32)
    net = SentenceNet(body, settings["pooling"], settings["normalize"]).eval()
    noted = {
        "dimensions": settings["dimensions"],
        "max_length": settings["max_length"],
        "lower": False,
        "pooler": False,
    }
    return net, with_tokenizer(net, tokenizer, columns | noted)


def configured(config: dict) -> dict:
    """See Family.configured."""
    settings = text_tokens.checked(hub.merged(DEFAULTS, config))
    settings["dimensions"] = listed(settings["dimensions"])
    faults = []
    if str(settings["pooling"]) not in POOLINGS:
        faults.append(f"pooling must be one of {', '.join(POOLINGS)}, found {settings['pooling']!r}")
    if type(settings["normalize"]) is not bool:
        faults.append(f"normalize must be true or false, found {settings['normalize']!r}")
    if not all(type(size) is int and 0 < size < settings["hidden_size"] for size in settings["dimensions"]):
        faults.append(
            f"dimensions must be whole numbers below {settings['hidden_size']}, found {settings['dimensions']!r}"
        )
    if faults:
        raise BadSettings(*faults)
    return settings


def listed(value: Any) -> list:
    """A list, or one number, or numbers with `|` between them, as a command gives them."""
    if isinstance(value, str):
        return [int(part) if part.isdigit() else part for part in value.split("|")]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def columns_of(records: Records) -> dict:
    """Which column is what, and the range of a score. The answer says it: a number beside two texts, a text that belongs to
    another, or anything else, and a text belongs to itself."""
    kind = records.fields.get(records.answer or "")
    rest = [name for name, found in records.questions.items() if found == "text"]
    if kind == "number" and len(rest) > 1:
        low, high = score_range(records)
        return COLUMNS | {"question": rest[0], "other": rest[1], "answer": records.answer, "low": low, "high": high}
    if kind == "text" and rest:
        return COLUMNS | {"question": rest[0], "answer": records.answer, "negative": rest[1] if len(rest) > 1 else ""}
    name = texts.column_of(records, ())
    return COLUMNS | {"question": name, "answer": name}


def score_range(records: Records) -> tuple[float, float]:
    """From 0, or below where there are such scores, to the highest."""
    values = [value for value in records.column(str(records.answer)) if value is not None]
    low, high = min(0.0, *values), max(values)
    if low == high:
        raise BadInput(f"'{records.answer}' says of all texts that they are equally alike")
    return float(low), float(high)


def adopt(folder: Path, records: Records, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    """Any body of transformers that reads texts; a folder of mine is simply read. The columns are those of the records."""
    columns = columns_of(records)
    if claims(folder):
        net, assets = read(folder, False)
        return net, replace(assets, **columns)
    auto = sentence_folders.auto_of(folder, False)
    body = hub.adopt_hub(auto, folder, generator)
    net = SentenceNet(body, "mean", True).eval()
    body.config.onnuri_fields = {}  # the columns of another family
    assets = with_tokenizer(net, text_tokens.read_tokenizer(folder), columns | noted_of(net, folder))
    if reads_onward(net, assets):
        net.pooling = "lasttoken"
    return net, assets


def noted_of(net: SentenceNet, folder: Path) -> dict:
    room = text_tokens.longest(net.body, text_tokens.read_tokenizer(folder))
    return {"max_length": room, "lower": False, "pooler": False}


@torch.no_grad()
def reads_onward(net: Any, assets: Assets) -> bool:
    """Whether what the body says of the first token does not depend on later ones."""
    ids = torch.tensor([[1, *[other] * 5] for other in (2, 3)])
    states = net.body(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 0]
    return torch.allclose(states[0], states[1], atol=1e-6)


# ------------------------------------------------------------------------------------------- the same net otherwise


def like(net: Any, assets: Assets, scale: float, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    """See Family.like: the vocabulary, the layers, the heads and the length of the vectors stay."""
    auto = sentence_folders.auto_for(net.body.config, assets.pooler)
    return behind(net, heads.like(auto, net.body, scale, generator), generator), assets


def behind(net: SentenceNet, body: nn.Module, generator: torch.Generator) -> SentenceNet:
    made = sentence_folders.like(net, body, generator)
    made.dimensions = net.dimensions
    return made


def around(net: SentenceNet, body: nn.Module) -> SentenceNet:
    """The same modules, weights and all, behind another body of the same width."""
    made = SentenceNet(body, net.pooling, net.unit, net.dense, net.activation, net.most).train(net.training)
    made.dimensions = net.dimensions
    return made


def keep(net: Any, assets: Assets, names: Collection[str]) -> tuple[nn.Module, Assets]:
    body, _ = depth.keep_layers(net.body, assets, [name.removeprefix("body.") for name in names])
    return around(net, body), assets


def sizes_of(net: Any, assets: Assets) -> list[Size]:
    """Those of the body. Refusal where the vectors would be shorter, for which `dimensions` are there."""

    def made(size: Size, count: int) -> nn.Module:
        body = size.made(count)
        if net.dense is None and hidden_width(body) != net.width:
            raise Refusal(
                "the vectors would be shorter", "train with --config dimensions=...; the beginning of a vector serves"
            )
        with torch.device("meta"):
            return sentence_folders.like(net, body, torch.Generator()) if net.dense else around(net, body)

    return [
        replace(size, made=lambda count, size=size: made(size, count)) for size in sizes.of_config(net.body, assets)
    ]


def vocabulary_of(net: Any, assets: Assets) -> Vocabulary | None:
    found = fewer_tokens.vocabulary_of(net.body, assets.tokenizer, lambda body, tokenizer: (body, tokenizer))
    if found is None:
        return None

    def whole(made: tuple[nn.Module, Any]) -> tuple[nn.Module, Assets]:
        _, (body, tokenizer) = made
        digest = text_tokens.fitted(body, tokenizer)
        return around(net, body), replace(assets, tokenizer=tokenizer, vocabulary=digest)

    return replace(
        found, kept=lambda numbers: whole(found.kept(numbers)), grown=lambda joins: whole(found.grown(joins))
    )


def blocks(net: Any) -> dict[str, tuple[nn.Module, int]]:
    return {f"body.{name}": found for name, found in hub_blocks(net.body).items()}


# ------------------------------------------------------------------------------------------------------ judging


def score(records: Sequence[Record], answers: Sequence[Record], assets: Assets) -> dict[str, float]:
    """See `retrieval.py`. Texts alone are judged by whether their first half finds the whole, of those that were read so."""
    found = [answer[f"{assets.answer}_scores"] for answer in answers]
    if assets.other:
        truth, guess = ([float(row[assets.answer]) for row in rows] for rows in (records, answers))
        return {"spearman": retrieval.spearman(truth, guess), "pearson": retrieval.pearson(truth, guess)}
    name = "half" if assets.alone else "answer"
    own = torch.tensor([place for place, each in enumerate(found) if name in each], dtype=torch.int64)
    codes = torch.tensor([digest_of({"": answer[assets.answer]}) >> 1 for answer in answers])
    one = stacked([each["vector"] for each in found], assets)
    other = stacked([each[name] for each in found if name in each], assets)
    queries, candidates, places = (other, one, own) if assets.alone else (one[own], other, torch.arange(len(own)))
    texts = codes if assets.alone else codes[own]
    scores = retrieval.found_scores(retrieval.ranks(queries, candidates, places, texts))
    for size in assets.dimensions:
        shorter = retrieval.ranks(queries[:, :size], candidates[:, :size], places, texts)
        scores[f"recall_at_1_of_{size}"] = retrieval.found_scores(shorter)["recall_at_1"]
    return scores | {
        "alignment": retrieval.alignment(queries, candidates[places]),
        "uniformity": retrieval.uniformity(one, codes),
    }


def stacked(rows: list, assets: Assets) -> torch.Tensor:
    return torch.tensor([[float(x) for x in row] for row in rows]) if rows else torch.zeros(0, assets.axis[1])


FAMILY = Family(
    name="embedder",
    tag="sentence-similarity",
    kind=lambda assets: "values",
    claims=claims,
    read=read,
    write=write,
    configured=configured,
    start=start,
    adopt=adopt,
    like=like,
    fields=embedding.fields,
    axis=lambda assets: assets.axis,
    collate=embedding.collate,
    pieces=undivided,
    packed=one_a_row(embedding.collate),
    lengths=embedding.lengths,
    encoding=embedding.encoding,
    loss=embedding.loss,
    outputs=embedding.outputs,
    steps=reads_all(embedding.outputs),
    writing=at_once,
    sample=embedding.sample,
    score=score,
    headline=lambda assets: ("spearman" if assets.other else "recall_at_1", "up"),
    players=lambda net: {"net": net},
    blocks=blocks,
    keep=keep,
    sizes=sizes_of,
    vocabulary=vocabulary_of,
    segmentation=lambda assets: segmentation_of(assets.tokenizer),
    tiny=lambda: {
        "hidden_size": 32,
        "num_layers": 2,
        "max_length": 32,
        "vocab_size": 64,
        "dropout": 0.0,
        "dimensions": [8],
    },
    toy=texts.toy_pairs,
)
