"""Documents as text: every format is read from a file built here, and every hostile one is refused with one message."""

import os
import sys
import time
import zipfile
from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from onnuri.errors import BadInput
from onnuri.sources import documents, office, open_data, open_documents, pages
from onnuri.sources.documents import read_document
from papers import KOREAN, PAGE, cell, docx, encrypted, hp, hwpx, lines, pdf, w, zipped


@pytest.fixture
def put(tmp_path):
    def write(name: str, content: bytes | str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refused(path: Path, says: str) -> str:
    """The message, which names the file."""
    with pytest.raises(BadInput, match=says) as caught:
        read_document(path)
    assert str(path) in str(caught.value) or "not installed" in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------------------ text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp949", "euc-kr"])
def test_text_in_the_encodings_that_are_met(encoding, put):
    text = f"{KOREAN}\n\nsecond, in ASCII\n" * 30
    assert read_document(put("a.txt", text.replace("\n", "\r\n").encode(encoding))) == text
    assert read_document(put("a.MD", text.encode(encoding))) == text


def test_a_character_across_two_blocks(put, monkeypatch):
    monkeypatch.setattr(documents, "BLOCK", 7)
    for encoding in ("utf-8", "utf-16", "cp949"):
        assert read_document(put("a.txt", KOREAN.encode(encoding))) == KOREAN
    place = len(KOREAN.encode())
    assert f"at byte {place}" in refused(put("b.txt", KOREAN.encode() + b"\xff"), "not UTF-8")


def test_text_of_an_unknown_encoding_is_refused_with_the_remedy(put):
    western = "Größe, Maß und Übermut: naïve café, où l'on déjeune à l'ombre d'un chêne".encode("latin-1")
    assert "iconv" in refused(put("a.txt", western), "not UTF-8 text: .* at byte")
    chinese = "的是不我一有在人这中大国来上个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后".encode(
        "gbk"
    )
    refused(put("b.txt", chinese), "not UTF-8")
    refused(put("c.txt", b"\xff\xfe\x00"), "not UTF-16")


@pytest.mark.parametrize(
    "content", [pdf(lines("x")), docx(w("x")), b"\x1f\x8bxx", b"\x89PNG\r\n", b"a\0b", b"{\\rtf1 x}"]
)
def test_what_is_no_text(content, put):
    refused(put("a.txt", content), "is not text")
    refused(put("a.html", content), "is not text")
    refused(put("late.txt", b"x" * 100_000 + b"\0"), "is not text")


def test_an_endless_line_is_not_read_whole(put, monkeypatch):
    path = put("a.txt", b"")
    os.truncate(path, 2**40)
    began = time.monotonic()
    assert f"{2**40:,} bytes" in refused(path, "too large")
    assert time.monotonic() - began < 1
    monkeypatch.setattr(documents, "LONGEST", 3 * 2**20)
    path = put("b.txt", b"x" * 8 * 2**20)
    taken = []
    decode = documents.decoded
    monkeypatch.setattr(documents, "decoded", lambda *of: (taken.append(1) or block for block in decode(*of)))
    refused(path, "holds more than 3,145,728 characters")
    assert len(taken) == 4


def test_an_empty_text_is_a_text(put):
    assert read_document(put("a.txt", b"")) == "" and read_document(put("b.md", b"\xef\xbb\xbf")) == ""


def test_endings(put, tmp_path):
    assert "save it as hwpx" in refused(put("a.hwp", office.OLE), "unknown ending")
    assert "save it as docx" in refused(put("a.doc", office.OLE), "unknown ending")
    with pytest.raises(BadInput, match=r"unknown ending\n.*save it as hwpx"):
        open_data(str(put("a.hwp", office.OLE)))
    assert ".hwpx" in refused(put("a.xyz", b""), "unknown ending")
    refused(tmp_path / "none.pdf", "is no file")
    (tmp_path / "folder.txt").mkdir()
    refused(tmp_path / "folder.txt", "is no file")
    os.mkfifo(tmp_path / "pipe.txt")
    refused(tmp_path / "pipe.txt", "is no file")


# ----------------------------------------------------------------------------------------------------------------- pages


@pytest.mark.parametrize(
    ("encoding", "declared"),
    [
        ("utf-8", "utf-8"),
        ("utf-8", "euc-kr"),
        ("utf-16", "x"),
        ("cp949", "EUC-KR"),
        ("cp949", "ks_c_5601-1987"),
        ("cp949", ""),
        ("euc-kr", "zlib_codec"),
        ("euc-kr", "no-such"),
    ],
)
def test_the_main_text_of_a_page(encoding, declared, put):
    page = PAGE.replace("€", "E").replace("CHARSET", declared)
    text = read_document(put("a.html", page.encode(encoding)))
    assert text.split("\n\n")[:3] == ["얼음", KOREAN, "Fish & chips cost < 5 €; 가 na."]
    assert "- one thing\n- two things" in text and "name\tsize\na\t1" in text and "def f(x):\n    return x" in text
    assert not any(word in text for word in ("Home", "Imprint", "cookies", "hidden", "rights", "p {"))


def test_a_page_with_a_few_broken_bytes_and_one_of_another_language(put):
    broken = PAGE.replace("CHARSET", "euc-kr").encode("cp949").replace("얼음".encode("cp949"), b"\xff\xfe", 1)
    assert KOREAN in read_document(put("a.html", broken))
    french = "<p>Où l'on déjeune à l'ombre d'un chêne, naïvement.".encode("cp1252")
    refused(put("b.html", french), "not UTF-8")
    assert "chêne" in read_document(put("c.html", b'<meta charset="iso-8859-1">' + french))


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<p>One sentence.", "One sentence."),
        ("한 문장이다.", "한 문장이다."),
        (
            "<body><nav>Home</nav><ul class=menu><li><a href=x>x</a></ul><div><p>그<b>것</b>은 <a href=x>강</a>.</p></div>",
            "그것은 강.",
        ),
        ("<html><body><p>Only <i>this</i>.</p></body></html>", "Only this."),
        (
            "<?xml version='1.0' encoding='euc-kr'?><html><body><p>declared as XML is</p></body></html>",
            "declared as XML is",
        ),
    ],
)
def test_a_short_page_is_not_lost(page, text, put):
    assert read_document(put("a.htm", page)) == text


