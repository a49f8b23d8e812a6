"""A page: `onnuri/web/index.html` of a model folder asks the model in a browser, without a server and without a network.

Everything that the page reads lies beside it, in scripts, since a page that is opened from a folder may read nothing else:
ONNX Runtime for browsers (`runtime.js`), the graph (`model.js`), how a question becomes a batch (`question.js`), and a few made-up
questions with the answers that Python gave, by which anyone can check the page (`check.js`). No record of the data is in it.
In Python the same graph is executed, by ONNX Runtime.
"""

import base64
import gzip
import json
import os
import zlib
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from .. import encoding
from ..data import Records, as_label
from ..errors import BadInput, Refusal
from ..graph import OPSETS, graph_of
from ..model import Model, count_parameters
from ..operation import Log
from ..runtime import Choice, Runtime
from .onnx import OnnxSession

FOLDER = "onnuri/web"
ARTEFACT = f"{FOLDER}/model.js"
PAGE = ("index.html", "style.css", "encode.js", "page.js")
DATA = ("runtime.js", "model.js", "question.js", "check.js")
PACKAGE, TRIED = "onnxruntime-web", "1.30.0"
SCRIPT, CODE, WASM = "ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"
LOOKED_AT = 2000  # records from which the ranges of the form are taken
CHECKED = 8  # made-up questions that the page is checked with
DIGITS = 3  # of the numbers in the form: ranges, and no record's own values


class WebSession(OnnxSession):
    """Holds the files of the page: {name: bytes}."""

    pages: dict[str, bytes]

    runtime = "web"
    artefact = ARTEFACT

    def __init__(self, pages: dict[str, bytes]):
        self.__dict__["pages"] = pages
        super().__init__(unpacked(pages["model.js"]))
        self.question = value_of(pages["question.js"])["encoding"]

    def __deepcopy__(self, memo: dict) -> "WebSession":
        copy = WebSession(self.pages)
        copy.original = self.original
        return copy

    def save(self, folder: Path) -> None:
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        for name, data in self.pages.items():
            (folder / FOLDER / name).write_bytes(data)


# --------------------------------------------------------------------------------------------------- making and opening


def make(model: Model, records: Records, choice: Choice, log: Log) -> WebSession:
    described = model.family.encoding(model.assets)
    answer = answer_of(model)
    if not described or not answer:
        said = "a question of this model cannot be asked in a page" if answer else "no page can show such an answer"
        raise Refusal(f"{said}: it takes more than numbers, labels, pictures and texts", "export --to onnx, predict")
    package = package_folder()
    if (version := version_of(package)) != TRIED:
        log.warn(f"{PACKAGE} {version} was found; the page was tried with {TRIED}")
    graph = graph_of(model, records, choice.opset).SerializeToString()
    form = [field(name, kind, records, described) for name, kind in model.family.fields(model.assets)[0].items()]
    facts = {"task": model.family.tag, "numbers": count_parameters(model.net), "version": version}
    question = {**facts, "fields": form, "answer": answer, "encoding": described}
    pages = {name: (files(__name__.rpartition(".")[0]) / "page" / name).read_bytes() for name in PAGE}
    pages |= {"runtime.js": runtime_of(package), "model.js": packed("model", graph), "question.js": said_as(question)}
    session = WebSession(pages | {"check.js": b""})
    require_whole(session)
    session.pages["check.js"] = checks(session, form, records)
    return session


def open_folder(folder: Path) -> WebSession:
    """BadInput where a file of the page is missing or is not what it must be."""
    try:
        return WebSession({name: (folder / FOLDER / name).read_bytes() for name in (*PAGE, *DATA)})
    except (OSError, ValueError, TypeError, LookupError, EOFError, zlib.error) as error:
        raise BadInput(f"the page in {folder / FOLDER} is broken: {error}", hint="export the model again") from error


def answer_of(model: Model) -> dict[str, Any]:
    """The answer's name, kind and labels; {} where it is neither one label of several nor one number."""
    name, kind = model.family.fields(model.assets)[1]
    labels, shown = model.family.axis(model.assets), model.family.kind(model.assets)
    if kind == "category" and shown == "logits" and isinstance(labels, tuple):
        return {"name": name, "kind": kind, "labels": [str(label) for label in labels]}
    return {"name": name, "kind": kind, "labels": []} if kind == "number" and shown == "values" else {}


def require_whole(session: WebSession) -> None:
    """Refusal where the graph reads an entry that the description does not make."""
    if lacking := [name for name in session.inputs if name not in session.question]:
        raise Refusal(
            f"it is not said how a page would make {', '.join(lacking)} of a question", "export --to onnx, predict"
        )


# ---------------------------------------------------------------------------------------------- what executes the graph


def package_folder() -> Path:
    """Where npm put ONNX Runtime for browsers: the folder that ONNURI_WEB names, or the nearest node_modules above."""
    named = os.environ.get("ONNURI_WEB")
    here = Path.cwd()
    places = [Path(named)] if named else [above / "node_modules" / PACKAGE for above in (here, *here.parents)]
    for place in places:
        if all((place / "dist" / name).is_file() for name in (SCRIPT, CODE, WASM)):
            return place
    where = f"ONNURI_WEB={named}" if named else "node_modules of this folder or of one above it"
    raise BadInput(
        f"a page needs {PACKAGE}, which is not in {where}",
        hint=f"npm install {PACKAGE}@{TRIED}; from elsewhere: ONNURI_WEB=PATH/node_modules/{PACKAGE}",
    )


