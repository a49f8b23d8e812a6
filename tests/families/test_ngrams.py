"""Bags of n-grams: the vocabulary against one counted by hand, the net against fastText's formula, the folder whole."""

import json
import unicodedata
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from onnuri import registry
from onnuri.conformance import FACTS, check_family
from onnuri.data import records_of
from onnuri.errors import BadInput, BadSettings
from onnuri.families import ngrams, text_ngrams
from onnuri.families.ngrams import Ngrams, learnt
from onnuri.families.text_classifier import FAMILY
from onnuri.family import Generators
from onnuri.matrix import columns, run_row
from onnuri.nets.ngram_net import GAIN, Design, NgramNet, design_of

TINY = {"net": "ngrams", "longest": 3, "least": 1, "max_length": 64, "dropout": 0.1}
TEXTS = ["영화 정말 좋아요", "The  show\tis awful", "", "x", "노래 싫어요, 지루했다! " * 4]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch_of(texts, assets):
    return FAMILY.collate([{assets.question: text} for text in texts], assets, Generators(0, range(len(texts))))


def counted(texts, longest):
    """The n-grams of each text by plain Python."""
    plain = [f" {' '.join(unicodedata.normalize('NFC', text).lower().split())} " for text in texts]
    return [Counter(text[i : i + n] for n in range(1, longest + 1) for i in range(len(text) - n + 1)) for text in plain]


@pytest.fixture(scope="module")
def own():
    return FAMILY.start(TINY, FAMILY.toy(64, 0), generator())


# ---------------------------------------------------------------------------------------------------------- vocabulary


@pytest.mark.parametrize("least", [1, 2, 3])
def test_the_vocabulary_is_that_of_plain_counting(least):
    counts = sum(counted(TEXTS, 4), Counter())
    known = learnt(TEXTS, 4, least, 1000)
    assert len(known) == sum(count >= least for count in counts.values())
    encoded = known.encode(TEXTS, 1000)
    for row, found in zip(encoded, counted(TEXTS, 4)):
        wanted = sum(number for gram, number in found.items() if counts[gram] >= least)
        assert (row > 0).sum() == wanted
        alike = Counter(Counter(row[row > 0].tolist()).values())
        assert alike == Counter(number for gram, number in found.items() if counts[gram] >= least)


def test_the_most_frequent_come_first():
    known = learnt(TEXTS, 3, 1, 1000)
    often = np.bincount(known.encode(TEXTS, 1000).ravel(), minlength=len(known) + 1)[1:]
    assert (np.diff(often) <= 0).all() and often.sum() == sum(sum(found.values()) for found in counted(TEXTS, 3))


def test_many_ngrams_are_found_and_strange_ones_are_not():
    random = np.random.default_rng(0)
    prints = random.choice(2**32, 40_000, replace=False).astype(np.uint32)
    known = Ngrams(prints[:20_000], 3)
    assert known.numbers_of(prints[:20_000]).tolist() == list(range(1, 20_001))
    assert not known.numbers_of(prints[20_000:]).any()
    assert not Ngrams(prints[:0], 3).numbers_of(prints).any()
    edges = np.array([0, 2**32 - 1], np.uint32)
    assert Ngrams(edges, 1).numbers_of(edges).tolist() == [1, 2] and not Ngrams(edges, 1).numbers_of(edges + 7).any()


def test_a_text_is_encoded_alike_in_any_company():
    known = learnt(TEXTS, 4, 1, 1000)
    together = known.encode(TEXTS, 1000)
    for text, row in zip(TEXTS, together):
        alone = known.encode([text], 1000)[0]
        assert alone.tolist() == row[: len(alone)].tolist() and not row[len(alone) :].any()


def test_what_is_beyond_the_length_is_not_read():
    known = learnt(["abcdef"], 2, 1, 4)
    assert len(known) == len(counted(["abcd"], 2)[0])
    assert known.encode(["abcdzz"], 4).tolist() == known.encode(["abcd"], 4).tolist()


