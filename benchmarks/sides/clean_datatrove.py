"""The peer that cleans: datatrove's MinHash in its four stages, or the rules of FineWeb one after the other.

    python benchmarks/sides/clean_datatrove.py copies|rules --kept FOLDER --out FOLDER

As its own examples have it (examples/minhash_deduplication.py, examples/fineweb.py), with two workers, and with the quickest of
its ways to cut a text into words, at white space and marks, which it has for languages like LANGUAGE: the Korean one needs model
files that its package does not bring. Of the rules the marks at the ends
of lines are not asked for, as FineWeb does not, and each rule is tried on every document, as ours are.
"""

import argparse
import json
import time
from pathlib import Path

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers.jsonl import JsonlWriter

WORKERS = 2
LANGUAGE = "ace_Arab"
STOP_WORDS = ["the", "be", "to", "of", "and", "that", "have", "with"]
CONFIG = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["copies", "rules"])
    parser.add_argument("--kept", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    began = time.perf_counter()
    {"copies": copies, "rules": rules}[chosen.what](chosen.kept, chosen.out)
    print(json.dumps({"seconds": time.perf_counter() - began}))


def run(pipeline: list, out: Path, name: str, tasks: int = WORKERS) -> None:
    logs = str(out / "logs" / name)
    LocalPipelineExecutor(pipeline=pipeline, tasks=tasks, workers=WORKERS, logging_dir=logs, skip_completed=False).run()


def writer(out: Path) -> JsonlWriter:
    return JsonlWriter(str(out / "data"), compression=None, output_filename="${rank}.jsonl")


def copies(kept: Path, out: Path) -> None:
    reader = ParquetReader(str(kept / "reviews"), text_key="text", id_key="id")
    parts = {name: str(out / name) for name in ("signatures", "buckets", "removed")}
    run(
        [reader, MinhashDedupSignature(output_folder=parts["signatures"], config=CONFIG, language=LANGUAGE)],
        out,
        "signatures",
    )
    buckets = MinhashDedupBuckets(input_folder=parts["signatures"], output_folder=parts["buckets"], config=CONFIG)
    run([buckets], out, "buckets", CONFIG.num_buckets)
    cluster = MinhashDedupCluster(input_folder=parts["buckets"], output_folder=parts["removed"], config=CONFIG)
    run([cluster], out, "cluster", 1)
    run([reader, MinhashDedupFilter(input_folder=parts["removed"]), writer(out)], out, "filter")


def rules(kept: Path, out: Path) -> None:
    filters = [
        GopherRepetitionFilter(language=LANGUAGE),
        C4QualityFilter(filter_no_terminal_punct=False, language=LANGUAGE),
        GopherQualityFilter(stop_words=STOP_WORDS, language=LANGUAGE),
        FineWebQualityFilter(language=LANGUAGE),
    ]
    for each in filters:
        each.filter = judged(each.filter)
    run([ParquetReader(str(kept / "pages"), text_key="text", id_key="id"), *filters, writer(out)], out, "rules")


def judged(rule):
    """The rule is computed, and the document goes on to the next one."""

    def filtered(document) -> bool:
        rule(document)
        return True

    return filtered


if __name__ == "__main__":
    main()
