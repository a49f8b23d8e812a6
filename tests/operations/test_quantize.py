"""quantize against torch's own per-channel rounding, and its identities."""

import pytest
import torch

from onnuri import registry
from onnuri.attach import packed_weights
from onnuri.errors import Refusal
from onnuri.model import Model
from onnuri.operation import Quiet
from onnuri.operations.quantize import OPERATION, Settings, apply
from onnuri.sources import open_data
from onnuri.weights import weights


def started(name: str):
    data, family = open_data(f"toy:{name}"), registry.family(name)
    return Model(family, *family.start(family.tiny(), data.records, torch.Generator().manual_seed(0))), data


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_codes_equal_torch_per_channel():
    model, data = started("tabular")
    floats = {weight.name: weight.matrix.clone() for weight in weights(model.net)}
    result = apply(Settings(), Quiet(), model, data)
    for name, (_, base) in packed_weights(result.model.net).items():
        matrix, scale = floats[name][0], base.scale[0, :, 0]
        codes = torch.quantize_per_channel(matrix, scale.double(), torch.zeros(len(scale)), 0, torch.qint8).int_repr()
        off = (codes.int() - base.view.matrix(base.codes)[0].int()).abs()
        assert int(off.max()) <= 1 and float((off > 0).float().mean()) < 1e-3, "ties may round either way"


def test_a_second_packing_is_refused():
    model, data = started("tabular")
    once = apply(Settings(), Quiet(), model, data).model
    with pytest.raises(Refusal, match="packed as integers"):
        apply(Settings(), Quiet(), once, data)


def test_embeddings_stay_float_on_request():
    model, data = started("causal_lm")
    tables = {weight.name for weight in weights(model.net, "embedding")}
    packed = packed_weights(apply(Settings(embeddings=False), Quiet(), model, data).model.net)
    assert tables and not tables & packed.keys()


def test_the_rounding_promise_can_be_broken():
    model, data = started("tabular")
    original, _ = started("tabular")
    result = apply(Settings(), Quiet(), model, data)
    rounding = OPERATION.promises[0]
    assert rounding.measure(Settings(), {"model": original}, result) <= rounding.bound
    next(iter(packed_weights(result.model.net).values()))[1].codes.add_(1)
    assert rounding.measure(Settings(), {"model": original}, result) > rounding.bound
