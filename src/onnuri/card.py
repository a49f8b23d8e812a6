"""The model card, README.md of a model folder: written from the ledger and from nothing else."""

from typing import Any


def card(lines: list[dict[str, Any]]) -> str:
    """Markdown with the front matter that the Hugging Face Hub reads. `lines`: the ledger, the newest last."""
    last = lines[-1]
    after = last.get("after") or {}
    head = [
        "---",
        f"pipeline_tag: {last['task']}",
        "library_name: onnuri",
        "tags:",
        *(f"- {tag}" for tag in dict.fromkeys(line["operation"] for line in lines)),
        "---",
        "",
    ]
    return "\n".join(
        [
            *head,
            f"# {last['family'].replace('_', ' ').capitalize()}, {last['operation']}",
            "",
            *score_lines(after),
            "## Life",
            "",
            "| # | operation | data | score | seconds | energy |",
            "|---|---|---|---|---|---|",
            *(life(number, line) for number, line in enumerate(lines, 1)),
            "",
            "Evidence: `onnuri/ledger.jsonl` (each line carries the digest of the line before and of every file). "
            "Check it with `onnuri verify`.",
            "",
        ]
    )


def score_lines(after: dict[str, Any]) -> list[str]:
    if not after:
        return []
    metric, direction = after["headline"]
    low, high = after["interval"]
    rows = [f"| {name} | {value:.4g} |" for name, value in after["scores"].items()]
    return [
        f"**{metric} {after['scores'][metric]:.4g}** ({low:.4g} to {high:.4g}, {after['interval_method']}; "
        f"{'higher' if direction == 'up' else 'lower'} is better) on {after['records']} records that it was not trained on. "
        f"{after['parameters']:,} numbers in {after['bytes']:,} bytes.",
        "",
        "| metric | value |",
        "|---|---|",
        *rows,
        "",
    ]


def life(number: int, line: dict[str, Any]) -> str:
    data = next((entry["path"] for entry in line["inputs"] if entry["role"] == "data"), "")
    after = line.get("after") or {}
    score = f"{after['headline'][0]} {after['scores'][after['headline'][0]]:.4g}" if after else ""
    energy = line["energy"]
    return (
        f"| {number} | {line['operation']} | {data} | {score} | {line['seconds']:.1f} | "
        f"{energy['joules']:.0f} J +- {energy['error']:.0%} |"
    )
