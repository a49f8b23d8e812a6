"""What the sides of the race over decoding share: a Llama of 79 M with random weights, in every form, and the clock.

python benchmarks/sides/decoding.py --data DATA --kept FOLDER     makes the model and its exports
python benchmarks/sides/decoding.py --kept FOLDER --side onnuri|onnx|torch|raw|transformers --form FORM     runs one
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import language

SIZE, PROMPT, NEW, TURNS = "79", 4, 100, 5
FORMS = {"f32": "fp32", "f16": "fp16", "Q8_0": "int8", "Q4_0": "int4"}
"""{llama.cpp's name of a form: the precision that export is asked for}"""

ON_ONNX = ("f32", "Q8_0", "Q4_0")


def main() -> None:
    parser = language.arguments()
    parser.add_argument("--data", type=Path)
    parser.add_argument("--sizes", default=SIZE)
    parser.add_argument("--side", choices=sorted(SIDES))
    parser.add_argument("--form", default="f32")
    chosen = parser.parse_args()
    if chosen.side:
        return tell(SIDES[chosen.side](chosen.kept, chosen.form))
    sys.argv += ["--sizes", SIZE]
    language.main()
    lines = (chosen.kept / "documents.jsonl").read_text(encoding="utf-8").splitlines()[:64]
    (chosen.kept / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for runtime, forms in {"gguf": FORMS, "onnx": {form: FORMS[form] for form in ON_ONNX}}.items():
        for form, precision in forms.items():
            words = ["export", str(chosen.kept / f"llama-{SIZE}"), "--to", runtime, "--precision", precision]
            out = str(chosen.kept / f"{runtime}-{form}")
            data = ["--data", str(chosen.kept / "texts.jsonl"), "--answer", "text", "--out", out]
            program = str(Path(sys.executable).with_name("onnuri"))
            subprocess.run([program, *words, *data], check=True, capture_output=True)
    print("{}")


def tell(decode: Callable[[], list[int]]) -> None:
    """The speed of the median turn, after one that warms up; what was written, so that sides can be compared."""
    tokens, seconds = decode(), []
    for _ in range(TURNS):
        began = time.perf_counter()
        decode()
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"tokens_per_second": len(tokens) / median(seconds), "tokens": tokens}))


# --------------------------------------------------------------------------------------------------------------- the sides


def onnuri(kept: Path, form: str) -> Callable[[], list[int]]:
    from onnuri.model import open_model

    net = open_model(kept / f"gguf-{form}").net
    return lambda: net.continued([list(range(1, PROMPT + 1))], NEW, [], [None])[0]


def onnx(kept: Path, form: str) -> Callable[[], list[int]]:
    return stepwise(kept / f"onnx-{form}")


def torch_itself(kept: Path, form: str) -> Callable[[], list[int]]:
    return stepwise(kept / f"llama-{SIZE}")


def stepwise(folder: Path) -> Callable[[], list[int]]:
    """What Onnuri does on every runtime that keeps a memory but does not write by itself."""
    import torch

    from onnuri.decoding import Chooser, written
    from onnuri.model import open_model

    model = open_model(folder)
    writing, prompt = model.family.writing(model.net, model.assets), list(range(1, PROMPT + 1))

    def decode() -> list[int]:
        with torch.inference_mode():
            return written(writing, [prompt], NEW, Chooser([None], ()))[0]

    return decode


def raw(kept: Path, form: str) -> Callable[[], list[int]]:
    """llama.cpp's own functions and its own greedy sampler, on the same file."""
    import ctypes

    import llama_cpp as lib
    import torch

    silence = lib.llama_log_callback(lambda level, text, data: None)
    lib.llama_log_set(silence, ctypes.c_void_p(0))
    lib.llama_backend_init()
    path = kept / f"gguf-{form}" / "onnuri" / "model.gguf"
    model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
    options = lib.llama_context_default_params()
    options.n_ctx = options.n_batch = 256
    options.n_threads = options.n_threads_batch = torch.get_num_threads()
    context = lib.llama_init_from_model(model, options)
    sampler = lib.llama_sampler_init_greedy()
    keep = silence  # the library calls it as long as it lives

    def decode() -> list[int]:
        assert keep
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        tokens = (lib.llama_token * PROMPT)(*range(1, PROMPT + 1))
        lib.llama_decode(context, lib.llama_batch_get_one(tokens, PROMPT))
        made, one = [], (lib.llama_token * 1)()
        for place in range(NEW):
            made.append(lib.llama_sampler_sample(sampler, context, -1))
            if place < NEW - 1:
                one[0] = made[-1]
                lib.llama_decode(context, lib.llama_batch_get_one(one, 1))
        return made

    return decode


def transformers(kept: Path, form: str) -> Callable[[], list[int]]:
    import torch
    from transformers import AutoModelForCausalLM

    kind = {"f32": torch.float32, "bf16": torch.bfloat16}[form]
    net = AutoModelForCausalLM.from_pretrained(kept / f"llama-{SIZE}", dtype=kind).eval()
    net.generation_config.eos_token_id = None
    prompt = torch.arange(1, PROMPT + 1)[None]

    def decode() -> list[int]:
        mask = torch.ones_like(prompt)
        with torch.inference_mode():
            return net.generate(prompt, attention_mask=mask, max_new_tokens=NEW, do_sample=False)[0, PROMPT:].tolist()

    return decode


SIDES = {"onnuri": onnuri, "onnx": onnx, "torch": torch_itself, "raw": raw, "transformers": transformers}

if __name__ == "__main__":
    main()