def test_a_page_without_a_main_text_loses_only_its_tags(monkeypatch):
    import trafilatura

    def stumble(*_, **__):
        raise RecursionError

    for found in (lambda *_, **__: None, stumble):
        monkeypatch.setattr(trafilatura, "bare_extraction", found)
        text = pages.main_text(PAGE)
        assert text.endswith(
            f"- one thing\n- two things\n\ndef f(x):\n    return x\n\nname\tsize\na\t1\n\n{KOREAN * 6}"
        )
        assert "Home" not in text and "hidden" not in text
    cells = "<body>a<b>b</b> c<table><tr><td><td>x<td></tr><tr><td><p>1<p>2<td><pre> 3</pre></table><li><p>k<p>l</li>m"
    assert pages.main_text(cells) == "ab c\n\n\tx\n1 2\t 3\n\n- k\nl\nm"


def test_pages_that_are_none_or_too_much(put, monkeypatch):
    for page in ("", " \n", "<script>x</script>", "<!-- x -->"):
        refused(put("a.html", page), "holds no text")
    assert read_document(put("deep.html", "<div>" * 1000 + "within" + "</div>" * 1000)) == "within"
    assert len(read_document(put("wide.html", "<p>x" * 120_000)).split("\n\n")) == 120_000
    monkeypatch.setattr(pages, "LARGEST", 10)
    refused(put("large.html", PAGE), "too large for its kind")


