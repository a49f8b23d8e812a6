"""The parents that are merged: a Llama with random weights, and two that are it with other small changes.

python benchmarks/sides/merging.py --data DATA --kept FOLDER --size 79|270
"""

import json
import shutil
import sys
from pathlib import Path

import language
import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    parser = language.arguments()
    parser.add_argument("--size", required=True)
    parser.add_argument("--data", required=True)
    chosen = parser.parse_args()
    sys.argv = ["", "--kept", str(chosen.kept), "--data", chosen.data, "--sizes", chosen.size]
    language.main()
    for seed, name in enumerate(("base", "one", "other")):
        changed(chosen.kept / f"llama-{chosen.size}", chosen.kept / chosen.size / name, seed)
    print(json.dumps({"parents": 3}))


def changed(folder: Path, out: Path, seed: int) -> None:
    """A copy whose every number is moved by about a tenth of its size; seed 0: not at all."""
    shutil.copytree(folder, out)
    net, draw = AutoModelForCausalLM.from_pretrained(folder), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in net.parameters() if seed else ():
            value += 0.1 * value.std() * torch.randn(value.shape, generator=draw)
    net.save_pretrained(out)


if __name__ == "__main__":
    main()
