"""A page answers in a browser as Python does, from its folder, without a request to anywhere else."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import browser
from command import onnuri, refused
from folders import save
from onnuri import encoding
from onnuri.errors import BadInput, OnnuriError
from onnuri.model import open_model
from onnuri.operation import Quiet
from onnuri.operations.export import OPERATION, Settings
from onnuri.runtimes import web
from onnuri.sources import open_data

pytest.importorskip("onnxruntime")
CLOSE = 1e-5  # relative: fp32 sums in another order; a pixel or a code that is one off shows as 1e-3 and more


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A folder with the files of ONNX Runtime for browsers, empty of code: enough to write a page."""
    (tmp_path / "package" / "dist").mkdir(parents=True)
    for name in (web.SCRIPT, web.CODE, web.WASM):
        (tmp_path / "package" / "dist" / name).write_bytes(b"// nothing")
    (tmp_path / "package" / "package.json").write_text(json.dumps({"version": web.TRIED}))
    monkeypatch.setenv("ONNURI_WEB", str(tmp_path / "package"))
    return tmp_path / "package"


def trained(family: str, data: object, out: Path, *words: object) -> Path:
    done = onnuri("train", "--family", family, "--data", data, "--steps", 30, "--out", out, *words)
    assert done.code == 0, done.err
    return out


def exported(model: Path, data: object, out: Path) -> Path:
    done = onnuri("export", model, "--to", "web", "--data", data, "--out", out)
    assert done.code == 0, done.err
    assert "what a page makes of a question" in done.out
    return out


def people(path: Path) -> Path:
    """Numbers, some missing, and categories with a quotation mark, markup and Korean in them."""
    draw = np.random.default_rng(0)
    jobs = ['"chef"', "<b>guard</b>", "교사", ""]
    rows = [f"{draw.normal(40, 9):.1f},{draw.choice(jobs)},{draw.integers(9)}," for _ in range(200)]
    rows = [(row.replace('"', '""') if "chef" not in row else row.replace('"chef"', '"""chef"""')) for row in rows]
    rows = [row if i % 9 else "," + row.split(",", 1)[1] for i, row in enumerate(rows)]
    path.write_text("age,job,visits,label\n" + "".join(f"{row}{'yn'[i % 2]}\n" for i, row in enumerate(rows)))
    return path