def test_nothing_of_a_page_is_fetched_or_followed(put, tmp_path, capfd):
    secret = put("secret.txt", "do not read me")
    page = f"""<!DOCTYPE html [<!ENTITY x SYSTEM "file://{secret}">]><html><head><base href="http://127.0.0.1:9/">
    <link rel="stylesheet" href="http://127.0.0.1:9/a.css"></head><body><img src="http://127.0.0.1:9/a.png">
    <iframe src="file://{secret}"></iframe><p>The text &x; itself.</p></body></html>"""
    before = sorted(tmp_path.iterdir())
    events = []
    listening = True
    sys.addaudithook(lambda event, _: events.append(event) if listening and event.startswith("socket.") else None)
    text = read_document(put("a.html", page))
    listening = False
    assert "itself" in text and "do not read" not in text and not events
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "a.html"]) and capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------------------------------- PDF


def test_the_pages_of_a_pdf(put):
    path = put(
        "a.pdf",
        pdf(lines("The first page is infor-", "mation, a well-", "Known e-", "mail 3-", "4"), b"", lines("second")),
    )
    assert read_document(path) == "The first page is information, a well-\nKnown email 3-\n4\n\nsecond"


def test_a_pdf_in_korean(put):
    letters = sorted(set(KOREAN))
    codes = "".join(f"{letters.index(letter) + 1:04x}" for letter in KOREAN)
    content = f"BT /F2 12 Tf 50 700 Td <{codes}> Tj ET".encode()
    assert read_document(put("a.pdf", pdf(content, unicode="".join(letters)))) == KOREAN


@pytest.mark.parametrize("algorithm", ["RC4-40", "RC4-128", "AES-128", "AES-256"])
def test_encrypted_pdfs(algorithm, put):
    if algorithm.startswith("AES"):
        pytest.importorskip("cryptography")
    assert read_document(put("open.pdf", encrypted("", algorithm))) == "kept by a word"
    refused(put("closed.pdf", encrypted("secret", algorithm)), "is encrypted")


def test_a_pdf_of_pictures_says_to_run_ocr(put):
    assert "OCR" in refused(put("a.pdf", pdf(b"0 0 100 100 re f", b"")), "its pages are pictures")


def test_damaged_pdfs(put, capfd):
    good = pdf(lines("words"))
    for bad in (
        b"",
        b"no pdf",
        b"%PDF-1.4\n",
        good[:300],
        b"%PDF-1.4\n" + b"[" * 50_000,
        good.replace(b"/Kids", b"/Kinds"),
    ):
        refused(put("a.pdf", bad), "a.pdf")
    assert read_document(put("b.pdf", good.replace(b"startxref\n", b"startxref\n1"))) == "words", "it can be mended"
    assert capfd.readouterr() == ("", "")


def test_a_text_of_pages_without_end_is_refused(put, monkeypatch):
    monkeypatch.setattr(documents, "LONGEST", 10)
    for name, content in (("a.pdf", pdf(lines("eight"), lines("characters"))), ("a.docx", docx(w("eight") * 3))):
        assert "bytes)" in refused(put(name, content), "holds more than 10 characters")


# ---------------------------------------------------------------------------------------------------------- docx and hwpx


