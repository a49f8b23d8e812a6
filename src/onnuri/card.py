"""The model card, README.md of a model folder: written from the ledger and from nothing else."""

import json
from typing import Any


def card(lines: list[dict[str, Any]]) -> str:
    """Markdown with the front matter that the Hugging Face Hub reads. `lines`: the ledger, the newest last."""
    last = lines[-1]
    after = last.get("after") or {}
    head = [
        "---",
        f"pipeline_tag: {last['task']}",
        "library_name: onnuri",
        *front_lines(last.get("license") or {}),
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
            *parent_lines(last),
            *license_lines(last.get("license") or {}),
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


def parent_lines(line: dict[str, Any]) -> list[str]:
    """The headline score of each model that went in, where it was measured."""
    measured = {"model": line.get("before"), **(line.get("parents") or {})}
    paths = {entry["role"]: entry["path"] for entry in line["inputs"]}
    rows = [
        f"| {cell(paths.get(role, role))} | {one['headline'][0]} {one['scores'][one['headline'][0]]:.4g} |"
        for role, one in measured.items()
        if one
    ]
    return ["| made from | score |", "|---|---|", *rows, ""] if rows else []


def front_lines(license: dict[str, Any]) -> list[str]:
    """The license in the Hub's metadata; what a folder said of itself is quoted."""
    return [
        f"{name}: {value if name == 'license' else json.dumps(value, ensure_ascii=False)}"
        for name, value in license.get("front", {}).items()
    ]


def license_lines(license: dict[str, Any]) -> list[str]:
    """The licenses of the models that went in, what may be done with this one, and on which conditions."""
    if not license:
        return []
    parents = [f"| {cell(one['path'])} | {cell(one['name'] or one['id'])} |" for one in license["parents"]]
    said = [f"{name}: {value}" for name, value in license["permitted"].items()]
    return [
        "## License",
        "",
        *(["| made from | license |", "|---|---|", *parents, ""] if parents else []),
        *(f"- {cell(line)}" for line in [*said, *license["conflicts"], *license["conditions"]]),
        "",
        license["advice"],
        "",
    ]


def cell(text: str) -> str:
    """What came from outside, as plain text of one line in Markdown."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in " ".join(text.split()))


def life(number: int, line: dict[str, Any]) -> str:
    data = next((entry["path"] for entry in line["inputs"] if entry["role"] == "data"), "")
    after = line.get("after") or {}
    score = f"{after['headline'][0]} {after['scores'][after['headline'][0]]:.4g}" if after else ""
    energy = line["energy"]
    return (
        f"| {number} | {line['operation']} | {data} | {score} | {line['seconds']:.1f} | "
        f"{energy['joules']:.0f} J +- {energy['error']:.0%} |"
    )
