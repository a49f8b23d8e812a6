"""Embedders: vectors against the library's own forward pass, losses against loops, folders in both layouts, what the others see.

That SentenceTransformer itself gives the same vectors is told in docs/log.md; it is no dependency.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from folders import bert_tokenizer, save
from onnuri import company, registry
from onnuri.claims import claimed_by
from onnuri.data import records_of
from onnuri.errors import BadInput, BadSettings, Refusal
from onnuri.families import embedding, retrieval
from onnuri.families.embedder import FAMILY, columns_of
from onnuri.fit.loop import FitSettings, Loop, fit
from onnuri.fit.objective import objective_of
from onnuri.model import Model, open_model, write_model
from onnuri.operation import Quiet
from onnuri.run import execute

WORDS = ["고양이가 집에서 잔다.", "the cat sleeps at home", "a", "아이가 학교에서 책을 읽는다. a child reads."]
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
MARKED = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "max_position_embeddings": 66}
BODIES: dict[str, dict] = {
    # class of transformers: the entries of its config
    "BertModel": SMALL,
    "RobertaModel": SMALL | {"pad_token_id": 1},
    "DistilBertModel": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    "MPNetModel": SMALL | {"pad_token_id": 1},
    "ModernBertModel": SMALL,
    "Qwen3Model": SMALL | {"num_key_value_heads": 2, "head_dim": 8},
}
OLD = "sentence_transformers.models."
NEW = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
}
TEXTS = records_of([{"text": text} for text in WORDS * 4], {"text": "text"}, "text")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def put(value: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def folder_of(
    root: Path, name: str = "BertModel", pooling: dict | None = None, kinds: tuple = ("Normalize",), new: bool = False
) -> Path:
    """A folder as sentence-transformers writes it, around a tiny random body."""
    kind = getattr(transformers, name)
    words = bert_tokenizer()
    torch.manual_seed(1)
    body = kind(kind.config_class(**MARKED | {"vocab_size": len(words)} | BODIES[name]))
    for parameter in body.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    body.save_pretrained(root)
    words.save_pretrained(root)
    kinds = ("Transformer", "Pooling", *kinds)
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds) if number)]
    types = [NEW[kind] if new else OLD + kind for kind in kinds]
    put(
        [{"idx": i, "name": str(i), "path": path, "type": each} for i, (path, each) in enumerate(zip(paths, types))],
        root / "modules.json",
    )
    put(
        {"word_embedding_dimension": 32, **(pooling or {"pooling_mode_mean_tokens": True})},
        root / "1_Pooling/config.json",
    )
    put({"max_seq_length": 12, "do_lower_case": False}, root / "sentence_bert_config.json")
    if "Dense" in kinds:
        kind = "torch.nn.modules.activation.Tanh"
        put(
            {"in_features": 32, "out_features": 20, "bias": True, "activation_function": kind},
            root / "2_Dense/config.json",
        )
        tensors = {"linear.weight": torch.randn(20, 32), "linear.bias": torch.randn(20)}
        save_file(tensors, root / "2_Dense/model.safetensors", metadata={"format": "pt"})
    return root


def states_of(folder: Path, text: str) -> torch.Tensor:
    """(T, H) by the library's own class, one text at a time, so that nothing is padded."""
    words = transformers.AutoTokenizer.from_pretrained(folder)
    net = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return net(**words(text, truncation=True, max_length=12, return_tensors="pt")).last_hidden_state[0]


def embedded(model: Model, texts: list[str]) -> torch.Tensor:
    return torch.from_numpy(embedding.embedded(model.net, model.assets, texts))


# ------------------------------------------------------------------------------------------------------------ vectors


@pytest.mark.parametrize("name", BODIES)
def test_vectors_are_those_of_the_librarys_own_pass(name, tmp_path):
    folder = folder_of(tmp_path, name)
    wanted = torch.stack([F.normalize(states_of(folder, text).mean(0), dim=0) for text in WORDS])
    model = open_model(folder)
    assert model.family.name == "embedder" and model.assets.max_length == 12
    assert torch.allclose(embedded(model, WORDS), wanted, atol=2e-6)  # padding and sums in another order
    assert torch.allclose(embedded(model, WORDS[2:3]), wanted[2:3], atol=2e-6)


