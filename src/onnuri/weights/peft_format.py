"""The layout in which PEFT keeps low-rank adapters, written and read without that library.

PEFT names what it changed by module, keeps `lora_A` (rank, in) and `lora_B` (out, rank), and has a form of its own for
tables, convolutions and fused experts. What it has no form for is said, never skipped: an adapter that is read in part
answers nonsense.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import BadInput
from .attach import Updates
from .matrices import Weight, is_transposed_linear, weights

PREFIX = "base_model.model."
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")  # others change the base when the adapter is opened
UNKNOWN = (
    "use_dora",
    "lora_bias",
    "layer_replication",
    "alora_invocation_tokens",
    "trainable_token_indices",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "velora_config",
    "kasa_config",
    "monteclora_config",
)
"""Entries of a config that change what an adapter computes, in ways that are not read here."""

EXPERT_PARTS = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
"""How PEFT calls the parts of experts of before they were fused (peft 0.21, _MOE_TARGET_MODULE_MAPPING)."""

Layout = Literal["linear", "table", "conv", "experts"]
FORMS: dict[Callable, Layout] = {
    nn.Linear.forward: "linear",
    nn.Embedding.forward: "table",
    nn.Conv1d.forward: "conv",
    nn.Conv2d.forward: "conv",
    nn.Conv3d.forward: "conv",
}
"""By the forward pass, which a class that computes otherwise overrides."""


def layout(weight: Weight) -> Layout | None:
    """PEFT's form for an update of this weight; None where it has none. PEFT adds to what a layer puts out: where a class
    of its own does something else with the tensor (standardizes it, say), or a tie uses it elsewhere, that is not an
    update of the weight."""
    module = weight.homes[0][0]
    if weight.role == "expert":
        return "experts"
    kind = getattr(type(module), "original", type(module))
    form = "linear" if is_transposed_linear(kind) else FORMS.get(kind.forward)
    return None if len(weight.homes) > 1 or getattr(module, "groups", 1) > 1 else form


def unreadable(found: Sequence[Weight]) -> set[str]:
    """The names of those weights whose update PEFT cannot read. Beside fused experts it takes the names that single
    experts once had for those experts, whatever layer bears them."""
    fused = any(weight.role == "expert" for weight in found)
    parts = tuple(f".{part}.weight" for part in EXPERT_PARTS)
    return {w.name for w in found if layout(w) is None or (fused and w.name.endswith(parts))}


# ------------------------------------------------------------------------------------------------------------------ writing


def to_peft(net: nn.Module, found: Updates, replaced: Sequence[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config, tensors) of PEFT for these updates, each of which must have a form there, and for the parameters that are
    `replaced` whole."""
    forms = {name: layout(weight) for name, (weight, _) in found.items()}
    modules = {name: name.rpartition(".")[0] for name in found}
    experts: dict[str, list[str]] = defaultdict(list)
    for name, form in forms.items():
        if form == "experts":
            experts[modules[name]].append(name)
    tensors: dict[str, Tensor] = {}
    for name, (weight, update) in found.items():
        depth = experts[modules[name]][::-1].index(name) if forms[name] == "experts" else 0
        start = f"{PREFIX}{modules[name]}{'.base_layer' * depth}."
        parts = written(str(forms[name]), weight, update.down.detach(), update.up.detach())
        tensors |= {f"{start}{end}": part.contiguous() for end, part in parts.items()}
    inside = [modules[name] for name, form in forms.items() if form != "experts"]
    whole = [name for name, form in forms.items() if form == "experts"]
    state = net.state_dict() if replaced else {}
    tensors |= {f"{PREFIX}{name}": state[name].contiguous() for name in replaced}
    saved = sorted({name.rpartition(".")[0] for name in replaced})
    return config_of(net, found, modules, inside, whole) | {"modules_to_save": saved or None}, tensors