def version_of(package: Path) -> str:
    try:
        return str(json.loads((package / "package.json").read_text(encoding="utf-8"))["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return "without a version"


def runtime_of(package: Path) -> bytes:
    """ONNX Runtime's script as it is, its license in its first lines, and the machine code that it would fetch."""
    code, machine = (
        packed(name, (package / "dist" / file).read_bytes()) for name, file in (("code", CODE), ("wasm", WASM))
    )
    return b"\n".join([(package / "dist" / SCRIPT).read_bytes(), code, machine])


# ------------------------------------------------------------------------------------------------------ data as scripts


def packed(name: str, data: bytes) -> bytes:
    """A script that puts compressed bytes into ONNURI, the page's one global name."""
    text = base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()
    return f'(self.ONNURI ??= {{}}).{name} = "{text}";\n'.encode()


def unpacked(script: bytes) -> bytes:
    """The inverse. Raises ValueError or OSError for what is no such script."""
    return gzip.decompress(base64.b64decode(script.split(b'"')[1], validate=True))


def said_as(value: Any, name: str = "question") -> bytes:
    """A script that puts a JSON value into ONNURI."""
    return f"(self.ONNURI ??= {{}}).{name} = {json.dumps(value, allow_nan=False)};\n".encode()


def value_of(script: bytes) -> Any:
    """The inverse."""
    return json.loads(script.decode().split(" = ", 1)[1].rstrip().removesuffix(";"))


# ------------------------------------------------------------------------------------------------------------- the form


def field(name: str, kind: str, records: Records, described: dict[str, Any]) -> dict[str, Any]:
    """What the form shows for a field: its range and a usual value, learnt from records, rounded."""
    some = records.some(LOOKED_AT)
    found = {"name": name, "kind": kind}
    if kind == "number":
        values = np.array([value for value in some.column(name) if value is not None], dtype=np.float64)
        values = values[np.isfinite(values)]
        low, usual, high = np.quantile(values, (0.01, 0.5, 0.99)) if len(values) else (0.0, 0.0, 1.0)
        whole = bool(len(values)) and not (values % 1).any()
        return found | {"low": short(low), "usual": short(usual), "high": short(high), "whole": whole}
    if kind == "category":
        known = [c["categories"] for e in described.values() for c in e.get("columns", ()) if c["field"] == name]
        counts = Counter(label for value in some.column(name) if (label := as_label(value)) in (known or [[]])[0])
        return found | {
            "categories": known[0] if known else [],
            "usual": next((label for label, _ in counts.most_common(1)), None),
        }
    return found | (drawing(list(some[:64].column(name)), described) if kind == "image" else {})


def short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def drawing(images: list[np.ndarray], described: dict[str, Any]) -> dict[str, Any]:
    """The usual size; `paper`: the grey at the edges where all are grey, so that a picture can be drawn; else none."""
    height, width = (int(np.median([image.shape[axis] for image in images])) for axis in (0, 1))
    grey = all(image.ndim == 2 for image in images)
    edges = np.concatenate([np.r_[image[0].ravel(), image[-1].ravel()] for image in images])
    return {"height": height, "width": width, "paper": (255 if np.median(edges) > 127 else 0) if grey else None}


# ------------------------------------------------------------------------------------------------------------ the check


def checks(session: WebSession, form: list[dict], records: Records) -> bytes:
    """Made-up questions with the numbers that Python's runtime gives for them."""
    draw = np.random.default_rng(0)
    found = []
    for record in [{each["name"]: made_up(each, records, draw) for each in form} for _ in range(CHECKED)]:
        batch = encoding.encode(session.question, record)
        values = np.asarray(session.session.run(None, {name: batch[name] for name in session.inputs})[0])
        found.append(
            {"question": {name: plain(value) for name, value in record.items()}, "values": values.ravel().tolist()}
        )
    return said_as(found, "check")


def made_up(field: dict[str, Any], records: Records, draw: np.random.Generator) -> Any:
    """A value such as the form could give; of texts in the data nothing but the characters that occur."""
    if field["kind"] == "number":
        return None if draw.random() < 0.1 else short(draw.uniform(field["low"], field["high"]))
    if field["kind"] == "category":
        return [None, "?", *field["categories"]][draw.integers(2 + len(field["categories"]))]
    if field["kind"] == "text":
        letters = sorted({letter for text in records.some(LOOKED_AT).column(field["name"]) for letter in text or ""})
        return "".join(draw.choice([*letters, " ", "!"], draw.integers(0, 200)))
    shape = (draw.integers(1, 2 * field["height"] + 1), draw.integers(1, 2 * field["width"] + 1))
    return draw.integers(0, 256, shape if field["paper"] is not None else (*shape, 3)).astype(np.uint8)


def plain(value: Any) -> Any:
    """A picture as its sides and its bytes; all else as it is."""
    if not isinstance(value, np.ndarray):
        return value
    height, width, channels = (*value.shape, 1)[:3]
    data = base64.b64encode(value.tobytes()).decode()
    return {"height": height, "width": width, "channels": channels, "data": data}


RUNTIME = Runtime("web", ARTEFACT, ("fp32",), OPSETS, make, open_folder, elsewhere=True)