def test_a_docx(put):
    body = (
        '<w:p><w:pPr><w:tabs><w:tab w:val="left"/></w:tabs></w:pPr><w:r><w:t xml:space="preserve">The </w:t></w:r>'
        "<w:r><w:t>first &amp; &#xAC00;</w:t><w:tab/><w:t>b</w:t><w:br/><w:t>c</w:t></w:r></w:p><w:p/>"
        "<w:p><w:del><w:r><w:delText>gone</w:delText><w:t>gone</w:t></w:r></w:del><w:ins><w:r><w:t>new</w:t></w:r></w:ins>"
        "<w:moveFrom><w:r><w:t>moved</w:t></w:r></w:moveFrom><w:r><w:instrText>PAGE</w:instrText></w:r></w:p>"
        f"<w:tbl><w:tr>{cell(w('name') + w('of it'))}{cell(w('size'))}</w:tr><w:tr>{cell('<w:p/>')}{cell(w('1'))}</w:tr>"
        f"<w:tr>{cell(f'<w:tbl><w:tr>{cell(w(1))}{cell(w(2))}</w:tr></w:tbl><w:p/>')}{cell(w('x'))}</w:tr></w:tbl>"
        "<w:p><w:r><w:t>be</w:t><mc:AlternateContent><mc:Choice><w:txbxContent>"
        + w("box")
        + "</w:txbxContent></mc:Choice>"
        "<mc:Fallback>" + w("box") + "</mc:Fallback></mc:AlternateContent><w:t>fore</w:t></w:r></w:p>"
    )
    found = read_document(put("a.docx", docx(body, **{"word/footnotes.xml": w("note")})))
    assert found == "The first & 가\tb\nc\n\nnew\n\nname of it\tsize\n\t1\n1 2\tx\n\nbox\n\nbefore"


def test_a_hwpx(put):
    table = f"<hp:tbl><hp:tr>{cell(hp('이름'), 'hp')}{cell(hp('값'), 'hp')}</hp:tr></hp:tbl>"
    first = (
        f"<hp:p><hp:run><hp:secPr/><hp:ctrl><hp:header><hp:subList>{hp('머리말')}</hp:subList></hp:header></hp:ctrl></hp:run>"
        "<hp:run><hp:t>첫<hp:tab/>글<hp:lineBreak/>줄<hp:markpenBegin/>임</hp:t></hp:run></hp:p>"
        f"<hp:p><hp:run><hp:t>표 앞</hp:t>{table}<hp:t>표 뒤</hp:t></hp:run></hp:p>"
        "<hp:p><hp:run><hp:t>남<hp:deleteBegin/>삭제<hp:deleteEnd/>음<hp:deleteBegin/>삭제</hp:t></hp:run></hp:p>"
        f"<hp:p><hp:run><hp:ctrl><hp:footNote><hp:subList>{hp('각주')}</hp:subList></hp:footNote></hp:ctrl></hp:run></hp:p>"
    )
    sections = [first, *(hp(f"{number}째") for number in range(2, 12))]
    found = read_document(put("a.hwpx", hwpx(*sections)))
    assert found.split("\n\n") == [
        "첫\t글\n줄임",
        "표 앞",
        "이름\t값",
        "표 뒤",
        "남음",
        *(f"{n}째" for n in range(2, 12)),
    ]


@pytest.mark.parametrize(("ending", "make", "words"), [("docx", docx, w), ("hwpx", hwpx, hp)])
def test_hostile_zips(ending, make, words, put):
    good = make(words("x"))
    name = f"a.{ending}"
    assert read_document(put(name, good)) == "x"
    part = "word/document.xml" if ending == "docx" else "Contents/section0.xml"
    bomb = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>' + f"<x>{words('&b;')}</x>"
    outside = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]>' + f"<x>{words('&a;')}</x>"
    cases = {
        "DOCTYPE": [zipped({part: bomb}), zipped({part: outside})],
        "undefined entity": [zipped({part: f"<x>{words('&b;')}</x>"})],
        f"is a zip, but no {ending}": [zipped({"a.txt": "x"}), zipped({})],
        f"cannot be read as {ending}": [
            b"",
            b"no zip",
            good[:-30],
            zipped({part: "<x>"}),
            good.replace(b"PK\x03\x04", b"PK\x03\x05"),
        ],
        "no text": [make(""), make("<w:p/>" if ending == "docx" else "<hp:p/>")],
        "encrypted, or of an old": [office.OLE + b"\0" * 600],
        "packed in a way": [zipped({part: words("x")}, zipfile.ZIP_BZIP2)],
        "unpacks to far more": [zipped({part: b"<x>" + b" " * 40 * 2**20})],
    }
    for says, contents in cases.items():
        for content in contents:
            refused(put(name, content), says)
    closed = bytearray(good)
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flags of each part
        start = -1
        while (start := closed.find(mark, start + 1)) >= 0:
            closed[start + place] |= 1
    refused(put(name, bytes(closed)), "is encrypted")


