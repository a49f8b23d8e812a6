"""The peer: llm-compressor's own methods on the same folder in fp32, the same layers, groups and windows.

    python benchmarks/sides/int4_llmcompressor.py --kept FOLDER --method rtn|gptq|awq|awq-gptq [--observer NAME] --out OUT

Symmetric codes, as ours; all else as it comes (a damping of 0.01, columns by activation, 20 scales tried), but for the batch
of 16 windows, where it would take one by one. `--observer`: of the scales; what it takes as it comes is the largest number.
Its awq pins memory for an accelerator and ends with an error where there is none; here it does not, which changes no number.
"""

# pyright: reportMissingImports=false
import argparse
import json
import time
from pathlib import Path

from int4 import GROUP, LENGTH, SEEN

BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--kept", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--method", choices=["rtn", "gptq", "awq", "awq-gptq"], required=True)
    parser.add_argument("--observer", default="memoryless_minmax")
    chosen = parser.parse_args()
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.pipelines.cache import IntermediatesCache
    from transformers import AutoModelForCausalLM, AutoTokenizer

    IntermediatesCache.pin_memory = lambda *_: None
    net = AutoModelForCausalLM.from_pretrained(chosen.kept / "lm", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(chosen.kept / "lm")
    windows = json.loads((chosen.kept / "seen.json").read_text())
    seen = Dataset.from_dict({"input_ids": windows, "attention_mask": [[1] * len(ids) for ids in windows]})
    data = {"dataset": seen, "num_calibration_samples": SEEN, "max_seq_length": LENGTH, "batch_size": BATCH}
    began = time.perf_counter()
    oneshot(model=net, tokenizer=tokenizer, recipe=recipe(chosen), **({} if chosen.method == "rtn" else data))
    seconds = time.perf_counter() - began
    net.save_pretrained(chosen.out, save_compressed=True)
    tokenizer.save_pretrained(chosen.out)
    print(json.dumps({"quantizing_seconds": seconds}))


def recipe(chosen: argparse.Namespace) -> list:
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights | {"observer": chosen.observer}}}
    kind = GPTQModifier if chosen.method.endswith("gptq") else QuantizationModifier
    before = [AWQModifier()] if chosen.method.startswith("awq") else []
    return [*before, kind(config_groups=groups, ignore=["lm_head"])]


if __name__ == "__main__":
    main()
