"""Hugging Face folders: opened by the library's own loader with its report checked, written by the library's own writer.

What is guarded here because the libraries do not: missing tensors would be filled with random numbers, pickles would be
read unasked, a config may name code or a path outside the folder.
"""

import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from .bounds import bounded
from .errors import BadInput, BadSettings, OnnuriError, propose
from .family import seeded
from .weights.weightnorm import fold_norms, unfolded

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack")
CONFIG_NAMES = ("config.json", "model_index.json")  # endings: tokenizer_config.json and its kin as well
LARGEST_JSON = 2**26  # bytes


def read_json(path: Path) -> dict:
    """A JSON object; BadInput when it is missing, malformed, not UTF-8 or no object."""
    value = parsed(path)
    if not isinstance(value, dict):
        raise BadInput(f"{path} must hold a JSON object, found {type(value).__name__}")
    return value


def parsed(path: Path) -> Any:
    """What a JSON file holds; BadInput when it is missing, malformed or not UTF-8."""
    try:
        if path.exists() and not path.is_file():
            raise BadInput(f"{path} is not a file")
        if path.stat().st_size > LARGEST_JSON:
            raise BadInput(f"{path} is larger than {LARGEST_JSON // 2**20} MiB; no such file describes a model")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not valid JSON: {error}") from error


def peek(folder: Path) -> dict:
    """`config.json` for a family's `claims`: {} where there is none or it cannot be read."""
    try:
        return read_json(folder / "config.json")
    except BadInput:
        return {}


def check_folder(folder: Path) -> None:
    """Raise BadInput, with every fault at once, unless the folder is safe to open."""
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder", hint="name a model folder")
    files = sorted(p for p in folder.rglob("*") if p.is_file() or p.is_symlink())
    faults = [f"{p} leads outside the folder" for p in files if p.is_symlink() and escapes(p, folder)]
    files = [p for p in files if p.is_file()]
    faults += [
        f"{p} names code to run (auto_map); Onnuri runs no code from a model folder"
        for p in files
        if p.name.endswith(CONFIG_NAMES) and not p.is_relative_to(folder / "onnuri") and names_code(parsed(p))
    ]
    faults += [
        f"{p}: the index names {name!r}, which leads outside the folder"
        for p in files
        if p.name.endswith(".safetensors.index.json")
        for name in shards_of(p)
        if ".." in Path(name).parts or escapes(p.parent / name, folder)
    ]
    faults += [fault for p in files if p.suffix == ".safetensors" for fault in check_safetensors(p)]
    if not any(p.suffix == ".safetensors" for p in files):
        pickles = [p for p in files if p.suffix in PICKLES and not is_of_graph(p, folder)]
        faults += [f"{p} holds pickled weights, which can run code when read" for p in pickles][:1]
    if faults:
        raise BadInput(*faults, hint=cure(faults))


def is_of_graph(path: Path, folder: Path) -> bool:
    """Whether it holds the numbers of a graph in our own sub-folder, which lies beside them as text."""
    ours = path.is_relative_to(folder / "onnuri")
    return ours and path.suffix == ".bin" and path.with_suffix(".xml").is_file()


def names_code(value: Any) -> bool:
    """Whether a config, or a part of it, has an entry `auto_map`."""
    parts = [value]  # a stack, since a config may be nested deeper than Python calls
    while parts:
        part = parts.pop()
        if isinstance(part, dict) and "auto_map" in part:
            return True
        parts += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return False


def shards_of(index: Path) -> list[str]:
    """The files that an index of safetensors names; BadInput unless it is {tensor: file}."""
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise BadInput(f"{index} is no index: its weight_map must name a file for each tensor")
    return sorted(set(named.values()))


def cure(faults: list[str]) -> str:
    if "(auto_map)" in faults[0]:
        return "delete the auto_map entry if a class of transformers itself reads this model"
    if "pickled" in faults[0]:
        return "save the model again as safetensors: model.save_pretrained(folder, safe_serialization=True)"
    return "fetch the folder again from where it came"