POOLED = {
    "mean": lambda s: s.mean(0),
    "cls": lambda s: s[0],
    "max": lambda s: s.max(0).values,
    "lasttoken": lambda s: s[-1],
    "mean_sqrt_len_tokens": lambda s: s.sum(0) / math.sqrt(len(s)),
    "weightedmean": lambda s: (s * torch.arange(1, len(s) + 1)[:, None]).sum(0) / (len(s) * (len(s) + 1) / 2),
}
OLD_NAMES = {"cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens", "lasttoken": "pooling_mode_lasttoken"}


@pytest.mark.parametrize("mode", POOLED)
@pytest.mark.parametrize("new", [True, False])
def test_every_pooling_in_both_layouts_comes_back_as_it_was(mode, new, tmp_path):
    old = OLD_NAMES.get(mode, f"pooling_mode_{mode.removesuffix('_tokens')}_tokens")
    pooling = (
        {"pooling_mode": mode, "include_prompt": True}
        if new
        else {old: True, "pooling_mode_mean_tokens": mode == "mean"}
    )
    folder = folder_of(tmp_path / "theirs", pooling=pooling, kinds=("Dense", "Normalize"), new=new)
    layer = load_file(folder / "2_Dense/model.safetensors")
    pooled = torch.stack([POOLED[mode](states_of(folder, text)) for text in WORDS])
    wanted = F.normalize(torch.tanh(pooled @ layer["linear.weight"].T + layer["linear.bias"]), dim=1)
    model = open_model(folder)
    assert torch.allclose(embedded(model, WORDS), wanted, atol=5e-6)
    (tmp_path / "ours").mkdir()
    write_model(model, tmp_path / "ours")
    again = open_model(tmp_path / "ours")
    assert torch.equal(embedded(again, WORDS), embedded(model, WORDS)) and again.assets == model.assets
    written = json.loads((tmp_path / "ours/1_Pooling/config.json").read_text())
    assert [name for name, value in written.items() if value is True] == [old] and (
        tmp_path / "ours/3_Normalize"
    ).is_dir()


def test_what_is_put_before_a_text_and_how_long_vectors_are_is_the_folders(tmp_path):
    folder = folder_of(tmp_path / "plain", kinds=())
    plain = open_model(folder)
    put({"max_seq_length": 12, "do_lower_case": True}, folder / "sentence_bert_config.json")
    prompts = {
        "prompts": {"query": "the "},
        "default_prompt_name": "query",
        "truncate_dim": 8,
        "similarity_fn_name": "dot",
    }
    put(prompts, folder / "config_sentence_transformers.json")
    model = open_model(folder)
    assert FAMILY.axis(model.assets) == ("vector of a text", 8, False) != FAMILY.axis(plain.assets)
    assert torch.equal(embedded(model, ["CAT"]), embedded(plain, ["the cat"])[:, :8])
    (tmp_path / "ours").mkdir()
    write_model(model, tmp_path / "ours")
    assert json.loads((tmp_path / "ours/config_sentence_transformers.json").read_text()) == prompts


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("modules.json", [{"type": OLD + "Transformer", "path": ""}], "its modules are Transformer; read are"),
        (
            "modules.json",
            [{"type": OLD + "Transformer", "path": ""}, {"type": OLD + "Pooling", "path": "../.."}],
            "outside",
        ),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "max"]}, "pools by"),
        ("1_Pooling/config.json", {"word_embedding_dimension": 33}, "pools vectors of 33, the body makes 32"),
        ("sentence_bert_config.json", {"max_seq_length": "12"}, "max_seq_length is '12', not int"),
        ("config_sentence_transformers.json", {"default_prompt_name": "x"}, "none of its prompts"),
        ("config_sentence_transformers.json", {"truncate_dim": 40}, "truncate_dim 40 of vectors of 20"),
        (
            "2_Dense/config.json",
            {"in_features": 32, "out_features": 20, "activation_function": "os.system"},
            "activation 'system'",
        ),
        ("2_Dense/config.json", {"in_features": 31, "out_features": 20}, "it takes vectors of 31, the body makes 32"),
    ],
)
def test_a_folder_that_says_what_cannot_be_is_refused(file, content, told, tmp_path):
    folder = folder_of(tmp_path, kinds=("Dense", "Normalize"))
    put(content, folder / file)
    with pytest.raises(BadInput, match=told.replace("[", r"\[")):
        open_model(folder)


