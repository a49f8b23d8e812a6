"""Texts that share a row, and texts in pieces: the loss and its gradient are those of each text alone, in every design."""

import copy
import math
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from onnuri.data import records_of
from onnuri.errors import BadInput
from onnuri.families import next_token, packing, stretches, vocabulary
from onnuri.families.causal_lm import FAMILY as LM
from onnuri.families.causal_lm import with_tokenizer
from onnuri.family import Generators
from onnuri.fit.loop import FitSettings, fit
from onnuri.fit.objective import objective_of, pieces_of
from onnuri.model import Model
from onnuri.operation import Quiet

MOST = 32  # tokens at once
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
HUB = {**SMALL, "max_position_embeddings": MOST, "num_key_value_heads": 2}
APART = {
    "llama": HUB,
    "qwen3": {**HUB, "head_dim": 16},
    "gemma2": {**HUB, "head_dim": 8, "sliding_window": 4},
    "mistral": {**HUB, "sliding_window": 4},
    "mixtral": {**HUB, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": MOST},
    "gpt_neox": {**SMALL, "max_position_embeddings": MOST},
}
MIXED = {
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}
WORDS = ("the cat", "고양이가", "sleeps", "집에서", "a child", "sings", "outside", "읽는다")


def texts(*lengths: int) -> list[dict]:
    """Records of so many words."""
    draw = np.random.default_rng(0)
    return [{"text": " ".join(draw.choice(WORDS, length).tolist())} for length in lengths]


RECORDS = texts(1, 2, 3, 2, 4, 1, 60, 5)


@cache
def tokenizer():
    return vocabulary.learnt((record["text"] for record in LM.toy(50, 0)), vocabulary.WRITTEN, 300, MOST)


@cache
def made(design: str) -> Model:
    torch.manual_seed(1)
    ids = {"vocab_size": len(tokenizer()), "eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 1}
    drop = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if design == "gpt2" else {}
    config = AutoConfig.for_model(design, **(APART | MIXED)[design], **ids, **drop)
    net = AutoModelForCausalLM.from_config(config).eval()
    noted = {"answer": "text", "prompt": "", "max_length": MOST, "max_new_tokens": 4}
    return Model(LM, net, with_tokenizer(net, tokenizer(), noted))


def in_pieces(assets, rows=RECORDS) -> list[dict]:
    return LM.pieces(records_of(rows, {"text": "text"}, "text"), assets).list()


def loss_and_gradient(model: Model, batches: list[dict]) -> tuple[float, float, torch.Tensor]:
    model.net.zero_grad(set_to_none=True)
    sums = torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        total, count = LM.loss(model.net, batch, "net")
        total.sum().backward()
        sums += torch.stack([total.detach().sum(), count.sum()]).double()
    gradient = torch.cat([p.grad.flatten() for p in model.net.parameters() if p.grad is not None])
    return float(sums[0]), float(sums[1]), gradient


@pytest.mark.parametrize("design", APART)
def test_texts_that_share_a_row_cost_what_they_cost_alone(design):
    model = made(design)
    rows = in_pieces(model.assets)
    assert LM.packed(model.net, model.assets) is packing.in_rows
    batch = packing.in_rows(rows, model.assets, [])
    assert len(batch["input_ids"]) < len(rows), "nothing shares a row"
    loss, count, gradient = loss_and_gradient(model, [batch])
    alone = [LM.collate([row], model.assets, []) for row in rows]
    wanted, number, whole = loss_and_gradient(model, alone)
    assert count == number and loss == pytest.approx(wanted, rel=1e-6)
    # sums over the same products in another order: fp32 rounding
    torch.testing.assert_close(gradient, whole, rtol=0, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("design", MIXED)
def test_a_net_that_would_mix_texts_gets_one_in_each_row(design):
    model = made(design)
    assert LM.packed(model.net, model.assets) is next_token.collate
    rows = in_pieces(model.assets, texts(2, 3, 2, 4))
    together = loss_and_gradient(model, [packing.in_rows(rows, model.assets, [])])[0]
    alone = loss_and_gradient(model, [LM.collate([row], model.assets, []) for row in rows])[0]
    assert together != pytest.approx(alone, rel=1e-5), "it would not have mixed them: the probe is too strict"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_layer_that_sees_all_is_found_out_and_modes_stay(dtype):
    """A net of which one layer in two attends to the texts before, as if its mask came from elsewhere."""
    model = made("llama")
    net = AutoModelForCausalLM.from_config(model.net.config).to(dtype)
    assert packing.keeps_apart(net, model.assets)
    layer = net.model.layers[1].self_attn
    layer.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "attention_mask": None}), with_kwargs=True
    )
    net.train()
    net.lm_head.eval()
    assert not packing.keeps_apart(net, model.assets)
    assert net.training and layer.training and not net.lm_head.training


