"""Which blocks stay, and that they stay as they were."""

from dataclasses import replace

import pytest
import torch
from onnuri_slice import OPERATION, Settings, named

from onnuri import registry
from onnuri.blocks import even
from onnuri.data import Data
from onnuri.errors import BadSettings, Refusal
from onnuri.model import Model
from onnuri.operation import Quiet

ROW = [f"layers.{number}" for number in range(8)]


def table(layers: int) -> tuple[Model, Data]:
    family = registry.family("tabular")
    records = family.toy(40, 0)
    made = family.start(family.tiny() | {"layers": layers}, records, torch.Generator().manual_seed(0))
    return Model(family, *made), records


def numbers(names: list[str]) -> list[int]:
    return [int(name.rpartition(".")[2]) for name in names]


def test_blocks_are_spaced_evenly_between_the_first_and_the_last():
    assert numbers(even(ROW, 0.5)) == [0, 2, 5, 7]
    assert numbers(even(ROW, 0.25)) == [0, 7] and numbers(even(ROW, 0.01)) == [0]
    assert all(len(set(even(ROW[:n], share))) == max(1, round(share * n)) for n in (2, 5, 8) for share in (0.3, 0.7))


def test_blocks_are_chosen_by_number_range_and_name():
    assert numbers(named("0-2, 7", ROW)) == [0, 1, 2, 7]
    assert numbers(named("layers.3,0", ROW)) == [0, 3]
    assert named("1", ["embed", *ROW]) == ["embed", "layers.1"]
    assert named("b.0-b.1", ["a.0", "a.1", "b.0", "b.1"]) == ["b.0", "b.1"]


@pytest.mark.parametrize("blocks", ("8", "0-9", "layer.3", "", "0,,1", "3-"))
def test_what_cannot_be_chosen_is_said(blocks):
    with pytest.raises(BadSettings, match="there is no block"):
        named(blocks, ROW)
    with pytest.raises(Refusal, match="no row of blocks"):
        named(blocks, ["embed", "layers.0"])


def test_a_row_whose_blocks_differ_in_shape_refuses():
    family = registry.family("image_classifier")
    records = family.toy(40, 0)
    made = family.start(family.tiny() | {"depth": 3}, records, torch.Generator().manual_seed(0))
    with pytest.raises(Refusal, match="no block of this design can be left out"):
        OPERATION.apply(Settings(keep=0.5), Quiet(), Model(family, *made), records)


def test_a_setting_without_effect_is_an_error():
    model, data = table(2)
    with pytest.raises(BadSettings, match="no effect"):
        OPERATION.apply(Settings(blocks="0", keep=0.5), Quiet(), model, data)
    for settings in (Settings(blocks="0-1"), Settings(keep=0.9)):
        with pytest.raises(BadSettings, match="nothing would change"):
            OPERATION.apply(settings, Quiet(), model, data)


def test_the_promises_are_kept_and_can_be_broken():
    model, data = table(4)
    result = OPERATION.apply(Settings(keep=0.5), Quiet(), model, data)
    found = [promise.measure(Settings(keep=0.5), {"model": model}, result) for promise in OPERATION.promises]
    assert found == [0, 0] and len(result.model.blocks) == 2
    with torch.no_grad():
        result.model.net.layers[1].up.weight[0, 0] += 1
    assert OPERATION.promises[1].measure(Settings(keep=0.5), {"model": model}, result) == 1
    assert OPERATION.promises[0].measure(Settings(keep=0.5), {"model": model}, replace(result, model=model)) == 2
