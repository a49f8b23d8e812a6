"""The documents do what they say: commands run and print what is shown, links lead somewhere, the reference is of today."""

import importlib.util
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from command import onnuri, some
from folders import save, sentences
from pages import aligned, blocks_of, commands_of, masked, play, same, shown

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    "README.md",
    "docs/index.md",
    "docs/tutorial.md",
    *(f"docs/howto/{p.name}" for p in sorted(DOCS.glob("howto/*.md"))),
]
TRANSLATIONS = {"README.ko.md": "README.md", "docs/tutorial.ko.md": "docs/tutorial.md"}
NOT_RUN = {
    "README.md": 1,
    "docs/howto/clean.md": 1,
    "docs/howto/embed.md": 1,
    "docs/howto/plugin.md": 1,
    "docs/howto/runtimes.md": 2,
    "docs/howto/tasks.md": 1,
}
"""How many blocks of a page are marked as not run, each with its reason; all others are."""

LONG = tuple(
    f"docs/howto/{name}.md"
    for name in ("adopt", "compare", "data", "devices", "extrapolate", "merge", "plugin", "runtimes", "shrink")
)
"""Pages that take many seconds, of commands that other pages or tests run as well."""

PROSE = [ROOT / "CONTRIBUTING.md", *(ROOT / name for name in ("README.md", "README.ko.md")), *DOCS.rglob("*.md")]


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------- executed


def readers_own_files(folder: Path) -> None:
    """What the README takes its reader to have: texts with labels, a downloaded folder, the quickstart's student."""
    rows = [json.dumps(row, ensure_ascii=False) for row in sentences(60)]
    (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    import polars as pl

    for name in ("reviews.csv", "new.csv"):
        pl.read_ndjson(folder / "rows.jsonl").write_csv(folder / name)
    save("bert_mlm", folder / "my-bert")
    student = folder / "runs" / "quickstart" / "student"
    words = ("--family", "image_classifier", "--data", "builtin:digits", "--config", "width=8", "--steps", 4)
    assert onnuri("train", *words, "--out", student).code == 0


@pytest.mark.parametrize("name", some(PAGES, [name for name in PAGES if name not in LONG]))
def test_a_page_runs_and_prints_what_it_shows(name, tmp_path):
    if name == "README.md":
        readers_own_files(tmp_path)
    for block, today in play(text_of(name), tmp_path):
        text = "\n".join(today)
        assert same(block, today), f"{name} shows\n{block.body}\nbut today it is\n{text}\nmake docs-output writes it"


def test_blocks_that_are_not_run_say_why_and_are_counted():
    marked = {
        name: [block.mark for block in blocks_of(text_of(name)) if block.mark.startswith("not run")] for name in PAGES
    }
    assert {name: len(marks) for name, marks in marked.items() if marks} == NOT_RUN
    assert all(re.fullmatch(r"not run: \w.{10,}", mark) for marks in marked.values() for mark in marks)


def test_every_page_with_commands_is_run():
    written = {f"docs/reference/{page.name}" for page in DOCS.glob("reference/*.md")}
    with_commands = {
        page.relative_to(ROOT).as_posix()
        for page in PROSE
        if any(block.kind in ("console", "sh", "python") for block in blocks_of(page.read_text(encoding="utf-8")))
    }
    assert with_commands - written == {*PAGES, *TRANSLATIONS}


@pytest.mark.parametrize("name", TRANSLATIONS)
def test_a_translation_has_the_commands_and_the_output_of_its_original(name):
    def said(page: str) -> list:
        return [
            (block.kind, [re.sub(r"\s+#.*", "", command) for command, _ in commands_of(block)])
            if block.kind == "sh"
            else (block.kind, block.body)
            for block in blocks_of(page)
        ]

    assert said(text_of(name)) == said(text_of(TRANSLATIONS[name]))


def test_output_is_compared_in_words_and_not_in_figures():
    one = "accuracy     0.9524  (0.89 to 0.97, Wilson)  1,234 numbers, 1.28 MB, 3e-07, 2026-11-21 13:52, 12 ms"
    assert masked(one) == masked("accuracy  0.9  (elsewhere) 7 numbers, 900 kB, -0.1, 2027-01-01 09:00, 1.2 µs")
    assert masked(one) != masked(one.replace("accuracy", "mse"))
    assert masked("forward pass 1  3 ms  compute") == masked("forward pass 64  1.2 µs  overhead: 3 times")
    assert masked("student  cached") == masked("student  1.2")
    assert aligned(["a 1", "...", "b 2"], ["a 3", "x", "y", "b 4"]) == ["a 3", "...", "b 4"]
    assert shown(["?"], "training step  1\ntraining     9 records/s\n│    found: x\n") == ["training step  1"]
    assert aligned(["a 1", "b 2"], ["a 1"]) is None and aligned(["a"], ["b"]) is None


def test_blocks_are_read_with_their_marks_files_and_exit_codes():
    page = (
        '```csv title="a.csv"\nx\n1\n```\n\n<!-- exit code 2 -->\n```console\n$ onnuri \\\n  no\nwrong\n```\n\n'
        "<!-- not run: it installs things -->\n```sh\nmake\n```\n\n<!-- given: a name\nx = 1\n-->\n"
    )
    file, command, skipped, given = blocks_of(page)
    assert (file.title, file.runs, command.code, skipped.runs, given.kind) == ("a.csv", True, 2, False, "given")
    assert commands_of(command) == [("onnuri \\\n  no", ["wrong"])]


def test_a_command_with_another_exit_code_fails_its_page(tmp_path):
    with pytest.raises(AssertionError, match="exit code 2"):
        list(play("```console\n$ onnuri verify nothing\n```\n", tmp_path))


# ---------------------------------------------------------------------------------------------------- reference and links


def test_the_reference_is_what_the_program_says_today():
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    assert spec and spec.loader
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    stale = [name for name, text in reference.pages().items() if (DOCS / name).read_text(encoding="utf-8") != text]
    assert not stale, "make docs writes them"


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as mkdocs and GitHub make them of plain words."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.replace("`", "")).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PROSE, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        there = (page.parent / path) if path else page
        if not target.startswith(("http:", "https:", "mailto:")) and (
            not there.exists() or (anchor and anchor not in anchors_of(there))
        ):
            broken.append(target)
    assert not broken


# --------------------------------------------------------------------------------------------------------------- the site


class Assets(HTMLParser):
    """Whatever a browser fetches by itself to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        fetched = ("stylesheet", "icon", "preload", "preconnect", "modulepreload", "dns-prefetch")
        if tag == "link" and given.get("rel") in fetched:
            self.found.append(given.get("href") or "")
        if tag in ("script", "img", "iframe", "source", "video", "audio"):
            self.found.append(given.get("src") or "")


def test_the_site_builds_strictly_and_fetches_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'onnuri[docs]'")
    command = (sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(PAGES) and not list(tmp_path.rglob("*.py"))
    for page in pages:
        assets = Assets()
        assets.feed(page.read_text(encoding="utf-8"))
        assert assets.found and not [each for each in assets.found if "//" in each], page
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet
