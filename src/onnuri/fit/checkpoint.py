"""The state of an unfinished training: kept under parameter names, and taken up again bit for bit.

Tensors of the net, the best ones so far, the optimizers' moments, and the progress. No generator's state is kept: batch
order and noise are functions of seed and step.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..weights.packed import packed_tensors

if TYPE_CHECKING:
    from .loop import Loop

MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum")  # what AdamW and Muon remember of each parameter


def save(loop: "Loop") -> None:
    """Hand the whole state to the log; it replaces the one before."""
    if not loop.processes.is_main_process:
        return
    names = {id(parameter): name for name, parameter in loop.objective.net.named_parameters()}
    tensors = {f"net.{name}": value.detach() for name, value in stored(loop).items()}
    tensors |= {f"best.{name}": value for name, value in loop.best_state.items()}
    for player, optimizer in loop.optimizers.items():
        tensors |= {
            f"optimizer.{player}.{key}.{names[id(parameter)]}": value
            for parameter, state in optimizer.state.items()
            for key, value in state.items()
        }
    loop.log.save_state(tensors, vars(loop.progress) | {"total": loop.total})


def resume(loop: "Loop") -> None:
    """Go on from a state that an interrupted run left; it must be of the same length to be the same work."""
    kept = loop.log.load_state()
    if kept is None or kept[1]["total"] != loop.total:
        return
    tensors, facts = kept
    for name, value in facts.items():
        if name != "total":
            setattr(loop.progress, name, value)
    with torch.no_grad():
        for name, value in stored(loop).items():
            value.copy_(tensors[f"net.{name}"])
    loop.best_state = {name.removeprefix("best."): v for name, v in tensors.items() if name.startswith("best.")}
    names = {id(parameter): name for name, parameter in loop.objective.net.named_parameters()}
    for player, optimizer in loop.optimizers.items():
        for parameter in loop.trained[player]:
            keys = {key: f"optimizer.{player}.{key}.{names[id(parameter)]}" for key in MOMENTS}
            optimizer.state[parameter] = {
                key: laid_like(parameter, tensors[name]) for key, name in keys.items() if name in tensors
            }
    loop.log.progress(loop.progress.step, loop.total, "resumed")


def laid_like(parameter: nn.Parameter, moment: Tensor) -> Tensor:
    """A moment in the memory layout of its parameter: the fused optimizer walks through both by address."""
    if moment.shape != parameter.shape:
        return moment.to(parameter.device)
    return torch.empty_like(parameter, dtype=moment.dtype).copy_(moment)


def stored(loop: "Loop") -> dict[str, Tensor]:
    """Each tensor of the net that training can change, once, under its first name: no frozen parameter, no packed code."""
    still = {id(value) for value in packed_tensors(loop.objective.net)}
    seen: dict[int, str] = {}
    tensors: dict[str, Any] = loop.objective.net.state_dict(keep_vars=True)
    changing = {name: v for name, v in tensors.items() if id(v) not in still}
    return {name: v for name, v in changing.items() if trainable(v) and seen.setdefault(id(v), name) == name}


def trainable(value: Tensor) -> bool:
    """A buffer is: a batch norm writes into it."""
    return value.requires_grad or not isinstance(value, nn.Parameter)
