"""quantize against torch's own rounding, numpy, the definition of GPTQ step by step, and its identities."""

from itertools import pairwise, product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from onnuri import registry
from onnuri.data import records_of
from onnuri.errors import BadSettings, Refusal
from onnuri.model import Model, open_model, tensor_digest, write_model
from onnuri.operation import Quiet
from onnuri.operations.quantize import OPERATION, ROLES, Settings, apply
from onnuri.plan import settings_of
from onnuri.sources import open_data
from onnuri.weights import packed
from onnuri.weights.attach import computes_integers, pack, packed_weights
from onnuri.weights.awq import TOLERANCE, error_of, gap, groups_of, scale_columns
from onnuri.weights.calibration import factors, fitted_step, second_moments
from onnuri.weights.gptq import DAMPING, gptq
from onnuri.weights.matrices import weights
from onnuri.weights.packed import FORMATS, divided, nearest, scales, spread
from onnuri.weights.packed_file import tensor_bytes
from onnuri.weights.sensitivity import FLOAT, Choice, sensitivity, spent


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


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_decoded_numbers_are_kept_until_their_codes_change(scheme, monkeypatch):
    layer, x = torch.nn.Linear(64, 24, bias=False), torch.randn(5, 64)
    pack(weights(layer)[0], scheme)
    base, learnt = packed_weights(layer)["weight"][1], layer(x)
    assert base not in packed.KEPT, "a training decodes anew: what it holds was estimated so"
    with torch.no_grad():
        assert torch.equal(layer(x), learnt) and torch.equal(layer(x), learnt) and base in packed.KEPT
        base.scale.mul_(2)
        assert torch.equal(layer(x), 2 * learnt)
        base.codes = torch.zeros_like(base.codes)
        assert not torch.equal(layer(x), 2 * learnt)
        monkeypatch.setattr(packed, "DECODED", 24 * 64 * 4 - 1)
        packed.KEPT.clear()
        layer(x)
    assert not packed.KEPT


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"scheme": "bf16", "group": 32}, "no effect"),
        ({"scheme": "int8-dynamic", "group": 32}, "no effect"),
        ({"calibration": 5}, "no effect"),
        ({"budget": 0.3, "scheme": "int4"}, "no effect"),
        ({"scheme": "bf16", "method": "awq"}, "no effect"),
        ({"scheme": "int8-static", "group": 8}, "no effect"),
        ({"scheme": "bf16", "layout": "compressed-tensors"}, "one scheme"),
        ({"budget": 0.3, "layout": "compressed-tensors"}, "one scheme"),
        ({"embeddings": False, "layout": "compressed-tensors"}, "no effect"),
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
    assert torch.equal(scale, scales(matrix, form, 16))
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


WAYS = {
    "int4": {"scheme": "int4", "group": 4},
    "fp8-e4m3": {"scheme": "fp8-e4m3"},
    "bf16": {"scheme": "bf16"},
    "int4 gptq": {"scheme": "int4", "group": 4, "method": "gptq"},
    "int4 awq": {"scheme": "int4", "group": 4, "method": "awq", "calibration": 16},
    "int4 awq-gptq": {"scheme": "int4", "group": 4, "method": "awq-gptq", "calibration": 16},
    "int8-static": {"scheme": "int8-static", "calibration": 16},
    "budget": {"budget": 0.45, "group": 4, "calibration": 16},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [name for name in registry.entries("families") if name != "forest"])
def test_every_family_keeps_the_promises_of_every_scheme(name, way, tmp_path):
    model, data = started(name)
    settings = Settings(**WAYS[way])
    result = apply(settings, Quiet(), model, data)
    inputs = {"model": started(name)[0], "data": data}
    values = {promise.text: promise.measure(settings, inputs, result) for promise in OPERATION.promises}
    for promise in OPERATION.promises:
        value = values[promise.text]
        assert value is None or value <= promise.bound, values
    schemes = {base.scheme for _, base in packed_weights(result.model.net).values()}
    assert settings.scheme in schemes or settings.budget or not seen_layers(name)
    write_model(result.model, tmp_path)
    assert tensor_digest(open_model(tmp_path).net) == tensor_digest(result.model.net)


def seen_layers(name: str) -> bool:
    """Whether any layer of a new model of this family can round its input."""
    return any(computes_integers(weight) for weight in weights(started(name)[0].net, "linear", "conv"))


# ----------------------------------------------------------------------------------------- sensitivity, and the budget


def every_way(choices: dict[str, list[Choice]]):
    for taken in product(*choices.values()):
        yield sum(one.bytes for one in taken), sum(one.error for one in taken)


