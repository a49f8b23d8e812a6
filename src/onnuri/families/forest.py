"""forest: boosted trees by LightGBM behind the same records as the table net. Grown by `start`, changed by nothing.

The folder holds config.json (the table) and model.txt, LightGBM's own text model in the columns' own units: it holds no
code and opens in LightGBM. The text is checked before LightGBM sees it: its parser ends the process on some faults.

Letters: B records, F columns, D labels (1 where the answer is a number).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import hub
from ..data import Record, Records
from ..errors import BadInput, BadSettings, Refusal, needs_extra
from ..family import Batch, Outputs, on_any_runtime
from . import forest_text, tables, tabular
from .tables import Table

MODEL_TYPE = "onnuri_forest"
DEFAULTS = {"rounds": 2000, "learning_rate": 0.05, "leaves": 31, "leaf_rows": 20, "column_share": 0.5, "patience": 50}
"""rounds: at most; leaf_rows: at least in a leaf; column_share: of the columns that each tree sees; patience: rounds
without gain on rows held out, after which growing stops."""

BOUNDS = {"rounds": (1, 100_000), "learning_rate": (1e-6, 1.0), "leaves": (2, 65_536), "leaf_rows": (1, 10**9),
          "column_share": (1e-6, 1.0), "patience": (1, 100_000)}
HELD_OUT = 0.1  # of the rows; they say how many rounds are best, then all the rows grow the forest
FEW = 500  # rows below which holding out says too little: the rounds are then at most FEW_ROUNDS
FEW_ROUNDS = 100
GROW = "a new one from the records: train --family forest --data D --out DIR"


class Forest(nn.Module):
    """The booster that LightGBM reads from `text`. No parameters: nothing in it follows a gradient. An empty text is a
    forest whose weights are not loaded."""

    def __init__(self, text: str, num_outputs: int):
        super().__init__()
        self.text, self.num_outputs = text, num_outputs
        self.booster = lightgbm().Booster(model_str=text) if text else None

    def __deepcopy__(self, memo: dict) -> "Forest":
        return Forest(self.text, self.num_outputs)

    def forward(self, batch: Batch) -> Tensor:
        """{columns (B, F)} -> (B, D): raw scores; the one score s of two labels as -s/2, s/2."""
        raw = self.booster.predict(batch["columns"].numpy(), raw_score=True, num_threads=torch.get_num_threads())
        scores = torch.from_numpy(raw).float().reshape(len(raw), -1)
        return torch.cat([-scores / 2, scores / 2], dim=1) if self.num_outputs == 2 else scores


def lightgbm() -> Any:
    """The package, imported when it is needed."""
    try:
        import lightgbm
    except ImportError:
        raise needs_extra("tabular", "lightgbm") from None
    return lightgbm


# ------------------------------------------------------------------------------------------------------------- folders

def claims(folder: Path) -> bool:
    return hub.peek(folder).get("model_type") == MODEL_TYPE


def read(folder: Path, empty: bool) -> tuple[nn.Module, Table]:
    table = hub.guarded(lambda path: tables.from_json(hub.read_json(path / "config.json")["table"]), folder)
    text = "" if empty else hub.guarded(lambda path: (path / "model.txt").read_text(encoding="utf-8"), folder)
    if not empty:
        try:
            forest_text.check(text, len(table.columns), table.num_outputs)
        except ValueError as error:
            raise BadInput(f"{folder / 'model.txt'} is damaged: {error}",
                           hint="fetch the folder again from where it came") from error
    return hub.guarded(lambda path: Forest(text, table.num_outputs).eval(), folder), table


def write(net: nn.Module, table: Table, folder: Path, weights: bool) -> None:
    hub.write_own(net, {"model_type": MODEL_TYPE, "table": tables.to_json(table)}, folder, weights=False)
    if weights:
        (folder / "model.txt").write_text(net.text, encoding="utf-8", newline="\n")


# -------------------------------------------------------------------------------------------------------------- making

def start(config: dict, records: Records, generator: torch.Generator) -> tuple[nn.Module, Table]:
    """Grows the forest: the rounds that are best on rows held out, then that many, and a tenth, on all the rows."""
    settings = hub.merged(DEFAULTS, config)
    if faults := tables.faults_of(settings, BOUNDS):
        raise BadSettings(*faults)
    table = tables.learn(records, 0)
    parts = [(column_array(part, table), tables.answer_tensors(part, table)["answer"].numpy())
             for begin in range(0, len(records), tables.CHUNK)
             for part in [records.list(slice(begin, begin + tables.CHUNK))]]
    columns, answers = (np.concatenate(arrays) for arrays in zip(*parts))
    return Forest(grow(columns, answers, table, settings, generator), table.num_outputs).eval(), table


def grow(columns: np.ndarray, answers: np.ndarray, table: Table, settings: dict, generator: torch.Generator) -> str:
    """columns (B, F), answers (B,) -> the text model."""
    parameters = parameters_of(table, settings, generator)
    places = [place for place, column in enumerate(table.columns) if column.kind == "category"]
    data = lightgbm().Dataset(columns, answers, categorical_feature=places, params=parameters, free_raw_data=False)
    if len(answers) < FEW:
        rounds = min(settings["rounds"], FEW_ROUNDS)
    else:
        rounds = best_rounds(data.construct(), parameters, settings, torch.randperm(len(answers), generator=generator))
    return lightgbm().train(parameters, data, rounds).model_to_string()


def parameters_of(table: Table, settings: dict, generator: torch.Generator) -> dict:
    """LightGBM's names. `deterministic` with `force_row_wise`: the same trees on any number of threads."""
    objective = {1: "regression", 2: "binary"}.get(table.num_outputs, "multiclass")
    return {"objective": objective, "num_class": table.num_outputs if objective == "multiclass" else 1,
            "learning_rate": settings["learning_rate"], "num_leaves": settings["leaves"],
            "min_data_in_leaf": settings["leaf_rows"], "feature_fraction": settings["column_share"],
            "seed": int(torch.randint(2**31, (1,), generator=generator)), "deterministic": True,
            "force_row_wise": True, "num_threads": torch.get_num_threads(), "verbosity": -1}