def written(form: str, weight: Weight, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    """{end of the name: tensor} of one update. down (units, rank, columns), up (units, rows, rank)."""
    if form == "table":
        return {"lora_embedding_A": up[0].T, "lora_embedding_B": down[0].T}
    if form == "experts":  # A is expert-major, B has the expert fastest
        return {"lora_A.weight": down.flatten(0, 1), "lora_B.weight": up.permute(1, 2, 0).flatten(1)}
    if form == "conv":
        kernel = weight.value.shape[1:]
        ones = (1,) * (len(kernel) - 1)
        return {"lora_A.weight": down[0].reshape(-1, *kernel), "lora_B.weight": up[0].reshape(*up[0].shape, *ones)}
    return {"lora_A.weight": down[0], "lora_B.weight": up[0]}


def config_of(
    net: nn.Module, found: Updates, modules: dict[str, str], inside: list[str], whole: list[str]
) -> dict[str, Any]:
    """adapter_config.json. `inside`: the modules that are adapted; `whole`: the parameters that are, by full name."""
    places = {name: name if name in whole else modules[name] for name in found}
    ranks = {places[name]: update.rank for name, (_, update) in found.items()}
    alphas = {places[name]: update.scale * update.rank for name, (_, update) in found.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    turned = [found[name][0].view.rows == (1,) for name in found if name not in whole]
    return {
        "peft_type": "LORA",
        "task_type": None,
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": module_targets(net, inside) or None,
        "target_parameters": whole or None,
        "rank_pattern": {re.escape(name): value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {re.escape(name): value for name, value in alphas.items() if value != alpha},
        "fan_in_fan_out": bool(turned) and all(turned),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def module_targets(net: nn.Module, wanted: list[str]) -> list[str] | str:
    """The last parts of the names where they mean exactly these modules (as people write them), else one regular
    expression that matches the whole names."""
    ends = sorted({name.rpartition(".")[2] for name in wanted})
    meant = {name for name, _ in net.named_modules() if name.rpartition(".")[2] in ends}
    return ends if meant == set(wanted) else "|".join(map(re.escape, wanted))


# ------------------------------------------------------------------------------------------------------------------ reading


def from_peft(
    net: nn.Module, config: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[dict[str, tuple[Tensor, Tensor, float]], dict[str, Tensor]]:
    """({weight: (down, up, scale)}, {parameter: value} of modules that were trained whole). BadInput lists whatever is
    unknown, of another shape or for another net."""
    require_known(config)
    by_place = {place: weight for weight in weights(net) for place in places_of(weight)}
    known = dict(net.named_parameters(remove_duplicate=False)) | dict(net.named_buffers(remove_duplicate=False))
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    whole: dict[str, Tensor] = {}
    faults: list[str] = []
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        place, _, end = name.partition(".lora_")
        if end:
            parts[place][end.removesuffix(".weight")] = tensor
        elif ".base_layer." in name:  # PEFT stores a table of the base beside its update
            faults += changed_in_base(known, name.replace(".base_layer", ""), tensor)
        else:
            whole[re.sub(r"\.(modules_to_save|original_module)(?=\.)", "", name)] = tensor
    homes = Counter(map(id, known.values()))
    faults += [f"{name} is no tensor of the base, or of another shape" for name in whole if unlike(known, name, whole)]
    faults += [
        f"{name} is tied in the base; PEFT keeps a copy of its own of it"
        for name in whole
        if name in known and homes[id(known[name])] > 1
    ]
    found: dict[str, tuple[Tensor, Tensor, float]] = {}
    for place, halves in parts.items():
        weight = by_place.get(place) or experts_at(net, place, config)
        try:
            if weight is None:
                raise ValueError("no such layer in the base")
            if layout(weight) is None:
                raise ValueError(
                    "what PEFT adds to this layer is no update of its weight (tied, grouped or a class of its own)"
                )
            found[weight.name] = (*halves_of(weight, halves), scale_of(place, weight, halves, config))
        except (ValueError, RuntimeError, KeyError) as error:
            faults.append(f"{place}: {error}")
    if faults:
        raise BadInput(*faults[:20], *([f"... and {len(faults) - 20} more"] if len(faults) > 20 else []))
    return found, whole


def require_known(config: dict[str, Any]) -> None:
    """BadInput for an adapter of another kind, or one that says more than is read here."""
    if config.get("peft_type") != "LORA":
        raise BadInput(f"its peft_type is {config.get('peft_type')!r}; LORA is read", hint="merge it with PEFT itself")
    faults = [f"its config sets {name}, which is not read" for name in UNKNOWN if config.get(name)]
    if config.get("bias", "none") != "none":
        faults.append(f"its config trains biases ({config['bias']}), which are not read")
    if config.get("init_lora_weights", True) not in PLAIN_STARTS:
        faults.append(f"its init_lora_weights {config['init_lora_weights']!r} changes the base when it is opened")
    if faults:
        raise BadInput(*faults, hint="merge it into its base with PEFT itself: merge_and_unload, then save_pretrained")


def places_of(weight: Weight) -> list[str]:
    """The modules by which PEFT could name this weight; none for parameters that it names themselves."""
    return [weight.name.rpartition(".")[0]] if weight.name.endswith(".weight") and weight.role != "expert" else []


def experts_at(net: nn.Module, place: str, config: dict[str, Any]) -> Weight | None:
    """The fused experts that PEFT means: of those targeted in a module the first is wrapped innermost."""
    module = re.sub(r"(\.base_layer)+$", "", place)
    depth = place[len(module) :].count(".base_layer")
    targets = config.get("target_parameters") or []
    inside = [
        weight
        for weight in weights(net, "expert")
        if weight.name.rpartition(".")[0] == module
        and any(weight.name == target or weight.name.endswith(f".{target}") for target in targets)
    ]
    return inside[-1 - depth] if depth < len(inside) else None


def halves_of(weight: Weight, halves: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(down, up) from PEFT's two tensors. ValueError when they do not fit the weight."""
    units, rows, columns = weight.matrix.shape
    if "embedding_A" in halves:
        down, up = halves["embedding_B"].T[None], halves["embedding_A"].T[None]
    elif weight.role == "expert":
        a, b = halves["A"], halves["B"]
        down, up = a.reshape(units, -1, columns), b.reshape(rows, -1, units).permute(2, 0, 1)
    else:
        down, up = halves["A"].flatten(1)[None], halves["B"].flatten(1)[None]
    if down.shape[2] != columns or up.shape[1] != rows or down.shape[1] != up.shape[2]:
        raise ValueError(
            f"its matrices are {tuple(up.shape[1:])} times {tuple(down.shape[1:])}, the base has ({rows}, {columns})"
        )
    return down.float().contiguous(), up.float().contiguous()


def scale_of(place: str, weight: Weight, halves: dict[str, Tensor], config: dict[str, Any]) -> float:
    """alpha / rank, or alpha / sqrt(rank); alpha may differ from layer to layer."""
    rank = next(iter(halves.values())).shape[0] if "A" in halves else halves["embedding_A"].shape[0]
    rank //= weight.matrix.shape[0]
    patterns = config.get("alpha_pattern") or {}
    name = weight.name if weight.role == "expert" else place
    alpha = next(
        (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), config["lora_alpha"]
    )
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def unlike(known: dict[str, Any], name: str, values: dict[str, Tensor]) -> bool:
    return name not in known or known[name].shape != values[name].shape


def changed_in_base(known: dict[str, Any], name: str, value: Tensor) -> list[str]:
    """[] or the fault: an adapter brings a tensor of its base, which must be that of the base here."""
    if not unlike(known, name, {name: value}) and torch.equal(known[name].detach().to(value.dtype), value):
        return []
    return [f"{name} of the adapter is not the base's: it was resized, or trained"]
