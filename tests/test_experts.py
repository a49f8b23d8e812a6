"""The load of a mixture's experts: seen in any design, evened out by a term that is a sum over texts."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from onnuri.errors import BadSettings
from onnuri.families import packing, vocabulary
from onnuri.families.causal_lm import FAMILY as LM
from onnuri.families.causal_lm import with_tokenizer
from onnuri.fit import doctor, experts
from onnuri.fit.loop import FitSettings, fit
from onnuri.fit.objective import objective_of
from onnuri.model import Model
from onnuri.operation import Quiet

MOST = 32
HUB = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MOST,
    "num_experts_per_tok": 2,
}
DESIGNS = {
    "mixtral": {**HUB, "num_local_experts": 4},
    "qwen3_moe": {**HUB, "num_experts": 4, "head_dim": 8, "decoder_sparse_step": 1},
    "olmoe": {**HUB, "num_experts": 4},
    "gpt_oss": {**HUB, "num_local_experts": 8, "head_dim": 8, "sliding_window": 8},
    "deepseek_v3": {
        **HUB,
        "num_key_value_heads": 4,
        "n_routed_experts": 8,
        "first_k_dense_replace": 0,
        "n_group": 2,
        "topk_group": 1,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
    },
}
RECORDS = LM.toy(24, 0)


def made(design: str) -> Model:
    words = vocabulary.learnt((record["text"] for record in LM.toy(50, 0)), vocabulary.WRITTEN, 300, MOST)
    torch.manual_seed(1)
    config = AutoConfig.for_model(design, **DESIGNS[design], vocab_size=len(words), eos_token_id=0, pad_token_id=1)
    net = AutoModelForCausalLM.from_config(config).eval()
    for weight in experts.weights(net, "raw"):  # routers that begin with zeros ask all alike
        torch.nn.init.normal_(weight.value.data, std=0.5)
    noted = {"answer": "text", "prompt": "", "max_length": MOST, "max_new_tokens": 4}
    return Model(LM, net, with_tokenizer(net, words, noted))


def loss_of(model: Model):
    return lambda batch, player: LM.loss(model.net, batch, player)


def term(model: Model, batch: dict) -> torch.Tensor:
    """The balance of each row, times its tokens."""
    loss = loss_of(model)
    return experts.balanced(model.net, loss, 1.0)(batch, "net")[0] - loss(batch, "net")[0]


@pytest.mark.parametrize("design", DESIGNS)
def test_the_term_is_a_sum_over_texts_however_they_are_laid_out(design):
    model = made(design)
    rows = RECORDS.list()
    alone = torch.cat([term(model, LM.collate([row], model.assets, [])) for row in rows]).detach()
    padded = term(model, LM.collate(rows, model.assets, [])).detach()
    batch = LM.packed(model.net, model.assets)(rows, model.assets, [])
    assert (
        len(batch["input_ids"]) < len(rows) or design == "gpt_oss"
    )  # whose texts do not stay apart in transformers 5.23
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-4)  # it is what is left of two losses of hundreds
    torch.testing.assert_close(term(model, batch).sum().detach(), alone.sum(), rtol=1e-4, atol=1e-3)


def test_the_term_is_that_of_the_paper():
    model = made("mixtral")
    (row,) = RECORDS.list(slice(0, 1))
    batch = LM.collate([row], model.assets, [])
    said, layers = [], model.net.model.layers
    hook = lambda _, __, out: said.append([each.detach() for each in out])  # noqa: E731
    handles = [layer.mlp.gate.register_forward_hook(hook) for layer in layers]
    found = term(model, batch)
    for handle in handles:
        handle.remove()
    places = batch["input_ids"].shape[1]
    wanted = []
    for logits, _, chosen in said[:2]:
        f = torch.tensor([float((chosen == i).sum()) for i in range(4)]) * 4 / (2 * places)
        wanted.append(float((f * logits.softmax(1).mean(0)).sum()) * places)
    assert float(found.detach()) == pytest.approx(sum(wanted) / 2, rel=1e-4)
    found.sum().backward()
    assert all(layer.mlp.gate.weight.grad.abs().sum() > 0 for layer in model.net.model.layers)


def test_an_even_load_costs_one_for_each_token():
    model = made("mixtral")
    for layer in model.net.model.layers:
        layer.mlp.gate.weight.data.zero_()
    with torch.no_grad():  # all affinities are the same, whichever experts are taken
        found = term(model, LM.collate(RECORDS.list(slice(0, 1)), model.assets, []))
    places = LM.collate(RECORDS.list(slice(0, 1)), model.assets, [])["input_ids"].shape[1]
    assert float(found) == pytest.approx(places, rel=1e-4)


def skewed(seed: int = 0) -> Model:
    """A new mixture whose routers all prefer two of eight experts."""
    records = LM.toy(200, 0)
    model = Model(LM, *LM.start(LM.tiny() | {"experts": 8}, records, torch.Generator().manual_seed(seed)))
    for layer in model.net.model.layers:
        gate, norm = layer.mlp.gate, layer.post_attention_layernorm
        gate.weight.data[:2] += 0.5 * torch.sign(torch.randn(32, generator=torch.Generator().manual_seed(1)))
        norm.weight.data.fill_(1)
        gate.weight.data[:2] *= 2
    return model


def trained(balance: float) -> tuple[float, dict[str, float], dict]:
    """(loss without the term, share of each expert, findings)."""
    model, records = skewed(), LM.toy(200, 0)
    settings = FitSettings(steps=120, batch_size=32, balance=balance, learning_rate=3e-3)
    progress = fit(objective_of(model), records, records, settings, Quiet(), True)
    return (
        progress.curves["validation"][-1][1],
        progress.bars["share of the tokens for each expert, after"],
        progress.findings,
    )


def test_the_load_evens_out_and_the_loss_does_not_suffer():
    plain, balanced = trained(0.0), trained(0.05)
    least = [min(shares.values()) * 8 for _, shares, _ in (plain, balanced)]
    assert least[1] > 0.3 and least[1] > 2 * least[0], least
    assert balanced[0] < plain[0] + 0.05, (plain[0], balanced[0])


def test_dead_experts_are_found_and_healthy_ones_are_not():
    load = torch.tensor([400.0, 380.0, 3.0, 0.0])
    (found,) = doctor.check_experts({"layers.0.mlp": load})
    assert found.name == "dead-experts" and "2 of the 4 experts of layers.0.mlp" in found.evidence
    assert not list(doctor.check_experts({"layers.0.mlp": torch.tensor([400.0, 380.0, 100.0, 60.0])}))
    assert not list(doctor.check_experts({"layers.0.mlp": torch.tensor([4.0, 3.0, 1.0, 0.0])})), "too few to tell"


def test_a_net_without_experts_has_nothing_to_balance():
    records = RECORDS
    model = Model(LM, *LM.start(LM.tiny(), records, torch.Generator().manual_seed(0)))
    with pytest.raises(BadSettings, match="no experts"):
        fit(objective_of(model), records, None, FitSettings(steps=2, balance=0.01), Quiet(), True)
    assert fit(objective_of(model), records, None, FitSettings(steps=2), Quiet(), True).bars == {}


def test_a_net_that_is_asked_several_times_counts_all_its_tokens():
    """As an embedder asks its body for each text of a record, of unlike lengths."""
    model = made("mixtral")
    batch = LM.collate(RECORDS.list(slice(0, 4)), model.assets, [])
    again = LM.collate(RECORDS.list(slice(4, 11)), model.assets, [])

    def loss(batch, player):
        LM.loss(model.net, again, player)
        return LM.loss(model.net, batch, player)

    tokens = sum(each["input_ids"].numel() for each in (batch, again))
    found = experts.loads(model.net, loss, batch, "net")
    assert [int(load.sum()) for load in found.values()] == [2 * tokens] * 2, "two experts for each token"
    with pytest.raises(BadSettings, match="asked several times for one record"):
        experts.balanced(model.net, loss, 0.1)(batch, "net")


def test_accumulation_keeps_the_balance():
    """The gradient of parts is that of the whole, the term included."""
    model = made("mixtral")
    loss = experts.balanced(model.net, loss_of(model), 0.1)
    found = []
    for size in (24, 6):
        model.net.zero_grad(set_to_none=True)
        for start in range(0, 24, size):
            rows = RECORDS.list(slice(start, start + size))
            loss(packing.in_rows(rows, model.assets, []), "net")[0].sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.net.parameters() if p.grad is not None]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-5 * float(found[0].abs().max()))