def test_writing_is_brought_to_one_form():
    known = learnt(TEXTS, 4, 1, 1000)
    for one, other in (("\u1100\u1161", "가"), ("ABC  d", " abc\nd"), ("", " \t")):
        assert known.encode([one], 100).tolist() == known.encode([other], 100).tolist()
    assert known.encode(["\ud800"], 100).any()  # half of a pair, as JSON can hold it


def test_what_an_ngram_tells_is_its_log_count_ratio():
    """Wang & Manning 2012: log of (p + 1) / |p + 1| over (q + 1) / |q + 1|, here for labels that occur equally often."""
    p, q = np.array([0, 8, 3, 1, 5, 3]), np.array([0, 0, 3, 8, 5, 4])
    ratio = np.log((p + 1) / (q + 1))
    wanted = np.abs(ratio) / np.sqrt(((p + q) * ratio**2).sum() / (p + q).sum())
    assert ngrams.telling([p, q]) == pytest.approx(wanted, rel=1e-5)
    assert ngrams.telling([p, p]) == pytest.approx(1.0)
    three = ngrams.telling([np.array([0, 9, 3, 3]), np.array([0, 0, 3, 3]), np.array([0, 0, 3, 3])])
    assert three[1] > three[2] == three[3]


def test_a_new_net_knows_what_its_ngrams_tell():
    rows = [{"text": "ab", "label": "x"}, {"text": "ac", "label": "y"}] * 4
    records = records_of(rows, {"text": "text", "label": "category"}, "label")
    net, assets = FAMILY.start({"longest": 1, "least": 1}, records, generator())
    space, a, b, c = (assets.ngrams.encode([text], 9).max() for text in ("", "a", "b", "c"))
    assert isinstance(net, NgramNet) and len({a, b, c, space}) == 4
    told = net.bag.telling
    assert told[b] == told[c] > told[a] == 0


# ----------------------------------------------------------------------------------------------------------------- net


def test_logits_are_those_of_the_formula():
    torch.manual_seed(0)
    net = NgramNet(Design(5, 3, 2, 0.5)).eval()
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.normal_()
        found = net(torch.tensor([[1, 4, 4, 0], [0, 0, 0, 0]], dtype=torch.int32))
        table, told, always, head = net.bag.table.weight, net.bag.telling, net.bag.always, net.head.weight
        wanted = head @ ((told[1] * table[1] + 2 * told[4] * table[4]) / 3**0.5 + always)
    assert torch.allclose(found[0], wanted, atol=1e-4) and torch.allclose(found[1], head @ always, atol=1e-6)


def test_ngrams_are_left_out_in_training_only():
    net = NgramNet(Design(50, 1, 2, 0.5))
    with torch.no_grad():
        net.bag.table.weight.fill_(1.0)
    batch = torch.arange(1, 41, dtype=torch.int32).repeat(200, 1)
    bags = net.train().bag(batch)[:, 0].detach() / 40**0.5
    assert 0.95 < float(bags.mean()) < 1.05 and float(bags.std()) > 0.05  # a mean of 8,000 draws of 0 or 2
    assert torch.allclose(net.eval().bag(batch), torch.tensor(40**0.5))


def test_the_head_begins_as_a_rotation():
    head = NgramNet(Design(5, 2, 2, 0.5)).head.weight
    assert torch.allclose(head @ head.T, GAIN**2 * torch.eye(2), atol=1e-3)


