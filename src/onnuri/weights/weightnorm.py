"""Weight norm (Salimans & Kingma, arXiv:1602.07868) folded: a tensor that torch makes of a direction and its lengths
becomes one plain parameter, which everything that looks at weights understands, and is taken apart again for the disk.
"""

from typing import Any

import torch
from torch import nn

FOLDED = "weight_norm_axes"  # {tensor: axis}: which tensors of a module the library stores as directions and lengths


def fold_norms(net: Any) -> Any:
    """The net itself, with plain parameters in place of weight norms."""
    for module in net.modules():
        made = module._modules.get("parametrizations")
        if isinstance(made, nn.ModuleDict) and all(is_weight_norm(parts) for parts in made.values()):
            fold(module, made)
    return net


def is_weight_norm(parts: Any) -> bool:
    return len(parts) == 1 and isinstance(parts[0], nn.utils.parametrizations._WeightNorm)


@torch.no_grad()
def fold(module: nn.Module, made: Any) -> None:
    """Replace the parametrizations of one module. Torch's own removal changes the class, which a copy shares."""
    del module._modules["parametrizations"]
    module.__class__ = type(module).__mro__[1]
    axes: dict[str, int] = {}
    for name, parts in made.items():
        lengths, direction = parts.original0, parts.original1
        axes[name] = parts[0].dim
        value = direction * (lengths / lengths_of(direction, axes[name]))
        module.register_parameter(name, nn.Parameter(value, direction.requires_grad))
    setattr(module, FOLDED, axes)


def lengths_of(value: torch.Tensor, axis: int) -> torch.Tensor:
    """The norm of each slice along `axis`, of the whole tensor where that is -1, in torch's shape. Summed in fp64, so that
    it is the same number wherever it is computed again."""
    others = [d for d in range(value.dim()) if d != axis]
    return torch.linalg.vector_norm(value.double(), dim=others, keepdim=axis != -1).to(value.dtype)


def unfolded(net: Any) -> dict[str, torch.Tensor]:
    """The net's tensors as the library stores them; folded again they are bitwise what they were. A slice of zeros, which
    has no direction, gets any, and the length 0."""
    state = net.state_dict()
    for path, module in net.named_modules():
        for name, axis in getattr(module, FOLDED, {}).items():
            value, prefix = state.pop(f"{path}.{name}".lstrip(".")), f"{path}.parametrizations.{name}".lstrip(".")
            lengths = lengths_of(value, axis)
            state[f"{prefix}.original0"] = lengths
            state[f"{prefix}.original1"] = torch.where(lengths == 0, torch.ones_like(value), value)
    return state
