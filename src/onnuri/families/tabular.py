"""tabular: rows of numbers and categories answered by a neural net (`nets/table_net.py`), with a label or a number.

The folder is our own: config.json holds the design of the net and the table (columns, known categories, quantiles,
labels), model.safetensors the weights. What it shares with the forest is in `tables.py`.

Letters: B records, N number columns, C category columns, D labels (1 where the answer is a number).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .. import hub
from ..data import Record, Records, check_fields
from ..errors import BadInput, BadSettings, Refusal
from ..family import Batch, Family, Outputs, on_any_runtime
from ..nets.table_net import TableNet
from . import tables
from .tables import Table

MODEL_TYPE = "onnuri_table_net"
DEFAULTS = {"width": 128, "layers": 2, "embedding": 8, "bins": 48, "dropout": 0.1}
BOUNDS = {"width": (1, 65_536), "layers": (0, 256), "embedding": (1, 4096), "dropout": (0.0, 0.95)}
BINS = {"bins": (0, 4096)}  # no part of the net's design: they are kept as the edges in the table
FAR = 1e6  # standard deviations: keeps float32 finite


# ------------------------------------------------------------------------------------------------------------- folders

def claims(folder: Path) -> bool:
    return hub.peek(folder).get("model_type") == MODEL_TYPE


def read(folder: Path, empty: bool) -> tuple[nn.Module, Table]:
    net = hub.read_own(from_config, folder, empty)
    return net, tables.from_json(hub.read_json(folder / "config.json")["table"])


def from_config(config: dict) -> TableNet:
    """The net that a folder's config.json describes; BadInput lists every bad entry."""
    if faults := tables.faults_of(config, BOUNDS):
        raise BadInput(*(f"config.json: {fault}" for fault in faults))
    return build(tables.from_json(config["table"]), {name: config[name] for name in BOUNDS})


def write(net: nn.Module, table: Table, folder: Path, weights: bool) -> None:
    config = {"model_type": MODEL_TYPE, "architectures": ["TableNet"], **net.design, "table": tables.to_json(table)}
    hub.write_own(net, config, folder, weights)


# -------------------------------------------------------------------------------------------------------------- making

def build(table: Table, design: dict) -> TableNet:
    """A net with weights of torch's own generator."""
    edges = [[(edge - column.mean) / column.scale for edge in column.edges] for column in table.numbers]
    num_codes = [column.num_codes for column in table.categories]
    return TableNet(edges, num_codes, table.num_outputs, table.mean, table.scale, **design)


def fresh(table: Table, design: dict, generator: torch.Generator) -> TableNet:
    """New weights that depend on `generator` alone."""
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        return build(table, design).eval()


def start(config: dict, records: Records, generator: torch.Generator) -> tuple[nn.Module, Table]:
    settings = hub.merged(DEFAULTS, config)
    if faults := tables.faults_of(settings, BOUNDS | BINS):
        raise BadSettings(*faults)
    table = tables.learn(records, settings["bins"])
    return fresh(table, {name: settings[name] for name in BOUNDS}, generator), table


def like(net: nn.Module, table: Table, scale: float, generator: torch.Generator) -> tuple[nn.Module, Table]:
    """A width never falls below 4 by scaling: a norm over fewer says next to nothing."""
    widths = {name: max(min(4, net.design[name]), round(net.design[name] * scale)) for name in ("width", "embedding")}
    return fresh(table, {**net.design, **widths}, generator), table


def adopt(folder: Path, records: Records, generator: torch.Generator) -> tuple[nn.Module, Table]:
    """The columns and the body of a table net, with a new head for the answer of the records."""
    if not claims(folder):
        raise Refusal(f"{folder} holds no table net; the body of another kind of model knows nothing of columns",
                      "start a new one: train --family tabular --data D --out DIR")
    old, table = read(folder, False)
    check_fields(records, tables.fields(table)[0], None)
    if records.answer in tables.fields(table)[0]:
        raise BadInput(f"the model in {folder} asks for '{records.answer}', so that it cannot be the answer",
                       hint="--answer NAME")
    table = tables.with_answer_of(table, records)
    net = fresh(table, old.design, generator)
    body = {name: tensor for name, tensor in old.state_dict().items() if not name.startswith("head.")}
    net.load_state_dict(net.state_dict() | body)
    return net, table


# ----------------------------------------------------------------------------------------------------------- computing

def collate(records: Sequence[Record], table: Table, generators: Sequence[torch.Generator]) -> Batch:
    """{numbers (B, N) in standard units, missing (B, N), codes (B, C) counted through all the columns} and the answer.
    The keys of a kind of column that the table lacks are absent."""
    batch = tables.answer_tensors(records, table)
    if table.numbers:
        raw = tables.number_array(records, table)
        mean, scale = np.array([(column.mean, column.scale) for column in table.numbers]).T
        standard = np.nan_to_num((raw - mean) / scale, nan=0.0).clip(-FAR, FAR)
        batch |= {"numbers": torch.from_numpy(standard).float(), "missing": torch.from_numpy(np.isnan(raw)).float()}
    if table.categories:
        first = np.cumsum([0, *(column.num_codes for column in table.categories[:-1])])
        batch |= {"codes": torch.from_numpy(tables.code_array(records, table) + first)}
    return batch


@on_any_runtime
def outputs(net: nn.Module, batch: Batch) -> Outputs:
    """One place per record: values (B, 1, D), logits or the number in its own unit."""
    values = net(batch).unsqueeze(1)
    return values, torch.ones_like(values[..., 0], dtype=torch.bool)


def loss(net: nn.Module, batch: Batch, player: str) -> tuple[Tensor, Tensor]:
    return tables.loss(outputs(net, batch)[0], batch)


def sample(net: nn.Module, table: Table, records: Sequence[Record],
           generators: Sequence[torch.Generator]) -> list[Record]:
    return tables.answered(lambda part: outputs(net, collate(part, table, []))[0], table, records)


def players(net: nn.Module) -> dict[str, nn.Module]:
    return {"net": net}


def blocks(net: nn.Module) -> dict[str, tuple[nn.Module, int]]:
    return {f"layers.{place}": (layer, -1) for place, layer in enumerate(net.layers)}


def tiny() -> dict:
    return {"width": 16, "layers": 2, "embedding": 4, "bins": 8, "dropout": 0.0}


FAMILY = Family(
    name="tabular", tag="tabular-classification", kind=tables.kind, claims=claims, read=read, write=write, start=start,
    adopt=adopt, like=like, fields=tables.fields, axis=tables.axis, collate=collate, loss=loss, outputs=outputs,
    sample=sample, score=tables.score, headline=tables.headline, players=players, blocks=blocks, tiny=tiny,
    toy=tables.toy)
