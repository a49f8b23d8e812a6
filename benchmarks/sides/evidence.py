"""How much of a training of about a minute is evidence: digests, ledger, card, report page, the meter; all of `run.execute`
but opening, applying, saving and the measurements themselves, which are named apart.

    python benchmarks/sides/evidence.py --work FOLDER [--seconds 60]
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnuri import card, evidence, ledger, machine, model, report, run
from onnuri.registry import operation

EVIDENCE = (
    *((evidence, name) for name in ("described", "inherited", "keep_notices", "changed_since", "parents")),
    *((machine, name) for name in ("describe", "peak_memory")),
    (model, "tensor_digest"),
    (run, "finish"),
)
REPORT = ((report, "operation_page"), (card, "card"), (ledger, "file_digests"), (ledger, "write"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60)
    chosen = parser.parse_args()
    spent: dict[str, float] = {}
    depth: list[str] = []
    for place, name in (*EVIDENCE, *REPORT):
        watch(place, name, spent, depth)
    watch(run, "measured", spent, depth)
    settings = {"family": "image_classifier", "steps": 100, "batch_size": 256}
    run.execute("train", settings, {"data": "builtin:digits"}, chosen.work / "trial", {}, quiet=True)
    step = ledger.read(chosen.work / "trial")[-1]["seconds"] / 100
    spent.clear()
    settings["steps"] = max(100, round(chosen.seconds / step))
    began = time.perf_counter()
    run.execute("train", settings, {"data": "builtin:digits"}, chosen.work / "whole", {}, quiet=True)
    whole = time.perf_counter() - began
    kept = sum(seconds for name, seconds in spent.items() if name not in ("measured", "operation_page"))  # in `finish`
    print(
        json.dumps(
            {
                "operation_seconds": whole,
                "evidence_share": kept / whole,
                "report_seconds": spent["operation_page"],
                "measuring_seconds": spent["measured"],
            }
        )
    )


def watch(place: Any, name: str, spent: dict[str, float], depth: list[str]) -> None:
    """Replace a function, wherever it was imported to, by one whose seconds are added up; those called inside are not
    counted twice."""
    original: Callable[..., Any] = getattr(place, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        began, outer = time.perf_counter(), not depth
        depth.append(name)
        try:
            return original(*args, **kwargs)
        finally:
            depth.pop()
            if outer or name == "operation_page":
                spent[name] = spent.get(name, 0.0) + time.perf_counter() - began

    for module in (place, run, evidence, model):
        if getattr(module, name, None) is original:
            setattr(module, name, timed)


if __name__ == "__main__":
    operation("train")  # the import of torch is no evidence
    main()
