"""Writes the first inputs of every reader, all that are not there yet: small files by our own code, and by hand.

    python tests/fuzz/make_corpus.py

Inputs that once broke a reader lie beside them, named after what was wrong; they are kept by hand.
"""

import io
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import beds
import numpy as np
import polars as pl
import torch
from PIL import Image
from readers import CORPUS, READERS

from onnuri.model import Model, open_model, write_model
from onnuri.registry import family
from papers import PAGE, docx, encrypted, hp, hwpx, lines, pdf, w
from test_ledger import LINE
from test_sounds import stored, wav

ROWS = [
    (f"2026-01-{day:02}", day / 2, ["red", "blue", ""][day % 3], f"글 {day}, 그럭저럭 볼만한 영화였다", "xy"[day % 2])
    for day in range(1, 25)
]
TABLE = pl.DataFrame(ROWS, schema=["date", "size", "color", "review", "label"], orient="row")
STEPS = "date,a,b\n" + "".join(f"2026-01-{day:02},{day % 5},{day * 1.5}\n" for day in range(1, 29))
RECIPE = """name: life
data: builtin:iris
start: tabular
steps:
  base: {train: {steps: 20, config: {width: 8}}}
  small: {distill: {model: base, size: 0.5}}
  packed: {quantize: {model: small}}
"""
COMMANDS = {
    "train": "train|--data|rows.csv|--family|tabular|--steps|20|--config|width=8,bins=[4,4]|--learning-rate|1e-3|--out|m",
    "choice": "train|m|--data|rows.csv|--answer|label|--fields|a=number,label=category|--window|3,1|--new-head|--out|n",
    "distill": "distill|m|--data|builtin:iris|--size|0.5|--temperature|2|--json|--out|s",
    "merge": "merge|m|--other|n|--data|builtin:iris|--out|s",
    "adapt": "adapt|m|--data|builtin:iris|--rank|3|--out|s",
    "export": "export|m|--data|builtin:iris|--out|s",
    "estimate": "estimate|m|--data|builtin:iris|--json",
}
CARD = "---\nlicense: [mit, apache-2.0]\nlicense_name: own terms\nlicense_link: https://x.y/z\ntags: [x]\n---\n# Net\n"


def picture(mode: str, form: str, **options: object) -> bytes:
    held = io.BytesIO()
    pixels = np.arange(64 * len(mode.strip("P;16I")) or 64).reshape(8, 8, -1).squeeze() * 3 % 256
    image = Image.fromarray(pixels.astype(np.uint16 if mode == "I;16" else np.uint8))
    (image if mode == "I;16" else image.convert(mode)).save(held, form, **options)
    return held.getvalue()


def table(form: str, frame: pl.DataFrame) -> bytes:
    held = io.BytesIO()
    getattr(frame, f"write_{form}")(held)
    return held.getvalue()


def nested() -> pl.DataFrame:
    sound = wav(stored(16)[:200])
    return pl.DataFrame(
        {
            "image": [picture("L", "PNG")] * 3,
            "clip": [{"bytes": sound, "path": "a.wav"}] * 3,
            "past": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
            "flag": [True, False, None],
            "label": ["a", "b", "a"],
        }
    )


def sounds() -> dict[str, bytes]:
    import soundfile

    found = {f"pcm{bits}.wav": wav(stored(bits)[: 30 * bits], bits=bits) for bits in (8, 16, 24, 32)}
    floats = np.linspace(-1, 1, 100, dtype="<f4").tobytes()
    for form in ("FLAC", "OGG", "MP3"):
        held = io.BytesIO()
        soundfile.write(held, np.sin(np.arange(800) / 5), 8000, format=form)
        found[f"short.{form.lower()}"] = held.getvalue()
    return found | {"float.wav": wav(floats, form=3, bits=32)}


def documents() -> dict[str, dict[str, bytes]]:
    """Documents of each format."""
    written = w("글") + "<w:p><w:del/><w:r><w:t>a</w:t><w:tab/></w:r></w:p>"
    rows = "<hp:tbl><hp:tr><hp:tc>" + hp("값") + "</hp:tc></hp:tr></hp:tbl>"
    grid = rows.replace("hp:", "w:").replace("w:run", "w:r")
    return {
        "page": {"whole.html": PAGE.encode(), "korean.html": PAGE.replace("CHARSET", "euc-kr").encode("cp949")},
        "pdf": {
            "lines.pdf": pdf(lines("one-", "two"), lines("three")),
            "korean.pdf": pdf(b"BT /F2 12 Tf 50 700 Td <00010002> Tj ET", unicode="강글"),
            "encrypted.pdf": encrypted(""),
        },
        "docx": {"table.docx": docx(written + grid)},
        "hwpx": {"sections.hwpx": hwpx(hp("첫<hp:tab/>글") + rows, hp("끝"))},
    }


