"""Records: the same table is the same records in every format, and a batch can be cut anywhere."""

from functools import cache

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onnuri import registry
from onnuri.data import digest_of
from onnuri.model import Model
from onnuri.sources import open_data

FORMATS = {"csv": "write_csv", "parquet": "write_parquet", "jsonl": "write_ndjson"}
LETTERS = st.text(st.sampled_from("ab가é\"',;\n\t .-0"), max_size=6)
WORDS = st.none() | LETTERS.map(lambda text: f"x{text}")  # nothing that reads as a number, or as nothing
NUMBERS = st.none() | st.floats(-1e12, 1e12, allow_subnormal=False)
TABLES = st.lists(st.tuples(NUMBERS, WORDS, st.integers(-(2**53), 2**53)), min_size=1, max_size=30)
ROUNDING = 2e-5  # fp32 sums in another order, in units of the sum and of one


@settings(max_examples=60)
@given(TABLES)
def test_a_table_is_the_same_in_every_format(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("formats")
    schema = {"size": pl.Float64, "word": pl.String, "count": pl.Int64}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    if frame["size"].is_null().all() or frame["word"].is_null().all():
        return  # a text file cannot say what kind of value is missing
    found = {}
    for ending, write in FORMATS.items():
        getattr(frame, write)(folder / f"rows.{ending}")
        found[ending] = open_data(str(folder / f"rows.{ending}"))
    assert len({data.digest for data in found.values()}) == 1
    for data in found.values():
        assert [record["size"] for record in data.records] == [row[0] for row in rows]
        assert [digest_of(record) for record in data.records] == [digest_of(record) for record in found["csv"].records]
        assert data.records.fields == found["csv"].records.fields


@cache
def model_of(name: str) -> Model:
    family = registry.family(name)
    return Model(family, *family.start(family.tiny(), family.toy(40, 0), torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", [*registry.entries("families")])
@settings(max_examples=8)
@given(st.data())
def test_a_batch_can_be_cut_anywhere(name, data):
    """Each record's loss is its own: it depends on no other record of the batch, and its noise on its own key."""
    model = model_of(name)
    players = list(model.players)
    if not players:
        return  # a forest: nothing in it has a loss
    records = model.family.toy(40, 1).list()
    rows = data.draw(st.lists(st.integers(0, 39), min_size=2, max_size=8, unique=True))
    place = data.draw(st.integers(1, len(rows) - 1))
    whole = losses(model, players[0], records, rows)
    parts = [losses(model, players[0], records, part) for part in (rows[:place], rows[place:])]
    for one, other in zip(whole, (torch.cat(part) for part in zip(*parts))):
        assert torch.allclose(one, other, rtol=ROUNDING, atol=ROUNDING)


@torch.no_grad()
def losses(model: Model, player: str, records: list, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    batch = model.collate([records[row] for row in rows], seed=3, keys=rows)
    total, count = model.family.loss(model.net, batch, player)
    return total.float(), count.float()
