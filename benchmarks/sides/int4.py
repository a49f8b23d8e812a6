"""The model of the race over 4 bits, and the records that all of its sides see.

    python benchmarks/sides/int4.py --kept FOLDER --data DATA [--steps N] [--config ...]

A Llama of 23 M that learnt Korean film reviews, joined to documents of more than 280 characters. In the folder afterwards:
`lm` the model, `f32.gguf` the same for llama.cpp, `texts` the records that ours is shown (its split `train` to calibrate
with, `test` to measure before and after), `seen.json` token ids of exactly the records that it then looks at, which the peers
are shown, `held.json` those that every result is judged on, none of which the model has learnt.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

LENGTH, CHARACTERS, DOCUMENTS = 128, 280, 42_000
SEEN, MEASURED, HELD = 128, 128, 512
GROUP = 32
CONFIG = f"hidden_size=512,num_layers=6,num_heads=8,vocab_size=8000,max_length={LENGTH}"


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--kept", "--data"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--steps", default="2000")
    parser.add_argument("--config", default=CONFIG)
    chosen = parser.parse_args()
    kept, documents = chosen.kept, chosen.kept / "docs.jsonl"
    write(documents, joined(chosen.data))
    if not (kept / "lm").exists():
        how = ("--config", chosen.config, "--steps", chosen.steps, "--batch-size", "16", "--compile")
        onnuri("train", "--family", "causal_lm", *reading(documents), *how, "--out", str(kept / "lm"))
    records(kept, documents)
    exported = kept / "exported"
    shutil.rmtree(exported, ignore_errors=True)
    onnuri("export", str(kept / "lm"), "--to", "gguf", *reading(kept / "texts"), "--out", str(exported))
    (exported / "onnuri" / "model.gguf").replace(kept / "f32.gguf")
    shutil.rmtree(exported)
    print("{}")


def joined(data: Path) -> list[str]:
    """Reviews, one after the other, until a document is long enough to fill a window."""
    import polars as pl

    found, held = [], ""
    for text in pl.read_parquet(data / "nsmc" / "unlabelled.parquet")["text"]:
        held += f"{text}\n"
        if len(held) > CHARACTERS:
            found.append(held)
            held = ""
        if len(found) == DOCUMENTS:
            break
    return found


def records(kept: Path, documents: Path) -> None:
    """What every side sees and is judged on: documents that fill a window, so that no side reads padding."""
    from onnuri import open_data, open_model

    data, model = open_data(str(documents), answer="text"), open_model(kept / "lm")

    def ids(rows: list[dict]) -> list[list[int]]:
        return [model.collate([row])["input_ids"][0].tolist() for row in rows]

    def filling(split: str, most: int) -> list[str]:
        rows = data.split(split).some(2 * most).list()
        return [row["text"] for row, tokens in zip(rows, ids(rows)) if len(tokens) == LENGTH][:most]

    (kept / "texts").mkdir(exist_ok=True)
    held = filling("test", HELD)
    write(kept / "texts" / "train.jsonl", filling("train", 2 * SEEN))
    write(kept / "texts" / "test.jsonl", held[:MEASURED])
    seen = open_data(str(kept / "texts"), answer="text").split("train").some(SEEN)
    (kept / "seen.json").write_text(json.dumps(ids(seen.list())))
    (kept / "held.json").write_text(json.dumps(ids([{"text": text} for text in held])))


def write(path: Path, texts: list[str]) -> None:
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    path.write_text("".join(lines), encoding="utf-8")


def reading(data: Path) -> tuple[str, ...]:
    return ("--data", str(data), "--answer", "text")


def onnuri(*words: str) -> None:
    subprocess.run([str(Path(sys.executable).with_name("onnuri")), *words], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
