"""The conformance kit: every fact of a family and every setting of an operation, checked and counted.

Ours and a stranger's go through the same checks; none is skipped by name.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ..family import Family
from ..model import count_parameters
from .answering import ANSWERING, MAKING
from .computing import COMPUTING
from .storing import STORING
from .subject import Check, Subject, carry_out

FACTS = MAKING | STORING | COMPUTING | ANSWERING


def check_family(family: Family) -> Iterator[Check]:
    """Every check of a family's facts on a tiny model."""
    with TemporaryDirectory(prefix="onnuri-") as folder:
        yield from carry_out(family.name, FACTS, Subject(family, Path(folder)))


def tiny_size(family: Family) -> int:
    """The parameters of the model on which a family's facts are checked."""
    return count_parameters(family.start(family.tiny(), family.toy(32, 0), torch.Generator().manual_seed(0))[0])


__all__ = ["FACTS", "Check", "check_family", "tiny_size"]
