"""What the sides of the races over decoding share: a Llama with random weights, in every form, and the clock.

python benchmarks/sides/decoding.py --data DATA --kept FOLDER --size 79     makes the model, its exports, and what is to be written
python benchmarks/sides/decoding.py --kept FOLDER --size 79 --side S --form F --batch N    runs one

What is to be written is what transformers writes in fp32, with the margin between the two likeliest tokens at each place. Another
kernel sums in another order: a text that leaves it where that margin is below NEAR does not count as unlike.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import language

PROMPT, NEW, TURNS = 4, 100, 5
BATCHES = (1, 16)
NEAR = (
    1e-3  # of logits whose deviation is about 1; those of one net in fp32 and in two libraries differ by 4e-4 at most
)
FORMS = {"f32": "fp32", "f16": "fp16", "Q8_0": "int8", "Q4_0": "int4"}
"""{llama.cpp's name of a form: the precision that export is asked for}"""

ON_ONNX = ("f32", "Q8_0", "Q4_0")
Decode = Callable[[], list[list[int]]]


def main() -> None:
    parser = language.arguments()
    parser.add_argument("--data", type=Path)
    parser.add_argument("--size", default="79")
    parser.add_argument("--side", choices=sorted(SIDES))
    parser.add_argument("--form", default="f32")
    parser.add_argument("--batch", type=int, default=1)
    chosen = parser.parse_args()
    if chosen.side:
        prompts = [list(range(first, first + PROMPT)) for first in range(1, 1 + chosen.batch)]
        decode = SIDES[chosen.side](chosen.kept, chosen.size, chosen.form, prompts)
        return tell(decode, wanted(chosen.kept, chosen.size, chosen.batch))
    sys.argv = [sys.argv[0], "--data", str(chosen.data), "--kept", str(chosen.kept), "--sizes", chosen.size]
    language.main()
    lines = (chosen.kept / f"documents-{chosen.size}.jsonl").read_text(encoding="utf-8").splitlines()[:64]
    (chosen.kept / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for runtime, forms in {"gguf": FORMS, "onnx": {form: FORMS[form] for form in ON_ONNX}}.items():
        for form, precision in forms.items():
            exported(chosen.kept, chosen.size, runtime, form, precision)
    for batch in BATCHES:
        write_wanted(chosen.kept, chosen.size, batch)
    print("{}")


def exported(kept: Path, size: str, runtime: str, form: str, precision: str) -> None:
    words = ["export", str(kept / f"llama-{size}"), "--to", runtime, "--precision", precision]
    data = ["--data", str(kept / "texts.jsonl"), "--answer", "text", "--out", str(kept / f"{runtime}-{size}-{form}")]
    subprocess.run([str(Path(sys.executable).with_name("onnuri")), *words, *data], check=True, capture_output=True)


def tell(decode: Decode, reference: dict) -> None:
    """The speed of the median turn, after one that warms up; and how many texts are unlike the reference."""
    texts, seconds = decode(), []
    for _ in range(TURNS):
        began = time.perf_counter()
        decode()
        seconds.append(time.perf_counter() - began)
    unlike = sum(is_unlike(*each) for each in zip(texts, reference["tokens"], reference["margins"]))
    told = {"tokens_per_second": sum(map(len, texts)) / median(seconds), "unlike": unlike}
    print(json.dumps({**told, "equal": sum(map(list.__eq__, texts, reference["tokens"])), "texts": len(texts)}))


def is_unlike(tokens: list[int], reference: list[int], margins: list[float]) -> bool:
    """Whether the first token that differs was no near tie."""
    first = next((place for place, (one, other) in enumerate(zip(tokens, reference)) if one != other), None)
    return first is not None and margins[first] >= NEAR


# ----------------------------------------------------------------------------------------------------------- the reference


def wanted(kept: Path, size: str, batch: int) -> dict:
    return json.loads((kept / f"wanted-{size}-{batch}.json").read_text())


def write_wanted(kept: Path, size: str, batch: int) -> None:
    import torch

    net, prompts = library(kept, size, "f32"), torch.arange(batch)[:, None] + torch.arange(1, PROMPT + 1)
    with torch.inference_mode():
        found = net.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=NEW,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    best = torch.stack(found.logits, 1).topk(2).values
    told = {"tokens": found.sequences[:, PROMPT:].tolist(), "margins": (best[..., 0] - best[..., 1]).tolist()}
    (kept / f"wanted-{size}-{batch}.json").write_text(json.dumps(told))


# --------------------------------------------------------------------------------------------------------------- the sides


def onnuri(kept: Path, size: str, form: str, prompts: list[list[int]]) -> Decode:
    return written_by(kept / f"gguf-{size}-{form}", prompts)


def onnx(kept: Path, size: str, form: str, prompts: list[list[int]]) -> Decode:
    return written_by(kept / f"onnx-{size}-{form}", prompts)


def torch_itself(kept: Path, size: str, form: str, prompts: list[list[int]]) -> Decode:
    return written_by(kept / f"llama-{size}", prompts)


def compiled(kept: Path, size: str, form: str, prompts: list[list[int]]) -> Decode:
    """As `generate --compile` does; the minute of compiling does not count."""
    return written_by(kept / f"llama-{size}", prompts, compiling=True)


def written_by(folder: Path, prompts: list[list[int]], compiling: bool = False) -> Decode:
    """What `generate` does on whichever runtime the folder is for, without a stop."""
    from dataclasses import replace

    import torch

    from onnuri.decoding import Chooser, written
    from onnuri.model import open_model
    from onnuri.operation import Quiet
    from onnuri.operations.generate.compiling import compiled_if_it_pays

    model = open_model(folder)
    writing = model.family.writing(model.net, replace(model.assets, stops=()))
    if compiling:
        writing = compiled_if_it_pays(model.net, writing, prompts, Quiet())

    def decode() -> list[list[int]]:
        with torch.inference_mode():
            return written(writing, prompts, NEW, Chooser([None] * len(prompts), ()))

    return decode


def raw(kept: Path, size: str, form: str, prompts: list[list[int]]) -> Decode:
    """llama.cpp's own functions and its own greedy sampler, on the same file and one text."""
    import ctypes

    import llama_cpp as lib
    import torch

    silence = lib.llama_log_callback(lambda level, text, data: None)
    lib.llama_log_set(silence, ctypes.c_void_p(0))
    lib.llama_backend_init()
    path = kept / f"gguf-{size}-{form}" / "onnuri" / "model.gguf"
    model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
    options = lib.llama_context_default_params()
    options.n_ctx = options.n_batch = 256
    options.n_threads = options.n_threads_batch = torch.get_num_threads()
    context = lib.llama_init_from_model(model, options)
    sampler = lib.llama_sampler_init_greedy()
    keep = silence  # the library calls it as long as it lives

    def decode() -> list[list[int]]:
        assert keep
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        tokens = (lib.llama_token * PROMPT)(*prompts[0])
        lib.llama_decode(context, lib.llama_batch_get_one(tokens, PROMPT))
        made, one = [], (lib.llama_token * 1)()
        for place in range(NEW):
            made.append(lib.llama_sampler_sample(sampler, context, -1))
            if place < NEW - 1:
                one[0] = made[-1]
                lib.llama_decode(context, lib.llama_batch_get_one(one, 1))
        return [made]

    return decode


def transformers(kept: Path, size: str, form: str, prompts: list[list[int]]) -> Decode:
    import torch

    net, ids = library(kept, size, form), torch.tensor(prompts)

    def decode() -> list[list[int]]:
        mask = torch.ones_like(ids)
        with torch.inference_mode():
            return net.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False)[:, PROMPT:].tolist()

    return decode


def library(kept: Path, size: str, form: str):
    import torch
    from transformers import AutoModelForCausalLM

    kind = {"f32": torch.float32, "bf16": torch.bfloat16}[form]
    net = AutoModelForCausalLM.from_pretrained(kept / f"llama-{size}", dtype=kind).eval()
    net.generation_config.eos_token_id = None
    return net


SIDES = {
    "onnuri": onnuri,
    "onnx": onnx,
    "torch": torch_itself,
    "compiled": compiled,
    "raw": raw,
    "transformers": transformers,
}

if __name__ == "__main__":
    main()
