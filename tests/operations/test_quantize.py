"""quantize against torch's own rounding, numpy, the definition of GPTQ step by step, and its identities."""

import numpy as np
import pytest
import torch

from onnuri import registry
from onnuri.attach import pack, packed_weights
from onnuri.calibration import factors, second_moments
from onnuri.errors import BadSettings, Refusal
from onnuri.gptq import DAMPING, fitted_scales, gptq
from onnuri.model import Model
from onnuri.operation import Quiet
from onnuri.operations.quantize import OPERATION, Settings, apply
from onnuri.packed import FORMATS, divided, nearest, spread
from onnuri.plan import settings_of
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
        off = (codes.int() - base.codes[0].int()).abs()
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


# ------------------------------------------------------------------------------------------------------------- formats


def matrices(seed: int = 0, units: int = 1, rows: int = 24, columns: int = 64) -> torch.Tensor:
    return torch.randn(units, rows, columns, generator=torch.Generator().manual_seed(seed))


def test_four_bits_are_those_of_the_formula():
    matrix = matrices(units=2)
    codes, scale = nearest(matrix, FORMATS["int4"], 16)
    groups = matrix.double().numpy().reshape(2, 24, 4, 16)
    step = np.abs(groups).max(-1, keepdims=True) / 7.5
    expected = np.clip(np.round(groups / step), -8, 7)
    assert np.allclose(scale.numpy(), step[..., 0], rtol=1e-6)
    same = codes.numpy().reshape(expected.shape) == expected
    assert same[np.abs(groups / step) < 7.49].all(), "what is largest lies between 7 and 8, and may go either way"


@pytest.mark.parametrize(("scheme", "kind"), [("fp8-e4m3", torch.float8_e4m3fn), ("fp8-e5m2", torch.float8_e5m2)])
def test_eight_bit_floats_are_torchs_and_fill_their_range(scheme, kind):
    matrix = matrices()
    codes, scale = nearest(matrix, FORMATS[scheme], 0)
    assert torch.equal(codes, (matrix / scale).to(kind).float()) and codes.isfinite().all()
    assert torch.allclose(codes.abs().amax(2), torch.tensor(torch.finfo(kind).max))


@pytest.mark.parametrize("scheme", FORMATS)
@pytest.mark.parametrize("group", [0, 16])
def test_what_is_stored_is_what_was_rounded(scheme, group):
    form, matrix = FORMATS[scheme], matrices(units=3)
    codes, scale = nearest(matrix, form, 0 if scheme == "bf16" else group)
    stored = form.stored(codes)
    assert torch.equal(form.codes(stored), codes) and stored.nbytes == codes.numel() * form.bits // 8
    error = (codes - matrix / spread(scale, 64)).abs() / form.step(codes)
    assert error.max() <= 0.5 + 1e-5 or form.digits is not None
    assert error.max() <= 1, "a float code's neighbor below lies at half its distance where the exponent changes"


@pytest.mark.parametrize("scheme", ["int8", "int4", "fp8-e4m3", "bf16"])
def test_products_and_rows_are_those_of_the_numbers(scheme):
    layer, table, x = torch.nn.Linear(64, 24), torch.nn.Embedding(24, 64), torch.randn(5, 64)
    for module in (layer, table):
        pack(weights(module)[0], scheme, 16 if scheme == "int4" else 0)
    exact = torch.nn.functional.linear(x, weights(layer)[0].value, layer.bias)
    torch.testing.assert_close(layer(x), exact, rtol=1e-5, atol=1e-5)
    places = torch.tensor([[3, 0], [23, 3]])
    torch.testing.assert_close(table(places), weights(table)[0].value[places], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"scheme": "bf16", "group": 32}, "no effect"),
        ({"scheme": "int8-dynamic", "group": 32}, "no effect"),
        ({"calibration": 5}, "no effect"),
        ({"scheme": "int3"}, "scheme"),
    ],
)
def test_settings_without_effect_are_refused(given, told):
    with pytest.raises(BadSettings, match=told):
        settings_of(OPERATION, given)


def test_columns_that_a_group_does_not_divide():
    model, data = started("tabular")
    with pytest.raises(BadSettings, match="no matrix"):
        apply(Settings(scheme="int4", group=7919), Quiet(), model, data)
    log = Quiet()
    columns = {weight.name: weight.matrix.shape[2] for weight in weights(model.net)}
    assert len({count % 16 == 0 for count in columns.values()}) == 2
    packed = packed_weights(apply(Settings(scheme="int4", group=16), log, model, data).model.net)
    assert {name: base.scheme for name, (_, base) in packed.items()} == {
        name: "int8" if columns[name] % 16 else "int4" for name in packed
    }
    assert "are int8" in log.warnings[0]