def best_rounds(data: Any, parameters: dict, settings: dict, order: Tensor) -> int:
    """The rounds that score best on a tenth of the rows, and a tenth more for the rows that the others lacked.
    `order` (B,) is a permutation of the rows."""
    held, kept = order.tensor_split([round(len(order) * HELD_OUT)])
    stop = lightgbm().early_stopping(settings["patience"], verbose=False)
    booster = lightgbm().train(parameters, data.subset(kept.sort().values.tolist()), settings["rounds"],
                               valid_sets=[data.subset(held.sort().values.tolist())], callbacks=[stop])
    return min(settings["rounds"], round(booster.best_iteration * (1 + HELD_OUT)))


def adopt(folder: Path, records: Records, generator: torch.Generator) -> tuple[nn.Module, Table]:
    raise Refusal("a forest has no body that could be kept under a new head", GROW)


def like(net: nn.Module, table: Table, scale: float, generator: torch.Generator) -> tuple[nn.Module, Table]:
    raise Refusal("a forest has no weights to draw anew: it grows from records", GROW)


# ----------------------------------------------------------------------------------------------------------- computing

def column_array(records: Sequence[Record], table: Table) -> np.ndarray:
    """(B, F) float64 in the order of the table: numbers in their own units, NaN where missing, and codes."""
    columns = np.empty((len(records), len(table.columns)))
    is_number = np.array([column.kind == "number" for column in table.columns])
    if table.numbers:
        columns[:, is_number] = tables.number_array(records, table)
    if table.categories:
        columns[:, ~is_number] = tables.code_array(records, table)
    return columns


def collate(records: Sequence[Record], table: Table, generators: Sequence[torch.Generator]) -> Batch:
    """{columns (B, F) float64} and the answer. Not the net's standard units: the thresholds in model.txt are compared
    with the columns' own numbers."""
    return {"columns": torch.from_numpy(column_array(records, table)), **tables.answer_tensors(records, table)}


@on_any_runtime
def outputs(net: nn.Module, batch: Batch) -> Outputs:
    """One place per record: values (B, 1, D), log odds or the number in its own unit."""
    values = net(batch).unsqueeze(1)
    return values, torch.ones_like(values[..., 0], dtype=torch.bool)


def loss(net: nn.Module, batch: Batch, player: str) -> tuple[Tensor, Tensor]:
    return tables.loss(outputs(net, batch)[0], batch)


def sample(net: nn.Module, table: Table, records: Sequence[Record],
           generators: Sequence[torch.Generator]) -> list[Record]:
    return tables.answered(lambda part: outputs(net, collate(part, table, []))[0], table, records)


def players(net: nn.Module) -> dict[str, nn.Module]:
    return {}


def blocks(net: nn.Module) -> dict[str, tuple[nn.Module, int]]:
    return {}


def tiny() -> dict:
    return {"rounds": 20, "leaves": 8, "leaf_rows": 3}


FAMILY = replace(tabular.FAMILY, name="forest", claims=claims, read=read, write=write, start=start, adopt=adopt,
                 like=like, collate=collate, outputs=outputs, loss=loss, sample=sample, players=players, blocks=blocks,
                 tiny=tiny)
