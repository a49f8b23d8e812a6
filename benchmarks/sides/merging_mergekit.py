"""The peer for merge: mergekit's own command on the same folders.

python benchmarks/sides/merging_mergekit.py --kept FOLDER --method linear|slerp|ties --out OUT
"""

import argparse
import json
import os
import sys
from pathlib import Path

WEIGHT = 0.3  # of the other


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--kept", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--method", required=True)
    chosen = parser.parse_args()
    config = chosen.out.with_suffix(".yaml")
    config.write_text(json.dumps(recipe(chosen.kept, chosen.method)))  # JSON is YAML
    print("{}", flush=True)
    program = Path(sys.executable).with_name("mergekit-yaml")
    os.execv(program, [str(program), str(config), str(chosen.out), "--no-copy-tokenizer", "--quiet"])


def recipe(kept: Path, method: str) -> dict:
    """mergekit's merge of `one` and `other`, from `base` where the method has one."""
    shares = {"one": 1 - WEIGHT, "other": WEIGHT}
    models = [{"model": str(kept / name), "parameters": {"weight": share}} for name, share in shares.items()]
    if method == "slerp":
        found = {"models": [{"model": model["model"]} for model in models], "base_model": models[0]["model"]}
        return {**found, "merge_method": "slerp", "parameters": {"t": WEIGHT}, "dtype": "float32"}
    if method == "ties":
        for model in models:
            model["parameters"]["density"] = 0.5
        return {"models": models, "base_model": str(kept / "base"), "merge_method": "ties", "dtype": "float32"}
    return {"models": models, "merge_method": method, "dtype": "float32"}


if __name__ == "__main__":
    main()
