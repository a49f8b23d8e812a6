"""Looking at one block after another sees what whole passes see, and computes no block more than twice for each batch."""

import copy
from collections import Counter

import pytest
import torch

import folders as F
from onnuri import registry
from onnuri.data import Records
from onnuri.model import Model, open_model
from onnuri.sources import open_data
from onnuri.weights import calibration, replay
from onnuri.weights.calibration import in_turn
from onnuri.weights.matrices import weights
from onnuri.weights.replay import Replay

FAMILIES = [name for name in registry.entries("families") if name != "forest"]  # whose trees are no matrices
LIBRARY = ["mixtral", "gpt2", "bert", "resnet", "swin"]


def toy(family: str) -> tuple[Model, Records]:
    facts, records = registry.family(family), open_data(f"toy:{family}").records
    return Model(facts, *facts.start(facts.tiny(), records, torch.Generator().manual_seed(0))), records.some(40)


def from_library(name: str, place) -> tuple[Model, Records]:
    texts = F.write_texts(place / "texts.jsonl", "text", *["label"] * (name in F.TEXTS))
    source = F.write_pictures(place / "pictures", F.LABELS) if name in F.PICTURES else texts
    return open_model(F.save(name, place / "model")), open_data(str(source)).records.some(40)


def seen(model: Model, records: Records) -> dict:
    """The moments of each weight, which is halved as soon as they are seen: later blocks see what earlier ones became."""
    found = {}
    for weight, moments in in_turn(model, weights(model.net), records):
        found[weight.name] = moments
        with torch.no_grad():
            weight.value.mul_(0.5)
    return found


@pytest.mark.parametrize("name", [*FAMILIES, *LIBRARY])
def test_sees_what_whole_passes_see(name, tmp_path, monkeypatch):
    model, records = toy(name) if name in FAMILIES else from_library(name, tmp_path)
    kept = seen(copy.deepcopy(model), records)
    monkeypatch.setattr(replay, "HELD", 0)  # nothing is kept: what lies before a block is computed again
    again = seen(copy.deepcopy(model), records)
    monkeypatch.setattr(Replay, "look", lambda self, number, at: self.run(number))
    whole = seen(copy.deepcopy(model), records)
    for other in (kept, again):
        assert other.keys() == whole.keys()
        for weight, moments in whole.items():
            assert other[weight] is None if moments is None else torch.equal(other[weight], moments), weight
    assert not any("forward" in vars(module) for module in model.net.modules())


def test_no_block_is_computed_more_than_twice_a_batch():
    facts, records = registry.family("causal_lm"), open_data("toy:causal_lm").records
    net, assets = facts.start({**facts.tiny(), "num_layers": 5}, records, torch.Generator().manual_seed(0))
    model, records = Model(facts, net, assets), records.some(40)
    calls: Counter = Counter()
    for name, (block, _) in model.blocks.items():
        inner = next(block.children())
        inner.register_forward_pre_hook(lambda module, inputs, name=name: calls.update([name]))
    seen(model, records)
    batches = -(-len(records) // calibration.BATCH)
    assert len(calls) == 5 and max(calls.values()) <= 2 * batches + 1  # and one to see in which order they run


@pytest.mark.parametrize("name", ["causal_lm", "mixtral", "bert"])
def test_moments_are_means_over_whole_passes(name, tmp_path):
    """Though a batch ends where all that is asked for has been seen."""
    model, records = toy(name) if name in FAMILIES else from_library(name, tmp_path)
    rows, last = {}, [*model.blocks][-1]
    part = [weight for weight in weights(model.net) if weight.name.startswith(f"{last}.")]
    found = calibration.second_moments(model, records, part)
    for weight in part:
        for module in [home for home, _ in weight.homes if isinstance(home, torch.nn.Linear)]:
            module.register_forward_pre_hook(
                lambda module, inputs, name=weight.name: rows.setdefault(name, []).append(inputs[0].flatten(0, -2))
            )
    with torch.no_grad():
        for number in range(-(-len(records) // calibration.BATCH)):
            calibration.answer(model, records, number)
    assert found.keys() == rows.keys() and found
    for weight, parts in rows.items():
        seen = torch.cat(parts)
        torch.testing.assert_close(found[weight], seen.T @ seen / len(seen), rtol=1e-4, atol=1e-6)
