"""The page of an operation that only looks: what it found in a sentence, its drawings, and the whole report as text."""

import json
from typing import Any

from markupsafe import Markup

from . import __version__
from .report import template


def report_page(report: dict[str, Any], charts: list[str]) -> str:
    """One HTML file that needs no network. `charts`: SVG of our own making."""
    return template("looked.html.j2").render(
        title=report["operation"],
        headline=report.get("summary") or report["operation"],
        charts=[Markup(chart) for chart in charts],
        settings={name: value for name, value in report["settings"].items() if value not in ("", {})},
        inputs=report["inputs"],
        warnings=report.get("warnings", []),
        report=json.dumps(report, indent=2, ensure_ascii=False),
        version=__version__,
    )
