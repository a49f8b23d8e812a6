"""Charts: well-formed, named, never wrong about a value that is missing, labels that never overlap."""

import base64
import io
import re
import subprocess
import sys
from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from onnuri import draw, svg

SVG = "{http://www.w3.org/2000/svg}"
NAN, INF = float("nan"), float("inf")


def parsed(svg: str) -> ElementTree.Element:
    """The drawing as XML; it must have a role and a name, and no number that is not one."""
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert root[0].tag == f"{SVG}title" and root[0].text
    marks = " ".join(value for part in root.iter() for value in part.attrib.values())
    assert not re.search(r"\b(nan|inf|None)\b", marks)
    return root


def texts(svg: str) -> list[str]:
    return ["".join(part.itertext()) for part in parsed(svg).iter(f"{SVG}text")]


def count(svg: str, tag: str) -> int:
    return len(list(parsed(svg).iter(SVG + tag)))


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "points",
    [
        [(0, 1.0)],
        [(0, 0.0), (1, 0.0)],
        [(0, 2.0), (1, 2.0)],
        [(5, 1.0), (5, 2.0)],
        [(0, 1e-30), (1, 1e30)],
        [(0, -3.0), (1, 3.0)],
        [(0, NAN), (1, 2.0), (2, INF)],
        [(0.5, 1.0), (0.6, None)],
        [(10**9, 1), (10**9 + 1, 2)],
    ],
    ids=str,
)
def test_odd_curves_are_drawn(points, log):
    parsed(draw.curves({"loss": points}, "step", "loss", log_y=log))


@pytest.mark.parametrize("series", [{}, {"a": []}, {"a": [(0, NAN)]}, {"a": [(None, 1.0)]}, {"a": [(0, "1")]}])
def test_nothing_to_draw_is_a_note(series):
    assert "nothing to draw" in texts(draw.curves(series, "step", "loss"))


def test_a_curve_that_broke_is_cut_and_marked_where_it_broke():
    points = [(0, 1.0), (1, 0.5), (2, NAN), (3, INF), (4, 0.4), (5, 0.3)]
    drawn = draw.curves({"loss": points}, "step", "loss")
    titles = [part.text for part in parsed(drawn).iter(f"{SVG}title")]
    assert titles.count("2: not a number") == 1 and len(titles) == 2
    assert count(drawn, "circle") == 2  # both pieces end in a dot


def test_thinning_keeps_spikes_and_ends():
    points = [(step, 1.0) for step in range(20_000)]
    points[777], points[12_345] = (777, 99.0), (12_345, None)
    kept = draw.thin(points)
    assert len(kept) < 1000
    assert {points[0], points[777], points[12_345], points[-1]} <= set(kept)


def test_a_legend_only_for_two_and_both_languages_for_a_pair():
    one = draw.curves({"loss": [(0, 1), (1, 2)]}, ("step", "스텝"), "nats")
    assert "loss" not in texts(one) and {"step", "스텝"} <= set(texts(one))
    two = draw.curves({("a", "가"): [(0, 1)], "b": [(0, 2)]}, "step", "nats")
    assert {"a", "가", "b"} <= set(texts(two))
    assert '<text class="ko" lang="ko"' in two.replace("  ", " ") or 'class="ko" lang="ko"' in two


def spot(label, x, y, **more):
    return {"label": label, "x": x, "y": y, **more}


def test_the_front_holds_what_nothing_beats_in_both():
    points = [spot("big", 100, 0.98), spot("small", 10, 0.97), spot("worse", 50, 0.9), spot("equal", 60, 0.97)]
    assert [point["label"] for point in draw.front(points)] == ["small", "big"]
    assert [point["label"] for point in draw.front(points, "down")] == ["small", "worse"]


@pytest.mark.parametrize(
    "points",
    [
        [spot("one", 1000, 0.5)],
        [spot("a", 1000, 0.5), spot("b", 1000, 0.5)],
        [spot("a", 1000, 0.5, low=None, high=NAN), spot("b", 2e9, -1.0, low=-2.0, high=0.0)],
    ],
    ids=str,
)
def test_odd_points_are_drawn(points):
    drawn = draw.pareto(points, "size", "score")
    assert {point["label"] for point in points} <= set(texts(drawn))


@pytest.mark.parametrize("points", [[], [spot("a", 0, 1)], [spot("a", None, 1)], [spot("a", 10, NAN)]], ids=str)
def test_no_points_are_a_note(points):
    assert "nothing to draw" in texts(draw.pareto(points, "size", "score"))


