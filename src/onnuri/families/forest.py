"""forest: trees boosted by LightGBM, on the records of the table net. `start` grows it, nothing trains it.

The folder holds config.json (the table) and model.txt, LightGBM's text model in the columns' own units: it
holds no code and opens in LightGBM. `forest_text.py` checks it first. `tables.py` is the table net's too.

Letters: B records, F columns, D labels (1 where the answer is a number).
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from .. import hub
from ..data import Record, Records
from ..errors import BadInput, Refusal, needs_extra
from ..family import Batch, of_one_length, one_a_row, undivided
from . import forest_text, sizes, tables, tabular
from .tables import Table

MODEL_TYPE = "onnuri_forest"
DEFAULTS = {"rounds": 2000, "learning_rate": 0.05, "leaves": 31, "leaf_rows": 20, "column_share": 0.5, "patience": 50}
"""rounds: at most; leaf_rows: at least in a leaf; column_share: of the columns that each tree sees; patience:
rounds without gain on the rows held out, after which growing stops."""

BOUNDS = {
    "rounds": (1, 100_000),
    "learning_rate": (1e-6, 1.0),
    "leaves": (2, 65_536),
    "leaf_rows": (1, 10**9),
    "column_share": (1e-6, 1.0),
    "patience": (1, 100_000),
}
HELD_OUT = 0.1  # of the rows: they say how many rounds are best, then all the rows grow the forest
FEW = 500  # rows below which a tenth of them says too little: the rounds are then at most FEW_ROUNDS
FEW_ROUNDS = 100
GROW = "grow a new one from records: train --family forest --data D --out DIR"


class Forest(nn.Module):
    """The booster that LightGBM reads from `text`; an empty text stands for weights that are not loaded.
    It has no parameters: nothing in it follows a gradient."""

    def __init__(self, text: str, num_outputs: int):
        super().__init__()
        self.text, self.num_outputs = text, num_outputs
        self.booster: Any = lightgbm().Booster(model_str=text) if text else None

    def __deepcopy__(self, memo: dict) -> "Forest":
        return Forest(self.text, self.num_outputs).train(self.training)

    def get_extra_state(self) -> str:
        """What stands for the weights, so that digests see it."""
        return self.text

    def forward(self, batch: Batch) -> Tensor:
        """{columns (B, F)} -> raw scores (B, D); the one score s of two labels as -s/2, s/2."""
        columns = batch["columns"]
        raw = self.booster.predict(columns.cpu().numpy(), raw_score=True, num_threads=torch.get_num_threads())
        scores = torch.from_numpy(raw).float().reshape(len(raw), -1).to(columns.device)
        return torch.cat([-scores / 2, scores / 2], dim=1) if self.num_outputs == 2 else scores


def lightgbm() -> Any:
    """The package, imported when it is needed."""
    try:
        import lightgbm
    except ImportError:
        raise needs_extra("tabular", "lightgbm") from None
    return lightgbm


# ---------------------------------------------------------------------------------------------------- folders


def claims(folder: Path) -> bool:
    return hub.peek(folder).get("model_type") == MODEL_TYPE


def read(folder: Path, empty: bool) -> tuple[nn.Module, Table]:
    table = hub.guarded(lambda path: tables.from_json(hub.read_json(path / "config.json")["table"]), folder)
    net = Forest("", table.num_outputs) if empty else grown(folder / "model.txt", table)
    return net.eval(), table


def grown(path: Path, table: Table) -> Forest:
    """The forest in a text model; BadInput unless it is whole and fits the table."""
    try:
        text = forest_text.checked(path.read_text(encoding="utf-8"), len(table.columns), table.num_outputs)
        return Forest(text, table.num_outputs)
    except (OSError, ValueError, lightgbm().basic.LightGBMError) as error:
        raise BadInput(f"{path} cannot be read: {error}", hint="fetch the folder again from where it came") from error


def write(net: nn.Module, table: Table, folder: Path, weights: bool) -> None:
    hub.write_own(net, {"model_type": MODEL_TYPE, "table": tables.to_json(table)}, folder, weights=False)
    if weights:
        (folder / "model.txt").write_text(cast(Forest, net).text, encoding="utf-8", newline="\n")


# ----------------------------------------------------------------------------------------------------- making


def configured(config: dict) -> dict:
    """See Family.configured."""
    return tables.configured(DEFAULTS, config, BOUNDS)


def start(config: dict, records: Records, generator: torch.Generator) -> tuple[nn.Module, Table]:
    """Grows the forest: the rounds that are best on rows held out, and a tenth more, on all the rows."""
    settings = configured(config)
    table = tables.learn(records, num_bins=0)
    batches = [
        collate(records.list(slice(begin, begin + tables.CHUNK)), table, [])
        for begin in range(0, len(records), tables.CHUNK)
    ]
    columns = np.concatenate([batch["columns"].numpy() for batch in batches])
    answers = np.concatenate([batch["labels" if table.labels else "answer"].numpy() for batch in batches])
    return Forest(grow(columns, answers, table, settings, generator), table.num_outputs).eval(), table


def grow(columns: np.ndarray, answers: np.ndarray, table: Table, settings: dict, generator: torch.Generator) -> str:
    """columns (B, F), answers (B,) -> the text model."""
    parameters = parameters_of(table, settings, generator)
    places = [place for place, column in enumerate(table.columns) if column.kind == "category"]
    data = lightgbm().Dataset(columns, answers, categorical_feature=places, params=parameters, free_raw_data=False)
    rounds = min(settings["rounds"], FEW_ROUNDS)
    if len(answers) >= FEW:
        order = torch.randperm(len(answers), generator=generator)
        rounds = best_rounds(data.construct(), parameters, settings, order)
    text = lightgbm().train(parameters, data, rounds).model_to_string()
    return forest_text.checked(text, len(table.columns), table.num_outputs)


def parameters_of(table: Table, settings: dict, generator: torch.Generator) -> dict:
    """LightGBM's names. `deterministic` with `force_row_wise`: the same trees on any number of threads."""
    objective = {1: "regression", 2: "binary"}.get(table.num_outputs, "multiclass")
    return {
        "objective": objective,
        "num_class": table.num_outputs if objective == "multiclass" else 1,
        "learning_rate": settings["learning_rate"],
        "num_leaves": settings["leaves"],
        "min_data_in_leaf": settings["leaf_rows"],
        "feature_fraction": settings["column_share"],
        "seed": int(torch.randint(2**31, (1,), generator=generator)),
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": torch.get_num_threads(),
        "verbosity": -1,
    }


