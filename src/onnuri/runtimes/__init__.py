"""Runtimes: what executes a module. One file each; each knows its own artefact in a model folder."""

from pathlib import Path

from .. import registry
from ..family import Session


def open_session(folder: Path) -> Session | None:
    """The session of the first runtime whose artefact lies in the folder; None for a plain torch model."""
    for name in registry.entries("runtimes"):
        runtime = registry.load("runtimes", name)
        if (folder / runtime.artefact).exists():
            return runtime.open(folder)
    return None
