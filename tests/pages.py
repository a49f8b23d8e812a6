"""The documents as programs: their fenced blocks are run in order, and the output that they show is compared or written.

python tests/pages.py PAGE...   runs the pages and writes the output of today into them

- ``console``: lines that begin with `$ ` are commands, the lines below each are its output. ``sh``: commands alone.
- ``python``: one script per page, cut into pieces; a ``text`` block behind one is what it prints.
- A block of any kind with title="NAME" is a file of that name.
- A comment on the line above a block says what is special: `<!-- not run: REASON -->`, or `<!-- exit code 2 -->` for a
  command that must fail so; then what it says on stderr is shown as well.
- A comment `<!-- given: WHAT` holds Python that makes what the reader is taken to have already, to its line `-->`.

Two machines do not print the same figures. Output is the same when its lines are, once each number with the unit behind it,
each digest, the word `cached`, the bottleneck in a last column, what stands in brackets, and the length of gaps are left
out. Lines that begin with `note`, `training`, `found:` or `warned:` say how it went on that machine and are not shown. A
line `...` stands for any number of lines, a line `?` for output still to be written; where nothing is shown, nothing is
compared.
"""

import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from command import Done, onnuri

FENCE = re.compile(
    r"""^<!--\ given:(?P<what>[^\n]*)\n(?P<given>.*?)^-->$
      | ^(?:<!--\ (?P<mark>(?:not\ run|exit\ code)[^\n]*)\ -->\n)?```(?P<kind>\w+)(?P<info>[^\n]*)\n(?P<body>.*?)^```$""",
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)
SHELL = re.compile(r"[|&;<>$`*?()]|\bpip install\b|\\$", re.MULTILINE)
FIGURES = (
    (r"\([^()]*\)", "()"),
    (r"\b[0-9a-f]{12,64}\b", "#"),
    (r"\bcached\b", "#"),
    (r"  (compute|memory bandwidth|calls of operators|overhead: .*)$", "  #"),
    (r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?", "#"),
    (r"#\s(thousand|million|[kMGTmµn]?(s|B|J|FLOP)(/s)?|[kMGT])(?!\w)", "#"),
    (r"#([#:T% -]*#)*%?", "#"),
    (r"\s+", " "),
)
"""What two machines may print differently, and what stands for it."""

REMARK = re.compile(r"[│ ]*((note|training) {2}|(found|warned): )")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. `kind`: its language, or `given`; `mark`: what the comment above it says."""

    kind: str
    title: str
    mark: str
    body: str
    span: tuple[int, int]
    """Where the body stands in the page."""

    @property
    def runs(self) -> bool:
        return not self.mark.startswith("not run") and (
            self.kind in ("console", "sh", "python", "given") or bool(self.title)
        )

    @property
    def code(self) -> int:
        return int(self.mark.removeprefix("exit code")) if self.mark.startswith("exit code") else 0


def blocks_of(page: str) -> list[Block]:
    """All blocks in their order."""
    return [block_of(found) for found in FENCE.finditer(page)]


def block_of(found: re.Match[str]) -> Block:
    if found["given"] is not None:
        return Block("given", "", "", found["given"], found.span("given"))
    title = re.search(r'title="([^"]+)"', found["info"])
    return Block(found["kind"], title[1] if title else "", found["mark"] or "", found["body"], found.span("body"))


def commands_of(block: Block) -> list[tuple[str, list[str]]]:
    """[(command, the lines shown below it)]."""
    if block.kind == "sh":
        return [(line, []) for line in block.body.splitlines() if line.strip() and not line.startswith("#")]
    found: list[tuple[str, list[str]]] = []
    for line in block.body.splitlines():
        if found and found[-1][0].endswith("\\") and not found[-1][1]:
            found[-1] = (f"{found[-1][0]}\n{line}", [])
        elif line.startswith("$ "):
            found.append((line[2:], []))
        else:
            assert found, f"output without a command: {line}"
            found[-1][1].append(line)
    return found


# --------------------------------------------------------------------------------------------------------------- running


def play(page: str, folder: Path) -> Iterator[tuple[Block, list[str]]]:
    """Run a page in `folder`; each block that shows output, with its text as it would be written today.

    AssertionError where a command ends with another exit code than it must."""
    names: dict[str, Any] = {"__name__": "page"}
    blocks, printed = blocks_of(page), ""
    alone = any(
        "pip install" in block.body for block in blocks if block.runs
    )  # new processes alone see what was installed
    for block in blocks:
        if block.kind == "text" and not block.title:
            yield block, shown(block.body.splitlines(), printed)
        if not block.runs:
            continue
        if block.title:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.body, encoding="utf-8")
        elif block.kind in ("python", "given"):
            printed = script(block, folder, names)
        else:
            yield block, list(spoken(block, folder, alone))


def script(block: Block, folder: Path, names: dict[str, Any]) -> str:
    """What a piece of Python prints."""
    with chdir(folder), redirect_stdout(io.StringIO()) as out:
        exec(compile(block.body, f"<{block.kind}>", "exec"), names)
    return out.getvalue()


def spoken(block: Block, folder: Path, alone: bool) -> Iterator[str]:
    """The lines of a block of commands: each command as it stands, and what is shown of its output."""
    for command, expected in commands_of(block):
        done = carry_out(command, folder, alone)
        assert done.code == block.code, f"{command}\nexit code {done.code}\n{done.out}{done.err}"
        prompt = "$ " if block.kind == "console" else ""
        yield from f"{prompt}{command}".splitlines()
        yield from shown(expected, done.out + (done.err if block.code else ""))


def carry_out(command: str, folder: Path, alone: bool) -> Done:
    """One command in `folder`: by the shell, or, where it is nothing but a call of ours, in this process, which has
    loaded the libraries already."""
    words = shlex.split(command, comments=True)
    if words[0] == "onnuri" and not alone and not SHELL.search(re.sub(r"\s#\s.*", "", command)):
        with chdir(folder):
            return onnuri(*words[1:])
    plugins = folder / ".plugins"
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(plugins), os.environ.get("PYTHONPATH")))),
        **{f"PIP_{name}": "1" for name in ("NO_DEPS", "NO_INDEX", "QUIET", "DISABLE_PIP_VERSION_CHECK")},
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads the negated option's own value here: no isolation
        "PIP_TARGET": str(plugins),
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=120,
    )
    return Done(done.returncode, done.stdout, done.stderr)


# ------------------------------------------------------------------------------------------------------------- comparing


def shown(expected: list[str], printed: str) -> list[str]:
    """What the page would show of `printed` today: the lines that it shows now, as they are now, or all where other lines
    were printed."""
    actual = [line.rstrip() for line in printed.strip("\n").splitlines() if not REMARK.match(line)]
    return (aligned(expected, actual) or actual) if expected else []


def aligned(expected: list[str], actual: list[str]) -> list[str] | None:
    """`actual` with the omissions of `expected`; None where the two differ in more than figures."""
    if not expected:
        return None if actual else []
    if expected[0] == "...":
        rests = (aligned(expected[1:], actual[skip:]) for skip in range(len(actual) + 1))
        return next(([expected[0], *rest] for rest in rests if rest is not None), None)
    if not actual or masked(expected[0]) != masked(actual[0]):
        return None
    rest = aligned(expected[1:], actual[1:])
    return None if rest is None else [actual[0], *rest]


def masked(line: str) -> str:
    """A line without what two machines may print differently."""
    for figure, stands in FIGURES:
        line = re.sub(figure, stands, line)
    return line.strip()


def same(block: Block, today: list[str]) -> bool:
    return [masked(line) for line in block.body.splitlines()] == [masked(line) for line in today]


def rewritten(page: str, folder: Path) -> str:
    """The page with the output of today."""
    for block, today in reversed(list(play(page, folder))):
        page = page[: block.span[0]] + "".join(f"{line}\n" for line in today) + page[block.span[1] :]
    return page


def copied(page: str, source: str) -> str:
    """A translated page with the blocks of commands, files and output of its original, in the same order."""
    for block, other in reversed(list(zip(blocks_of(page), blocks_of(source), strict=True))):
        if block.kind != "sh":  # its comments are translated
            page = page[: block.span[0]] + other.body + page[block.span[1] :]
    return page


def main(paths: list[Path]) -> None:
    for path in paths:
        with TemporaryDirectory() as folder:
            page = rewritten(path.read_text(encoding="utf-8"), Path(folder))
        path.write_text(page, encoding="utf-8")
        translation = path.with_suffix(".ko.md")
        if translation.exists():
            translation.write_text(copied(translation.read_text(encoding="utf-8"), page), encoding="utf-8")
        print(f"{path}: written")


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
