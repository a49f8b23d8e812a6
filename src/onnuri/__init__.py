"""Onnuri: the whole life of a model, on your own machine, with evidence.

The names below are loaded when first used, so that `import onnuri` is instant and needs no torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

PUBLIC = {
    "open_model": "model",
    "write_model": "model",
    "Model": "model",
    "open_data": "sources",
    "Records": "data",
    "Family": "family",
    "Operation": "operation",
    "execute": "run",
    "run_recipe": "recipe",
}
__all__ = ["__version__", *PUBLIC]


def __getattr__(name: str) -> Any:
    if name in PUBLIC:
        return getattr(import_module(f"onnuri.{PUBLIC[name]}"), name)
    raise AttributeError(f"module 'onnuri' has no attribute '{name}'")