def test_the_order_of_texts_changes_nothing_but_rounding():
    model = made("llama")
    rows = in_pieces(model.assets)
    one, other = (loss_and_gradient(model, [packing.in_rows(some, model.assets, [])]) for some in (rows, rows[::-1]))
    assert one[0] == pytest.approx(other[0], rel=1e-6)
    torch.testing.assert_close(one[2], other[2], rtol=0, atol=1e-5 * float(one[2].abs().max()))


def test_every_token_is_learnt_once():
    assets = made("llama").assets
    for record, whole in zip(RECORDS, next_token.tokens_of(RECORDS, assets)):
        rows = in_pieces(assets, [record])
        batch = LM.collate(rows, assets, [])
        asked = batch["labels"][batch["labels"] != next_token.IGNORE].tolist()
        assert asked == whole[1][1:] and batch["input_ids"].shape[1] <= MOST
    assert len(in_pieces(assets, RECORDS[6:7])) > 3


def test_a_prompt_is_read_and_not_learnt_and_its_answer_is_learnt_whole():
    model = made("llama")
    assets = replace(model.assets, prompt="question")
    rows = [{"question": "where is the cat?", "text": text["text"]} for text in texts(1, 40, 2)]
    found = LM.pieces(records_of(rows, {"question": "text", "text": "text"}, "text"), assets).list()
    batch = packing.in_rows(found, assets, [])
    asked = sorted(batch["labels"][batch["labels"] != next_token.IGNORE].tolist())
    assert asked == sorted(token for _, ids in next_token.tokens_of(rows, assets) for token in ids)
    packed = loss_and_gradient(model, [batch])
    alone = loss_and_gradient(model, [LM.collate([row], assets, []) for row in found])
    assert packed[:2] == pytest.approx(alone[:2], rel=1e-6)


def test_rows_are_full_and_hold_each_text_once():
    lengths = np.random.default_rng(0).integers(1, 100, 500).tolist()
    rows = stretches.first_fit(lengths, 100)
    assert sorted(number for row in rows for number in row) == list(range(500))
    assert all(sum(lengths[number] for number in row) <= 100 for row in rows)
    assert len(rows) <= 1.06 * math.ceil(
        sum(lengths) / 100
    )  # 262 full rows would do; in the order that they come it takes 284


@pytest.mark.parametrize("context", [1, 4, 7])
def test_stretches_ask_for_each_place_once_with_enough_before_it(context):
    for length in range(1, 60):
        found = stretches.stretches(length, 8, context)
        assert [place for start, end, asked in found for place in range(asked, end)] == list(range(length))
        assert all(end - start <= 8 and (start == 0 or asked - start == context) for start, end, asked in found)
        assert len(found) == stretches.count(length, 8, context)


