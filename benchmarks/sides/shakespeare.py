"""What both sides of the race over tiny shakespeare share: the characters, and the division into first 90 and last 10 %.

python benchmarks/sides/shakespeare.py --data DATA --kept FOLDER     writes them as texts of BLOCK characters
"""

import argparse
import json
from pathlib import Path

BLOCK, TRAINED = 64, 0.9


def divided(data: Path) -> dict[str, str]:
    """{split: its characters}, as Karpathy's nanoGPT divides them."""
    text = (data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    end = int(TRAINED * len(text))
    return {"train": text[:end], "test": text[end:]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--kept", type=Path, required=True)
    chosen = parser.parse_args()
    folder = chosen.kept / "shakespeare"
    folder.mkdir(exist_ok=True)
    for split, text in divided(chosen.data).items():
        parts = (text[start : start + BLOCK] for start in range(0, len(text), BLOCK))
        lines = "".join(json.dumps({"text": part}) + "\n" for part in parts)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    print("{}")


if __name__ == "__main__":
    main()
