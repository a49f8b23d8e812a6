"""The documents of the race over cleaning, and the judge of what its sides kept.

    python benchmarks/sides/clean.py make --kept FOLDER --data DATA [--documents N]
    python benchmarks/sides/clean.py judge --kept FOLDER --out FOLDER

In the folder afterwards: `reviews`, 200,000 film reviews of 30 characters or more in two parquet files, into which copies with
small changes were planted; `planted.json`, {row of a copy: [row of its original, how it was changed]}; `pages`, reviews joined to
documents of some forty lines. The judge reads the ids that were kept and tells which share of the planted copies was found.
"""

import argparse
import json
import random
from pathlib import Path

import polars as pl

DOCUMENTS, PLANTED, LEAST, LINES, FILES = 200_000, 10_000, 30, 40, 2
LONG = 12  # words that an original has at least: of a shorter one, a word changed is another text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["make", "judge"])
    parser.add_argument("--kept", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--documents", type=int, default=DOCUMENTS)
    chosen = parser.parse_args()
    print(json.dumps(make(chosen) if chosen.what == "make" else judge(chosen.kept, chosen.out)))


def make(chosen: argparse.Namespace) -> dict:
    texts = pl.read_parquet(chosen.data / "nsmc" / "unlabelled.parquet")["text"]
    reviews = texts.filter(texts.str.len_chars() >= LEAST).head(chosen.documents).to_list()
    draw = random.Random(0)
    originals = [row for row, text in enumerate(reviews) if len(text.split()) >= LONG]
    count = min(PLANTED, len(originals) // 2)
    rows = {}
    for row in draw.sample(originals, count):
        how = draw.choice(list(CHANGES))
        rows[len(reviews)] = (row, how)
        reviews.append(CHANGES[how](reviews[row].split(), draw))
    write(reviews, chosen.kept / "reviews")
    pages = ["\n".join(reviews[start : start + LINES]) for start in range(0, len(reviews), LINES)]
    write(pages, chosen.kept / "pages")
    (chosen.kept / "planted.json").write_text(json.dumps(rows))
    return {}


CHANGES = {
    "marks": lambda words, draw: " ".join(words) + draw.choice(["!!", "...", " ~", "?!"]),
    "spaces": lambda words, draw: "  ".join(words),
    "first word": lambda words, draw: " ".join(words[1:]),
    "last word": lambda words, draw: " ".join([*words, "정말로"]),
    "one word": lambda words, draw: " ".join(
        "다른말" if place == len(words) // 2 else word for place, word in enumerate(words)
    ),
}
"""What a copy differs by; the likeness of one with another word in its middle is low, and few are found by anybody."""


def write(texts: list[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    each = -(-len(texts) // FILES)
    for number in range(FILES):
        part = texts[number * each : (number + 1) * each]
        ids = [str(number * each + place) for place in range(len(part))]
        pl.DataFrame({"id": ids, "text": part}).write_parquet(folder / f"train-{number:05d}.parquet")


def judge(kept: Path, out: Path) -> dict:
    """`recall`: the share of planted copies that are not there any more; the same of each kind of change."""
    planted = json.loads((kept / "planted.json").read_text())
    left = ids_of(out)
    if not left:
        raise SystemExit(f"{out} holds no documents")
    gone = {row: row not in left for row in planted}
    found = {"recall": sum(gone.values()) / len(gone), "documents_kept": len(left)}
    for how in CHANGES:
        some = [gone[row] for row, (_, change) in planted.items() if change == how]
        found[f"recall, {how}"] = sum(some) / max(len(some), 1)
    return found


def ids_of(out: Path) -> set[str]:
    files = sorted(out.rglob("train-*.parquet"))
    if files:
        return {str(one) for file in files for one in pl.read_parquet(file)["id"]}
    lines = [json.loads(line) for file in sorted(out.rglob("*.jsonl")) for line in file.read_text().splitlines()]
    return {str(line["id"]) for line in lines}


if __name__ == "__main__":
    main()
