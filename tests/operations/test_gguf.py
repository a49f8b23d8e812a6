"""GGUF: the file holds the net's own numbers, whatever the architecture; llama.cpp, where it is installed, answers alike."""

from pathlib import Path

import numpy as np
import pytest
import torch

from command import onnuri, refused
from folders import save
from onnuri.decoding import Chooser
from onnuri.errors import Refusal
from onnuri.model import open_model
from onnuri.runtimes import gguf_file
from onnuri.weights import attach
from onnuri.weights.matrices import weights
from onnuri.weights.packed import FORMATS

gguf = pytest.importorskip("gguf")
KINDS = ("llama", "llama_tied", "llama_bf16", "qwen3", "mixtral", "gpt2")


@pytest.fixture(params=KINDS)
def folder(request, tmp_path) -> Path:
    return save(request.param, tmp_path / "m")


def written(model, path: Path, precision: str) -> dict[str, np.ndarray]:
    """{name: numbers} of the file that is written, by the format's own reader."""
    gguf_file.write(model.net, tokenizer(model.folder), path, precision)
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(str(path)).tensors
    }


def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def test_every_number_is_there_once(folder, tmp_path):
    model = open_model(folder)
    found = written(model, tmp_path / "x.gguf", "fp32")
    assert sum(array.size for array in found.values()) == sum(p.numel() for p in model.net.parameters())
    ours = torch.cat([p.detach().flatten() for p in model.net.parameters()]).double()
    theirs = torch.cat([torch.from_numpy(array.copy()).flatten() for array in found.values()]).double()
    assert torch.equal(ours.sort().values, theirs.sort().values), "the same numbers, in whatever order"


@pytest.mark.parametrize("precision, step", [("int8", 1 / 127), ("int4", 1 / 7.5)])
def test_rounding_is_within_half_a_step(folder, tmp_path, precision, step):
    model = open_model(folder)
    exact, rounded = (written(model, tmp_path / f"{p}.gguf", p) for p in ("fp32", precision))
    for name, numbers in exact.items():
        largest = np.abs(numbers).max() if numbers.ndim > 1 else 0
        # a scale that was shrunk cuts the largest numbers: by 40 % at most
        assert np.abs(rounded[name] - numbers).max() <= max(0.41, step) * largest, name
        assert np.abs(rounded[name] - numbers).mean() <= 0.51 * step * largest, name


def test_codes_of_a_packed_model_go_in_as_they_are(tmp_path):
    model = open_model(save("llama", tmp_path / "m"))
    for weight in weights(model.net, "linear"):
        if weight.matrix.shape[2] % 32 == 0:
            attach.pack(weight, "int4", 32)
    found = written(model, tmp_path / "x.gguf", "int4")
    up = next(base for name, (_, base) in attach.packed_weights(model.net).items() if "layers.1.mlp.up_proj" in name)
    assert np.allclose(found["blk.1.ffn_up.weight"], up.matrix[0].numpy(), rtol=2**-10, atol=0), "scales have 11 bits"


def test_blocks_are_those_of_ggml():
    torch.manual_seed(0)
    matrix = torch.randn(3, 64)
    for bits, kind, form in ((8, gguf.GGMLQuantizationType.Q8_0, "int8"), (4, gguf.GGMLQuantizationType.Q4_0, "int4")):
        scale = matrix.unflatten(1, (-1, 32)).abs().amax(2).half().float() / (127 if bits == 8 else 7.5)
        scale = scale.half().float()
        codes = FORMATS[form].nearest(matrix / scale.repeat_interleave(32, 1))
        data = gguf_file.blocks(codes, scale, bits)
        assert np.array_equal(gguf.quants.dequantize(data, kind), (codes * scale.repeat_interleave(32, 1)).numpy())


