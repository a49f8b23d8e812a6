"""tabular: rows of numbers and categories answered by a neural net, with a label or with a number.

The folder is our own: config.json holds the design of the net and the table (columns, known categories, bins,
labels), model.safetensors the weights. The net is `nets/table_net.py`; what the forest shares is `tables.py`.

Letters: B records, N number columns, C category columns, D labels (1 where the answer is a number).
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from .. import hub
from ..data import Record, Records, check_fields, required_answer
from ..errors import BadInput, Refusal
from ..family import (
    Batch,
    Family,
    Outputs,
    Size,
    at_once,
    no_tokens,
    of_one_length,
    on_any_runtime,
    one_a_row,
    reads_all,
    seeded,
    uncut,
    undivided,
)
from ..nets.table_net import TableNet
from . import depth, labels, sizes, tables
from .tables import Table

MODEL_TYPE = "onnuri_table_net"
DEFAULTS = {"width": 128, "layers": 2, "embedding": 8, "bins": 48, "dropout": 0.1}
DESIGN = {"width": (1, 65_536), "layers": (0, 256), "embedding": (1, 4096), "dropout": (0.0, 0.95)}
BINS = {"bins": (0, 4096)}  # not of the net's design: they are kept as the edges in the table
FAR = 1e6  # standard deviations: keeps float32 finite


# ---------------------------------------------------------------------------------------------------- folders


def claims(folder: Path) -> bool:
    return hub.peek(folder).get("model_type") == MODEL_TYPE


def read(folder: Path, empty: bool) -> tuple[nn.Module, Table]:
    net = hub.read_own(from_config, folder, empty)
    return net, tables.from_json(hub.read_json(folder / "config.json")["table"])


def from_config(config: dict) -> TableNet:
    """The net that a folder's config.json describes; BadInput lists every bad entry of its design."""
    if faults := tables.faults_of(config, DESIGN):
        raise BadInput(*(f"config.json: {fault}" for fault in faults))
    return build(tables.from_json(config["table"]), {name: config[name] for name in DESIGN})


def write(net: nn.Module, table: Table, folder: Path, weights: bool) -> None:
    config = {"model_type": MODEL_TYPE, "architectures": ["TableNet"], **design_of(net), "table": tables.to_json(table)}
    hub.write_own(net, config, folder, weights)


def design_of(net: nn.Module) -> dict:
    return cast(TableNet, net).design


# ----------------------------------------------------------------------------------------------------- making


def build(table: Table, design: dict) -> TableNet:
    """A net with weights of torch's own generator."""
    edges = [[(edge - column.mean) / column.scale for edge in column.edges] for column in table.numbers]
    num_codes = [column.num_codes for column in table.categories]
    return TableNet(edges, num_codes, table.num_outputs, table.mean, table.scale, **design)


def fresh(table: Table, design: dict, generator: torch.Generator) -> TableNet:
    """New weights that depend on `generator` alone."""
    with seeded(generator):
        return build(table, design).eval()


def configured(config: dict) -> dict:
    """See Family.configured."""
    return tables.configured(DEFAULTS, config, DESIGN | BINS)


def start(config: dict, records: Records, generator: torch.Generator) -> tuple[nn.Module, Table]:
    settings = configured(config)
    table = tables.learn(records, settings["bins"])
    return fresh(table, {name: settings[name] for name in DESIGN}, generator), table


def like(net: nn.Module, table: Table, scale: float, generator: torch.Generator) -> tuple[nn.Module, Table]:
    """A width never falls below 4 by scaling: a norm over fewer says next to nothing."""
    design = design_of(net)
    widths = {name: max(min(4, design[name]), round(design[name] * scale)) for name in ("width", "embedding")}
    return fresh(table, {**design, **widths}, generator), table


def adopt(folder: Path, records: Records, generator: torch.Generator) -> tuple[nn.Module, Table]:
    """The columns and the body of a table net, with a new head for the answer of the records."""
    if not claims(folder):
        raise Refusal(
            f"{folder} holds no table net; a body of another kind knows nothing of columns",
            "start a new one: train --family tabular --data D --out DIR",
        )
    old, table = read(folder, False)
    question = tables.fields(table)[0]
    check_fields(records, question, None)
    if (answer := required_answer(records)) in question:
        raise BadInput(
            f"the model in {folder} asks for '{answer}', so that it cannot be the answer", hint="--answer NAME"
        )
    table = tables.with_answer_of(table, records)
    net = fresh(table, design_of(old), generator)
    body = {name: tensor for name, tensor in old.state_dict().items() if not name.startswith("head.")}
    net.load_state_dict(net.state_dict() | body)
    return net, table


