"""Where activations of a net of transformers or diffusers can be read: its blocks, found by what the library says of them."""

from torch import nn


def hub_blocks(net: nn.Module) -> dict[str, tuple[nn.Module, int]]:
    """{name: (block, feature axis)}: where activations can be read. The modules that the library itself never
    splits over devices, else the entries of the outermost lists; no block contains another."""
    attends = any("Attention" in type(module).__name__ for module in net.modules())
    unsplit = set(getattr(net, "_no_split_modules", None) or ())
    names = outermost([name for name, module in net.named_modules() if type(module).__name__ in unsplit])
    names = names or list_entries(net, nn.ModuleList) or list_entries(net, nn.Sequential)
    blocks = {name: net.get_submodule(name) for name in names}
    return {name: (block, feature_axis(block, attends)) for name, block in blocks.items()}


def list_entries(net: nn.Module, kind: type[nn.Module]) -> list[str]:
    """The names of the entries of the lists of `kind` that lie in no other such list."""
    lists = outermost([name for name, module in net.named_modules() if isinstance(module, kind)])
    return [f"{name}.{entry}".lstrip(".") for name in lists for entry, _ in net.get_submodule(name).named_children()]


def outermost(names: list[str]) -> list[str]:
    """The names that lie inside no other one of them."""
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def feature_axis(block: nn.Module, net_attends: bool) -> int:
    """1 where a block puts out pictures (B, C, H, W), else -1. A net with attention flattens the patches that
    its embedding cuts out, and what attends puts out a sequence."""
    inside = [type(module).__name__ for module in block.modules()]
    convolves = any(isinstance(module, nn.Conv2d) for module in block.modules())
    flattens = net_attends and any("Attention" in name or "Embedding" in name for name in inside)
    return 1 if convolves and not flattens else -1
