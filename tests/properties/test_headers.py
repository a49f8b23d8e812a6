"""Model files: what is written is read bit by bit, whatever the tensors are called and however large they are."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import folders
from onnuri import hub
from onnuri.errors import BadInput
from onnuri.model import open_model, tensor_digest
from onnuri.weights import adapters

TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool, torch.uint8)
NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8)
SHAPES = st.lists(st.integers(0, 4), max_size=4)


def tensor(shape: list[int], kind: torch.dtype, seed: int) -> torch.Tensor:
    """Any bits, those of NaN and infinity too."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**31), 2**31, shape, generator=draw).to(kind)


TENSORS = st.builds(tensor, SHAPES, st.sampled_from(TYPES), st.integers(0, 9))


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    alike = one.dtype == other.dtype and one.shape == other.shape
    return alike and one.contiguous().view(-1).view(torch.uint8).equal(other.contiguous().view(-1).view(torch.uint8))


def holder(tensors: dict[str, torch.Tensor]) -> nn.Module:
    """A net that stores these."""
    net = nn.Module()
    for name, value in tensors.items():
        net.register_buffer(name, value)
    return net


@settings(max_examples=80)
@given(
    st.dictionaries(NAMES.filter(lambda name: "." not in name and name not in dir(nn.Module())), TENSORS, max_size=5)
)
def test_a_net_of_ours(tmp_path_factory, tensors):
    folder = tmp_path_factory.mktemp("own")
    hub.write_own(holder(tensors), {"model_type": "x"}, folder, True)
    hub.check_folder(folder)
    blank = {name: torch.zeros_like(value) for name, value in tensors.items()}
    found = hub.read_own(lambda config: holder(blank), folder, False).state_dict()
    assert found.keys() == tensors.keys() and all(same(found[name], value) for name, value in tensors.items())
    for name in tensors:
        with pytest.raises(BadInput) as caught:
            lacking = {other: value for other, value in blank.items() if other != name}
            hub.read_own(lambda config, lacking=lacking: holder(lacking), folder, False)
        assert f"unexpected tensor {name}" in caught.value.faults[0]


@settings(max_examples=80)
@given(
    st.dictionaries(
        NAMES, st.tuples(*[st.integers(0, 3)] * 4, st.floats(allow_nan=False, allow_infinity=False)), max_size=4
    )
)
def test_an_adapter_of_ours(tmp_path_factory, sizes):
    path = tmp_path_factory.mktemp("adapter") / "onnuri" / "adapter.safetensors"
    parts = {
        name: (torch.randn(units, rank, columns), torch.randn(units, rows, rank), scale)
        for name, (units, rank, rows, columns, scale) in sizes.items()
    }
    adapters.write_own(parts, path, {"base": "값/b", "base_tensors": "0"})
    found = adapters.read_own(path)
    assert found.keys() == parts.keys() and adapters.metadata(path)["base"] == "값/b"
    for name, (down, up, scale) in parts.items():
        assert same(found[name][0], down) and same(found[name][1], up) and found[name][2] == scale


@pytest.fixture(scope="module")
def digest(tmp_path_factory) -> tuple[str, object]:
    net = open_model(folders.save("gpt2", tmp_path_factory.mktemp("whole"))).net
    return tensor_digest(net), net


@settings(max_examples=6)
@given(st.integers(4_000, 200_000))
def test_however_a_model_is_divided(tmp_path_factory, digest, size):
    folder = folders.save("gpt2", tmp_path_factory.mktemp("parts"), max_shard_size=size)
    assert tensor_digest(open_model(folder).net) == digest[0]
    parts = sorted(folder.glob("model-*.safetensors"))
    if parts:
        parts[0].unlink()
        with pytest.raises(BadInput) as caught:
            open_model(folder)
        assert str(caught.value).strip()


@settings(max_examples=150)
@given(st.dictionaries(st.text(max_size=4), st.text(st.sampled_from("./a\\\0~가"), max_size=7), max_size=3))
def test_an_index_names_no_file_outside(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("index")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    outside = [
        name
        for name in set(names.values())
        if "\0" in name or not (folder / name).resolve().is_relative_to(folder) or ".." in Path(name).parts
    ]
    try:
        hub.check_folder(folder)
    except BadInput as error:
        assert len([fault for fault in error.faults if "leads outside" in fault]) == len(outside) > 0
    else:
        assert not outside
