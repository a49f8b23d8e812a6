"""Targets: every figure is positive and has a source; a file with faults is told all of them."""

import pytest
import yaml

from command import onnuri
from onnuri.costs import targets
from onnuri.errors import BadInput

FIGURES = ("memory_bytes", "usable", "bandwidth", "call_seconds", "watts", "link_bandwidth")


@pytest.fixture
def block() -> dict:
    return yaml.safe_load(targets.FILE.read_text(encoding="utf-8"))["h200"]


def written(tmp_path, block) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(block), encoding="utf-8")
    return str(path)


def test_the_known_ones_are_there():
    assert {"phone", "raspberry-pi-5", "laptop", "h200"} <= targets.known().keys()


@pytest.mark.parametrize("name", sorted(targets.known()))
def test_every_figure_is_positive_and_has_a_source(name):
    target = targets.known()[name]
    given = [figure for figure in FIGURES if getattr(target, figure) is not None]
    assert all(getattr(target, figure) > 0 for figure in given) and all(peak > 0 for peak in target.peaks.values())
    assert set(target.sources) == {"peaks", *given}
    assert all("estimated" in text or "(" in text for text in target.sources.values())
    assert target.peak("fp32") <= target.peak("bf16") <= target.peak("int8") or "int8" not in target.peaks


def test_a_format_that_a_target_lacks():
    target = targets.known()["raspberry-pi-5"]
    assert target.peak("bf16") == target.peaks["fp16"] and target.peak("int4") == target.peaks["fp32"]


def test_a_file_of_ones_own(tmp_path, block):
    assert targets.find(written(tmp_path, block)) == targets.known()["h200"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"watts": -1}, "'watts' must be greater than 0"),
        ({"usable": 1.5}, "'usable' must be less than or equal to 1"),
        ({"bandwidth": "fast"}, "'bandwidth' must be a valid number"),
        ({"bandwith": 1.0}, "did you mean bandwidth"),
        ({"peaks": {"fp16": 1e9}}, "fp32 is missing"),
        ({"peaks": {"fp32": 1e9, "float8": 1e9}}, "'float8' is no number format"),
        ({"sources": {"peaks": "x"}}, "sources: none for 'bandwidth'"),
        ({"link_bandwidth": None}, "sources: there is no 'link_bandwidth'"),
        ({"watts": float("nan")}, "'watts'"),
        ({"peaks": None}, "'peaks'"),
    ],
)
def test_a_file_with_a_fault_is_told_of_it(tmp_path, block, change, said):
    with pytest.raises(BadInput, match=said):
        targets.find(written(tmp_path, {**block, **change}))


def test_all_faults_at_once(tmp_path, block):
    with pytest.raises(BadInput) as caught:
        targets.find(written(tmp_path, {**block, "watts": 0, "usable": 2}))
    assert len(caught.value.faults) == 2


@pytest.mark.parametrize(("text", "said"), [("[1]", "must be a mapping"), ("a: [", "is not a target"), ("", "mapping")])
def test_what_is_no_target_at_all(tmp_path, text, said):
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=said):
        targets.find(str(tmp_path / "x.yaml"))


def test_the_command_says_what_is_wrong_and_ends_with_two(tmp_path):
    done = onnuri("estimate", tmp_path, "--data", "toy:tabular", "--target", "raspbery-pi-5")
    assert done.code == 2 and "did you mean raspberry-pi-5" in done.err and "Traceback" not in done.err
    assert onnuri("estimate", tmp_path, "--data", "toy:tabular", "--target", "no.yaml").code == 2