def test_a_layer_with_a_tensor_too_few_is_refused_and_a_missing_pooler_is_not(tmp_path):
    folder = folder_of(tmp_path / "one", kinds=("Dense",))
    tensors = load_file(folder / "2_Dense/model.safetensors")
    save_file({"linear.weight": tensors["linear.weight"]}, folder / "2_Dense/model.safetensors")
    with pytest.raises(BadInput, match="missing tensor bias"):
        open_model(folder)
    folder = folder_of(tmp_path / "two")
    before = embedded(open_model(folder), WORDS)
    body = {name: value for name, value in load_file(folder / "model.safetensors").items() if "pooler" not in name}
    save_file(body, folder / "model.safetensors", metadata={"format": "pt"})
    model = open_model(folder)
    assert torch.equal(embedded(model, WORDS), before) and not any(
        "pooler" in n for n, _ in model.net.named_parameters()
    )


# ------------------------------------------------------------------------------------------------------------- losses


def started(records=None, **config: Any) -> Model:
    records = records or FAMILY.toy(16, 0)
    return Model(FAMILY, *FAMILY.start(FAMILY.tiny() | config, records, generator()))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


@pytest.mark.parametrize("gone", [(), (2, 5), range(7)])
def test_the_loss_of_pairs_is_info_nce_over_all_second_and_third_texts(gone):
    """A record without a third text leaves the others theirs."""
    model = started()
    rows = [*FAMILY.toy(6, 1).list(), {"text": "the cat", "positive": FAMILY.toy(6, 1)[0]["positive"], "negative": "x"}]
    rows = [row | {"negative": ""} if i in gone else row for i, row in enumerate(rows)]
    one, other, wrong = (embedded(model, [row[name] for row in rows]) for name in ("text", "positive", "negative"))
    texts = [row["positive"] for row in rows] + [row["negative"] for row in rows]
    wanted = []
    for i, row in enumerate(rows):
        others = [j for j, text in enumerate(texts) if j == i or text not in ("", row["positive"])]
        total = 0.0
        for size in (8, 32):
            near = {j: math.exp(cosine(one[i, :size], torch.cat([other, wrong])[j, :size]) / 0.05) for j in others}
            total -= math.log(near[i] / sum(near.values()))
        wanted.append(total)
    assert len(others) < len(texts)  # the last record's answer is the first one's
    with company.meeting(), torch.no_grad():
        found, count = FAMILY.loss(model.net, model.collate(rows), "net")
    assert torch.allclose(found, torch.tensor(wanted), rtol=1e-3) and count.tolist() == [2.0] * 7


def test_all_texts_of_a_record_are_read_in_the_same_precision():
    model = started()
    batch = model.collate(FAMILY.toy(6, 1).list())
    exact = embedding.vectors(model.net, batch, embedding.NEGATIVE)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), company.meeting() as heard:
        FAMILY.loss(model.net, batch, "net")
        wanted = [embedding.vectors(model.net, batch, role) for role in ("", embedding.OTHER, embedding.NEGATIVE)]
    one, other, _, wrong = heard[0]
    assert all(map(torch.equal, (one, other, wrong), wanted)) and not torch.equal(wrong, exact)


def test_alone_a_loss_is_the_alignment_and_each_records_own():
    model, rows = started(), FAMILY.toy(3, 1).list()
    one, other = (embedded(model, [row[name] for row in rows]) for name in ("text", "positive"))
    wanted = sum((F.normalize(one[:, :d]) - F.normalize(other[:, :d])).square().sum(1) for d in (8, 32))
    with torch.no_grad():
        assert torch.allclose(FAMILY.loss(model.net, model.collate(rows), "net")[0], wanted, rtol=1e-4)


def test_scored_pairs_are_learnt_by_the_squared_error_of_their_cosine():
    rows = [
        {"a": text, "b": WORDS[0], "likeness": likeness} for text, likeness in zip(WORDS * 2, (7.0, 5.0, 0.0, 2.0) * 2)
    ]
    records = records_of(rows, {"a": "text", "b": "text", "likeness": "number"}, "likeness")
    model = started(records, dimensions=[])
    assert FAMILY.fields(model.assets) == ({"a": "text", "b": "text"}, ("likeness", "number"))
    one, other = (embedded(model, [row[name] for row in rows]) for name in ("a", "b"))
    wanted = torch.tensor([(cosine(a, b) - row["likeness"] / 7) ** 2 for a, b, row in zip(one, other, rows)])
    with torch.no_grad():
        total, count = FAMILY.loss(model.net, model.collate(rows), "net")
    assert torch.allclose(total, wanted, atol=1e-6) and count.sum() == len(rows)
    answers = model.sample(model.asked(rows))
    assert answers[0]["likeness"] == pytest.approx(7 * cosine(one[0], other[0]), abs=1e-5)
    values, mask = model.outputs(model.collate(model.asked(rows)))
    assert values.shape == (8, 2, 32) and mask.all() and torch.allclose(values[:, 1], other, atol=1e-6)
    scores = FAMILY.score(rows, answers, model.assets)
    from scipy.stats import spearmanr

    wanted = spearmanr([row["likeness"] for row in rows], [a["likeness"] for a in answers]).statistic
    assert scores["spearman"] == pytest.approx(wanted) and model.headline == ("spearman", "up")
    fit(objective_of(model), records, None, FitSettings(batch_size=8, steps=60, learning_rate=3e-3), Quiet(), True)
    before, after = (
        sum(abs(each["likeness"] - row["likeness"]) for each, row in zip(found, rows))
        for found in (answers, model.sample(rows))
    )
    assert after < before / 4


