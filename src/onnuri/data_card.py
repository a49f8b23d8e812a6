"""What became of data, in words: their card, README.md of a folder of data, and their part of a report page.

Both are written from the ledger and from nothing else.
"""

import json
from typing import Any

from .card import cell, life
from .figures import Pair


def card(lines: list[dict[str, Any]]) -> str:
    """Markdown with the front matter that the Hugging Face Hub reads. `lines`: the ledger, the newest last."""
    found = lines[-1]["found"]
    spoken = [name for name in found["languages"] if len(name) == 2]
    edited = [f"- {name}: {count:,}" for name, count in found["edited"].items()]
    return "\n".join(
        [
            "---",
            *(["language:", *(f"- {name}" for name in spoken)] if spoken else []),
            "configs:",
            "- config_name: default",
            "  data_files: data/*.parquet",
            "---",
            "",
            f"# Data, {lines[-1]['operation']}",
            "",
            f"**{found['summary']}**. From: {', '.join(cell(one['path']) for one in lines[-1]['inputs'])}.",
            "",
            *table(
                "score, 0 to 1", "value", {name: value for name, value in found["scores"].items() if value is not None}
            ),
            *table("removed for", "documents", found["removed"]),
            *table("rule", "bounds", found["rules"]["bounds"]),
            *(["## Changed in what was kept", "", *edited, ""] if edited else []),
            "Whoever uses these data needs the right to: no license is known here, and none is given.",
            "",
            "## Life",
            "",
            "| # | operation | data | score | seconds | energy |",
            "|---|---|---|---|---|---|",
            *(life(number, line) for number, line in enumerate(lines, 1)),
            "",
            "What was removed, and why, record by record: `removed/`. Evidence: `onnuri/ledger.jsonl`. Check it with "
            "`onnuri verify`.",
            "",
        ]
    )


def table(name: str, value: str, rows: dict[str, Any]) -> list[str]:
    """Nothing where there are no rows."""
    if not rows:
        return []
    texts = [
        f"| {cell(key)} | {json.dumps(one) if not isinstance(one, str) else cell(one)} |" for key, one in rows.items()
    ]
    return [f"| {name} | {value} |", "|---|---|", *texts, ""]


def headline(found: dict[str, Any]) -> Pair:
    """A page's first sentence, where data are what it is about."""
    count = found["documents"]
    return (
        f"{count['kept']:,} of {count['read']:,} documents kept",
        f"문서 {count['read']:,}개 중 {count['kept']:,}개 유지",
    )


def view(step: dict[str, Any]) -> dict[str, Any]:
    """What a page shows of a step that gave data: scores between 0 and 1, what was edited, examples of what was removed."""
    found = step["found"]
    scores = {name: f"{value:.3g}" for name, value in found["scores"].items() if value is not None}
    edited = {name: f"{count:,}" for name, count in found["edited"].items()}
    removed = [
        {"reason": reason, "count": f"{count:,}", "examples": found["examples"].get(reason, [])}
        for reason, count in sorted(found["removed"].items(), key=lambda pair: -pair[1])
    ]
    return {"name": step["name"], "scores": scores, "edited": edited, "removed": removed}
