"""The peer: torchao's AWQ for processors, the same layers, groups and windows.

    python benchmarks/sides/int4_torchao.py --kept FOLDER --out OUT

Its prototype is all that it has for us: its GPTQ runs on CUDA alone. It searches each layer for itself, the whole net before any
of it is rounded; its codes have an offset for each group, in 16 bits as its scales are, where ours are scales of 32; and what is
multiplied is scaled as it comes, where others fold that into the layer before. It gets the net in bf16, since in fp32 its
products run 60 times slower. What its codes stand for is put into the net in fp32, so that the judge of all can read it.
"""

# pyright: reportMissingImports=false
import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from int4 import GROUP
from torch import nn
from torchao.prototype.awq import AWQConfig
from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
from torchao.quantization import quantize_
from transformers import AutoModelForCausalLM

BATCH = 16
CODES = ("qdata", "scale_and_zero", "act_pre_scale")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--kept", "--out"):
        parser.add_argument(name, type=Path, required=True)
    chosen = parser.parse_args()
    nets: list[Any] = [
        AutoModelForCausalLM.from_pretrained(chosen.kept / "lm", dtype=kind).eval()
        for kind in (torch.float32, torch.bfloat16)
    ]
    whole, net = nets
    windows = torch.tensor(json.loads((chosen.kept / "seen.json").read_text()))
    base = PrototypeInt4WeightOnlyConfig(group_size=GROUP)
    began = time.perf_counter()
    quantize_(net, AWQConfig(base, step="prepare"), filter_fn=is_chosen)
    for batch in windows.split(BATCH):
        net(batch)
    quantize_(net, AWQConfig(base, step="convert"), filter_fn=is_chosen)
    seconds = time.perf_counter() - began
    layers = {name: layer for name, layer in net.named_modules() if is_chosen(layer, name)}
    size = sum(getattr(layer.weight, part).nbytes for layer in layers.values() for part in CODES)
    for name, layer in layers.items():
        whole.get_submodule(name).weight.copy_(numbers(layer))
    whole.save_pretrained(chosen.out)
    print(json.dumps({"quantizing_seconds": seconds, "matrix_bytes": float(size), "matrices": len(layers)}))


def numbers(layer: Any) -> torch.Tensor:
    """What the codes of a layer stand for, (rows, columns): what it makes of the unit vectors, and their scales."""
    scale, layer.weight.act_pre_scale = layer.weight.act_pre_scale, None
    return layer(torch.eye(layer.in_features, dtype=torch.bfloat16)).float().T * scale.float()


def is_chosen(layer: nn.Module, name: str) -> bool:
    """Every linear layer but the head, which is the table of tokens."""
    return isinstance(layer, nn.Linear) and name != "lm_head"


if __name__ == "__main__":
    main()