def test_an_odd_number_of_columns_does_not_fill_bytes():
    assert not divided((1, 4, 9), "int4", 3) and divided((1, 4, 6), "int4", 3)


# ----------------------------------------------------------------------------------------------------------------- gptq


def inputs_seen(columns: int = 64, seed: int = 1) -> torch.Tensor:
    """Inputs of a product, some columns much alike and some much larger."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(400, columns // 4, generator=draw) @ torch.randn(columns // 4, columns, generator=draw) + (
        0.1 * torch.randn(400, columns, generator=draw) * torch.linspace(0.1, 5, columns)
    )


def step_by_step(matrix: torch.Tensor, scale: torch.Tensor, moments: torch.Tensor, form) -> torch.Tensor:
    """The definition: after each column the best of all that are left, by the inverse of what is left of the moments."""
    numbers, codes, columns = matrix[0].double().clone(), torch.zeros_like(matrix[0]), matrix.shape[2]
    steps = spread(scale, columns).expand_as(matrix)[0].double()
    damped = moments.double() + DAMPING * moments.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    left = moments.diagonal().argsort(descending=True).tolist()
    while left:
        inverse, place = torch.linalg.inv(damped[left][:, left]), left[0]
        codes[:, place] = form.nearest((numbers[:, place] / steps[:, place]).float())
        error = numbers[:, place] - codes[:, place] * steps[:, place]
        numbers[:, left] -= error[:, None] * inverse[0] / inverse[0, 0]
        left = left[1:]
    return codes[None]


@pytest.mark.parametrize("columns", [32, 160])
def test_gptq_is_its_definition(columns):
    x, matrix, form = inputs_seen(columns), matrices(columns=columns), FORMATS["int4"]
    moments = x.T @ x / len(x)
    codes, scale = gptq(matrix, form, 16, moments)
    expected = step_by_step(matrix, scale, moments, form)
    assert (codes != expected).float().mean() < 0.01, "single and double precision may round a tie either way"


def test_gptq_on_inputs_without_a_pattern_is_rounding_to_the_nearest():
    matrix, form = matrices(), FORMATS["int4"]
    codes, scale = gptq(matrix, form, 16, torch.eye(64))
    assert torch.equal(scale, fitted_scales(matrix, form, 16, torch.ones(64)))
    assert torch.equal(codes, form.nearest(matrix / spread(scale, 64)))


def test_gptq_changes_a_product_less_than_rounding_to_the_nearest():
    x, matrix, form = inputs_seen(), matrices(), FORMATS["int4"]

    def off(codes, scale):
        return float((x @ (codes * spread(scale, 64) - matrix)[0].T).norm() / (x @ matrix[0].T).norm())

    assert off(*gptq(matrix, form, 16, x.T @ x / len(x))) < 0.5 * off(*nearest(matrix, form, 16))


def test_what_a_convolution_is_multiplied_with():
    """Its product with the vectors that were seen is its own result."""
    layer, x = torch.nn.Conv2d(3, 5, 3, stride=2, padding=1, dilation=2, bias=False), torch.randn(2, 3, 9, 7)
    rows = factors(layer, x)
    products = rows @ weights(layer)[0].matrix[0].T
    torch.testing.assert_close(products, layer(x).flatten(2).transpose(1, 2).flatten(0, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["causal_lm", "image_classifier"])
def test_gptq_of_a_model_packs_every_matrix(name):
    model, data = started(name)
    moments = second_moments(model, data.records[:8], weights(model.net))
    assert len(moments) > len(model.blocks), "convolutions and linear layers alike"
    result = apply(Settings(scheme="int8", method="gptq", calibration=8), log := Quiet(), model, data)
    assert "8 records are few" in log.warnings[0]
    assert packed_weights(result.model.net).keys() == {weight.name for weight in weights(started(name)[0].net)}
    assert OPERATION.promises[0].measure(Settings(method="gptq"), {}, result) is None


@pytest.mark.parametrize("scheme", ["int4", "fp8-e4m3", "bf16", "int4 gptq"])
@pytest.mark.parametrize("name", [name for name in registry.entries("families") if name != "forest"])
def test_every_family_keeps_the_promises_of_every_scheme(name, scheme):
    model, data = started(name)
    scheme, _, method = scheme.partition(" ")
    settings = Settings(scheme=scheme, method=method or "nearest", group=4 if scheme == "int4" else 0)
    result = apply(settings, Quiet(), model, data)
    inputs = {"model": started(name)[0], "data": data}
    values = {promise.text: promise.measure(settings, inputs, result) for promise in OPERATION.promises}
    for promise in OPERATION.promises:
        value = values[promise.text]
        assert value is None or value <= promise.bound, values
    assert any(base.scheme == scheme for _, base in packed_weights(result.model.net).values())
