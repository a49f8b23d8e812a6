"""A language model of transformers as one GGUF file: numbers, config and vocabulary, as llama.cpp reads them.

What llama.cpp computes is fixed by the architectures that it knows; `KINDS` says which of transformers' configs are one of
them. Codes that `quantize` made in groups of 32 columns go into its blocks as they are; every other matrix is rounded to the
precision asked for, with the scale of least error in each block.

Blocks (ggml): Q8_0 is a half-precision scale and 32 codes of a byte; Q4_0 is one and 16 bytes, the first 16 codes in their low
halves and the last 16 in their high ones.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import Refusal, needs_extra
from ..weights.attach import packed_weights
from ..weights.matrices import Weight, weights
from ..weights.packed import FORMATS, Packed, fitted_scales, spread
from ..weights.sharing import block_ties

BLOCK = 32  # columns that share a scale
ROTARY = ("LLAMA",)
"""Architectures of llama.cpp that turn neighboring numbers of a head; transformers turns its two halves."""

KINDS = {"llama": "LLAMA", "mistral": "LLAMA", "mixtral": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3", "gpt2": "GPT2"}
"""{model_type of transformers: architecture of llama.cpp}"""

FIGURES = {
    "add_context_length": "max_position_embeddings",
    "add_embedding_length": "hidden_size",
    "add_block_count": "num_hidden_layers",
    "add_feed_forward_length": "intermediate_size",
    "add_head_count": "num_attention_heads",
    "add_head_count_kv": "num_key_value_heads",
    "add_key_length": "head_dim",
    "add_value_length": "head_dim",
    "add_rope_dimension_count": "head_dim",
    "add_layer_norm_rms_eps": "rms_norm_eps",
    "add_layer_norm_eps": "layer_norm_epsilon",
    "add_expert_count": "num_local_experts",
    "add_expert_used_count": "num_experts_per_tok",
}
"""{method of the writer: entry of a config}, written where the config has it."""

LETTERS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)" + LETTERS + r"\p{N}{1,3}" + REST: "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)" + LETTERS + r"\p{N}" + REST: "qwen2",
}
"""{pattern by which a tokenizer splits texts before it merges: llama.cpp's name for it}"""

UNNAMED = (
    "llama.cpp has no name for how the tokenizer of this model cuts a text, so this file holds no vocabulary and takes the "
    "numbers of tokens, which tokenizer.json beside it gives"
)

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # kinds of token


@dataclass(frozen=True)
class Part:
    """A tensor of the file: numbers as transformers has them, or the codes (rows, columns) and scales (rows, groups) of a
    packed one."""

    name: str
    values: Tensor | None
    packed: tuple[Tensor, Tensor, int] | None = None
    """(codes, scales, bits)"""

    @property
    def shape(self) -> torch.Size:
        return self.values.shape if self.packed is None else self.packed[0].shape  # type: ignore[union-attr]

    def numbers(self) -> Tensor:
        """In fp32."""
        if self.packed is None:
            return self.values  # type: ignore[return-value]
        return self.packed[0] * spread(self.packed[1], self.shape[-1])

    def rows(self, order: Tensor | slice) -> "Part":
        """These rows, in this order; the entries of a vector."""
        at = (order,) if len(self.shape) == 1 else (..., order, slice(None))
        if self.packed is None:
            return replace(self, values=self.values[at].contiguous())  # type: ignore[index]
        codes, scale, bits = self.packed
        return replace(self, packed=(codes[at], scale[at], bits))


def library() -> Any:
    """The package that writes the format."""
    try:
        import gguf
    except ImportError:
        raise needs_extra("gguf", "gguf") from None
    return gguf


def write(net: nn.Module, tokenizer: Any, path: Path, precision: str) -> list[str]:
    """The net and its tokenizer in one file; the names of the matrices that no block divides, which stay in 16 bits. Refusal
    where llama.cpp has no such net."""
    gguf = library()
    config = require_known(net)
    arch = KINDS[config.model_type]
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[arch]])
    write_config(writer, config)
    write_vocabulary(writer, tokenizer, config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch], config.num_hidden_layers)
    odd = []
    for part in parts(net):
        name = names.get_name(part.name, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise Refusal(f"llama.cpp has no place for {part.name} in a {config.model_type}", "export --to onnx")
        array, kind = stored(turned(part, config, arch), name, precision)
        if kind in ("F16", "BF16") and precision in ("int8", "int4"):
            odd.append(part.name)
        writer.add_tensor(name, array, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return odd


# ------------------------------------------------------------------------------------------------------------- the config


def require_known(net: nn.Module) -> Any:
    """The net's config; Refusal where llama.cpp would not compute what it says."""
    config: Any = getattr(net, "config", None)
    kind = getattr(config, "model_type", None)
    if kind not in KINDS or not net.can_generate():  # type: ignore[operator]
        raise Refusal(
            f"llama.cpp computes language models of the kinds {', '.join(KINDS)}, not {kind or type(net).__name__}",
            "export --to onnx",
        )
    if block_ties(net):
        raise Refusal(
            "each block has tensors of its own in that format, and these share theirs", "onnuri bake, then export"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise Refusal(
            f"its positions are scaled by {rope['rope_type']!r}, which is not written here", "export --to onnx"
        )
    window = getattr(config, "sliding_window", None)
    if window and window < config.max_position_embeddings:
        raise Refusal(f"its attention slides over {window} tokens, which is not written here", "export --to onnx")
    return config


def write_config(writer: Any, config: Any) -> None:
    rope = getattr(config, "rope_parameters", None)
    for method, entry in FIGURES.items():
        value = getattr(config, entry, None)
        if value is None and entry == "head_dim" and rope:
            value = config.hidden_size // config.num_attention_heads
        if value is None and entry == "intermediate_size":
            value = getattr(config, "n_inner", None) or 4 * config.hidden_size
        if value is not None:
            getattr(writer, method)(value)
    if rope:
        writer.add_rope_freq_base(float(rope["rope_theta"]))


# ------------------------------------------------------------------------------------------------------------ the numbers


def parts(net: nn.Module) -> Iterator[Part]:
    """Every tensor under the name that transformers gives it on the disk, fused experts apart, tied ones once."""
    packed = {name: base for name, (_, base) in packed_weights(net).items()}
    for weight in weights(net):
        part = part_of(weight, packed.get(weight.name))
        if weight.name.endswith("gate_up_proj"):
            half = weight.matrix.shape[1] // 2
            for name, rows in (("gate_proj", slice(0, half)), ("up_proj", slice(half, None))):
                yield replace(part, name=f"{weight.name.removesuffix('gate_up_proj')}{name}.weight").rows(rows)
        else:
            yield part
    for name, value in net.named_parameters():
        if value.dim() == 1:
            yield Part(name, value.detach().float())


def part_of(weight: Weight, base: Packed | None) -> Part:
    """Units only where there are several, as of experts."""
    name = weight.name if weight.name.endswith(".weight") else f"{weight.name}.weight"
    if base is not None and base.scale.shape[2] * BLOCK == weight.matrix.shape[2] and base.form.digits is None:
        codes = base.form.codes(base.codes)
        return Part(name, None, (unit(codes), unit(base.scale), base.form.bits))
    return Part(name, unit(weight.matrix.float()))


def unit(matrix: Tensor) -> Tensor:
    return matrix[0] if matrix.shape[0] == 1 else matrix


def turned(part: Part, config: Any, arch: str) -> Part:
    """The rows of queries and keys in the order of llama.cpp, where it turns neighbors."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": getattr(config, "num_key_value_heads", None)}
    count = next((count for name, count in heads.items() if f".{name}." in part.name), None)
    if arch not in ROTARY or not count:
        return part
    rows = part.shape[-2] if len(part.shape) > 1 else part.shape[0]
    return part.rows(torch.arange(rows).view(count, 2, -1).transpose(1, 2).flatten())


def stored(part: Part, name: str, precision: str) -> tuple[np.ndarray, str]:
    """(what stands in the file, its type). Vectors and routers stay in fp32; at 4 bits a table, or the head, has 8."""
    if len(part.shape) == 1 or "ffn_gate_inp" in name:
        return part.numbers().numpy(), "F32"
    if part.packed is not None:
        return blocks(*part.packed), {8: "Q8_0", 4: "Q4_0"}[part.packed[2]]
    if precision == "fp32":
        return part.numbers().numpy(), "F32"
    if precision == "bf16":
        return part.numbers().to(torch.bfloat16).view(torch.uint8).numpy(), "BF16"
    if precision == "fp16" or part.shape[-1] % BLOCK:
        return part.numbers().half().numpy(), "F16"
    scheme = "int8" if precision == "int8" or name in ("token_embd.weight", "output.weight") else "int4"
    form, matrix = FORMATS[scheme], part.numbers().reshape(1, -1, part.shape[-1])
    scale = fitted_scales(matrix, form, BLOCK, torch.ones(matrix.shape[2]))
    codes = form.nearest(matrix / spread(scale, matrix.shape[2]))
    shape = (*part.shape[:-1], -1)
    return blocks(codes.reshape(shape), scale.reshape(shape), form.bits), {8: "Q8_0", 4: "Q4_0"}[form.bits]


def blocks(codes: Tensor, scale: Tensor, bits: int) -> np.ndarray:
    """Codes (..., columns) and scales (..., columns / BLOCK) as bytes (..., columns / BLOCK * bytes of a block)."""
    codes = codes.unflatten(-1, (-1, BLOCK))
    if bits == 4:
        low, high = (codes + 8).to(torch.uint8).unflatten(-1, (2, -1)).unbind(-2)
        stored = low | high << 4
    else:
        stored = codes.to(torch.int8).view(torch.uint8)
    scales = scale.half().unsqueeze(-1).contiguous().view(torch.uint8)
    return torch.cat([scales, stored], -1).flatten(-2).contiguous().numpy()


# --------------------------------------------------------------------------------------------------------- the vocabulary


def write_vocabulary(writer: Any, tokenizer: Any, size: int) -> None:
    """Tokens, their kinds, merges and marks. A number without a token gets one that no text holds. Only how many there are, where
    llama.cpp could not cut a text into them: the file takes numbers then, and says so."""
    backend, split = backend_of(tokenizer), split_name(tokenizer)
    if not split:
        writer.add_tokenizer_model("none")
        writer.add_vocab_size(size)
        writer.add_description(UNNAMED)
        return
    tokens, kinds = [f"[UNUSED{number}]" for number in range(size)], [UNUSED] * size
    for token, number in tokenizer.get_vocab().items():
        tokens[number], kinds[number] = token, NORMAL
    for added in backend["added_tokens"]:
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in backend["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    marks = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    for mark, number in marks.items():
        if number is not None:
            getattr(writer, f"add_{mark}_token_id")(number)
    ids = tokenizer("a").input_ids
    writer.add_add_bos_token(bool(ids) and ids[0] == marks["bos"])
    writer.add_add_eos_token(len(ids) > 1 and ids[-1] == marks["eos"])
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def backend_of(tokenizer: Any) -> dict:
    return json.loads(tokenizer.backend_tokenizer.to_str())


def split_name(tokenizer: Any) -> str:
    """llama.cpp's name for how a tokenizer splits a text before it merges; "" where it has none, or does not merge bytes."""
    backend = backend_of(tokenizer)
    steps = backend["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in steps]
    plain = backend["model"]["type"] == "BPE" and not any(step.get("add_prefix_space") for step in steps)
    if plain and kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    pattern = steps[0].get("pattern", {}).get("Regex", "") if kinds == ["Split", "ByteLevel"] else ""
    return SPLITS.get(pattern, "") if plain else ""
