"""The parents that are merged: a Llama of 79 M with random weights, and two that are it with other small changes.

python benchmarks/sides/merging.py --data DATA --kept FOLDER
"""

import json
import shutil
import sys
from pathlib import Path

import language
import torch
from transformers import AutoModelForCausalLM

SIZE, TEXTS = "79", 64


def main() -> None:
    sys.argv += ["--sizes", SIZE]
    language.main()
    chosen, _ = language.arguments().parse_known_args()
    documents = (chosen.kept / "documents.jsonl").read_text(encoding="utf-8").splitlines()[:TEXTS]
    (chosen.kept / "texts.jsonl").write_text("\n".join(documents) + "\n", encoding="utf-8")
    base = chosen.kept / f"llama-{SIZE}"
    for seed, name in enumerate(("base", "one", "other")):
        changed(base, chosen.kept / name, seed)
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