def reviews(path: Path) -> Path:
    words = [
        "정말 좋아요",
        "The SHOW is great!",
        "별로예요...",
        "e\u0301 \u1112\u1161\u11ab글",
        "  so\tso ",
        "[SEP] (no)",
    ]
    rows = [{"text": f"{word} {i % 13}", "label": ("kind", "unkind")[i % 2]} for i, word in enumerate(words * 30)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


# ---------------------------------------------------------------------------------------------------------- the folder


def test_a_page_is_a_model_folder(tmp_path, package):
    data = people(tmp_path / "people.csv")
    out = exported(trained("tabular", data, tmp_path / "m"), data, tmp_path / "w")
    assert sorted(path.name for path in (out / web.FOLDER).iterdir()) == sorted((*web.PAGE, *web.DATA))
    model, records = open_model(out), open_data(str(data)).split("test")
    assert model.net.runtime == "web"
    one, other = (each.outputs(each.collate(records.list()))[0] for each in (open_model(tmp_path / "m"), model))
    assert torch.allclose(one, other, atol=1e-5)
    assert onnuri("evaluate", out, "--data", data).code == 0
    assert onnuri("verify", out).code == 0
    refused(onnuri("export", out, "--data", data, "--out", tmp_path / "again"), "exported already")


def test_no_record_of_the_data_is_in_a_page(tmp_path, package):
    data = tmp_path / "secret.csv"
    draw = np.random.default_rng(0)
    values = draw.uniform(1000, 9999, 150).round(3)
    data.write_text("pay,label\n" + "".join(f"{value},{'yn'[i % 2]}\n" for i, value in enumerate(values)))
    out = exported(trained("tabular", data, tmp_path / "m"), data, tmp_path / "w")
    said = "".join((out / web.FOLDER / name).read_text() for name in ("question.js", "check.js"))
    assert not [value for value in values if str(value) in said]


def test_writing_and_opening_undo_each_other():
    for data in (b"", b"\0" * 1000, bytes(range(256))):
        assert web.unpacked(web.packed("model", data)) == data
    value = {"a": [1, None, '";</script>', "한글"]}
    assert web.value_of(web.said_as(value)) == value


def test_a_broken_page_is_named(tmp_path, package):
    out = exported(trained("tabular", "builtin:iris", tmp_path / "m"), "builtin:iris", tmp_path / "w")
    for name in ("question.js", "model.js"):
        path = out / web.FOLDER / name
        whole = path.read_bytes()
        for text in ("", "x = 1;", 'x = "AAAA";', "x = [];", "x = {};"):
            path.write_text(text)
            with pytest.raises(BadInput, match="export the model again"):
                open_model(out)
        path.write_bytes(web.packed("model", b"no graph") if name == "model.js" else whole)
    with pytest.raises(BadInput, match=r"onnuri/web/model.js cannot be run"):
        open_model(out)
    (out / web.FOLDER / "page.js").unlink()
    refused(onnuri("evaluate", out, "--data", "builtin:iris"), "page.js", "export the model again")


# ------------------------------------------------------------------------------------------------------- what is refused


def test_without_the_package_it_says_what_to_type(tmp_path, monkeypatch):
    model = trained("tabular", "builtin:iris", tmp_path / "m")
    words = ("export", model, "--to", "web", "--data", "builtin:iris", "--out", tmp_path / "w")
    monkeypatch.setenv("ONNURI_WEB", str(tmp_path / "nowhere"))
    refused(onnuri(*words), "nowhere", f"npm install {web.PACKAGE}@{web.TRIED}")
    monkeypatch.delenv("ONNURI_WEB")
    monkeypatch.chdir(tmp_path)
    refused(onnuri(*words), "node_modules", f"npm install {web.PACKAGE}@{web.TRIED}")
    refused(onnuri(*words, "--precision", "int8"), "web does not compute in int8: fp32")
    assert not (tmp_path / "w").exists()


def test_the_nearest_package_is_taken_and_another_version_is_said(tmp_path, package, monkeypatch):
    monkeypatch.delenv("ONNURI_WEB")
    package.rename(tmp_path / "moved")
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "moved").rename(tmp_path / "node_modules" / web.PACKAGE)
    (tmp_path / "node_modules" / web.PACKAGE / "package.json").write_text('{"version": "1.2.3"}')
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    model = open_model(trained("tabular", "builtin:iris", tmp_path / "m"))
    log = Quiet()
    made = OPERATION.apply(Settings(to="web"), log, model=model, data=open_data("builtin:iris"))
    assert "1.2.3" in log.warnings[0] and web.value_of(made.model.net.pages["question.js"])["version"] == "1.2.3"


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_what_no_page_can_ask_is_refused(tmp_path, package, name):
    data = reviews(tmp_path / "t.jsonl")
    words = (
        ("--fields", "text=text,label=category", "--answer", "label") if name == "bert" else ("--fields", "text=text")
    )
    folder = save(name, tmp_path / "m")
    done = onnuri("export", folder, "--to", "web", "--data", data, *words, "--out", tmp_path / "w")
    refused(done, "in a page" if name == "bert" else "page", "--to onnx")


# ------------------------------------------------------------------------------------------------------------ a browser


needs_browser = pytest.mark.skipif(browser.program() is None, reason="no Chromium; ONNURI_CHROMIUM names one")


@pytest.fixture
def runtime() -> None:
    try:
        web.package_folder()
    except OnnuriError as error:
        pytest.skip(str(error))


def compared(out: Path, data: object, *chosen: Any) -> None:
    """A browser's numbers for real records are Python's, and the page asks for nothing that is not in its folder."""
    model, records = open_model(out), open_data(str(data), *chosen).split("test").some(12).list()
    with browser.opened(f"{(out / web.FOLDER / 'index.html').as_uri()}#test") as page:
        page.wait("document.body.dataset.ready")
        assert float(page.run("document.body.dataset.difference")) <= CLOSE
        for record in model.asked(records):
            wanted = model.outputs(model.collate([record]))[0].flatten()
            asked = json.dumps({name: web.plain(value) for name, value in record.items()})
            revived = f"JSON.parse({json.dumps(asked)}, (key, value) => key === 'data' ? {BYTES} : value)"
            found = torch.tensor(page.run(f"ONNURI.asked({revived})"))
            assert float((found - wanted).abs().max()) <= CLOSE * max(1, float(wanted.abs().max()))
        assert not page.said, "no error and no warning"
        inside = (out / web.FOLDER).as_uri()
        assert all(address.startswith((inside, "blob:", "data:")) for address in page.requests)
        assert len(page.requests) >= 8
        assert page.run(FORBIDDEN) == "connect-src", "the page itself forbids every connection"


