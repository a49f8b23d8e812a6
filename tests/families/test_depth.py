"""The fact `keep`: keeping all changes nothing, and a block that is left out is as good as the identity in its place."""

import pytest
import torch

import folders
from onnuri import registry
from onnuri.blocks import with_blocks
from onnuri.errors import BadSettings, Refusal
from onnuri.model import Model, open_model, write_model

LANGUAGE = ("llama_tied", "qwen3", "gemma2", "mixtral", "gpt2")
OTHERS = ("bert", "roberta", "distilbert", "vit")
COUNTERS = ("num_hidden_layers", "n_layer", "n_layers")


def three_blocks(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The design `name` with three blocks, and those of a window with one layer in two without it."""
    kind, config, entries = folders.DESIGNS[name]
    counter = next(entry for entry in COUNTERS if entry in entries)
    monkeypatch.setitem(folders.DESIGNS, name, (kind, config, entries | {counter: 3}))


def tiny(family: str, **config) -> Model:
    record = registry.family(family)
    made = record.start(record.tiny() | config, record.toy(40, 0), torch.Generator().manual_seed(0))
    return Model(record, *made)


def values(model: Model) -> torch.Tensor:
    return model.outputs(model.collate(model.asked(model.family.toy(8, 1).list())))[0]


def as_identity(net: torch.nn.Module, block: str) -> None:
    """The block hands on what it was given; what it says beside that stays."""

    def given(module, inputs, named, output):
        hidden = inputs[0] if inputs else named["hidden_states"]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    net.get_submodule(block).register_forward_hook(given, with_kwargs=True)


@pytest.mark.parametrize("name", (*LANGUAGE, *OTHERS))
def test_a_transformer_without_its_middle_block(name, tmp_path, monkeypatch):
    three_blocks(monkeypatch, name)
    model = open_model(folders.save(name, tmp_path / "model"))
    middle = next(block for block in model.blocks if block.endswith(".1"))
    same = with_blocks(model, model.blocks)
    assert torch.equal(folders.logits(name, same.net), folders.logits(name, model.net))
    less = with_blocks(model, [block for block in model.blocks if block != middle])
    assert len(less.blocks) == len(model.blocks) - 1
    (tmp_path / "less").mkdir()
    write_model(less, tmp_path / "less")
    again = folders.reopen(name, tmp_path / "less")
    as_identity(model.net, middle)
    expected = folders.logits(name, model.net)
    assert torch.equal(folders.logits(name, less.net), expected)  # the same sums in the same order
    assert torch.equal(folders.logits(name, again), expected)
    if name in LANGUAGE:
        prompt = torch.tensor([[5, 6, 7]])
        greedy = [
            net.generate(prompt, max_new_tokens=6, do_sample=False, use_cache=cached)
            for net, cached in ((less.net, True), (again, True), (again, False))
        ]
        assert all(torch.equal(greedy[0], other) for other in greedy)


def test_windows_stay_with_their_blocks(tmp_path, monkeypatch):
    three_blocks(monkeypatch, "gemma2")
    model = open_model(folders.save("gemma2", tmp_path / "model"))
    kinds = model.net.config.layer_types
    less = with_blocks(model, ["model.layers.1", "model.layers.2"])
    assert kinds[0] != kinds[1] and less.net.config.layer_types == kinds[1:]
    assert model.net.config.layer_types == kinds  # the original is as it was


def test_a_scale_that_depends_on_the_place_is_no_silent_change(tmp_path, monkeypatch):
    three_blocks(monkeypatch, "gpt2")
    kind, config, entries = folders.DESIGNS["gpt2"]
    by_place = entries | {"scale_attn_by_inverse_layer_idx": True}
    monkeypatch.setitem(folders.DESIGNS, "gpt2", (kind, config, by_place))
    model = open_model(folders.save("gpt2", tmp_path / "model"))
    assert len(with_blocks(model, ["transformer.h.0", "transformer.h.1"]).blocks) == 2
    with pytest.raises(Refusal, match=r"scaling of transformer\.h\.1.attn would be"):
        with_blocks(model, ["transformer.h.0", "transformer.h.2"])


@pytest.mark.parametrize("name", ("resnet", "mobilenet", "swin", "convnext"))
def test_stages_that_differ_in_shape_refuse(name, tmp_path):
    model = open_model(folders.save(name, tmp_path / "model"))
    with pytest.raises(Refusal, match=r"no block of this design|nothing would be left") as refusal:
        with_blocks(model, list(model.blocks)[:-1])
    assert refusal.value.instead


def test_own_nets(tmp_path):
    table = tiny("tabular", layers=3)
    assert torch.equal(values(with_blocks(table, table.blocks)), values(table))
    less = with_blocks(table, ["layers.0", "layers.2"])
    as_identity(table.net, "layers.1")
    assert torch.equal(values(less), values(table))
    write_model(less, tmp_path)
    assert torch.equal(values(open_model(tmp_path)), values(table))

    picture = tiny("image_classifier", depth=3)  # two stages
    less = with_blocks(picture, [f"blocks.{i}" for i in (0, 2, 3, 4)])
    for block in ("blocks.1", "blocks.5"):
        as_identity(picture.net, block)
    assert torch.equal(values(less), values(picture))
    for names in (["blocks.0", "blocks.3", "blocks.4"], [f"blocks.{i}" for i in (0, 1, 4, 5)]):
        with pytest.raises(Refusal):  # stages of unlike length; a stage without the block that halves the picture
            with_blocks(picture, names)


@pytest.mark.parametrize("family", ("gan", "diffusion", "forest"))
def test_designs_without_blocks_in_a_row_refuse(family):
    model = tiny(family)
    names = list(model.family.blocks(model.net))
    with pytest.raises(Refusal):
        model.family.keep(model.net, model.assets, names)


def test_nothing_and_nobody(tmp_path):
    model = open_model(folders.save("bert", tmp_path / "model"))
    with pytest.raises(BadSettings, match=r"bert.encoder.layer.1"):
        with_blocks(model, ["bert.embeddings", "bert.encoder.layer.7"])
    with pytest.raises(Refusal, match=r"in the place of bert.embeddings, bert.encoder.layer"):
        with_blocks(model, [])
    with pytest.raises(Refusal, match=r"in the place of bert.embeddings"):
        with_blocks(model, ["bert.encoder.layer.0", "bert.encoder.layer.1"])


def test_the_pruned_weights_of_a_block_move_with_it():
    model = tiny("tabular", layers=3)
    model.pruned = ("stem.weight", "layers.0.up.weight", "layers.1.up.weight", "layers.2.down.weight")
    less = with_blocks(model, ["layers.0", "layers.2"])
    assert less.pruned == ("stem.weight", "layers.0.up.weight", "layers.1.down.weight")


def test_the_copy_owns_its_tensors():
    model = tiny("tabular", layers=2)
    less, before = with_blocks(model, ["layers.1"]), values(model)
    with torch.no_grad():
        for tensor in less.net.parameters():
            tensor.zero_()
    assert torch.equal(values(model), before)