def test_a_long_text_is_judged_to_its_end_by_stretches():
    model = made("llama")
    (record,) = texts(90)
    ids = next_token.tokens_of([record], model.assets)[0][1]
    wanted = 0.0
    for place in range(1, len(ids)):  # where the stretch begins that asks for this token
        start = 0 if place < MOST else ((place - MOST // 2) // (MOST // 2)) * (MOST // 2)
        values = model.net(input_ids=torch.tensor([ids[start:place]])).logits[0, -1]
        wanted -= float(values.detach().log_softmax(0)[ids[place]])
    (answer,) = model.sample([record])
    assert answer["text_scores"]["nll"] == pytest.approx(wanted, rel=1e-5)
    assert answer["text_scores"]["tokens"] == len(ids) - 1
    assert answer["text_scores"]["bytes"] == len(record["text"].encode())


def test_tokens_lie_on_the_disk_and_a_full_one_is_told(monkeypatch):
    flat, ends = stretches.stored([[1, 2], [3], [70_000 - 1]], 70_000)
    assert flat.tolist() == [1, 2, 3, 69_999] and ends.tolist() == [2, 3, 4] and isinstance(flat, np.memmap)
    assert stretches.stored([[1]], 300)[0].dtype == np.uint16

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stretches.tempfile, "TemporaryFile", full)
    with pytest.raises(BadInput, match="No space left"):
        stretches.stored([[1]], 300)


def trained(rows: list[dict], **settings) -> tuple[Model, list]:
    generator = torch.Generator().manual_seed(0)
    records = records_of(rows, {"text": "text"}, "text")
    model = Model(LM, *LM.start(LM.tiny() | {"max_length": MOST}, records, generator))
    progress = fit(objective_of(model), records, records, FitSettings(batch_size=8, **settings), Quiet(), True)
    return model, progress.curves["loss"]


def test_how_many_texts_were_read_before_the_first_step_is_told(monkeypatch):
    """And nothing where they are read later, or as they stand."""
    monkeypatch.setattr(packing, "AT_ONCE", 3)
    log, told, records = Quiet(), [], records_of(RECORDS, {"text": "text"}, "text")
    log.progress = lambda done, total, text="": told.append((done, total, text))  # type: ignore[method-assign]
    objective = objective_of(made("llama"))
    whole = replace(objective, pieces=lambda given: given)
    later = replace(objective, pieces=lambda given: given[:4])
    assert pieces_of(whole, records, log) is records
    assert pieces_of(later, records, log).list() == RECORDS[:4] and not told
    pieces = pieces_of(objective, records, log)
    assert told == [(0, 1, f"{done} of 8 records read before the first step") for done in (3, 6, 8)]
    assert len(pieces.list()) > 8 and len(told) == 3


def test_training_learns_the_end_of_a_long_text():
    """The second half says what the first one never does."""
    rows = [{"text": "the cat sleeps " * 40 + "고양이가 집에서 잔다 " * 40}] * 2
    model, _ = trained(rows, epochs=30, learning_rate=1e-2)
    batch = LM.collate(in_pieces(model.assets, rows[:1])[-3:], model.assets, Generators(0, range(3)))
    with torch.no_grad():
        total, count = LM.loss(model.net, batch, "net")
    assert float(total.sum() / count.sum()) < 2, "the end of the text was never seen"


def test_a_packed_step_is_the_padded_step(monkeypatch):
    packed = trained(RECORDS * 3, steps=6)[1]
    monkeypatch.setattr(packing, "keeps_apart", lambda net, assets: False)
    padded = trained(RECORDS * 3, steps=6)[1]
    assert [value for _, value in packed] == pytest.approx([value for _, value in padded], rel=1e-4)


def test_a_net_that_heeds_the_first_row_alone_gets_a_text_in_each():
    model = copy.deepcopy(made("llama"))
    inner = model.net.forward

    def forward(input_ids, position_ids=None, **others):
        return inner(input_ids, position_ids=None if position_ids is None else position_ids[:1], **others)

    assert packing.keeps_apart(model.net, model.assets)
    model.net.forward = forward
    assert not packing.keeps_apart(model.net, model.assets)


def test_tokens_keep_numbers_beyond_their_count(monkeypatch):
    """A tokenizer may leave numbers out."""
    assets = replace(made("llama").assets, tokenizer=SimpleNamespace(get_vocab=lambda: {"a": 5, "b": 70_000}))
    monkeypatch.setattr(packing, "tokens_of", lambda records, assets: (([], [70_000, 5]) for _ in records))
    assert [row["text"].tolist() for row in in_pieces(assets, texts(1, 1))] == [[70_000, 5]] * 2