def test_faulty_designs_are_refused():
    good = Design(5, 3, 2, 0.5).as_config()
    assert design_of(good) == Design(5, 3, 2, 0.5)
    for wrong in ({"ngrams": -1}, {"width": 0}, {"num_labels": 1}, {"dropout": 1}, {"dropout": "x"}, {"width": 2.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            design_of(good | wrong)


# -------------------------------------------------------------------------------------------------------------- family


def test_every_fact_of_the_family_holds():
    found = list(check_family(replace(FAMILY, tiny=lambda: TINY)))
    assert [check.name for check in found] == list(FACTS)
    assert not [f"{check.name}: {check.text}" for check in found if not check.passed]


def test_it_is_what_a_new_model_is():
    net, assets = FAMILY.start({"least": 1}, FAMILY.toy(16, 0), generator())
    assert isinstance(net, NgramNet) and net.design.width == len(assets.labels) == 2
    assert assets.ngrams.longest == text_ngrams.DEFAULTS["longest"]


def test_a_folder_holds_all_that_it_needs(own, tmp_path):
    net, assets = own
    FAMILY.write(net, assets, tmp_path, True)
    assert FAMILY.claims(tmp_path) and {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        ngrams.FILE,
    }
    again, same = FAMILY.read(tmp_path, False)
    assert same == assets and torch.equal(
        FAMILY.outputs(again, batch_of(TEXTS, same))[0], FAMILY.outputs(net, batch_of(TEXTS, assets))[0]
    )


def test_faulty_folders(own, tmp_path):
    FAMILY.write(*own, tmp_path, True)
    config = json.loads((tmp_path / "config.json").read_text())
    for wrong in (
        {"labels": ["a"]},
        {"labels": ["a", "a"]},
        {"fields": 3},
        {"longest": 0},
        {"max_length": "x"},
        {"ngrams": config["ngrams"] + 1},
        {"width": 10**9},
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | wrong))
        with pytest.raises(BadInput):
            FAMILY.read(tmp_path, False)
    (tmp_path / "config.json").write_text(json.dumps(config))
    prints = load_file(tmp_path / ngrams.FILE)["prints"]
    for wrong in (
        {"prints": prints[:-1]},
        {"other": prints},
        {"prints": np.zeros_like(prints)},
        {"prints": prints * 1.0},
    ):
        save_file(wrong, tmp_path / ngrams.FILE)
        with pytest.raises(BadInput):
            FAMILY.read(tmp_path, False)
    (tmp_path / ngrams.FILE).unlink()
    with pytest.raises(BadInput, match="n-grams"):
        FAMILY.read(tmp_path, False)


def test_bad_settings_are_named_all_at_once():
    for config in ({"net": "bart"}, {"num_layers": 2}, {"longest": 0, "least": "x"}, {"dropout": 2}, {"width": 5000}):
        with pytest.raises(BadSettings) as caught:
            FAMILY.start({"net": "ngrams"} | config, FAMILY.toy(8, 0), generator())
        assert all(name in str(caught.value) for name in config)


def test_adopting_keeps_the_table(own, tmp_path):
    FAMILY.write(*own, tmp_path, True)
    rows = [{"review": text, "mood": "abc"[n % 3]} for n, text in enumerate(TEXTS)]
    records = records_of(rows, {"review": "text", "mood": "category"}, "mood")
    net, assets = FAMILY.adopt(tmp_path, records, generator())
    assert isinstance(net, NgramNet) and assets.labels == ("a", "b", "c")
    assert torch.equal(net.bag.table.weight, own[0].bag.table.weight)
    assert FAMILY.outputs(net, batch_of(TEXTS, assets))[0].shape == (5, 1, 3)


def test_every_operation_keeps_its_promises(tmp_path, monkeypatch):
    """As the test of the matrix has it for the family's tiny model, which is a BERT."""
    family = registry.family
    bag = replace(FAMILY, tiny=lambda: TINY)
    monkeypatch.setattr(registry, "family", lambda name: bag if name == FAMILY.name else family(name))
    cells = {cell.operation: cell for cell in run_row(FAMILY.name, columns(), tmp_path)}
    others = {name: cell.text for name, cell in cells.items() if cell.outcome != "passed"}
    assert others.keys() == {"extend", "extrapolate", "factorize", "generate", "share"}, others
    assert "even rank 1 for every matrix leaves" in others["factorize"], "two thin tables: there is nothing to cut"
    assert any(name.startswith("export") for name in cells) and "quantize" in cells