def test_a_size_in_a_header_is_not_believed(put):
    """The central directory says that the part is small; what is unpacked decides."""
    content = zipped({"word/document.xml": b"<x>" + b" " * 40 * 2**20})
    path = put("a.docx", content.replace((40 * 2**20 + 3).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    began = time.monotonic()
    refused(path, "a.docx")
    assert time.monotonic() - began < 5


def test_a_hwpx_under_a_password_and_a_zip_of_countless_parts(put, monkeypatch):
    manifest = {"META-INF/manifest.xml": "<odf:encryption-data/>"}
    refused(put("a.hwpx", hwpx(hp("x"), **manifest)), "is encrypted")
    monkeypatch.setattr(office, "MOST_PARTS", 2)
    refused(put("b.docx", docx(w("x"), a="", b="")), "more than 2 parts")


def test_a_tag_without_end(put):
    part = b'<x a="' + b"y" * 12 * 2**20 + b'"/>'
    began = time.monotonic()
    refused(put("a.docx", zipped({"word/document.xml": part})), "an element of more than 4,194,304 bytes")
    assert time.monotonic() - began < 5
    assert len(read_document(put("b.docx", docx(w("y" * 12 * 2**20))))) == 12 * 2**20, "a long text is none"


def test_elements_deep_in_each_other(put):
    deep = "<w:sdt>" * 50_000 + w("within") + "</w:sdt>" * 50_000
    assert read_document(put("a.docx", docx(deep))) == "within"


# ------------------------------------------------------------------------------------------------------- files, folders


@pytest.fixture
def folder(put, tmp_path):
    put("papers/b.pdf", pdf(lines("b")))
    put("papers/a.txt", "a\n\n" * 2000)
    put("papers/sub/c.docx", docx(w("c")))
    put("papers/sub/d.HWPX", hwpx(hp("d")))
    put("papers/e.html", "<p>e")
    put("papers/f.md", "f")
    put("papers/~$c.docx", "Word has it open")
    put("papers/.git/g.md", "hidden")
    put("papers/h.xyz", "of another kind")
    return tmp_path / "papers"


def test_a_folder_opens_as_chunks_to_train_on(folder):
    texts = [record["text"] for record in open_data(str(folder)).records]
    assert texts[-5:] == ["b", "e", "f", "c", "d"] and len(texts) > 6 and set("".join(texts[:-5])) == {"a", "\n"}


@pytest.mark.parametrize("name", ["b.pdf", "sub/c.docx", "sub/d.HWPX", "e.html", "f.md"])
def test_one_file_opens(name, folder):
    data = open_data(str(folder / name))
    assert data.records.list() == [{"text": Path(name).stem}] and data.records.answer == "text"
    assert open_documents(str(folder / name)).records.list() == [{"text": Path(name).stem, "source": Path(name).name}]


def test_one_record_per_document_read_when_asked_for(folder, monkeypatch):
    read = []
    monkeypatch.setattr("onnuri.sources.folders.read_document", lambda path: read.append(path.name) or "x")
    records = open_documents(str(folder)).records
    assert records.fields == {"text": "text", "source": "category"} and records.answer is None
    assert (
        list(records.column("source")) == ["a.txt", "b.pdf", "e.html", "f.md", "sub/c.docx", "sub/d.HWPX"] and not read
    )
    assert records[4] == {"text": "x", "source": "sub/c.docx"} and read == ["c.docx"]


@pytest.mark.parametrize(
    ("stored", "name"),
    [("햏 보고서.txt".encode("cp949"), "햏 보고서.txt"), ("é.txt".encode("latin-1") + b"\xff.md", "\\xe9.txt\\xff.md")],
)
def test_names_that_are_not_utf8_can_be_written(stored, name, tmp_path):
    folder = tmp_path / "글"
    folder.mkdir()
    path = os.fsencode(folder) + b"/" + stored
    try:
        Path(os.fsdecode(path)).write_text("x")
    except OSError:
        pytest.skip("this file system keeps names in UTF-8 alone")
    records = open_documents(str(folder)).records
    assert records[0] == {"text": "x", "source": name}
    Path(os.fsdecode(path)).write_bytes(b"\x00\xff\x00")
    with pytest.raises(BadInput) as found:
        records.list()
    assert str(folder / name) in str(found.value) and found.value.faults[0].encode()


def test_a_fault_names_its_file_when_it_is_asked_for(folder, put):
    put("papers/bad.pdf", b"no pdf")
    put("papers/sub/scan.pdf", pdf(b""))
    records = open_documents(str(folder)).records
    assert records[0]["source"] == "a.txt"
    with pytest.raises(BadInput, match=r"bad\.pdf"):
        records.list()
    with pytest.raises(BadInput, match=r"(?s)bad\.pdf.*scan\.pdf.*pictures"):
        open_data(str(folder))
    for number in range(10):
        put(f"papers/bad{number}.docx", b"no zip")
    with pytest.raises(BadInput, match="and 4 documents more"):
        open_data(str(folder))


def test_a_document_of_a_format_that_is_not_read_is_told_of(folder, put):
    put("papers/sub/old.hwp", office.OLE)
    put("papers/sub/talk.pptx", b"PK")
    assert {"sub/old.hwp", "sub/talk.pptx"} <= set(open_documents(str(folder)).records.column("source"))
    with pytest.raises(BadInput, match=r"(?s)old\.hwp has an unknown ending.*save it as hwpx"):
        open_data(str(folder))


def test_tables_and_names_open_as_ever(tmp_path, folder):
    table = pl.DataFrame({"text": ["a", "b"], "label": ["x", "y"]})
    for name in ("t.csv", "t.parquet", "t.jsonl"):
        getattr(table, {"t.csv": "write_csv", "t.parquet": "write_parquet", "t.jsonl": "write_ndjson"}[name])(
            tmp_path / name
        )
        assert open_documents(str(tmp_path / name)).records.list() == open_data(str(tmp_path / name)).records.list()
    assert open_documents("builtin:iris").records.list() == open_data("builtin:iris").records.list()
    table.write_csv(folder / "t.csv")
    assert open_documents(str(folder)).records.list() == table.to_dicts(), "a folder's one table comes first"
    with pytest.raises(BadInput, match="does not exist"):
        open_documents(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no document"):
        open_documents(str(tmp_path / "empty"))


def test_pictures_with_a_readme_stay_pictures(tmp_path, put):
    for label in ("cat", "dog"):
        for number in range(3):
            Image.new("L", (4, 4)).save(put(f"photos/{label}/{number}.png", b""))
    put("photos/README.md", "About these photos")
    put("photos/paper.pdf", pdf(lines("x")))
    assert open_data(str(tmp_path / "photos")).records.fields == {"image": "image", "label": "category"}
    for number in range(7):
        put(f"photos/note{number}.md", "A note with pictures beside it")
    assert len(open_documents(str(tmp_path / "photos")).records) == 9


@pytest.mark.parametrize(("name", "library"), [("a.pdf", "pypdf"), ("a.html", "trafilatura")])
def test_a_library_that_is_missing_is_named_with_its_extra(name, library, put, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    assert "onnuri[documents]" in refused(put(name, PAGE), f"needs {library}, which is not installed")
    assert read_document(put("a.docx", docx(w("needs none")))) == "needs none"