# -------------------------------------------------------------------------------------------------- computing


def collate(records: Sequence[Record], table: Table, generators: Sequence[torch.Generator]) -> Batch:
    return questions(records, table) | tables.answer_tensors(records, table)


def questions(records: Sequence[Record], table: Table) -> Batch:
    """{numbers (B, N) in standard units, missing (B, N) 0 or 1, codes (B, C) counted through all columns}.
    The entries for a kind of column that the table lacks are absent."""
    batch: Batch = {}
    if table.numbers:
        raw = tables.number_array(records, table)
        mean, scale = np.array([(column.mean, column.scale) for column in table.numbers]).T
        standard = np.nan_to_num((raw - mean) / scale, nan=0.0).clip(-FAR, FAR)
        batch["numbers"] = torch.from_numpy(standard).float()
        batch["missing"] = torch.from_numpy(np.isnan(raw)).float()
    if table.categories:
        first = np.cumsum([0, *(column.num_codes for column in table.categories[:-1])])
        batch["codes"] = torch.from_numpy(tables.code_array(records, table) + first)
    return batch


def encoding(table: Table) -> dict[str, dict]:
    """See Family.encoding: what `questions` does."""
    found = {}
    if table.numbers:
        missing = [{"field": column.name, "as": "missing"} for column in table.numbers]
        standard = [
            {"field": c.name, "as": "number", "mean": c.mean, "scale": c.scale, "limit": FAR, "missing": 0.0}
            for c in table.numbers
        ]
        found = {
            name: {"type": "float32", "columns": each} for name, each in (("numbers", standard), ("missing", missing))
        }
    if table.categories:
        first = np.cumsum([0, *(column.num_codes for column in table.categories[:-1])]).tolist()
        columns = [tables.code_of(column, start) for column, start in zip(table.categories, first)]
        found["codes"] = {"type": "int64", "columns": columns}
    return found


@on_any_runtime
def outputs(net: nn.Module, batch: Batch) -> Outputs:
    """One place per record: values (B, 1, D), logits or the number in its own unit."""
    return labels.one_place(net(batch))


def loss(net: nn.Module, batch: Batch, player: str) -> tuple[Tensor, Tensor]:
    return tables.loss(outputs(net, batch), batch)


def sample(
    net: nn.Module, table: Table, records: Sequence[Record], generators: Sequence[torch.Generator]
) -> list[Record]:
    device = next((parameter.device for parameter in net.parameters()), torch.device("cpu"))

    def outputs_of(part: Sequence[Record]) -> Outputs:
        return outputs(net, {name: value.to(device) for name, value in questions(part, table).items()})

    return tables.answered(outputs_of, table, records)


def players(net: nn.Module) -> dict[str, nn.Module]:
    return {"net": net}


def blocks(net: nn.Module) -> dict[str, tuple[nn.Module, int]]:
    return {f"layers.{place}": (layer, -1) for place, layer in enumerate(cast(TableNet, net).layers)}


def keep(net: nn.Module, table: Table, names: Collection[str]) -> tuple[nn.Module, Table]:
    """See Family.keep. Every layer adds to what the one before gave, so that any can go."""
    kept = depth.chosen(blocks(net), names)
    with torch.device("meta"):
        smaller = build(table, {**design_of(net), "layers": len(kept["layers"])})
    return depth.filled(smaller, net, kept), table


def sizes_of(net: nn.Module, table: Table) -> list[Size]:
    """See Family.sizes."""
    design = design_of(net)

    def maker(name: str) -> Callable[[int], nn.Module]:
        return lambda number: sizes.on_meta(lambda: build(table, {**design, name: number}))

    names = ("width", *(("embedding",) if table.categories else ()))
    return [Size(name, "channels", design[name], maker(name)) for name in names]


def tiny() -> dict:
    return {"width": 16, "layers": 2, "embedding": 4, "bins": 8, "dropout": 0.0}


FAMILY = Family(
    name="tabular",
    tag="tabular-classification",
    kind=tables.kind,
    claims=claims,
    read=read,
    write=write,
    configured=configured,
    start=start,
    adopt=adopt,
    like=like,
    fields=tables.fields,
    axis=tables.axis,
    collate=collate,
    pieces=undivided,
    packed=one_a_row(collate),
    lengths=of_one_length,
    encoding=encoding,
    loss=loss,
    outputs=outputs,
    steps=reads_all(outputs),
    writing=at_once,
    sample=sample,
    score=tables.score,
    headline=tables.headline,
    players=players,
    blocks=blocks,
    keep=keep,
    sizes=sizes_of,
    vocabulary=no_tokens,
    segmentation=uncut,
    tiny=tiny,
    toy=tables.toy,
)
