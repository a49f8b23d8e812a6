"""What 4 bits did to the model: one judge for all, on the same held-out windows, in fp32.

    python benchmarks/sides/int4_score.py --kept FOLDER --model FOLDER

Reads a folder of transformers, its numbers plain or in the layout of compressed-tensors, and knows neither who wrote it nor
how its writer computes with it. Divergence: Kullback and Leibler's, of the original's next token from the quantized one's.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

WINDOWS = 8  # at once
PARTS = ("weight_packed", "weight_scale", "weight_shape")


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--kept", "--model"):
        parser.add_argument(name, type=Path, required=True)
    chosen = parser.parse_args()
    held = torch.tensor(json.loads((chosen.kept / "held.json").read_text()))
    tensors = load_file(chosen.model / "model.safetensors")
    coded = {name: value for name, value in tensors.items() if name.endswith(PARTS)}
    found = {
        "matrix_bytes": float(sum(value.nbytes for value in coded.values())),
        "other_bytes": float(sum(value.nbytes for name, value in tensors.items() if name not in coded)),
        "matrices": sum(name.endswith("weight_packed") for name in coded),
    }
    original, quantized = opened(chosen.kept / "lm"), opened(chosen.model)
    judge = Judge()
    with torch.inference_mode():
        for windows in held.split(WINDOWS):
            judge.see(windows, original(windows).logits, quantized(windows).logits)
    print(json.dumps(found | judge.says()))


class Judge:
    """Sums over next tokens. Rows are logits (windows, places, vocabulary)."""

    def __init__(self) -> None:
        self.tokens, self.sums = 0, dict.fromkeys(("before", "after", "divergence", "apart", "apart_squared"), 0.0)

    def see(self, windows: Tensor, before: Tensor, after: Tensor) -> None:
        p, q = (rows[:, :-1].float().log_softmax(-1) for rows in (before, after))
        one, other = (-rows.gather(-1, windows[:, 1:, None]).double() for rows in (p, q))
        self.tokens += one.numel()
        found = (one, other, (p.exp() * (p - q)).sum(-1).double(), other - one, (other - one).square())
        for name, values in zip(self.sums, found):
            self.sums[name] += float(values.sum())

    def says(self) -> dict[str, float]:
        """`perplexity_rise_error`: the standard error of the rise, of tokens as if they were independent."""
        mean = {name: total / self.tokens for name, total in self.sums.items()}
        error = math.sqrt((mean["apart_squared"] - mean["apart"] ** 2) / self.tokens)
        return {
            "perplexity_before": math.exp(mean["before"]),
            "perplexity": math.exp(mean["after"]),
            "perplexity_rise": 100 * math.expm1(mean["apart"]),
            "perplexity_rise_error": 100 * error,
            "divergence": mean["divergence"],
        }


def opened(folder: Path) -> torch.nn.Module:
    """The net of a folder with plain numbers in fp32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    config.__dict__.pop("quantization_config", None)
    net = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    missing, unexpected = net.load_state_dict(plain(load_file(folder / "model.safetensors")), strict=False)
    tied = ["lm_head.weight"] if config.tie_word_embeddings else []
    if unexpected or [name for name in missing if name not in tied]:
        raise SystemExit(f"{folder}: missing {missing}, unexpected {unexpected}")
    return net


def plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Numbers in the place of codes: 8 of 4 bits in a word, the first in its lowest bits, minus 8."""
    found = {name: value.float() for name, value in tensors.items() if not name.endswith(PARTS)}
    for name in [name for name in tensors if name.endswith("weight_packed")]:
        layer = name.removesuffix("_packed")
        columns = int(tensors[f"{layer}_shape"][1])
        scale = tensors[f"{layer}_scale"].float()
        codes = torch.stack([tensors[name] >> shift & 15 for shift in range(0, 32, 4)], -1).flatten(-2) - 8
        found[layer] = codes[:, :columns] * scale.repeat_interleave(columns // scale.shape[1], 1)
    return found


if __name__ == "__main__":
    main()
