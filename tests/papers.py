"""Documents of every format that the tests read, built here."""

import io
import zipfile

import pypdf

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
HP = 'xmlns:hs="http://www.hancom.co.kr/hwpml/2011/section" xmlns:hp="http://www.hancom.co.kr/hwpml/2011/paragraph"'
KOREAN = "강이 얼었다. 사람들은 그 위를 걸어 건너편 마을까지 갔다."


def zipped(parts: dict[str, str | bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", method) as archive:
        for name, content in parts.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return held.getvalue()


def docx(body: str, **more: str) -> bytes:
    """A docx of these elements."""
    document = f'<?xml version="1.0" encoding="UTF-8"?><w:document {W}><w:body>{body}</w:body></w:document>'
    return zipped({"[Content_Types].xml": "<Types/>", "word/document.xml": document, **more})


def hwpx(*sections: str, **more: str) -> bytes:
    """A hwpx with these elements in its sections."""
    parts = {
        f"Contents/section{number}.xml": f'<?xml version="1.0" encoding="UTF-8"?><hs:sec {HP}>{section}</hs:sec>'
        for number, section in reversed(list(enumerate(sections)))
    }
    return zipped({"mimetype": "application/hwp+zip", **parts, **more})


def w(text: str) -> str:
    return f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>"


def hp(text: str) -> str:
    return f"<hp:p><hp:run><hp:t>{text}</hp:t></hp:run></hp:p>"


def cell(inner: str, prefix: str = "w") -> str:
    return f"<{prefix}:tc>{inner}</{prefix}:tc>"


def pdf(*contents: bytes, unicode: str = "") -> bytes:
    """A PDF with a page for each content stream; `unicode`: the characters that the codes 1, 2, ... of font F2 mean."""
    codes = "".join(
        f"<{code:04x}> <{character.encode('utf-16-be').hex()}>\n" for code, character in enumerate(unicode, 1)
    )
    to_unicode = (
        "begincmap 1 begincodespacerange <0000> <ffff> endcodespacerange\n"
        f"{len(unicode)} beginbfchar\n{codes}endbfchar endcmap"
    ).encode()
    first = 7
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>"
        % (b" ".join(b"%d 0 R" % (first + 2 * place) for place in range(len(contents))), len(contents)),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Type /Font /Subtype /Type0 /BaseFont /X /Encoding /Identity-H /DescendantFonts [6 0 R] /ToUnicode 5 0 R >>",
        b"<< /Length %d >> stream\n%s\nendstream" % (len(to_unicode), to_unicode),
        b"<< /Type /Font /Subtype /CIDFontType2 /BaseFont /X /CIDSystemInfo << /Registry (Adobe) /Ordering (Identity) "
        b"/Supplement 0 >> /DW 1000 >>",
    ]
    for place, content in enumerate(contents):
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents %d 0 R "
            b"/Resources << /Font << /F1 3 0 R /F2 4 0 R >> >> >>" % (first + 2 * place + 1)
        )
        objects.append(b"<< /Length %d >> stream\n%s\nendstream" % (len(content), content))
    out, places = b"%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, one)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    tail = b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, len(out))
    return out + b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1) + table + tail


def lines(*words: str) -> bytes:
    """A content stream that sets lines below each other."""
    return b"BT /F1 12 Tf 50 700 Td 14 TL " + b" ".join(b"(%s) Tj T*" % word.encode() for word in words) + b" ET"


def encrypted(user: str, algorithm: str = "RC4-128") -> bytes:
    writer = pypdf.PdfWriter(io.BytesIO(pdf(lines("kept by a word"))))
    writer.encrypt(user, "owner", algorithm=algorithm)
    held = io.BytesIO()
    writer.write(held)
    return held.getvalue()


ARTICLE = f"""<article><h1>얼음</h1><p>{KOREAN}</p><p>Fish &amp; chips cost &lt; 5 &euro;; &#44032;&nbsp;na.</p>
<ul><li>one thing</li><li>two <b>things</b></li></ul><pre>def f(x):
    return x</pre><table><tr><th>name</th><th>size</th></tr><tr><td>a</td><td>1</td></tr></table>
<p>{KOREAN * 6}</p></article>"""
PAGE = f"""<!DOCTYPE html><html><head><meta charset="CHARSET"><title>T</title><style>p {{}}</style></head><body>
<nav><ul><li><a href="/">Home</a></li><li><a href="/x">Imprint</a></li></ul></nav>
<div class="cookie-banner"><p>We use cookies. Accept all</p></div><main>{ARTICLE}</main>
<script>var hidden = 1</script><footer><p>All rights reserved</p></footer></body></html>"""