def test_a_text_alone_is_told_from_others_by_two_dropouts():
    model = started(TEXTS, dropout=0.1, dimensions=[])
    assert FAMILY.fields(model.assets) == ({"text": "text"}, ("text", "text")) and model.assets.alone
    batch = model.collate(TEXTS.list(slice(0, 4)))
    model.net.train()
    torch.manual_seed(3)
    with company.meeting() as heard:
        total, _ = FAMILY.loss(model.net, batch, "net")
    ((one, other, twins),) = heard
    assert not torch.equal(one, other) and twins.shape == (4, 2)
    wanted = F.cross_entropy(F.normalize(one) @ F.normalize(other).T / 0.05, torch.arange(4), reduction="none")
    assert torch.allclose(total, wanted, rtol=1e-5)


def test_without_dropout_texts_alone_are_refused_when_they_are_to_be_learnt():
    model = started(TEXTS, dropout=0.0)
    with pytest.raises(BadSettings, match="no dropout"):
        fit(objective_of(model), TEXTS, None, FitSettings(batch_size=8, steps=2), Quiet(), True)


@pytest.mark.parametrize("micro", [1, 5])
def test_what_a_part_shows_is_what_it_learns_by_dropout_and_all(micro):
    """A second pass with other noise would give the gradient of no loss at all."""
    model = started(TEXTS, dropout=0.2)
    shown: list[torch.Tensor] = []
    objective = objective_of(model)
    loop = Loop(objective, TEXTS, None, FitSettings(batch_size=16, micro_batch=micro, steps=1), Quiet(), True)
    loop.training_mode()
    original = company.met

    def spied(*values):
        shown.append(values[0].detach().clone())
        return original(*values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(company, "met", spied)
        sums = loop.backward(loop.batches.at(0), "net", 0)
    parts = -(-16 // micro)
    assert len(shown) == 2 * parts and all(map(torch.equal, shown[:parts], shown[parts:]))
    assert float(sums[1]) == 32  # two lengths of 16 records


@pytest.mark.parametrize("gone", [0, 7])
def test_the_loss_of_a_step_is_the_same_however_it_is_cut(gone):
    """Also where parts of it have third texts and others none."""
    toy, losses = FAMILY.toy(16, 0), []
    rows = [row | {"negative": None} if i < gone else row for i, row in enumerate(toy)]
    records = records_of(rows, toy.fields, toy.answer)
    for micro in (0, 1, 3):
        loop = Loop(
            objective_of(started()),
            records,
            None,
            FitSettings(batch_size=16, micro_batch=micro, steps=1),
            Quiet(),
            True,
        )
        losses.append(loop.backward(loop.batches.at(0), "net", 0).tolist())
    assert losses[1:] == [pytest.approx(losses[0], rel=1e-5)] * 2


def test_the_loss_of_held_out_records_is_the_same_however_they_are_cut():
    records, losses = FAMILY.toy(20, 0), []
    for micro in (0, 1, 3):
        settings = FitSettings(batch_size=8, micro_batch=micro, steps=1)
        loop = Loop(objective_of(started()), records, records, settings, Quiet(), True)
        loop.look()
        losses.append(loop.validate())
    assert losses[0] > 0.1 and losses == pytest.approx([losses[0]] * 3, rel=1e-5)


# ---------------------------------------------------------------------------------------------------- answers, scores


def test_recall_counts_who_comes_first_and_finds_nothing_where_all_are_one():
    draw = generator(1)
    queries, candidates = torch.randn(9, 4, generator=draw), torch.randn(12, 4, generator=draw)
    own, texts = torch.arange(9), torch.arange(12)
    texts[11] = texts[2]
    found = retrieval.ranks(queries, candidates, own, texts).tolist()
    for i, place in enumerate(found):
        near = [cosine(queries[i], each) for each in candidates]
        assert place == sum(near[j] >= near[i] for j in range(12) if texts[j] != texts[i])
    scores = retrieval.found_scores(torch.tensor(found))
    assert scores["mrr"] == pytest.approx(np.mean([1 / (1 + place) for place in found]))
    same = torch.ones(12, 4)
    assert retrieval.found_scores(retrieval.ranks(same[:9], same, own, torch.arange(12)))["recall_at_1"] == 0
    lost = torch.full((12, 4), math.nan)
    assert retrieval.ranks(lost[:9], lost, own, torch.arange(12)).tolist() == [11] * 9
    assert retrieval.uniformity(same, torch.arange(12)) == 0 and retrieval.alignment(same, same) == 0
    spread = torch.eye(4)
    assert retrieval.uniformity(spread, torch.arange(4)) == pytest.approx(-4)


def test_texts_alone_are_judged_by_their_halves():
    texts = [
        f"{a} {b} {c} {d}" for a in ("cat", "dog") for b in ("sat", "ran") for c in ("on", "by") for d in ("it", "us")
    ]
    rows = [{"text": text} for text in texts]
    model = started(records_of(rows, {"text": "text"}, "text"))
    answers = model.sample(rows)
    halves = {a["text"]: a["text_scores"]["half"] for a in answers if "half" in a["text_scores"]}
    assert 0 < len(halves) < len(rows)
    for text, vector in halves.items():
        assert np.allclose(vector, embedded(model, [" ".join(text.split()[:2])])[0], atol=1e-6)
    scores = FAMILY.score(rows, answers, model.assets)
    assert 0 <= scores["recall_at_1"] <= scores["recall_at_10"] <= 1 and scores["alignment"] > 0 > scores["uniformity"]
    assert model.asked(rows) == rows  # what is asked about itself stays


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A model of pairs."""
    out = tmp_path_factory.mktemp("runs") / "pairs"
    settings = {"family": "embedder", "config": FAMILY.tiny(), "steps": 80, "batch_size": 32, "learning_rate": 3e-3}
    execute("train", settings, {"data": "toy:embedder"}, out, quiet=True)
    return out


def test_pairs_are_found_after_training_also_by_the_beginning_of_their_vectors(trained):
    line = execute("evaluate", {}, {"model": str(trained), "data": "toy:embedder"}, quiet=True)
    assert line["scores"]["recall_at_1"] > 0.5 and line["scores"]["recall_at_1_of_8"] > 0.3
    names = json.loads((trained / "modules.json").read_text())
    assert [each["type"].rpartition(".")[2] for each in names] == ["Transformer", "Pooling", "Normalize"]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_predict_writes_vectors(ending, trained, tmp_path):
    rows = [{"text": text} for text in ("the cat at home sleeps.", "a child outside sings.")]
    pl.DataFrame(rows).write_csv(tmp_path / "texts.csv")
    out = tmp_path / f"vectors.{ending}"
    execute(
        "predict",
        {},
        {"model": str(trained), "data": str(tmp_path / "texts.csv")},
        out,
        {"fields": {"text": "text"}},
        quiet=True,
    )
    wanted = embedded(open_model(trained), [row["text"] for row in rows])
    if ending == "jsonl":
        found = [json.loads(line)["positive_scores"]["vector"] for line in out.read_text().splitlines()]
    else:
        column = pl.read_parquet(out)["positive_scores.vector"]
        assert column.dtype == pl.List(pl.Float64)
        found = column.to_list()
    assert torch.allclose(torch.tensor(found), wanted, atol=1e-6)


# ----------------------------------------------------------------------------------------------------- columns, bodies


@pytest.mark.parametrize(
    ("fields", "answer", "told"),
    [
        ({"a": "text", "b": "text", "s": "number"}, "s", ("a", "s", "b", "")),
        ({"a": "text", "b": "text"}, "b", ("a", "b", "", "")),
        ({"a": "text", "b": "text", "c": "text"}, "b", ("a", "b", "", "c")),
        ({"a": "text", "label": "category"}, "label", ("a", "a", "", "")),
        ({"id": "number", "document": "text"}, None, ("document", "document", "", "")),
        ({"a": "text", "s": "number"}, "s", ("a", "a", "", "")),
    ],
)
def test_the_columns_say_what_is_to_be_learnt(fields, answer, told):
    row = {"text": "x y", "number": 1.0, "category": "c"}
    rows = [{name: row[kind] for name, kind in fields.items()} for _ in range(2)]
    rows[1] |= {"s": 3.0} if "s" in fields else {}
    found = columns_of(records_of(rows, fields, answer))
    assert tuple(found[role] for role in ("question", "answer", "other", "negative")) == told
    assert (found["low"], found["high"]) == ((0.0, 3.0) if told[2] else (0.0, 1.0))


@pytest.mark.parametrize("name", ["bert", "bert_mlm", "bert_body", "roberta", "distilbert", "llama", "gpt2"])
def test_any_body_is_adopted_and_kept(name, tmp_path):
    save(name, tmp_path)
    net, assets = FAMILY.adopt(tmp_path, TEXTS, generator())
    before, after = load_file(tmp_path / "model.safetensors"), net.body.state_dict()
    kept = [
        key for key, value in after.items() if any(k.endswith(key) and torch.equal(v, value) for k, v in before.items())
    ]
    assert set(kept) == after.keys() and not any("pooler" in key for key in after)
    assert net.pooling == ("lasttoken" if name in ("llama", "gpt2") else "mean") and assets.question == "text"
    (tmp_path / "out").mkdir()
    model = Model(FAMILY, net, assets)
    write_model(model, tmp_path / "out")
    again = open_model(tmp_path / "out")
    assert again.net.pooling == net.pooling and torch.allclose(
        embedded(again, WORDS), embedded(model, WORDS), atol=1e-6
    )


def test_a_body_of_two_halves_is_refused(tmp_path):
    kind = transformers.T5Config(vocab_size=200, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(kind).save_pretrained(tmp_path)
    bert_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="two halves"):
        FAMILY.adopt(tmp_path, TEXTS, generator())


@pytest.mark.parametrize("other", ["masked_lm", "text_classifier"])
def test_other_families_adopt_what_an_embedder_learnt(other, trained):
    family = registry.family(other)
    assert claimed_by(trained).name == "embedder"
    net, _ = family.adopt(trained, family.toy(40, 0), generator())
    body = open_model(trained).net.body.state_dict()
    kept = net.base_model.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in body.items())


def test_a_decoder_may_be_claimed_by_its_modules_alone(tmp_path):
    """The config of an embedder may still name the class that its body was taken from."""
    folder = folder_of(tmp_path, "Qwen3Model", {"pooling_mode": "lasttoken"})
    config = json.loads((folder / "config.json").read_text())
    put(config | {"architectures": ["Qwen3ForCausalLM"]}, folder / "config.json")
    assert claimed_by(folder).name == "embedder"
    assert not registry.family("causal_lm").claims(folder)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"pooling": "median"}, "pooling must be one of"),
        ({"normalize": 3}, "normalize must be true or false"),
        ({"dimensions": "8|x"}, "dimensions must be whole numbers below 32"),
        ({"dimensions": 0.5}, "dimensions must be whole numbers below 32, found \\[0.5\\]"),
        ({"dimensions": None}, "dimensions must be whole numbers below 32"),
        ({"dimensions": [32]}, "dimensions must be whole numbers below 32"),
        ({"dimension": [8]}, "did you mean dimensions"),
    ],
)
def test_a_design_that_cannot_be_is_told(config, told):
    with pytest.raises(BadSettings, match=told):
        FAMILY.start({"hidden_size": 32} | config, FAMILY.toy(8, 0), generator())


def test_a_student_of_other_width_answers_with_vectors_as_long(tmp_path):
    model = started()
    half = Model(FAMILY, *FAMILY.like(model.net, model.assets, 0.5, generator()))
    assert half.net.dense.out_features == 32 == half.outputs(half.collate(TEXTS.list(slice(0, 2))))[0].shape[2]
    write_model(half, tmp_path)
    assert torch.equal(embedded(open_model(tmp_path), WORDS), embedded(half, WORDS))
    assert (tmp_path / "2_Dense/model.safetensors").is_file()


def test_fewer_channels_of_the_whole_width_are_refused():
    model = started()
    (size,) = [size for size in FAMILY.sizes(model.net, model.assets) if size.name == "hidden_size"] or [None]
    if size is not None:
        with pytest.raises(Refusal, match="shorter"):
            size.made(16)