def within(path: Path, folder: Path) -> bool:
    """Whether a path stays in the folder; one that leads nowhere at all (a ring of links, a NUL) does not."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):
        return False


def escapes(link: Path, folder: Path) -> bool:
    """A link that leaves the folder, other than into the `blobs` of the same Hugging Face cache entry."""
    blobs = folder.resolve().parent.parent / "blobs"
    return not within(link, folder) and not within(link, blobs)


def check_safetensors(path: Path) -> list[str]:
    """[] or the fault: truncated, corrupt, or not safetensors at all. Reads the header only."""
    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
        return []
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:  # the last: the file goes while it is opened
        return [f"{path} is truncated or corrupt, or was taken away: {error}"]


# ------------------------------------------------------------------------------------- folders of transformers, diffusers


def read_hub(auto: Any, folder: Path, empty: bool) -> Any:
    """The net in `folder` by the class `auto` (AutoModelForX). BadInput lists every missing or unexpected tensor."""
    if empty:
        return guarded(lambda path: empty_net(auto, path), folder)
    with unconverted() as names:
        try:
            net, report = guarded(
                auto.from_pretrained,
                folder,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report then, by name; else the error names none
            )
        except BadInput as error:
            if not names:
                raise
            faults = (
                f"{folder}: tensor {name}: its parts are missing or of unlike shape" for name in sorted(set(names))
            )
            raise BadInput(*faults, hint="fetch the folder again from where it came") from error
    check_report(report, folder)
    return ready(net)


@contextmanager
def unconverted() -> Iterator[list[str]]:
    """Collects the tensors that transformers could not put together of those on the disk: it only logs their names."""
    names: list[str] = []
    logger = logging.getLogger("transformers.modeling_utils")
    handler, before = logging.Handler(), (logger.level, logger.propagate)
    handler.emit = lambda record: names.extend(re.findall(r"(\S+) *\| CONVERSION", record.getMessage()))
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield names
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


def empty_net(auto: Any, folder: Path) -> Any:
    """The modules of the net in `folder`; the weights are random."""
    from transformers import AutoConfig, GenerationConfig

    net = auto.from_config(AutoConfig.from_pretrained(folder, local_files_only=True)).eval()
    if (folder / "generation_config.json").exists():
        net.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return ready(net)


def adopt_hub(auto: Any, folder: Path, generator: torch.Generator, **config: Any) -> Any:
    """The body of `folder` under the class `auto`, with a new head drawn from `generator`. BadInput when a tensor of
    the body is missing or has another shape; a pooler belongs to the head, since not every body brings one."""
    with seeded(generator), bounded(folder):
        net, report = guarded(
            auto.from_pretrained,
            folder,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **config,
        )
    body, parts = body_of(net, report["missing_keys"])
    missing = [name for name in report["missing_keys"] if name.split(".")[0] in body and "pooler" not in name]
    unlike = [name for name in report["mismatched_keys"] if str(name[0]).split(".")[0] in body]
    # names on disk: a body that was saved alone brings them without the prefix
    names = {name: name.removeprefix(f"{net.base_model_prefix}.") for name in report["unexpected_keys"]}
    left_over = [
        name for name in names if {name.split(".")[0], names[name].split(".")[0]} & parts and "pooler" not in name
    ]
    if not body:
        raise BadInput(f"{folder} holds no tensor of a body that {type(net).__name__} could have")
    check_report({"missing_keys": missing, "mismatched_keys": unlike, "unexpected_keys": left_over}, folder)
    return ready(net)


def ready(net: Any) -> Any:
    """The net to be used; what its library never writes (tables of sines) follows no gradient, or what it learnt would be lost."""
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name not in (net._keys_to_ignore_on_save or ()))
    return fold_norms(net.eval())


def body_of(net: Any, missing: Collection[str]) -> tuple[set[str], set[str]]:
    """(first parts of the body's names in memory, those of names on the disk that must have a place). A net that is its
    own base has for its body what the folder brings any tensor of."""
    if net.base_model is not net:
        body = {net.base_model_prefix}
        return body, body | dict(net.base_model.named_children()).keys() - {"pooler"}
    found = {
        name
        for name, child in net.named_children()
        if any(f"{name}.{key}" not in missing for key in child.state_dict())
    }
    return found, found


def guarded(load: Callable, folder: Path, *args: Any, **options: Any) -> Any:
    """Call a library's loader; whatever it cannot read becomes BadInput."""
    try:
        return load(folder, *args, **options)
    except OnnuriError:
        raise
    except Exception as error:  # the libraries raise whatever a malformed folder makes them stumble over
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, MemoryError) or "can't allocate memory" in reason:
            reason = "it describes a net that no memory here can hold"
        if "does not recognize this architecture" in reason:
            reason = unknown_type(peek(folder).get("model_type"))
        raise BadInput(f"{folder} cannot be opened: {reason}") from error


