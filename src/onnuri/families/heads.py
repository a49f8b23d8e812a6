"""Classifiers of transformers: which folders hold one, their labels, a new head, the design at another size.

No architecture is named here: a head is what lies outside the library's own base model, and widths are found by
the names that configs give them.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import hub
from ..errors import BadInput, Refusal

WIDTHS = ("hidden_size", "intermediate_size", "hidden_sizes", "embed_dim", "embedding_size", "neck_hidden_sizes",
          "pooler_output_size", "pooler_hidden_size", "dim", "hidden_dim", "d_model", "encoder_ffn_dim",
          "decoder_ffn_dim", "d_ff", "n_embd", "n_inner")
"""The names under which transformers' configs keep the width of a layer, in channels."""
MULTIPLIERS = ("depth_multiplier", "width_coefficient", "width_multiplier")
DIVISORS = ("num_attention_heads", "num_heads", "n_heads", "n_head", "encoder_attention_heads",
            "decoder_attention_heads", "groups_width", "num_groups")
"""The names of what must divide a width."""


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Inside, what draws from the global random state depends on `generator`; that state is then put back."""
    seed = int(torch.randint(2**31, (1,), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def is_classifier(folder: Path, ending: str) -> bool:
    """Does config.json name an architecture with this ending?"""
    names = hub.peek(folder).get("architectures")
    return isinstance(names, list) and any(str(name).endswith(ending) for name in names)


def require_one_label(folder: Path) -> None:
    """BadInput for a head that answers with several labels at once or with a quantity."""
    config = hub.read_json(folder / "config.json")
    problem = config.get("problem_type")
    if problem not in (None, "single_label_classification") or config.get("num_labels") == 1 \
            or len(config.get("id2label") or (0, 1)) == 1:
        raise BadInput(f"{folder}: its head ({problem or 'regression'}) does not choose one label of several",
                       hint="adopt its body for labels of your own: --new-head")


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
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)},
            "problem_type": "single_label_classification"}


def field_names(config: Any, question: str, answer: str, folder: Path) -> tuple[str, str]:
    """The names of question and answer that a config remembers, else the customary ones given."""
    names = getattr(config, "onnuri_fields", None) or {"question": question, "answer": answer}
    found = [names.get(key) for key in ("question", "answer")] if isinstance(names, dict) else []
    if not found or not all(isinstance(name, str) for name in found):
        raise BadInput(f"{folder}: onnuri_fields in config.json must name question and answer")
    return found[0], found[1]


def with_new_head(auto: Any, folder: Path, labels: Sequence[str], question: str, answer: str,
                  generator: torch.Generator) -> nn.Module:
    """The body of `folder`, a new head for `labels`; BadInput when a tensor of the body is missing or unlike.

    Not hub.adopt_hub: there a head in a numbered list (ResNet: classifier.1) counts as body, and a tensor of
    the body that has another shape is replaced by random numbers.
    """
    with seeded(generator):
        net, report = hub.guarded(
            auto.from_pretrained, folder, use_safetensors=True, local_files_only=True,
            output_loading_info=True, ignore_mismatched_sizes=True, **label_config(labels))
    body = f"{net.base_model_prefix}."
    missing = [name for name in report["missing_keys"] if name.startswith(body) and "pooler" not in name]
    unlike = [name for name in report["mismatched_keys"] if str(name[0]).startswith(body)]
    hub.check_report({"missing_keys": missing, "mismatched_keys": unlike}, folder)
    net.config.onnuri_fields = {"question": question, "answer": answer}
    return net.eval()


def fresh(auto: Any, config: Any, scale: float, generator: torch.Generator) -> nn.Module:
    """A random net of the same design, every width times `scale`. Refusal where that cannot be built."""
    try:
        with seeded(generator):
            return auto.from_config(scaled(config, scale)).eval()
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        why = f"a {config.model_type} cannot be built at {scale} times its width: {error}"
        raise Refusal(why, "another scale; scale 1 always works") from error


def scaled(config: Any, scale: float) -> Any:
    """A copy of a config with its widths times `scale`, each a multiple of the count of heads, which stays."""
    entries = config.to_dict()
    if scale == 1:
        return type(config).from_dict(entries)
    unit = math.lcm(*(number for name in DIVISORS for number in flat(entries.get(name))), 2)
    changed = {name: times(entries[name], scale, unit) for name in WIDTHS if entries.get(name)}
    changed |= {name: entries[name] * scale for name in MULTIPLIERS if entries.get(name)}
    if not changed:
        raise Refusal(f"it is not known which entries of a {config.model_type} config are widths",
                      "scale 1 keeps the design as it is")
    return type(config).from_dict(entries | changed)


def flat(value: Any) -> list[int]:
    """The numbers of a config entry: none, one, or those of nested lists."""
    if isinstance(value, (list, tuple)):
        return [number for entry in value for number in flat(entry)]
    return [int(value)] if value else []


def times(width: Any, scale: float, unit: int) -> Any:
    """A width, or each of a list, times `scale`, rounded to a multiple of `unit` and at least that."""
    if isinstance(width, (list, tuple)):
        return [times(one, scale, unit) for one in width]
    return max(unit, round(width * scale / unit) * unit)