def ledgers() -> dict[str, bytes]:
    from onnuri import ledger

    folder = beds.root() / "ledger"
    after = {"headline": ["accuracy", "up"], "scores": {"accuracy": 0.9}, "interval": [0.8, 1.0], "bytes": 10}
    after |= {"parameters": 4, "records": 30, "interval_method": "Wilson, 95 %"}
    licensed = {
        "name": "mit",
        "parents": [{"path": "a", "id": "mit", "name": "", "link": ""}],
        "permitted": {"x": "yes"},
    }
    licensed |= {"conditions": ["keep the notices"], "conflicts": [], "front": {"license": "mit"}, "advice": ""}
    finding = {"name": "steady", "evidence": "loss 1 to 2", "cure": ""}
    promise = {"text": "kept", "value": 0.1, "kept": True, "bound": 1, "sense": "at most"}
    full = LINE | {"after": after, "license": licensed, "findings": [finding], "promises": [promise]}
    full["inputs"] = [{"role": "data", "path": "builtin:iris", "digest": "0"}]
    lines = [ledger.write(folder, [], LINE)]
    one = (folder / ledger.FILE).read_bytes()
    ledger.write(folder, lines, full)
    return {"one.jsonl": one, "two.jsonl": (folder / ledger.FILE).read_bytes()}


def by_hand() -> dict[str, dict[str, bytes]]:
    """{reader: {file name: content}}."""
    return {
        "csv": {"kinds.csv": table("csv", TABLE), "small.csv": b"a,b,label\n1,x,0\n2.5,y,1\n,z,0\n"},
        "windows": {"steps.csv": STEPS.encode(), "plain.csv": b"a,b\n" + b"".join(b"%d,1\n" % i for i in range(24))},
        "choice": {"all.txt": b"label\nsize=number,color=text\n", "window.txt": b"size\n\n3,1,10,6,8"},
        "parquet": {"kinds.parquet": table("parquet", TABLE[:4]), "nested.parquet": table("parquet", nested())},
        "jsonl": {"kinds.jsonl": table("ndjson", TABLE[:4]), "nested.jsonl": b'{"past": [1, 2], "y": 1}\n' * 3},
        "text": {"short.txt": "첫째 글\n\n둘째\n".encode(), "long.txt": b"word " * 900},
        **documents(),
        "image": {
            "grey.png": picture("L", "PNG"),
            "color.png": picture("RGB", "PNG"),
            "palette.png": picture("P", "PNG"),
            "deep.png": picture("I;16", "PNG"),
            "alpha.png": picture("RGBA", "PNG"),
            "color.jpg": picture("RGB", "JPEG", quality=50),
            "grey.bmp": picture("L", "BMP"),
            "palette.gif": picture("P", "GIF"),
            "color.webp": picture("RGB", "WEBP", lossless=True),
        },
        "sound": sounds(),
        "recipe": {
            "life.yaml": RECIPE.encode(),
            "anchor.yaml": b"data: &d builtin:iris\nsteps: {a: {train: {x: *d}}}\n",
        },
        "ledger": ledgers(),
        "license": {
            "both.txt": CARD.encode() + b"\n~~~~\nMIT License\n\nPermission is hereby granted, free of charge\n",
            "plain.txt": b"---\nlicense: gpl-3.0\n---\n",
        },
        "command": {f"{name}.txt": words.replace("|", "\n").encode() for name, words in COMMANDS.items()},
    }


def of_beds() -> dict[str, dict[str, bytes]]:
    """The file that each target exchanges, as it is in its bed."""
    found = {}
    for name in READERS:
        bed, _, file = name.partition("-")
        if file and bed not in beds.SEEDS:
            found[name] = {f"start{Path(file).suffix}": beds.own(name)[0]}
    return found


def of_the_table_net() -> dict[str, dict[str, bytes]]:
    """The table net, small; its tensors as two files would have them; and some of its weights as pruned."""
    its = family("tabular")
    small = {**its.tiny(), "width": 8, "bins": 4, "embedding": 2}
    model = Model(its, *its.start(small, its.toy(60, 0), torch.Generator().manual_seed(0)))
    folder = beds.root() / "first"
    folder.mkdir()
    write_model(model, folder)
    names = list(model.net.state_dict())
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "model.safetensors")}
    return {
        "tabular-config.json": {"start.json": (folder / "config.json").read_bytes()},
        "tabular-model.safetensors": {"start.safetensors": (folder / "model.safetensors").read_bytes()},
        "tabular-model.safetensors.index.json": {"start.json": json.dumps(index).encode()},
        "tabular-onnuri-pruned.json": {"start.json": json.dumps({"weights": names[:2]}).encode()},
    }


def write(found: dict[str, dict[str, bytes]]) -> None:
    for reader, files in found.items():
        for name, content in files.items():
            path = CORPUS / reader / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_bytes(content)


if __name__ == "__main__":
    write(of_the_table_net())
    open_model(beds.bed("tabular"))
    write(by_hand())
    write(of_beds())
    assert {path.name for path in CORPUS.iterdir()} == READERS.keys()
    print(sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()), "bytes")
