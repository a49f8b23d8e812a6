"""What llama.cpp makes of the model at 4 bits, and what any GGUF file of it gives: the judge of all, in llama.cpp itself.

    python benchmarks/sides/int4_gguf.py --kept FOLDER --file FILE --make plain|plain-table|imatrix
    python benchmarks/sides/int4_gguf.py --kept FOLDER --file FILE

`plain` and `imatrix` keep the table of tokens, which is the head as well, in Q8_0, as our file does: equal bytes. `plain-table`
leaves it to llama.cpp, which takes Q6_K. The matrix of importance is what llama.cpp's own tool counts: mean squares of inputs.
"""

import argparse
import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import torch
from int4_score import Judge

lib: Any = llama_cpp
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""{layer of transformers: of llama.cpp}"""


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--kept", "--file"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--make", choices=["plain", "plain-table", "imatrix"])
    chosen = parser.parse_args()
    silence = lib.llama_log_callback(lambda level, text, data: None)
    lib.llama_log_set(silence, ctypes.c_void_p(0))
    lib.llama_backend_init()
    if chosen.make:
        make(chosen.kept, chosen.file, chosen.make)
        return print("{}")
    before, after, judge = logits(chosen.kept / "f32.gguf"), logits(chosen.file), Judge()
    for window in torch.tensor(json.loads((chosen.kept / "held.json").read_text())):
        judge.see(window[None], before(window), after(window))
    print(json.dumps({"file_bytes": float(chosen.file.stat().st_size), **judge.says()}))


def make(kept: Path, file: Path, how: str) -> None:
    """llama.cpp's Q4_0 of the model."""
    options = lib.llama_model_quantize_default_params()
    options.ftype, options.nthread = lib.LLAMA_FTYPE_MOSTLY_Q4_0, torch.get_num_threads()
    if how != "plain-table":
        options.token_embedding_type = options.output_tensor_type = lib.GGML_TYPE_Q8_0
    means = importance(kept) if how == "imatrix" else {}
    if means:
        entries = (lib.llama_model_imatrix_data * (len(means) + 1))()  # the last one stays empty: the end
        for entry, (name, mean) in zip(entries, means.items()):
            entry.name, entry.size = name.encode(), len(mean)
            entry.data = mean.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        options.imatrix = entries
    if lib.llama_model_quantize(str(kept / "f32.gguf").encode(), str(file).encode(), ctypes.byref(options)):
        raise SystemExit("llama.cpp did not quantize the model")


@torch.inference_mode()
def importance(kept: Path) -> dict[str, np.ndarray]:
    """{matrix: the mean square of each of its inputs} over the windows that are seen."""
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(kept / "lm", dtype=torch.float32).eval()
    windows = torch.tensor(json.loads((kept / "seen.json").read_text()))
    sums: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Callable:
        def add(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            sums[name] = sums.get(name, 0) + inputs[0].square().sum((0, 1))

        return add

    for place, block in enumerate(net.model.layers):
        for layer, name in NAMES.items():
            block.get_submodule(layer).register_forward_pre_hook(watch(f"blk.{place}.{name}.weight"))
    for batch in windows.split(16):
        net(batch)
    return {name: (total / windows.numel()).numpy() for name, total in sums.items()}


def logits(file: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """What a file gives for a window: (1, places, vocabulary). The cache is in fp32, so that weights alone differ."""
    model = lib.llama_model_load_from_file(str(file).encode(), lib.llama_model_default_params())
    size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    options = lib.llama_context_default_params()
    options.n_ctx = options.n_batch = 256
    options.n_threads = options.n_threads_batch = torch.get_num_threads()
    options.type_k = options.type_v = lib.GGML_TYPE_F32
    options.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = lib.llama_init_from_model(model, options)

    def answer(window: torch.Tensor) -> torch.Tensor:
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        batch = lib.llama_batch_init(len(window), 0, 1)
        batch.n_tokens = len(window)
        for place, token in enumerate(window.tolist()):
            batch.token[place], batch.pos[place], batch.logits[place] = token, place, True
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        if lib.llama_decode(context, batch):
            raise SystemExit(f"llama.cpp did not read {file}")
        lib.llama_batch_free(batch)
        found = np.ctypeslib.as_array(lib.llama_get_logits(context), (len(window), size))
        return torch.from_numpy(found.copy())[None]

    return answer


if __name__ == "__main__":
    main()