FORBIDDEN = """new Promise((done) => {
    addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective));
    fetch("https://example.com").catch(() => 0);
})"""
BYTES = "Uint8Array.from(atob(value), (letter) => letter.charCodeAt(0))"


@needs_browser
def test_tables_are_answered_alike(tmp_path, runtime):
    data = people(tmp_path / "people.csv")
    compared(exported(trained("tabular", data, tmp_path / "m"), data, tmp_path / "w"), data)


@needs_browser
def test_texts_are_answered_alike(tmp_path, runtime):
    data = reviews(tmp_path / "t.jsonl")
    words = ("--fields", "text=text,label=category", "--answer", "label")
    for place, config in enumerate(("width=4", "net=bert,hidden_size=16,num_layers=1,max_length=24,vocab_size=90")):
        model = trained("text_classifier", data, tmp_path / f"m{place}", *words, "--config", config)
        done = onnuri("export", model, "--to", "web", "--data", data, *words, "--out", tmp_path / f"w{place}")
        assert done.code == 0, done.err
        compared(tmp_path / f"w{place}", data, "label", {"text": "text", "label": "category"})


@needs_browser
def test_a_drawn_seven_is_answered(tmp_path, runtime):
    out = tmp_path / "w"
    model = trained("image_classifier", "builtin:digits", tmp_path / "m", "--config", "width=16")
    compared(exported(model, "builtin:digits", out), "builtin:digits")
    with browser.opened((out / web.FOLDER / "index.html").as_uri(), "ko-KR") as page:
        page.wait("document.body.dataset.ready")
        assert "그리거나" in page.run("document.getElementById('answer').innerText")
        box = page.run("(({left, top, width, height}) => [left, top, width, height])"
                       "(document.querySelector('canvas').getBoundingClientRect())")  # fmt: skip
        for kind, x, y in (("Pressed", 0.3, 0.2), ("Moved", 0.7, 0.2), ("Moved", 0.4, 0.9), ("Released", 0.4, 0.9)):
            place = {"x": box[0] + x * box[2], "y": box[1] + y * box[3]}
            page.tell("Input.dispatchMouseEvent", type=f"mouse{kind}", button="left", buttons=1, clickCount=1, **place)
        page.wait("document.querySelectorAll('.bar').length === 10")
        shares = page.run("[...document.querySelectorAll('.bar output')].map((each) => parseFloat(each.textContent))")
        assert abs(sum(shares) - 100) < 1
        page.run("[...document.querySelectorAll('button')].find((each) => each.textContent === '지우기').click()")
        page.wait("!document.querySelector('.bar')")


@needs_browser
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_any_size_become_the_same_bytes(tmp_path, runtime, package_free, channels):
    draw = np.random.default_rng(0)
    steps = [
        {"do": "channels", "channels": channels},
        {"do": "resize", "shortest": 20, "filter": "bicubic"},
        {"do": "crop", "height": 17, "width": 20},
        {"do": "resize", "height": 9, "width": 30, "filter": "bilinear"},
        {"do": "scale", "by": [1 / 57.0] * channels, "minus": [0.3] * channels},
    ]
    said = {"x": {"type": "float32", "image": "i", "steps": steps}}
    with browser.opened(package_free) as page:
        for shape in ((20, 20), (5, 40, 3), (90, 31, 3), (33, 33)):
            image = draw.integers(0, 256, shape).astype(np.uint8)
            asked = json.dumps({"i": web.plain(image)})
            revived = f"JSON.parse({json.dumps(asked)}, (key, value) => key === 'data' ? {BYTES} : value)"
            found = page.wait(f"self.ONNURI && [...ONNURI.encode({json.dumps(said)}, {revived}).x.data]")
            assert np.array_equal(np.float32(found), encoding.encode(said, {"i": image})["x"].ravel())


@pytest.fixture
def package_free(tmp_path) -> str:
    """The address of a page that holds the encoder alone."""
    script = Path(web.__file__).parent / "page" / "encode.js"
    (tmp_path / "x.html").write_text(f"<script>{script.read_text(encoding='utf-8')}</script>", encoding="utf-8")
    return (tmp_path / "x.html").as_uri()
