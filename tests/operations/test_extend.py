"""New tokens: what was known stays, texts take fewer tokens and come back, and the folder is one that transformers opens."""

import itertools
from collections import Counter
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

import folders as F
from onnuri import plan, registry, run
from onnuri.errors import BadSettings, Refusal
from onnuri.families import more_tokens, segmentation
from onnuri.model import Model, open_model, write_model
from onnuri.operation import Finding, Quiet
from onnuri.operations import extend
from onnuri.operations.extend import pairs, rows
from onnuri.registry import family

EXTEND = registry.operation("extend")
DECODERS = ("llama", "llama_tied", "gpt2")
ODD = "정말 좋아요 the book 🙂 ok\t한글  two"


def extended(folder, data, **settings):
    """(before, after, the value of each promise)"""
    chosen = plan.settings_of(EXTEND, {"tokens": 5, "least": 2, "start": "mean", **settings})
    found = run.opened(EXTEND, chosen, {"model": str(folder), "data": str(data)}, {})
    result = EXTEND.apply(chosen, Quiet(), **found)
    kept = {promise.text: promise.measure(chosen, found, result) for promise in EXTEND.promises}
    for promise in EXTEND.promises:
        value = kept[promise.text]
        assert value <= promise.bound, promise.text
    return found["model"], result


def texts_for(name, folder):
    return F.write_texts(folder / "texts.jsonl", "text", *(() if name in DECODERS else ("label",)))


@pytest.mark.parametrize("name", [*DECODERS, "roberta"])
def test_the_folder_opens_with_more_tokens(name, tmp_path):
    F.save(name, tmp_path / "m")
    before, result = extended(tmp_path / "m", texts_for(name, tmp_path))
    write_model(result.model, tmp_path / "out")
    again = open_model(tmp_path / "out")
    first = len(before.net.get_input_embeddings().weight)
    assert len(again.net.get_input_embeddings().weight) == again.net.config.vocab_size == first + 5
    old, new = before.assets.tokenizer, again.assets.tokenizer
    assert old.get_vocab().items() <= new.get_vocab().items(), "tokens keep their numbers"
    assert old.all_special_ids == new.all_special_ids
    assert old.decode(old(ODD).input_ids) == new.decode(new(ODD).input_ids)
    F.reopen(name, tmp_path / "out")


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def grown(request, tmp_path_factory):
    """(a tiny language model, its records, the same with tokens for two pairs)"""
    lm = family("causal_lm")
    records = lm.toy(60, 0)
    config = {**lm.tiny(), "tokenizer": request.param, "vocab_size": {"bpe": 283, "unigram": 312}[request.param]}
    model = Model(lm, *lm.start(config, records, torch.Generator().manual_seed(0)))
    how, known = lm.segmentation(model.assets), lm.vocabulary(model.net, model.assets)
    words = Counter(tuple(word) for text in how.words(records.column("text")) for word in text)
    joins = pairs.learnt(words, how, len(known.rows), 6, 2)
    return model, words, how, joins, Model(lm, *known.grown(joins))


def test_words_are_cut_as_before_and_joined(grown):
    """The learner's own joining, one pair after another, is what the tokenizer does then."""
    model, words, how, joins, more = grown
    first, after = len(how.spelled), more.family.segmentation(more.assets)
    for word in words:
        wanted = list(word)
        for number, pair in enumerate(joins, first):
            wanted = pairs.joined(wanted, pair, number)
        found = after.words([how.joined(word)])[0]
        if len(found) == 1:  # alone in a text some are cut otherwise
            assert len(found[0]) <= len(word)
            if model.assets.tokenizer.backend_tokenizer.model.__class__.__name__ == "BPE":
                assert found[0] == wanted


