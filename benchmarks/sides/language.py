"""What every side of a race over language models shares: the folder of the model, the same documents, the clock.

    python benchmarks/sides/language.py --data DATA --kept FOLDER --sizes 6,27,79     makes both

A document is a run of Korean film reviews that is exactly LENGTH tokens, the end before and behind it among them: nobody has to
cut or to fill, and every side learns the same rows. The last HELD are learnt by none.
"""

import argparse
import json
import math
import time
from pathlib import Path
from statistics import median
from typing import Any

LENGTH = 128
DOCUMENTS = 5000
HELD = 256
SIZES: dict[str, dict[str, Any]] = {
    "6": {
        "vocab": 8000,
        "hidden_size": 256,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "intermediate_size": 688,
    },
    "20": {
        "vocab": 16000,
        "hidden_size": 384,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "intermediate_size": 1024,
    },
    "27": {
        "vocab": 16000,
        "hidden_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "intermediate_size": 1376,
    },
    "79": {
        "vocab": 4096,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 1600,
    },
    "270": {
        "vocab": 4096,
        "hidden_size": 1024,
        "num_hidden_layers": 20,
        "num_attention_heads": 16,
        "intermediate_size": 2848,
    },
}
"""Llamas by millions of parameters; the smaller ones share the embedding with the head."""

UNTIMED = 2  # steps at the start, which fill memory pools and caches


def main() -> None:
    from onnuri.family import seeded
    from onnuri.registry import family

    parser = arguments()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sizes", required=True)
    chosen = parser.parse_args()
    texts = documents(chosen.data)
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from onnuri.families import vocabulary

    causal_lm = family("causal_lm")
    for size in chosen.sizes.split(","):
        shape = dict(SIZES[size])
        tokenizer = vocabulary.learnt(texts, vocabulary.WRITTEN, shape.pop("vocab"), LENGTH)
        config = LlamaConfig(
            **shape,
            vocab_size=len(tokenizer),
            max_position_embeddings=LENGTH,
            tie_word_embeddings=size not in ("79", "270"),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        with seeded(torch.Generator().manual_seed(0)):
            net = LlamaForCausalLM(config)
        folder = chosen.kept / f"llama-{size}"
        net.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        assert causal_lm.claims(folder)
        write_rows(chosen.kept, size, texts, tokenizer)
    print("{}")


def documents(data: Path) -> list[str]:
    """Reviews joined until each document is long enough for any of the vocabularies."""
    import polars as pl

    table = pl.read_parquet(next((data / "nsmc").glob("unlabelled*")))
    column = next(name for name, kind in table.schema.items() if kind == pl.String)
    found, held = [], ""
    for text in table[column]:
        held += f"{text}\n"
        if len(held) > 6 * LENGTH:
            found.append(held)
            held = ""
        if len(found) == DOCUMENTS:
            break
    return found


def write_rows(kept: Path, size: str, texts: list[str], tokenizer: Any) -> None:
    """The documents that come back from their first tokens as they were, which a letter cut in two does not."""
    rows = []
    for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
        row = [tokenizer.bos_token_id, *ids[: LENGTH - 2]]
        text = tokenizer.decode(row[1:])
        if len(row) == LENGTH - 1 and tokenizer(text)["input_ids"] == row:
            rows.append({"text": text, "ids": [*row, tokenizer.eos_token_id]})
    learnt, held = rows[:-HELD], rows[-HELD:]
    for name, part in (("documents", [{"text": row["text"]} for row in learnt]), ("rows", learnt), ("held", held)):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (kept / f"{name}-{size}.jsonl").write_text("".join(lines), encoding="utf-8")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kept", type=Path, required=True)
    return parser


def options() -> argparse.Namespace:
    """What a side is asked: the model, records in a step, how many steps, and whether it is judged at the end."""
    parser = arguments()
    parser.add_argument("--size", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--judged", action="store_true")
    return parser.parse_args()


def rows_of(chosen: argparse.Namespace, name: str = "rows") -> list[dict[str, Any]]:
    """The documents as the peers get them, tokenized beforehand: {"text", "ids"}."""
    with (chosen.kept / f"{name}-{chosen.size}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def token_ids(chosen: argparse.Namespace) -> list[list[int]]:
    return [row["ids"] for row in rows_of(chosen)]


def bits_per_byte(net: Any, chosen: argparse.Namespace) -> float:
    """Of the documents that nobody learnt, each token from those before it, by the library's own logits."""
    import torch
    from torch.nn import functional as F

    rows, nats = rows_of(chosen, "held"), 0.0
    with torch.inference_mode():
        for part in (rows[start : start + 16] for start in range(0, len(rows), 16)):
            ids = torch.tensor([row["ids"] for row in part])
            logits = net(input_ids=ids).logits[:, :-1]
            nats += float(F.cross_entropy(logits.flatten(0, 1).double(), ids[:, 1:].flatten(), reduction="sum"))
    return nats / math.log(2) / sum(len(row["text"].encode()) for row in rows)


class Clock:
    """Times between the ends of steps."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def tick(self) -> None:
        self.ends.append(time.perf_counter())

    def tell(self, batch: int, also: dict[str, Any] | None = None) -> None:
        """The speed of the median step, as the last line of output."""
        step = median(late - early for early, late in list(zip(self.ends, self.ends[1:]))[UNTIMED:])
        speed = {"records_per_second": batch / step, "tokens_per_second": batch * LENGTH / step}
        print(json.dumps({**(also or {}), **speed, "seconds_per_step": step}))


if __name__ == "__main__":
    main()