def label_boxes(drawn: str) -> list[draw.Box]:
    """Where the labels of the points stand, by the same measure of text as the drawing uses."""
    found = []
    for part in parsed(drawn).iter(f"{SVG}text"):
        if part.get("font-weight") == "600":
            x, y = float(part.get("x") or 0), float(part.get("y") or 0)
            found.append((x, y - 11, x + svg.text_width("".join(part.itertext())), y + 3))
    return found


@pytest.mark.parametrize("width,height", [(860, 400), (400, 340)])
@pytest.mark.parametrize("seed", range(6))
def test_labels_never_overlap(seed, width, height):
    generator = np.random.default_rng(seed)
    points = [
        spot(
            f"model {i}",
            10 ** generator.uniform(4, 4.5),
            y := generator.uniform(0.9, 0.93),
            x_text="12 kB",
            low=y - 0.01,
            high=y + 0.01,
        )
        for i in range(12)
    ]
    boxes = label_boxes(draw.pareto(points, "size", "score", width=width, height=height))
    assert len(boxes) >= (12 if width > 800 else 8)
    assert not any(draw.touches([one], [other]) for one, other in combinations(boxes, 2))


def test_a_label_stands_by_its_own_dot():
    """Two dots 12 pixels apart: neither label may stand, without a line, nearer to the other's dot."""
    points = [spot("packed", 38_400, 0.978), spot("exported", 41_200, 0.978), spot("base", 1.2e6, 0.983)]
    drawn = draw.pareto(points, "size", "score", width=860)
    assert {"packed", "exported", "base"} <= set(texts(drawn))
    lines = [part for part in parsed(drawn).iter(f"{SVG}path") if "stroke-width:.7" in (part.get("style") or "")]
    assert len(lines) <= 2


def test_bars():
    drawn = draw.bars(
        [
            {"label": "a", "value": 2.0, "low": 1.0, "high": 3.0},
            {"label": "b", "value": None},
            {"label": "c", "value": -1.0},
            {"label": "d", "value": NAN},
        ],
        "latency",
        "{:g} ms".format,
    )
    assert texts(drawn) == ["latency", "a2 ms", "b–", "c-1 ms", "d–"]
    widths = [float(part.get("width") or 0) for part in parsed(drawn).iter(f"{SVG}rect")]
    assert widths[0] == pytest.approx(436 * 2 / 3, abs=0.1) and widths[1] == 0
    parsed(draw.bars([{"label": "zero", "value": 0.0}], "energy"))
    assert "nothing to draw" in texts(draw.bars([], "energy"))
    assert "nothing to draw" in texts(draw.bars([{"label": "a", "value": INF}], "energy"))


def test_words_from_outside_cannot_leave_the_drawing():
    evil = "<script>\x00\"'&"
    for drawn in (
        draw.curves({evil: [(0, 1)], "b": [(0, 1)]}, evil, evil),
        draw.bars([{"label": evil, "value": 1}], evil),
        draw.pareto([spot(evil, 10, 1, x_text=evil)], evil, evil),
    ):
        assert "<script" not in drawn and parsed(drawn) is not None
    assert "<script" not in draw.picture(np.zeros((2, 2), np.uint8), alt=evil)


def decoded(image: str) -> np.ndarray:
    held = re.search(r"base64,([^\"]+)", image)
    assert held
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(held[1]))))


@pytest.mark.parametrize("shape", [(8, 8), (8, 6, 3), (5, 9, 4)])
def test_a_small_picture_keeps_every_pixel(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    image = draw.picture(pixels)
    assert np.array_equal(decoded(image), pixels)
    assert "pixelated" in image


def test_other_pictures():
    assert decoded(draw.picture(np.zeros((4, 4, 1), np.uint8))).shape == (4, 4)
    large = draw.picture(np.zeros((600, 900, 3), np.uint8), size=100)
    assert decoded(large).shape == (133, 200, 3) and 'width="100" height="67"' in large
    assert decoded(draw.picture(np.array([[-5.0, 300.0]]))).tolist() == [[0, 255]]
    for shape in ((0, 3), (4,), (2, 2, 2), (1, 2, 3, 4)):
        assert "no picture" in draw.picture(np.zeros(shape, np.uint8))


def test_import_is_light():
    code = (
        "import sys, onnuri.draw, onnuri.report; "
        "print([name for name in ('torch', 'polars', 'pandas', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
