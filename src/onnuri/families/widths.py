"""The design of a transformers net at another width, whatever its architecture.

No architecture is named: widths, heads and groups are found by the names that configs give them. Layers, vocabulary and
labels stay. Where a config counts its heads by one number, heads keep their width as long as their number can give way;
else each width stays a multiple of what must divide it.
"""

import math
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from ..errors import Refusal
from ..family import seeded
from ..hub import ready

WIDTHS = (
    "intermediate_size",
    "ffn_dim",
    "ffn_hidden_size",
    "n_inner",
    "d_ff",
    "lora_rank",
    "embed_proj_dim",
    "hidden_size",
    "hidden_sizes",
    "embed_dim",
    "embedding_size",
    "pooler_output_size",
    "pooler_hidden_size",
    "hidden_dim",
    "d_model",
    "n_embd",
    "conv_dim",
    "classifier_proj_size",
)
"""How the names end under which configs keep the width of a layer, in channels; `dim` alone is one as well."""

DIVISORS = ("num_attention_heads", "num_heads", "n_heads", "n_head", "attention_heads", "groups_width", "num_groups")
"""How the names end of what must divide a width."""

PARTS = ("embedding_groups",)
"""How the names end of counts of groups into which the hidden size is cut, however few are left."""

MULTIPLIERS = ("depth_multiplier", "width_coefficient", "width_multiplier")
SMALLEST = 1e-3  # of such a factor: 0 would leave a net without channels


def fresh(auto: Any, config: Any, scale: float, generator: torch.Generator, dtype: torch.dtype) -> Any:
    """A random net of the same design by the class `auto`, every width times `scale`; weights depend on `generator`
    alone. Refusal where such a net cannot be built."""
    try:
        with seeded(generator):
            return ready(auto.from_config(scaled(config, scale), dtype=dtype))
    except Refusal:
        raise
    except Exception as error:  # each architecture checks its config in its own way
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise cannot_scale(f"at {scale:.3g} times its width it cannot be built: {why}") from error


def require_scaled(net: nn.Module, other: nn.Module, scale: float) -> None:
    """Refusal when the number of parameters did not follow the scale: the config hides its widths."""
    sizes = [sum(p.numel() for p in one.parameters()) for one in (net, other)]
    if scale != 1 and (sizes[1] < sizes[0]) != (scale < 1):
        raise cannot_scale("its config does not state its widths by the usual names")


def cannot_scale(why: str) -> Refusal:
    return Refusal(f"this design cannot be scaled: {why}", "scale 1, or start a new model of the size that is wanted")


def scaled(config: Any, scale: float) -> Any:
    """A copy of a config with every width times `scale`."""
    config = deepcopy(config)
    if scale == 1:
        return config
    entries = config.to_dict()
    heads, hidden = known(config, "num_attention_heads"), known(config, "hidden_size")
    unit = (
        1
        if heads and hidden
        else math.lcm(2, *(n for name in entries if name.endswith(DIVISORS) for n in flat(entries[name])))
    )
    changed = {
        name: times(entries[name], scale, unit)
        for name in entries
        if (name.endswith(WIDTHS) or name == "dim") and flat(entries[name])
    }
    changed |= {name: max(SMALLEST, entries[name] * scale) for name in MULTIPLIERS if entries.get(name)}
    if not changed:
        raise cannot_scale("its config does not state its widths by the usual names")
    for name, value in changed.items():
        setattr(config, name, value)
    if heads and hidden:
        scale_heads(config, heads, hidden, scale)
    for name in entries:
        if name.endswith(PARTS) and hidden:
            setattr(config, name, math.gcd(entries[name], config.hidden_size))
    return config


def scale_heads(config: Any, heads: int, hidden: int, scale: float) -> None:
    """Set hidden size, heads and key-value heads so that they divide each other, as round as before."""
    count, width = max(1, round(heads * scale)), known(config, "head_dim") or hidden // heads
    grain = math.gcd(hidden, 8)
    step = math.lcm(2, grain // math.gcd(grain, count))  # heads of even width, for positions that turn pairs
    new_width = step * max(1, round(width * heads * scale / count / step))
    config.hidden_size = count * new_width if hidden == heads * width else times(hidden, scale, 1)
    config.num_attention_heads = count
    if known(config, "head_dim"):
        config.head_dim = new_width
    if groups := known(config, "num_key_value_heads"):
        wanted = max(1, round(groups * scale))
        config.num_key_value_heads = max(n for n in range(1, wanted + 1) if count % n == 0)


def known(config: Any, name: str) -> int:
    """A whole number of the config, under its own alias of the name too; 0 where it has none."""
    value = getattr(config, name, None)
    return value if isinstance(value, int) else 0


def flat(value: Any) -> list[int]:
    """The numbers of a config entry: none, one, or those of nested lists."""
    if isinstance(value, (list, tuple)):
        return [number for entry in value for number in flat(entry)]
    return [int(value)] if value and not isinstance(value, (bool, str, dict)) else []


def times(width: Any, scale: float, unit: int) -> Any:
    """A width, or each of a list, times `scale`: a multiple of `unit`, and of 8, 4 or 2 when it was one."""
    if isinstance(width, (list, tuple)):
        return [times(one, scale, unit) for one in width]
    step = unit if unit > 1 else math.gcd(width, 8)
    return step * max(1, round(width * scale / step))
