"""The waist, held by tests: the two axes never name each other, imports only go down, the command starts without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from onnuri import registry

SOURCE = Path(__file__).parents[1] / "src" / "onnuri"
FAMILIES = sorted(SOURCE.glob("families/*.py"))
OPERATIONS = sorted(SOURCE.glob("operations/*.py"))
ARCHITECTURES = (
    "llama",
    "qwen",
    "gpt2",
    "gpt_2",
    "bert",
    "mixtral",
    "vit",
    "resnet",
    "swin",
    "mobilenet",
    "gemma",
    "whisper",
    "unet",
)


def words(path: Path) -> set[str]:
    """Every name, attribute, string and imported module in the code; docstrings and comments are prose and may speak."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    extras = {
        id(arg)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for arg in node.args
        if isinstance(node.func, ast.Name) and node.func.id == "needs_extra"
    }
    for node in ast.walk(tree):
        if id(node) in extras:
            continue
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.name for alias in node.names} | set((getattr(node, "module", "") or "").split("."))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 60:
            found.add(node.value)
    return {word.lower() for word in found - {"Sequence"}}  # Python's own, and no family's name


@pytest.mark.parametrize(
    "path", [*OPERATIONS, *SOURCE.glob("*.py"), *SOURCE.glob("conformance/*.py")], ids=lambda p: p.name
)
def test_no_family_and_no_architecture_is_named_outside_the_families(path):
    known = set(registry.entries("families")) | set(ARCHITECTURES)
    assert not words(path) & known


@pytest.mark.parametrize("path", FAMILIES, ids=lambda p: p.name)
def test_no_operation_is_named_in_a_family(path):
    others = {"train": "a mode of torch's modules", "predict": "what LightGBM calls its forward pass"}
    assert not words(path) & (set(registry.entries("operations")) - others.keys())
    assert "operations" not in words(path)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_no_optional_members_no_pickles_no_giants(path):
    text = path.read_text(encoding="utf-8")
    assert not words(path) & {"hasattr", "pickle", "torch.load", "eval(", "exec"}
    assert "torch.load" not in text and "trust_remote_code=True" not in text
    assert len(text.splitlines()) <= 400


def test_help_and_import_load_nothing_heavy():
    for arguments in (["-m", "onnuri", "--help"], ["-c", "import onnuri"]):
        code = subprocess.run([sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True)
        assert code.returncode == 0
        heavy = {"torch", "transformers", "polars", "numpy", "pydantic", "rich", "sklearn"}
        loaded = {
            line.rsplit("|", 1)[1].strip() for line in code.stderr.splitlines() if line.startswith("import time:")
        }
        assert not loaded & heavy


def test_every_registered_name_loads_and_says_what_it_is():
    for axis in ("families", "operations", "runtimes"):
        for name in registry.entries(axis):
            assert registry.load(axis, name).name == name
            assert len(registry.summary(axis, name)) > 10


def test_an_unknown_name_is_proposed():
    with pytest.raises(registry.UnknownName, match="image_classifier"):
        registry.family("image_clasifier")
