"""The two examples, installed as strangers' packages into a clean environment: registered, listed, run, checked."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from command import Done, refused, some
from onnuri.cli import command

ROOT = Path(__file__).parents[1]
EXAMPLES = ("onnuri-slice", "onnuri-spiking")
pytestmark = pytest.mark.xdist_group("plugins")  # one environment for all
CLASH = {
    "pyproject.toml": """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "onnuri-clash"
version = "1"

[project.entry-points."onnuri.families"]
spiking_classifier = "onnuri_clash:FAMILY"

[tool.hatch.build.targets.wheel]
only-include = ["onnuri_clash.py"]
""",
    "onnuri_clash.py": '"""Another family of that name."""\n',
}


class Place:
    """A virtual environment whose own packages are Onnuri and the plug-ins; it sees the libraries of this one."""

    def __init__(self, folder: Path):
        self.folder = folder
        venv.create(folder, with_pip=False)
        site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
        (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")

    def python(self, *words: object) -> Done:
        """Its own interpreter, in its folder, where nothing of this checkout can be imported by accident."""
        python = self.folder / ("Scripts" if os.name == "nt" else "bin") / "python"
        return started(python, *words, folder=self.folder)

    def install(self, *packages: Path) -> None:
        target = f"--python={self.folder}"
        words = ("install", "-q", "--no-deps", "--no-build-isolation", "--no-index", *packages)
        done = started(sys.executable, "-m", "pip", "--disable-pip-version-check", target, *words, folder=self.folder)
        assert done.code == 0, done

    def uninstall(self, package: str) -> None:
        done = started(sys.executable, "-m", "pip", f"--python={self.folder}", "uninstall", "-qy", package)
        assert done.code == 0, done

    def onnuri(self, *words: object) -> Done:
        return self.python("-m", "onnuri", *words)


def started(*words: object, folder: Path | None = None) -> Done:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, cwd=folder, env=environment, timeout=600
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    place = Place(tmp_path_factory.mktemp("place"))
    place.install(ROOT, *(ROOT / "examples" / name for name in EXAMPLES))
    return place


def test_onnuri_and_the_examples_come_from_the_clean_environment(place):
    done = place.python("-c", "import onnuri, onnuri_slice, onnuri_spiking as s; print(onnuri, onnuri_slice, s)")
    assert done.out.count(f"{place.folder}{os.sep}") == 3 and done.err == "", done


def test_they_are_listed(place):
    assert "Pictures to one label of several, by a spiking neural net" in place.onnuri("families").out
    assert "Keep some of a model's blocks and drop the rest" in place.onnuri("operations").out
    assert "--blocks" in place.onnuri("slice", "--help").out


def test_they_work_together(place, tmp_path):
    config = "width=16,layers=4,steps=4"
    train = ("--family", "spiking_classifier", "--config", config, "--steps", 20, "--out", tmp_path / "net")
    assert (done := place.onnuri("train", "--data", "builtin:digits", *train)).code == 0, done
    sliced = ("--blocks", "0-1,3", "--data", "builtin:digits", "--out", tmp_path / "less")
    assert (done := place.onnuri("slice", tmp_path / "net", *sliced)).code == 0, done
    assert "tensors of kept blocks that changed: 0" in done.out
    done = place.onnuri("slice", tmp_path / "less", "--blocks", "7", *sliced[2:-1], tmp_path / "none")
    refused(done, "there is no block '7'")


@pytest.mark.parametrize("package", EXAMPLES)
def test_their_own_tests_pass_there(place, package):
    options = ("-q", "-p", "no:cacheprovider", "-W", "error", "-W", "ignore::DeprecationWarning")
    done = place.python("-m", "pytest", *options, "-W", "ignore::FutureWarning", ROOT / "examples" / package / "tests")
    assert done.code == 0, done.out


@pytest.mark.parametrize("package", some(EXAMPLES, ()))  # all settings, on every family
@pytest.mark.skipif("check" not in command.commands, reason="this checkout has no command `onnuri check` yet")
def test_they_pass_our_own_check(place, package):
    done = place.onnuri("check", package)
    assert done.code == 0, done


def test_a_third_package_of_a_name_that_exists_is_named_with_the_first(place, tmp_path):
    for name, text in CLASH.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    place.install(tmp_path)
    try:
        message = refused(place.onnuri("families"), "'spiking_classifier'", "pip uninstall")
        assert all(name in message for name in ("onnuri-spiking", "onnuri-clash"))
    finally:
        place.uninstall("onnuri-clash")
    assert place.onnuri("families").code == 0