def best_rounds(data: Any, parameters: dict, settings: dict, order: Tensor) -> int:
    """The rounds that score best on a tenth of the rows, and a tenth more for the rows that were held out.
    `order` (B,) is a permutation of the rows."""
    held, kept = (rows.sort().values.tolist() for rows in order.tensor_split([round(len(order) * HELD_OUT)]))
    stop = lightgbm().early_stopping(settings["patience"], verbose=False)
    booster = lightgbm().train(
        parameters, data.subset(kept), settings["rounds"], valid_sets=[data.subset(held)], callbacks=[stop]
    )
    return min(settings["rounds"], round(booster.best_iteration * (1 + HELD_OUT)))


def adopt(folder: Path, records: Records, generator: torch.Generator) -> tuple[nn.Module, Table]:
    raise Refusal("a forest has no body that could be kept under a new head", GROW)


def like(net: nn.Module, table: Table, scale: float, generator: torch.Generator) -> tuple[nn.Module, Table]:
    raise Refusal("a forest has no weights to draw anew: it grows from records", GROW)


# -------------------------------------------------------------------------------------------------- computing


def collate(records: Sequence[Record], table: Table, generators: Sequence[torch.Generator]) -> Batch:
    return questions(records, table) | tables.answer_tensors(records, table)


def questions(records: Sequence[Record], table: Table) -> Batch:
    """{columns (B, F) float64} in the order of the table: the codes of categories, and numbers in their own
    units, in which model.txt has its thresholds; NaN where missing."""
    columns = np.empty((len(records), len(table.columns)))
    is_number = np.array([column.kind == "number" for column in table.columns])
    if table.numbers:
        columns[:, is_number] = tables.number_array(records, table)
    if table.categories:
        columns[:, ~is_number] = tables.code_array(records, table)
    return {"columns": torch.from_numpy(columns)}


def encoding(table: Table) -> dict[str, dict]:
    """See Family.encoding: what `questions` does."""
    plain = {"as": "number", "mean": 0.0, "scale": 1.0, "limit": None, "missing": None}
    columns = [
        {"field": column.name, **plain} if column.kind == "number" else tables.code_of(column, 0)
        for column in table.columns
    ]
    return {"columns": {"type": "float64", "columns": columns}}


def sample(
    net: nn.Module, table: Table, records: Sequence[Record], generators: Sequence[torch.Generator]
) -> list[Record]:
    return tables.answered(lambda part: tabular.outputs(net, questions(part, table)), table, records)


def players(net: nn.Module) -> dict[str, nn.Module]:
    return {}


def blocks(net: nn.Module) -> dict[str, tuple[nn.Module, int]]:
    return {}


def keep(net: nn.Module, table: Table, names: Collection[str]) -> tuple[nn.Module, Table]:
    raise Refusal("a forest has no blocks in a row: its trees stand side by side", GROW)


def tiny() -> dict:
    return {"rounds": 20, "learning_rate": 0.2, "leaves": 8, "leaf_rows": 3}


FAMILY = replace(
    tabular.FAMILY,
    name="forest",
    claims=claims,
    read=read,
    write=write,
    configured=configured,
    start=start,
    adopt=adopt,
    like=like,
    collate=collate,
    pieces=undivided,
    packed=one_a_row(collate),
    lengths=of_one_length,
    encoding=encoding,
    sample=sample,
    players=players,
    blocks=blocks,
    keep=keep,
    sizes=sizes.none,
    tiny=tiny,
)