def test_word_pieces_take_the_longest():
    """The second piece of a word is written with a mark, which the joined one has only where it is a second piece itself."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["[UNK]", *"abc", *(f"##{letter}" for letter in "abc")]
    backend = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    how = segmentation.segmentation_of(made)
    words = Counter(tuple(word) for word in how.words(["abc abc cab d"])[0])
    joins = pairs.learnt(words, how, 7, 2, 2)
    bigger = more_tokens.grown_tokenizer(made, segmentation.file_of(made), 7, joins, how.join)
    assert bigger.convert_ids_to_tokens([7, 8]) == ["##bc", "abc"] or bigger.convert_ids_to_tokens([7]) == ["ab"]
    assert len(bigger("abc d").input_ids) == 2 and how.unknown == {0} == how.alone


def test_numbers_without_a_token_are_filled():
    """A mark behind the vocabulary keeps its number, and rows that no token stood for are passed over."""
    from tokenizers import AddedToken, Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.Unigram([("<unk>", -9.0), ("a", -1.0), ("b", -1.0)], 0, False))
    backend.add_special_tokens([AddedToken("<end>", special=True)])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<end>")
    how = segmentation.segmentation_of(made)
    bigger = more_tokens.grown_tokenizer(made, segmentation.file_of(made), 8, [(1, 2), (8, 8)], how.join)
    assert bigger("abab<end>", add_special_tokens=False).input_ids == [9, 3]
    assert bigger("aba", add_special_tokens=False).input_ids == [8, 1] and bigger.eos_token_id == 3


def by_hand(number, first, joins):
    """The old tokens that a token is put together from."""
    return (
        [number] if number < first else [old for part in joins[number - first] for old in by_hand(part, first, joins)]
    )


def test_a_new_row_is_the_mean_of_its_parts(grown):
    model, _, _how, joins, more = grown
    old, new = (each.net.get_input_embeddings().weight for each in (model, more))
    assert torch.equal(old, new[: len(old)])
    for number in range(len(old), len(new)):
        assert torch.allclose(new[number], old[by_hand(number, len(old), joins)].mean(0), atol=1e-7)


def test_the_commonest_pair_comes_first(grown):
    _, words, how, joins, _ = grown
    counts = Counter(pair for word, often in words.items() for pair in itertools.pairwise(word) for _ in range(often))
    allowed = {pair: count for pair, count in counts.items() if not set(pair) & set(how.alone)}
    assert counts[joins[0]] == max(allowed.values())


def test_a_row_by_likelihood_says_what_its_parts_say():
    """In a head with a bias the new logit is that of the first part plus what the others cost."""
    torch.manual_seed(0)
    read = torch.randn(4000, 8) + 2 * torch.ones(8)
    assert (read @ rows.direction(read)).mean() == pytest.approx(1, abs=0.05)
    found = list(rows.met([[1, 2, 3, 1, 2]], [[-0.1, -0.2, -0.3, -0.4]], [(1, 2), (1, 2, 3)]))
    assert [(number, pytest.approx(value)) for number, value in found] == [(0, -0.1), (1, -0.3), (0, -0.4)]


def met_by_hand(model, texts, parts):
    """(what the head reads (N, W), log probabilities of all parts but the first wherever they stand in a row), text by text from
    what the library's own pass says."""
    read, found = [], [[] for _ in parts]
    for text in texts:
        ids = [*model.assets.tokenizer(text).input_ids, model.assets.end][: model.assets.max_length]
        with torch.no_grad():
            said = model.net.eval()(input_ids=torch.tensor([ids]), output_hidden_states=True)
        read.append(said.hidden_states[-1][0, :-1])
        chances = said.logits[0].double().log_softmax(-1)
        for each, values in zip(parts, found):
            for place in range(len(ids) - len(each) + 1):
                if ids[place : place + len(each)] == each:
                    values.append(sum(float(chances[place + i, each[i + 1]]) for i in range(len(each) - 1)))
    return torch.cat(read).double(), found


def along(read):
    """The ridge regression of 1 on what is read, as least squares with W rows more."""
    ridge = (1e-3 * read.square().mean()).sqrt() * torch.eye(read.shape[1])
    ones = torch.cat([torch.full((len(read), 1), len(read) ** -0.5), torch.zeros(read.shape[1], 1)]).double()
    return torch.linalg.lstsq(torch.cat([read / len(read) ** 0.5, ridge]), ones).solution[:, 0]


def with_head(model, biased):
    """The model with a head of its own, and every token's number as its bias."""
    net = deepcopy(model.net)
    old = net.lm_head.weight.detach().clone()
    net.lm_head = torch.nn.Linear(*reversed(old.shape), bias=biased)
    net.lm_head.load_state_dict({"weight": old, **({"bias": torch.arange(len(old)) / 100} if biased else {})})
    return replace(model, net=net)