@pytest.mark.parametrize("seed", range(20))
def test_a_budget_is_met_within_a_step_of_the_best_of_all_ways(seed):
    draw = np.random.default_rng(seed)
    choices = {
        str(n): [
            Choice("int4", int(size), float(e) * 8),
            Choice("int8", 2 * int(size), float(e)),
            Choice(FLOAT, 8 * int(size), 0.0),
        ]
        for n, (size, e) in enumerate(zip(draw.integers(10, 100, 5), draw.exponential(size=5)))
    }
    ways = list(every_way(choices))
    for budget in np.linspace(min(size for size, _ in ways), max(size for size, _ in ways), 9):
        taken = spent(choices, budget)
        assert taken is not None and sum(one.bytes for one in taken.values()) <= budget
        best = min(error for size, error in ways if size <= budget)
        step = max(low.error - high.error for options in choices.values() for low, high in pairwise(options))
        found = sum(one.error for one in taken.values())
        assert best - 1e-12 <= found <= best + step
    assert spent(choices, min(size for size, _ in ways) - 1) is None
    assert sum(one.error for one in spent(choices, max(size for size, _ in ways)).values()) == 0


def test_what_is_no_better_for_more_bytes_is_never_taken():
    worse = {"a": [Choice("int4", 1, 0.5), Choice("int8", 2, 0.5), Choice("bf16", 4, 0.9), Choice(FLOAT, 8, 0.0)]}
    assert spent(worse, 7)["a"].scheme == "int4" and spent(worse, 8)["a"].scheme == FLOAT


def test_sensitivity_is_the_divergence_of_the_net_with_that_matrix_rounded():
    """Against torch's own divergence of a net that was changed by hand; the net itself is left as it was."""
    model, data = started("causal_lm")
    found, records = weights(model.net, *ROLES), data.records[:8]
    before = tensor_digest(model.net)
    costs = sensitivity(model, records, {w.name: (w, [("int4", 0), ("bf16", 0)]) for w in found[:4]}, lambda done: None)
    assert tensor_digest(model.net) == before
    batch = model.collate(records.list())
    values, mask = model.outputs(batch)
    changed, _ = started("causal_lm")
    for weight in weights(changed.net, *ROLES)[:4]:
        original = weight.value.detach().clone()
        codes, scale = nearest(weight.matrix, FORMATS["int4"], 0)
        with torch.no_grad():
            weight.value.copy_(weight.view.tensor(codes * scale, original.shape))
            p, q = (one[mask.bool()].double().log_softmax(-1) for one in (values, changed.outputs(batch)[0]))
            weight.value.copy_(original)
        expected = float(torch.nn.functional.kl_div(q, p, reduction="batchmean", log_target=True))
        known = {choice.scheme: choice for choice in costs[weight.name]}
        assert known["int4"].error == pytest.approx(expected, rel=1e-3, abs=1e-10)
        assert known["bf16"].error < known["int4"].error and known[FLOAT].error == 0
        assert known["int4"].bytes == original.numel() // 2 + 4 * weight.matrix.shape[1]


def test_a_budget_is_spent_as_it_says_and_shown():
    model, data = started("causal_lm")
    whole = tensor_bytes(model.net)
    result = apply(Settings(budget=0.4, group=4, calibration=16), Quiet(), model, data)
    assert tensor_bytes(result.model.net) <= 0.4 * whole
    packed = packed_weights(result.model.net)
    assert len({base.scheme for _, base in packed.values()}) > 1, "matrices differ, and so do their formats"
    bits = result.bars["bits for each number"]
    for name, (_, base) in packed.items():
        assert bits[name] == pytest.approx(8 * (base.codes.nbytes + base.scale.nbytes) / base.shape.numel())
    assert any("int4" in title for title in result.bars) and any("cfloat8-1-4-3" in title for title in result.bars)


def test_a_budget_that_nothing_can_meet_says_what_comes_closest():
    model, data = started("causal_lm")
    with pytest.raises(BadSettings, match="comes closest") as raised:
        apply(Settings(budget=0.05, group=4, calibration=16), Quiet(), model, data)
    closest = float(raised.value.hint.split()[1].rstrip(","))
    model, data = started("causal_lm")
    result = apply(Settings(budget=closest, group=4, calibration=16), Quiet(), model, data)
    assert {base.form.bits for _, base in packed_weights(result.model.net).values()} <= {4, 8}


# ------------------------------------------------------------------------------------------------------------------ awq


@pytest.mark.parametrize(
    ("name", "least"), [("causal_lm", 8), ("image_classifier", 1), ("text_classifier", 0), ("tabular", 1), ("gan", 0)]
)
def test_folding_leaves_every_output_as_it_is(name, least):
    """Found by watching: two layers of a Llama have four groups each."""
    model, data = started(name)
    batch = model.collate(data.records[:8].list())
    before, digest = model.outputs(batch)[0], tensor_digest(model.net)

    def coarse(weight, matrix, moments):
        codes, scale = nearest(matrix, FORMATS["int4"], 0)
        return codes * scale

    scaled = scale_columns(model, weights(model.net, "linear", "conv"), data.records[:32], coarse, lambda *_: None)
    assert scaled >= least and (scaled == 0) == (tensor_digest(model.net) == digest)
    assert gap(model.outputs(batch)[0], before) <= TOLERANCE


