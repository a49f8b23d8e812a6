"""Classifiers of transformers: which folders hold one, their labels, a new head, the design at another size.

No architecture is named here: a head is what lies outside the library's own base model, and widths are found
by the names that configs give them.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import hub
from ..errors import BadInput
from . import widths

MODULES = "modules.json"


def has_head(folder: Path, ending: str) -> bool:
    """Does config.json name an architecture with this ending? Of a folder that lists modules (those of sentence-transformers) it is
    the one that the body was taken from."""
    if (folder / MODULES).exists():
        return False
    names = hub.peek(folder).get("architectures")
    return isinstance(names, list) and any(str(name).endswith(ending) for name in names)


def hears(folder: Path) -> bool:
    """Does config.json name an architecture that transformers counts among its classifiers of sound? Their names may end
    as those of classifiers of texts do."""
    if not has_head(folder, "Classification"):
        return False
    from transformers.models.auto.modeling_auto import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES as known

    return any(has_head(folder, name) for name in known.values())


def require_one_label(folder: Path) -> None:
    """BadInput for a head that answers with several labels at once or with a quantity."""
    config = hub.read_json(folder / "config.json")
    problem = config.get("problem_type")
    if (
        problem not in (None, "single_label_classification")
        or config.get("num_labels") == 1
        or len(config.get("id2label") or (0, 1)) == 1
    ):
        raise BadInput(
            f"{folder}: its head ({problem or 'regression'}) does not choose one label of several",
            hint="adopt its body for labels of your own: --new-head",
        )


def label_names(config: Any, folder: Path) -> tuple[str, ...]:
    """The labels of a config in the order of the logits. A name that occurs twice (ImageNet has two cranes)
    gets its number behind it."""
    names = config.id2label
    if sorted(names) != list(range(config.num_labels)):
        raise BadInput(f"{folder}: id2label in config.json must number its labels from 0 without gaps")
    often = Counter(names.values())
    return tuple(str(names[i]) if often[names[i]] == 1 else f"{names[i]} ({i})" for i in sorted(names))


def label_config(labels: Sequence[str]) -> dict[str, Any]:
    """The entries of a config that say which labels there are."""
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": "single_label_classification",
    }


def field_names(config: Any, question: str, answer: str, folder: Path) -> tuple[str, str]:
    """The names of question and answer that a config remembers, else the customary ones given."""
    names = getattr(config, "onnuri_fields", None) or {"question": question, "answer": answer}
    found = (names.get("question"), names.get("answer")) if isinstance(names, dict) else (None, None)
    if not isinstance(found[0], str) or not isinstance(found[1], str):
        raise BadInput(f"{folder}: onnuri_fields in config.json must name question and answer")
    return found[0], found[1]


def with_new_head(
    auto: Any, folder: Path, labels: Sequence[str], question: str, answer: str, generator: torch.Generator
) -> nn.Module:
    """The body of `folder`, a new head for `labels`; BadInput when a tensor of the body is missing or unlike."""
    net: Any = hub.adopt_hub(auto, folder, generator, **label_config(labels))
    net.config.onnuri_fields = {"question": question, "answer": answer}
    return net


def like(auto: Any, net: Any, scale: float, generator: torch.Generator) -> nn.Module:
    """A random net of the same design, every width times `scale`. Refusal where that cannot be built."""
    other = widths.fresh(auto, net.config, scale, generator, net.dtype)
    widths.require_scaled(net, other, scale)
    return other
