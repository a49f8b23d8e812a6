"""One number for a new language model: `depth`, or how many `parameters`; width, heads, layers and vocabulary follow from it.

Each layer of depth adds 64 to the width, a head of 64 and 1,024 tokens, after nanochat's one dial (github.com/karpathy/nanochat,
aspect ratio 64). Differing in:
1. The vocabulary grows too, more slowly than the rest, as it ought to (Tao et al., arXiv:2407.13623): at depth 4 it takes a
   quarter of the parameters, at depth 12 a ninth, where a fixed one would take nearly all of a small net.
2. `parameters` takes the depth that comes nearest, and where that is not near enough then the width that does.
3. The learning rate is not set: that one is the best at all widths has not been shown here.
"""

import math
from typing import Any

from ..errors import BadSettings

WIDTH, VOCABULARY = 64, 1024  # of each layer of depth
DEEPEST = 128
NEAR = 1.1  # times what was asked for, at most
BLOCK = 32  # columns that formats of 4 bits keep under one scale: a width of whole blocks is stored small


def chosen(defaults: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """The config with what its dial sets, which all that it says otherwise overrides. BadSettings for a dial out of range."""
    dials = {name: config[name] for name in ("depth", "parameters") if name in config}
    rest = {name: value for name, value in config.items() if name not in dials}
    if len(dials) > 1:
        raise BadSettings("'depth' and 'parameters' are two dials for one thing", hint="leave one of them out")
    if not dials:
        return rest
    name, value = next(iter(dials.items()))
    if name == "depth":
        return of_depth(whole(name, value, DEEPEST)) | rest
    return of_parameters(whole(name, value, 10**12), defaults, rest)


def whole(name: str, value: Any, most: int) -> int:
    """The number; 20e6 is a text to YAML."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not 1 <= number <= most or number != int(number):
        raise BadSettings(f"'{name}' must be a whole number from 1 to {most:,}, found {value!r}")
    return int(number)


def of_depth(depth: int) -> dict[str, Any]:
    return {"num_layers": depth, "hidden_size": WIDTH * depth, "num_heads": depth, "vocab_size": VOCABULARY * depth}


def of_parameters(wanted: int, defaults: dict[str, Any], rest: dict[str, Any]) -> dict[str, Any]:
    """The design with about so many. BadSettings where the nearest has a tenth more or less."""

    def off(config: dict[str, Any]) -> float:
        return abs(math.log(count(defaults | config) / wanted))

    best = min((of_depth(depth) | rest for depth in range(1, DEEPEST + 1)), key=off)
    for unit in (BLOCK, 8 if (defaults | best)["experts"] else 1):
        if "hidden_size" not in rest and off(best) > math.log(NEAR):
            step = math.lcm(2 * best["num_heads"], unit)
            best = min((best | {"hidden_size": width} for width in range(step, 2 * WIDTH * DEEPEST, step)), key=off)
    if off(best) > math.log(NEAR):
        found = count(defaults | best)
        raise BadSettings(
            f"'parameters' {wanted:,}: the nearest design has {found:,}", hint="set fewer entries beside it"
        )
    return best


def count(settings: dict[str, Any]) -> int:
    """Parameters of the Llama or Mixtral of these settings, if the texts fill its vocabulary."""
    width, layers, experts = (settings[name] for name in ("hidden_size", "num_layers", "experts"))
    inner = feed_forward(width)
    layer = 4 * width * width + 2 * width + 3 * width * inner * max(1, experts) + width * experts
    tables = settings["vocab_size"] * width * (1 if settings["tie_embeddings"] else 2)
    return tables + layers * layer + width


def feed_forward(width: int) -> int:
    """Llama's 8/3 of the width, rounded up to whole blocks."""
    return BLOCK * math.ceil(8 * width / 3 / BLOCK)