def test_a_layer_that_others_read_as_well_is_not_folded():
    """The first norm feeds a linear layer and a sum around it: scaling it would change the sum."""

    class Residual(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.inner, self.out = torch.nn.LayerNorm(8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 3)

        def forward(self, x):
            x = self.norm(x)
            return self.out(torch.relu(x + self.inner(x)))

    torch.manual_seed(0)
    net, x = Residual(), torch.randn(6, 8)
    model = SimpleNamespace(net=net, outputs=lambda batch: (net(batch), None))
    assert list(groups_of(model, weights(net), x, net(x).detach())) == []
    net.forward = lambda x: net.out(torch.relu(net.inner(net.norm(x))))
    groups = list(groups_of(model, weights(net), x, net(x).detach()))
    assert [(group.members[0][0].name, group.feeder) for group in groups] == [
        ("inner.weight", net.norm),
        ("out.weight", net.inner),
    ], "a rectifier lets positive scales through"


def test_the_error_of_a_scale_is_that_of_the_products():
    x, matrix = inputs_seen(), matrices()
    layer = torch.nn.Linear(64, 24)
    layer.weight = torch.nn.Parameter(matrix[0].clone(), requires_grad=False)
    scale = torch.linspace(0.5, 2, 64)

    def coarse(weight, scaled, moments):
        codes, steps = nearest(scaled, FORMATS["int4"], 16)
        return codes * spread(steps, 64)

    found = error_of(weights(layer)[0], x.T @ x / len(x), scale, coarse)
    rounded = coarse(None, matrix * scale, None)[0]
    exact = ((x / scale) @ rounded.T - x @ matrix[0].T).square().sum(1).mean()
    assert found == pytest.approx(float(exact), rel=1e-4)


# --------------------------------------------------------------------------------------------------------------- static


@pytest.mark.parametrize("stride", [1, 2])
def test_a_static_convolution_is_that_of_its_rounded_input_and_matrix(stride):
    torch.manual_seed(0)
    layer, x = torch.nn.Conv2d(3, 5, 3, stride=stride, padding=1, dilation=1), torch.randn(2, 3, 9, 7)
    step = torch.tensor(0.02)
    pack(weights(layer)[0], "int8-static", input_scale=step)
    codes = (x / step).round().clamp(-128, 127)
    exact = torch.nn.functional.conv2d(codes * step, layer.weight, layer.bias, stride, 1)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), exact, rtol=1e-5, atol=1e-5)
        assert float((layer(x) - torch.nn.functional.conv2d(x, layer.weight, layer.bias, stride, 1)).abs().max()) > 1e-3
    x.requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None, "where a gradient is asked for, nothing is rounded"


def test_a_fitted_step_is_the_best_of_a_fine_grid():
    sizes = torch.randn(4000, generator=torch.Generator().manual_seed(0)).abs() ** 3

    def error(step):
        return float(((sizes / step).round().clamp_max(7) * step - sizes).square().sum())

    widest = float(sizes.max()) / 7
    grid = [widest * share for share in np.linspace(0.05, 1, 400)]
    assert error(fitted_step(sizes, 7.0)) <= 1.02 * min(map(error, grid)) and error(fitted_step(sizes, 7.0)) < error(
        widest
    )


def test_records_beyond_the_calibrated_range_are_warned_of_and_shown():
    rows = [{"a": float(n % 7), "b": float(n % 5), "kind": "xy"[n % 2]} for n in range(200)]
    family = registry.family("tabular")
    far = [row | {"a": 40 * row["a"] + 50} for row in rows[:60]]
    near, away = (splits(rows[60:], test) for test in (rows[:60], far))
    for data, count in ((near, 0), (away, 1)):
        model = Model(family, *family.start(family.tiny(), data.split("train"), torch.Generator().manual_seed(0)))
        log = Quiet()
        result = apply(Settings(scheme="int8-static"), log, model, data)
        assert len([text for text in log.warnings if "beyond their range" in text]) == count
        shares = next(iter(result.bars.values()))
        assert (max(shares.values()) > 0.05) == bool(count)


def splits(train: list[dict], test: list[dict]):
    """Data whose splits are these records."""
    fields = {"a": "number", "b": "number", "kind": "category"}
    known = {name: records_of(rows, fields, "kind") for name, rows in (("train", train), ("test", test))}
    return SimpleNamespace(split=known.__getitem__, records=known["train"])


def test_static_ranges_of_every_layer_are_stored_with_it():
    model, data = started("image_classifier")
    able = {weight.name for weight in weights(model.net, *ROLES) if computes_integers(weight)}
    packed = packed_weights(apply(Settings(scheme="int8-static"), Quiet(), model, data).model.net)
    assert able == {name for name, (_, base) in packed.items() if base.input_scale is not None}
    assert able == {name for name, (_, base) in packed.items() if base.scheme == "int8-static"} != set()
