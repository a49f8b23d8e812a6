"""Folders: one of images or of sounds per class, and documents."""

import io
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .. import sounds
from ..data import Kind, Record, Records, records_of
from ..errors import BadInput, readable
from .documents import ENDINGS, UNREAD, read_document

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")  # of the others some start a program to be read
TEXT_CHUNK = 2000  # characters: how long the paragraphs of a document are joined to make one record
MOST_FAULTS = 8  # in one message


def decode_image(source: bytes | Path | None, path: Path) -> np.ndarray:
    """Pixels as uint8, (height, width) for grey, else (height, width, 3)."""
    if not isinstance(source, (bytes, Path)):
        raise BadInput(f"{path} holds a row without a picture", hint="drop that row")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as stored:
            image = ImageOps.exif_transpose(stored)
            if image.mode.startswith("I"):  # 16 bits: the upper 8 say most
                return (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
            return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    except UnidentifiedImageError:
        raise BadInput(f"{path} holds an image that cannot be read: it is none of {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow lets through whatever a malformed file makes its formats stumble over
        reason = str(error) or type(error).__name__
        raise BadInput(f"{path} holds an image that cannot be read: {reason}") from error


def read_class_folders(roots: list[Path]) -> tuple[Records, dict[str, Sequence[int]]]:
    """One folder of images or of sounds per class below each root; the classes' folder names are the labels."""
    endings: dict[Kind, tuple[str, ...]] = {"image": IMAGES, "audio": sounds.ENDINGS}
    kinds: dict[str, Kind] = {ending: kind for kind, group in endings.items() for ending in group}
    files = [[p for p in sorted(root.rglob("*")) if p.suffix.lower() in kinds] for root in roots]
    paths = [p for part in files for p in part]
    found: list[Kind] = list(dict.fromkeys(kinds[p.suffix.lower()] for p in paths))
    if len(found) != 1:
        what = "holds images and sounds at once" if found else "holds no images and no sounds"
        raise BadInput(f"{roots[0]} {what}", hint=f"one folder per class, files ending in {', '.join(kinds)}")
    kind = found[0]
    labels = [readable(p.parent.name) for p in paths]

    def get(rows: Sequence[int], names: Collection[str]) -> list[Record]:
        decode = decode_image if kind == "image" else sounds.decode_sound
        read = {kind: lambda i: decode(paths[i], paths[i]), "label": lambda i: labels[i]}
        return [{name: read[name](i) for name in names} for i in rows]

    fields: dict[str, Kind] = {kind: "image" if kind == "image" else "audio", "label": "category"}
    records = Records(get, range(len(paths)), fields, "label")
    if len(roots) == 1:
        return records, {}
    return records, {"train": range(len(files[0])), "test": range(len(files[0]), len(paths))}


def chunks(text: str) -> list[str]:
    """Paragraphs, or lines where paragraphs are long, joined until they reach TEXT_CHUNK characters."""
    parts = [
        part
        for paragraph in text.split("\n\n")
        for part in (paragraph.split("\n") if len(paragraph) > TEXT_CHUNK else [paragraph])
    ]
    pieces, current = [], ""
    for part in parts:
        current = f"{current}\n\n{part}" if current else part
        if len(current) >= TEXT_CHUNK:
            pieces.append(current)
            current = ""
    return [piece for piece in [*pieces, current] if piece.strip()]


def documents_in(folder: Path) -> list[Path]:
    """The documents of a folder and its subfolders, sorted by path; hidden ones and what Word leaves of open ones are none. Those
    of UNREAD formats are among them, so that each is told of when it is read.

    Empty where the folder is one of pictures or of sounds: more of these lie in its subfolders than documents, and no .txt.
    """
    files = [p for p in sorted(folder.rglob("*")) if not is_hidden(p.relative_to(folder))]
    found = [p for p in files if p.suffix.lower() in (*ENDINGS, *UNREAD) and p.is_file()]
    media = sum(p.parent != folder and p.suffix.lower() in (*IMAGES, *sounds.ENDINGS) for p in files)
    return found if media <= len(found) or any(p.suffix.lower() == ".txt" for p in found) else []


def is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "~$")) for part in path.parts)


def chunk_records(paths: list[Path], folder: Path) -> Records:
    """The chunks of all documents, read now. Of those that cannot be read, the faults of the first eight at once."""
    texts, errors = [], []
    for path in paths:
        try:
            texts += chunks(read_document(path))
        except BadInput as error:
            errors.append(error)
    if errors:
        faults = list(dict.fromkeys(fault for error in errors for fault in error.faults))
        more = [f"and {len(faults) - MOST_FAULTS} documents more"] if len(faults) > MOST_FAULTS else []
        raise BadInput(*faults[:MOST_FAULTS], *more, hint=errors[0].hint)
    return records_of([{"text": text} for text in texts], {"text": "text"}, "text")


def document_records(paths: list[Path], folder: Path) -> Records:
    """One record per document, read when its text is asked for; `source`: its path below `folder`."""
    sources = [readable(path.relative_to(folder).as_posix()) for path in paths]
    read = {"text": lambda i: read_document(paths[i]), "source": lambda i: sources[i]}

    def get(rows: Sequence[int], names: Collection[str]) -> list[Record]:
        return [{name: read[name](i) for name in names} for i in rows]

    return Records(get, range(len(paths)), {"text": "text", "source": "category"}, None)