def test_what_llama_cpp_does_not_know_is_refused(tmp_path):
    assert (
        onnuri("train", "--family", "tabular", "--steps", "2", "--data", "builtin:iris", "--out", tmp_path / "t").code
        == 0
    )
    words = ("export", tmp_path / "t", "--to", "gguf", "--data", "builtin:iris", "--out", tmp_path / "x")
    refused(onnuri(*words), "llama.cpp computes language models")
    refused(onnuri(*words, "--opset", "18"), "'opset' 18 has no effect on gguf")
    model = open_model(save("llama", tmp_path / "m"))
    model.net.config.rope_parameters = {"rope_type": "yarn", "rope_theta": 1e4}
    with pytest.raises(Refusal, match="yarn"):
        gguf_file.require_known(model.net)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_llama_cpp_answers_alike(folder, tmp_path, precision):
    pytest.importorskip("llama_cpp")
    data = tmp_path / "texts.csv"
    data.write_text("text\n" + "".join(f"고양이가 집에서 잔다 {i} the cat sleeps\n" for i in range(40)))
    words = ("export", folder, "--to", "gguf", "--precision", precision, "--data", data, "--out", tmp_path / "x")
    done = onnuri(*words)
    assert done.code == 0, done.err
    torch_model, other = open_model(folder), open_model(tmp_path / "x")
    prompts = [{"prompt": "고양이가"}, {"prompt": "the cat"}]
    if precision == "fp32":
        assert torch_model.sample(prompts) == other.sample(prompts), "greedy tokens are equal"


def continued(session, prompts, stops=()):
    """12 tokens after each prompt."""
    chooser = Chooser([None] * len(prompts), stops)
    session.continued(prompts, 12, stops, chooser)
    return [answer.tokens for answer in chooser.answers]


@pytest.mark.parametrize("cells", [4096, 512])
def test_texts_written_together_are_those_written_alone(tmp_path, monkeypatch, cells):
    """Of unlike lengths, of which some end before others; more than are written at once."""
    pytest.importorskip("llama_cpp")
    from onnuri.runtimes import gguf as runtime

    monkeypatch.setattr(runtime, "CELLS", cells)
    model = open_model(save("llama", tmp_path / "m"))
    gguf_file.write(model.net, tokenizer(model.folder), tmp_path / "x.gguf", "fp32")
    session = runtime.GgufSession(tmp_path / "x.gguf")
    prompts = [[1, *range(5, 5 + count)] for count in (1, 4, 9, 2, 20)]
    alone = [continued(session, [prompt])[0] for prompt in prompts]
    assert continued(session, prompts) == alone
    stop = alone[2][3]
    ended = continued(session, prompts, [stop])
    assert ended == [made[: made.index(stop) + 1] if stop in made else made for made in alone] and len(ended[2]) <= 4
    assert continued(session, []) == []


def test_a_tokenizer_without_a_name_is_left_out(tmp_path):
    """llama.cpp knows patterns by name only: the file says that it takes numbers, and those are our tokenizer's."""
    texts = tmp_path / "texts.csv"
    texts.write_text("text\n" + "".join(f"고양이가 집에서 잔다 {i} the cat sleeps\n" for i in range(40)))
    small = "hidden_size=32,num_layers=1,num_heads=2,vocab_size=290,max_length=32,max_new_tokens=6,tokenizer=unigram"
    made = ("train", "--family", "causal_lm", "--data", texts, "--answer", "text", "--steps", "3", "--config", small)
    assert onnuri(*made, "--out", tmp_path / "m").code == 0
    model = open_model(tmp_path / "m")
    gguf_file.write(model.net, tokenizer(model.folder), tmp_path / "x.gguf", "fp32")
    fields = gguf.GGUFReader(str(tmp_path / "x.gguf")).fields
    assert fields["tokenizer.ggml.model"].contents() == "none" and "tokenizer.ggml.tokens" not in fields
    assert fields["llama.vocab_size"].contents() == len(model.net.get_input_embeddings().weight)
    assert "no name for how" in fields["general.description"].contents()
    pytest.importorskip("llama_cpp")
    out = tmp_path / "out"
    done = onnuri("export", tmp_path / "m", "--to", "gguf", "--data", texts, "--answer", "text", "--out", out)
    assert done.code == 0 and "holds no vocabulary" in done.out + done.err, done.err
    prompts = [{"prompt": "고양이가"}, {"prompt": "the cat 🙂"}]
    assert model.sample(prompts) == open_model(out).sample(prompts), "greedy tokens are equal"
