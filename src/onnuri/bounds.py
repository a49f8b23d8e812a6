"""How large a net may become that a folder describes: not much larger than what the folder stores.

A config is a few words, and a few words can ask for more than any memory holds, or for a million layers. Torch tells of each
parameter, buffer and module as it is registered, before anything is written into it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.nn.modules import module as torch_module

from .errors import BadInput

TIMES = 4  # a number may be stored in one byte, and is registered again when it is loaded
PARAMETERS, BUFFERS, MODULES = 2**22, 2**26, 2**17
"""What a net may have besides: a head that is new, masks and tables that are not stored, modules without numbers."""


@contextmanager
def bounded(folder: Path, shared: int = 1) -> Iterator[None]:
    """BadInput as soon as a net is built meanwhile that is larger than the files of `folder` allow. `shared`: how many places
    of the net one stored tensor stands for at most."""
    stored = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    room = {
        "parameters": TIMES * stored * shared + PARAMETERS,
        "buffers": TIMES * stored + BUFFERS,
        "modules": stored + MODULES,
    }

    def spend(what: str, amount: int) -> None:
        room[what] -= amount
        if room[what] < 0:
            raise BadInput(
                f"{folder}: its config describes a net with more {what} than its files, {stored:,} bytes, can hold",
                hint="fetch the folder again from where it came",
            )

    def tensor(what: str) -> Any:
        return lambda module, name, value: None if value is None else spend(what, value.numel())

    hooks = (
        torch_module.register_module_parameter_registration_hook(tensor("parameters")),
        torch_module.register_module_buffer_registration_hook(tensor("buffers")),
        torch_module.register_module_module_registration_hook(lambda module, name, inner: spend("modules", 1)),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
