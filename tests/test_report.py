"""The report page: what it says follows from the ledger, whatever is missing, and it needs nothing but itself."""

import re
import time
from html.parser import HTMLParser

import numpy as np
import pytest

from onnuri import report, report_samples

VOID = {"meta", "link", "img", "br", "rect", "circle", "path", "line"}


class Page(HTMLParser):
    """Tags that open and close properly, the visible text, and every address that the page could fetch."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.addresses: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def measurement(score, size, metric="accuracy", better="up", **more):
    return {
        "headline": [metric, better],
        "scores": {metric: score},
        "interval": [score - 0.01, score + 0.01],
        "interval_method": "Wilson, 95 %",
        "records": 360,
        "bytes": size,
        "parameters": size // 4,
        "latency_ms": {"p50": 0.5, "p95": 0.9, "batch": 1},
        "energy_per_1000": {"joules": 1.2, "method": "from a meter", "error": 0.5},
        "runtime": "torch",
        **more,
    }


def line(operation, after, before=None, kept=True, **more):
    return {
        "operation": operation,
        "settings": {"epochs": 6, "layers": [64, 32]},
        "seed": 0,
        "inputs": [{"role": "model", "path": "runs/q/base", "digest": "aa11"}],
        "output": {"files": {"model.safetensors": "bb22"}, "tensors": "cc33"},
        "versions": {"onnuri": "0.1.0"},
        "machine": {"cpu": "AMD EPYC", "cores": 2, "memory_gib": 23.5, "system": "Linux"},
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 12.3,
        "peak_memory_bytes": 412e6,
        "energy": {"joules": 80.1, "method": "estimated", "error": 0.5},
        "before": before,
        "after": after,
        "promises": [{"text": "equal within", "value": 1e-7, "bound": 1e-4, "sense": "at most", "kept": kept}],
        "findings": [],
        "warnings": ["mind the gap"],
        "curves": {},
        "previous": "dd44",
        "digest": "ee55",
        **more,
    }


CURVES = {
    "loss": [[i, 2 / (i + 1)] for i in range(50)],
    "validation": [[10, 0.5], [20, 0.4]],
    "learning_rate": [[0, 1e-3], [49, 0.0]],
    "gradient_norm": [[0, 1.0], [49, float("nan")]],
}
MACHINE = {"cpu": "AMD EPYC", "cores": 2, "memory_gib": 23.5, "system": "Linux"}
STEPS = [
    {
        "name": "base",
        "operation": "train",
        "path": "runs/q/base",
        "line": line(
            "train",
            measurement(0.983, 1_204_000),
            curves=CURVES,
            findings=[{"name": "overfitting", "evidence": "validation rose", "cure": "stop earlier"}],
        ),
    },
    {
        "name": "packed",
        "operation": "quantize",
        "path": "runs/q/my packed",
        "line": line("quantize", measurement(0.978, 38_400), measurement(0.983, 1_204_000)),
    },
]
SAMPLES = [
    {
        "question": {"image": np.zeros((8, 8), np.uint8)},
        "answer": "3",
        "said": {"base": {"answer": "3", "score": 0.97}, "packed": {"answer": "8", "score": 0.5}},
    }
]


def recipe(steps=STEPS, samples=SAMPLES, title="quickstart", seconds=24.6, machine=MACHINE):
    return report.recipe_page(title, steps, samples, seconds, machine)


def test_one_page_that_fetches_nothing():
    html = recipe()
    assert all(address.startswith("data:") for address in Page(html).addresses)
    assert "url(" not in html and "@import" not in html and "default-src 'none'" in html


def test_everything_is_on_the_page():
    text = Page(recipe()).text.replace("\u00a0", " ")
    for words in (
        "From 1.2 MB to 38 kB: 31× smaller, accuracy 98.3 % → 97.8 %",
        "1.2 MB에서 38 kB로: 31분의 1, 정확도 98.3 % → 97.8 %",
        "97.3–99.3 % → 96.8–98.8 % (Wilson, 95 %, 360 records)",
        "2 / 2",
        "160 J ± 50 %",
        "24.6 s",
        "0.500 ms",
        "0.900 ms",
        "1.20 J ± 50 %",
        "from a meter",
        "overfitting",
        "validation rose",
        "stop earlier",
        "epochs",
        "[64, 32]",
        "aa11",
        "bb22",
        "cc33",
        "dd44",
        "ee55",
        "mind the gap",
        "1e-07",
        "AMD EPYC",
        "onnuri verify runs/q/base",
        "onnuri verify 'runs/q/my packed'",
        "onnuri run quickstart",
    ):
        assert words in text, words


def test_both_languages_and_english_without_a_script():
    html = recipe()
    assert '<html lang="en">' in html and ":root[lang=en] .ko" in html
    assert html.count('class="en"') == html.count('class="ko"') > 20
    assert re.search(r"<button[^>]* hidden>", html)  # the script shows it


def test_an_error_is_marked_and_a_right_answer_is_not():
    html = recipe()
    assert html.count('aria-label="error"') == 1
    assert 'class="sample missed"' in html and "data:image/png" in html


@pytest.mark.parametrize(
    "truth,answer,kind,missed",
    [
        ("a", "b", "category", True),
        ("a", "a", "category", False),
        (np.int64(3), 3, "number", False),
        (3, "4", "category", True),
        (1.5, 1.6, "number", False),
        (None, "x", "category", False),
        ("short", "other words", "text", False),
        ("a long name " * 9, "b", "category", True),
        ("a", None, "category", True),
    ],
    ids=str,
)
def test_what_counts_as_an_error(truth, answer, kind, missed):
    assert report_samples.wrong(truth, answer, kind) is missed


def test_scores_on_other_data_are_not_set_beside_each_other():
    whole, some = ({**measurement(score, 38_400), "records": n} for score, n in ((0.983, 500), (0.978, 40)))
    both = [("a", whole), ("b", some)], [("a", whole), ("b", {**some, "records": 500})]
    assert ["→" in report.headline(pair, [], 1.0)[0] for pair in both] == [False, True]
    assert ["→" in (report.lede(pair) or [""])[0] for pair in both] == [False, True]


def test_what_a_model_makes_of_nothing_has_no_truth_to_miss():
    said = {"lm": {"answer": "a film", "score": None}}
    html = recipe(samples=[{"question": {}, "answer": "so good", "kind": "text", "said": said}])
    assert 'aria-label="error"' not in html and "in the data" in html and ">truth<" not in html


def test_what_was_measured_part_by_part_is_drawn_the_largest_first_and_not_all_of_a_deep_net():
    bars = {"divergence": {f"layers.{n}": n / 40 for n in range(40)}, "bits": {"<b>head": 4.5}}
    html = recipe([{"name": "packed", "line": line("quantize", measurement(0.9, 1000)) | {"bars": bars}}])
    text = Page(html).text
    assert "Part by part" in text and "divergence (the 24 largest of 40)" in text and "<b>head" in text
    assert text.index("layers.39") < text.index("layers.16") and "layers.15" not in text
    assert "Part by part" not in Page(recipe()).text


def test_a_broken_promise_is_said_first():
    html = recipe([{"name": "packed", "line": line("quantize", measurement(0.9, 1000), kept=False)}])
    text = Page(html).text
    assert text.index("Promises that were broken") < text.index("Every step")
    assert "0 / 1" in text and "✗" in text


@pytest.mark.parametrize(
    "first,last,words",
    [
        ((0.9, 1000), (0.9, 1000), "1.0 kB, accuracy 90.0 % → 90.0 %"),
        ((0.9, 1000), (0.95, 4000), "From 1.0 kB to 4.0 kB: 4× larger, accuracy 90.0 % → 95.0 %"),
        ((0.9, 999_999), (0.95, 812), "From 1.0 MB to 812 B: 1,232× smaller, accuracy 90.0 % → 95.0 %"),
        ((0.9, None), (0.95, 812), "812 B, accuracy 90.0 % → 95.0 %"),
    ],
)
def test_the_first_sentence(first, last, words):
    measured = [("a", measurement(first[0], 4) | {"bytes": first[1]}), ("b", measurement(*last))]
    assert report.headline(measured, [{"found": {}}] * 2, 1.0)[0].replace("\u00a0", " ") == words


def test_the_first_sentence_with_less():
    said = lambda *measured: report.headline(list(measured), [{"found": {}}], 90)[0].replace("\u00a0", " ")  # noqa: E731
    assert said() == "1 step, 1 min 30 s"
    assert said(("a", measurement(18.31, 131e6, "perplexity", "down"))) == "131 MB, perplexity 18.3"
    other = said(("a", measurement(0.9, 1000)), ("b", measurement(18.3, 1000, "perplexity", "down")))
    assert other == "1.0 kB, perplexity 18.3"  # unlike metrics are not compared
    assert said(("a", {"bytes": 1000})) == "1.0 kB"


def test_smaller_is_better_where_the_metric_says_so():
    steps = [
        {"name": name, "line": line("train", measurement(score, size, "perplexity", "down"))}
        for name, score, size in (("a", 18.3, 131_000_000), ("b", 19.0, 20_000_000))
    ]
    assert "Down and to the left is better." in Page(recipe(steps)).text


@pytest.mark.parametrize(
    "steps,samples",
    [
        ([], []),
        ([{}], [{}]),
        ([{"name": "a", "line": None}], [{"question": None, "said": None}]),
        ([{"name": "a", "line": {}}], [{"question": {"x": None}, "answer": None, "said": {"a": None}}]),
        ([{"name": "a", "line": {"after": {}, "before": {}}}], []),
        ([{"name": "a", "line": dict.fromkeys(line("train", None))}], []),
        ([{"name": "a", "line": line("train", dict.fromkeys(measurement(1.0, 1)))}], []),
        ([{"name": "a", "line": line("train", measurement(float("nan"), 10))}], []),
        ([{"name": "a", "line": line("train", measurement(0.5, 0) | {"latency_ms": {}, "energy_per_1000": {}})}], []),
        ([{"name": "a", "line": {"promises": [{"text": "x"}], "curves": {"loss": [[0, None]]}}}], []),
    ],
)
def test_whatever_is_missing(steps, samples):
    Page(report.recipe_page("t", steps, samples, None, {}))
    for step in steps:
        Page(report.operation_page(step.get("line") or {}))


def test_one_operation():
    text = Page(report.operation_page(STEPS[1]["line"])).text.replace("\u00a0", " ")
    for words in ("From 1.2 MB to 38 kB", "before", "report of an operation", "onnuri verify ."):
        assert words in text
    assert "onnuri run" not in text


def test_nothing_from_outside_becomes_markup():
    evil = "<img src=x onerror=alert(1)>\"'&"
    bad = line(
        evil,
        measurement(0.5, 1000, runtime=evil),
        warnings=[evil],
        settings={evil: evil},
        versions={evil: evil},
        findings=[{"name": evil, "evidence": evil, "cure": evil}],
        curves={evil: [[0, 1.0]]},
        promises=[{"text": evil, "value": evil, "bound": evil, "sense": evil, "kept": False}],
    )
    html = recipe(
        [{"name": evil, "operation": evil, "path": evil, "line": bad}],
        [{"question": {evil: evil}, "answer": evil, "said": {evil: {"answer": evil, "score": evil}}}],
        evil,
        1.0,
        {"cpu": evil, "system": evil},
    )
    assert "<img src=x" not in html
    assert all(address.startswith("data:") for address in Page(html).addresses)


def test_equal_models_share_one_point():
    steps = [{"name": name, "line": line("train", measurement(0.9, 1000))} for name in ("a", "b")]
    found = report.size_against_score([(step["name"], step["line"]["after"]) for step in steps])
    assert found and found["wide"].count("<circle") == 1 and "a, b" in found["wide"]


def test_a_page_takes_well_under_a_second():
    report.template()
    start = time.perf_counter()
    recipe(STEPS * 6, SAMPLES * 24)
    assert time.perf_counter() - start < 1.0