def is_library_net(net: nn.Module) -> bool:
    """Whether a net is one of transformers, so that its folder opens there."""
    from transformers import PreTrainedModel

    return isinstance(net, PreTrainedModel)


def known_types() -> set[str]:
    """Every model_type that transformers has a config for."""
    from transformers import CONFIG_MAPPING

    return set(CONFIG_MAPPING.keys())


def unknown_type(kind: Any) -> str:
    """A message part: that transformers has no such model_type, and the near ones."""
    return f"this version of transformers does not know model_type {kind!r}, {propose(str(kind), known_types())[:200]}"


def check_report(report: dict, folder: Path) -> None:
    """Raise BadInput unless the loading report is empty."""
    faults = [
        f"{folder}: {kind.replace('_keys', '')} tensor {name}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        for name in sorted(map(described, report.get(kind) or ()))
    ]
    if faults:
        raise BadInput(
            *faults, hint=f"fetch it again, or adopt its body: onnuri train {folder} --new-head --data D --out DIR"
        )


def described(entry: Any) -> str:
    """One entry of a loading report: a name, or (name, shape on the disk, shape in the net)."""
    if isinstance(entry, str):
        return entry
    name, found, wanted = entry
    return f"{name} {tuple(found)} for {tuple(wanted)}"


def write_hub(net: Any, folder: Path, weights: bool) -> None:
    """Write with the library's own writer, as safetensors."""
    # save_pretrained notes these two itself, but only when it writes the weights
    net.config.architectures, net.config.dtype = [type(net).__name__], net.dtype
    if weights:
        net.save_pretrained(folder, state_dict=unfolded(net), safe_serialization=True)
    else:
        net.config.save_pretrained(folder)
        if net.can_generate():
            net.generation_config.save_pretrained(folder)


# ------------------------------------------------------------------------------------------------- folders of our own nets


def read_own(build: Callable[[dict], nn.Module], folder: Path, empty: bool) -> nn.Module:
    """A net of ours: `build(config)` with the tensors of model.safetensors, every one of them and no other."""
    net = guarded(lambda path: build(read_json(path / "config.json")), folder)
    if not empty:
        if not (folder / "model.safetensors").exists():
            raise BadInput(f"{folder} holds no model.safetensors")
        tensors = guarded(lambda path: load_file(path / "model.safetensors"), folder)
        wanted = net.state_dict()
        check_report(
            {
                "missing_keys": wanted.keys() - tensors.keys(),
                "unexpected_keys": tensors.keys() - wanted.keys(),
                "mismatched_keys": {
                    f"{name} {tuple(tensors[name].shape)} for {tuple(value.shape)}"
                    for name, value in wanted.items()
                    if name in tensors and tensors[name].shape != value.shape
                },
            },
            folder,
        )
        net.load_state_dict(tensors, assign=True)
    return net.eval()


def write_own(net: nn.Module, config: dict, folder: Path, weights: bool) -> None:
    """The inverse of `read_own`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    if weights:
        tensors = {name: value.detach().contiguous() for name, value in net.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def merged(defaults: dict, config: dict) -> dict:
    """`defaults` overridden by `config`; an unknown key is BadSettings with the near names."""
    if unknown := [key for key in config if key not in defaults]:
        raise BadSettings(*(f"this family has no config entry '{key}'; {propose(key, defaults)}" for key in unknown))
    return {**defaults, **config}


@contextmanager
def as_bad_settings() -> Iterator[None]:
    """A ValueError, its faults divided by semicolons, becomes BadSettings with each of them."""
    try:
        yield
    except ValueError as error:
        raise BadSettings(*str(error).split("; ")) from None


def plain_experts(net: nn.Module) -> None:
    """Have a net of transformers compute its fused experts, where it has any, by batched products: of the library's
    ways the one that every graph can say, and the same sums."""
    from transformers import PreTrainedModel

    if isinstance(net, PreTrainedModel) and any(getattr(module, "num_experts", 0) for module in net.modules()):
        net.set_experts_implementation("batched_mm")