@pytest.mark.parametrize("biased", [False, True])
def test_rows_by_likelihood_are_those_found_by_hand(grown, biased):
    """The last two are never met: their parts cost what one costs elsewhere. The rows of old tokens stay."""
    model, _, how, joins, _ = grown
    records, known = family("causal_lm").toy(60, 0), model.family.vocabulary(model.net, model.assets)
    last, first = max(how.spelled.keys() - set(how.alone)), len(known.rows)
    joins = [*joins, (last, last), (first + len(joins), last)]
    old, new = with_head(model, biased), with_head(replace(model, net=known.grown(joins)[0]), biased)
    parts = [by_hand(first + i, first, joins) for i in range(len(joins))]
    read, found = met_by_hand(old, records.column("text"), parts)
    costs, others = sum(map(sum, found)), sum((len(each) - 1) * len(values) for each, values in zip(parts, found))
    assert all(found[:-2]) and not any(found[-2:])
    wanted = torch.tensor(
        [sum(values) / len(values) for values in found[:-2]] + [costs / others, 2 * costs / others]
    ).double()
    assert rows.by_likelihood(old, new.net, records, "input_ids", first, joins)
    before, after, begins = old.net.lm_head, new.net.lm_head, [each[0] for each in parts]
    assert torch.equal(before.weight, after.weight[:first])
    shift = (after.weight[first:] - before.weight[begins]).detach().double()
    if biased:
        assert not shift.any() and torch.equal(before.bias, after.bias[:first])
        assert torch.allclose((after.bias[first:] - before.bias[begins]).detach().double(), wanted, rtol=1e-4)
    else:  # the program's equations are solved in single precision
        assert torch.allclose(shift, wanted[:, None] * along(read), rtol=1e-3, atol=1e-4 * float(shift.abs().max()))


def test_what_training_finds_is_handed_back(tmp_path, monkeypatch):
    """Findings and bars as `train` has them."""
    F.save("llama", tmp_path / "m")
    fit = extend.fit

    def found(*given):
        progress = fit(*given)
        progress.findings["slow"], progress.bars["load"] = ("seen", "cure"), {"0": 1.0}
        return progress

    monkeypatch.setattr(extend, "fit", found)
    _, result = extended(tmp_path / "m", texts_for("llama", tmp_path), steps=2, batch_size=4)
    assert Finding("slow", "seen", "cure") in result.findings and result.bars == {"load": {"0": 1.0}}
    assert result.curves["loss"] and result.report["joined"]


@pytest.mark.parametrize("name", ["llama", "llama_tied"])
def test_training_new_rows_moves_no_other(name, tmp_path):
    F.save(name, tmp_path / "m")
    texts = texts_for(name, tmp_path)
    before, result = extended(tmp_path / "m", texts, start="best", steps=3, batch_size=4)
    still = extended(tmp_path / "m", texts, start="best")[1].model
    first = len(before.net.get_input_embeddings().weight)
    moved, same = (each.net.get_input_embeddings().weight for each in (result.model, still))
    assert torch.equal(moved[:first], same[:first]) and not torch.equal(moved[first:], same[first:])
    assert all(value.requires_grad for value in result.model.net.parameters())


def test_an_embedder_keeps_its_vectors_and_is_stored(tmp_path):
    """Its body grows, and what stands around it stays."""
    kind = family("embedder")
    records = kind.toy(60, 0)
    model = Model(kind, *kind.start(kind.tiny(), records, torch.Generator().manual_seed(0)))
    how, known = kind.segmentation(model.assets), kind.vocabulary(model.net, model.assets)
    words = Counter(tuple(word) for text in how.words(records.column("text")) for word in text)
    first = len(known.rows)
    net, assets = known.grown(pairs.learnt(words, how, first, 3, 2))
    batch = model.collate(records.list(slice(4)))
    assert torch.equal(kind.outputs(net, batch)[0], model.outputs(batch)[0])
    write_model(Model(kind, net, assets), tmp_path / "out")
    again = open_model(tmp_path / "out")
    assert len(again.assets.tokenizer) == len(again.net.body.get_input_embeddings().weight) == first + 3


def test_what_cannot_be_extended_is_refused(tmp_path):
    F.save("llama", tmp_path / "m")
    texts = texts_for("llama", tmp_path)
    with pytest.raises(BadSettings, match=r"only .* occur 2 times"):
        extended(tmp_path / "m", texts, tokens=10**6)
    with pytest.raises(Refusal, match="stand in a row 100000 times"):
        extended(tmp_path / "m", texts, least=100_000)
    with pytest.raises(BadSettings, match="learning_rate have no effect without --steps"):
        extended(tmp_path / "m", texts, learning_rate=0.1)
    with pytest.raises(BadSettings, match="calibration has no effect on the mean"):
        extended(tmp_path / "m", texts, calibration=7)


def test_models_without_tokens_are_refused():
    for name in ("tabular", "image_classifier"):
        found = family(name)
        net, assets = found.start(found.tiny(), found.toy(40, 0), torch.Generator().manual_seed(0))
        assert found.segmentation(assets) is None
        with pytest.raises(Refusal, match="does not read texts as tokens"):
            EXTEND.apply(EXTEND.settings(), Quiet(), Model(found, net, assets), None)
