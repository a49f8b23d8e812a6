"""Folders of sentence-transformers: which modules stand behind a body of transformers, read and written as the library does.

`modules.json` lists them: a Transformer, a Pooling, perhaps a Dense, perhaps a Normalize. Read in the layouts of its versions 2 to
6, written in the older one, which all of them open. Unlike the library we refuse what we do not read: several poolings side by
side, other modules, a prompt that is not pooled.
"""

import inspect
import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from .. import hub
from ..errors import BadInput
from ..nets.sentence_net import ACTIVATIONS, POOLINGS, SentenceNet, hidden_width
from .heads import MODULES

TYPES = ("Transformer", "Pooling", "Dense", "Normalize")
OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
LIBRARY = "config_sentence_transformers.json"
READER = "sentence_bert_config.json"


def is_mine(folder: Path) -> bool:
    """Whether the folder lists its modules as sentence-transformers does, one that reads texts first."""
    return heads_list(folder) and kind_of(modules_of(folder)[0]) == TYPES[0]


def heads_list(folder: Path) -> bool:
    try:
        return bool(modules_of(folder)) and bool(hub.peek(folder))
    except BadInput:
        return False


def modules_of(folder: Path) -> list[dict]:
    """The entries of modules.json; BadInput unless it is a list of {type, path}."""
    path = folder / MODULES
    found = hub.parsed(path)
    right = isinstance(found, list) and all(
        isinstance(each, dict) and isinstance(each.get("type"), str) and isinstance(each.get("path"), str)
        for each in found
    )
    if not right or not found:
        raise BadInput(f"{path} must list modules, each with its type and its path")
    return found


def kind_of(module: dict) -> str:
    return module["type"].rpartition(".")[2]


# ----------------------------------------------------------------------------------------------------------- reading


def read(folder: Path, pooler: bool, empty: bool) -> SentenceNet:
    """The body with what stands behind it. `pooler`: whether the body has that layer, which no vector is made of."""
    modules = modules_of(folder)
    kinds = [kind_of(each) for each in modules]
    order = [kind for kind in TYPES if kind in kinds]
    if kinds != order or kinds[:2] != list(TYPES[:2]):
        raise BadInput(
            f"{folder}: its modules are {', '.join(kinds)}; read are Transformer, Pooling, then perhaps Dense and Normalize"
        )
    places = dict(zip(kinds, modules))
    at = {kind: inside(folder, each["path"]) for kind, each in places.items()}
    body = hub.read_hub(auto_of(at[TYPES[0]], pooler), at[TYPES[0]], empty)
    pooling = pooling_of(at["Pooling"], body, bool(prompt_of(folder)))
    dense, activation = dense_of(at["Dense"], body, empty) if "Dense" in at else (None, "Identity")
    net = SentenceNet(body, pooling, "Normalize" in at, dense, activation)
    most = entry(library_of(folder), "truncate_dim", int, 0, folder / LIBRARY)
    if not 0 <= most <= net.width:
        raise BadInput(f"{folder / LIBRARY}: truncate_dim {most} of vectors of {net.width}")
    net.most = most
    return net.eval()


def inside(folder: Path, path: str) -> Path:
    if not hub.within(folder / path, folder):
        raise BadInput(f"{folder / MODULES}: the path {path!r} leads outside the folder")
    return folder / path


def pooling_of(folder: Path, body: nn.Module, prompted: bool) -> str:
    """How the tokens become one vector, in the library's word. `prompted`: whether something is put before each text."""
    path = folder / "config.json"
    config = hub.read_json(path)
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for name, mode in OLD_MODES.items() if config.get(name)] or "mean"
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in POOLINGS:
        raise BadInput(f"{path}: pools by {modes!r:.80}; read is one of {', '.join(POOLINGS)}")
    if config.get("include_prompt") is False and prompted:
        raise BadInput(f"{path}: include_prompt is false; a prompt that is not pooled is not read")
    width = config.get("embedding_dimension", config.get("word_embedding_dimension", hidden_width(body)))
    if width != hidden_width(body):
        raise BadInput(f"{path}: it pools vectors of {width!r:.20}, the body makes {hidden_width(body)}")
    return modes[0]


def dense_of(folder: Path, body: nn.Module, empty: bool) -> tuple[nn.Linear, str]:
    """The layer behind the pooling, and the name of its activation."""
    path = folder / "config.json"
    config = hub.read_json(path)
    sizes = [config.get("in_features"), config.get("out_features")]
    activation = str(config.get("activation_function", "torch.nn.Tanh")).rpartition(".")[2]
    if not all(type(size) is int and 0 < size <= 2**20 for size in sizes) or activation not in ACTIVATIONS:
        raise BadInput(f"{path}: sizes {sizes!r:.60}, activation {activation!r:.40}; read are {', '.join(ACTIVATIONS)}")
    if sizes[0] != hidden_width(body):
        raise BadInput(f"{path}: it takes vectors of {sizes[0]}, the body makes {hidden_width(body)}")
    layer = nn.Linear(*sizes, bias=config.get("bias", True) is not False)  # type: ignore[arg-type]
    if not empty:
        tensors = hub.guarded(lambda path: load_file(path / "model.safetensors"), folder)
        found = {name.removeprefix("linear."): value for name, value in tensors.items()}
        wanted = layer.state_dict()
        report = {
            "missing_keys": wanted.keys() - found.keys(),
            "unexpected_keys": found.keys() - wanted.keys(),
            "mismatched_keys": {
                name for name in wanted.keys() & found.keys() if found[name].shape != wanted[name].shape
            },
        }
        hub.check_report(report, folder)
        layer.load_state_dict(found, assign=True)
    return layer, activation


def library_of(folder: Path) -> dict:
    return hub.read_json(folder / LIBRARY) if (folder / LIBRARY).exists() else {}


def reader_of(folder: Path) -> dict:
    """What is done to texts before they are tokens: max_seq_length, do_lower_case."""
    return hub.read_json(folder / READER) if (folder / READER).exists() else {}


def entry(config: dict, name: str, kind: type, default: Any, path: Path) -> Any:
    """An entry of a config, or the default where it is null or not there. BadInput for one of another kind."""
    value = config.get(name)
    if value is not None and type(value) is not kind:
        raise BadInput(f"{path}: {name} is {value!r:.40}, not {kind.__name__}")
    return default if value is None else value


def prompt_of(folder: Path) -> str:
    """What the library puts before every text."""
    config = library_of(folder)
    name = entry(config, "default_prompt_name", str, "", folder / LIBRARY)
    prompts = entry(config, "prompts", dict, {}, folder / LIBRARY)
    if name and not isinstance(prompts.get(name), str):
        raise BadInput(f"{folder / LIBRARY}: default_prompt_name {name!r:.40} is none of its prompts")
    return prompts[name] if name else ""


# ------------------------------------------------------------------------------------------------- bodies of any kind


def auto_of(folder: Path, pooler: bool) -> Any:
    """What makes the body of a folder as the Auto classes of transformers do, with or without its pooler. BadInput for what has
    no body that reads texts alone."""
    from transformers import AutoConfig

    config: Any = hub.guarded(AutoConfig.from_pretrained, folder, local_files_only=True)
    if getattr(config, "is_encoder_decoder", False):
        raise BadInput(f"{folder}: a body of two halves, encoder and decoder, makes no vector of a text")
    return auto_for(config, pooler)


def auto_for(config: Any, pooler: bool) -> Any:
    """The same for a config."""
    from transformers import AutoModel

    if type(config) not in AutoModel._model_mapping:
        raise BadInput(f"transformers has no body of model_type {config.model_type!r}")
    kind: Any = AutoModel._model_mapping[type(config)]
    kind = kind if pooler or isinstance(kind, tuple) else without_pooler(kind)
    return SimpleNamespace(from_pretrained=kind.from_pretrained, from_config=kind._from_config)


@cache
def without_pooler(kind: Any) -> Any:
    """A class of transformers whose nets have no pooler, under the same name, so that a net of it can be built again from its
    config alone; itself where it never has one."""
    if "add_pooling_layer" not in inspect.signature(kind.__init__).parameters:
        return kind

    def init(self: Any, config: Any, **options: Any) -> None:
        kind.__init__(self, config, **{**options, "add_pooling_layer": False})

    names = {"__init__": init, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (kind,), names)


def has_pooler(folder: Path) -> bool:
    """Whether a folder stores a pooler; so it must where it stores nothing."""
    files = sorted(folder.glob("*.safetensors"))
    return not files or any("pooler." in name for file in files for name in names_in(file))


def names_in(file: Path) -> list[str]:
    def keys(path: Path) -> list[str]:
        with safe_open(path, framework="pt") as opened:
            return list(opened.keys())

    return hub.guarded(keys, file)


# ----------------------------------------------------------------------------------------------------------- writing


def write(net: SentenceNet, folder: Path, weights: bool, reader: dict, library: dict) -> None:
    """All but the tokenizer. `reader` and `library`: what stands in the files of these names."""
    hub.write_hub(net.body, folder, weights)
    kinds = ["Transformer", "Pooling", *(["Dense"] if net.dense else []), *(["Normalize"] if net.unit else [])]
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds) if number)]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(zip(kinds, paths))
    ]
    write_json(modules, folder / MODULES)
    pooling = {name: mode == net.pooling for name, mode in OLD_MODES.items()}
    write_json({"word_embedding_dimension": hidden_width(net.body), **pooling}, folder / paths[1] / "config.json")
    write_json(reader, folder / READER)
    write_json(library | ({"truncate_dim": net.most} if net.most else {}), folder / LIBRARY)
    if net.dense:
        write_dense(net.dense, net.activation, folder / paths[2], weights)
    if net.unit:
        (folder / paths[-1]).mkdir(exist_ok=True)  # the library lists it; it holds nothing


def write_dense(layer: nn.Linear, activation: str, folder: Path, weights: bool) -> None:
    kind = "linear.Identity" if activation == "Identity" else f"activation.{activation}"
    config = {
        "in_features": layer.in_features,
        "out_features": layer.out_features,
        "bias": layer.bias is not None,
        "activation_function": f"torch.nn.modules.{kind}",
    }
    write_json(config, folder / "config.json")
    if weights:
        tensors = {f"linear.{name}": value.detach().contiguous() for name, value in layer.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write_json(value: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def like(net: SentenceNet, body: nn.Module, generator: torch.Generator) -> SentenceNet:
    """The same modules behind another body; where its width is another, a new layer keeps the vectors as long as they were."""
    dense = net.dense
    if dense is not None or hidden_width(body) != net.width:
        bias = dense is None or dense.bias is not None
        dense = nn.Linear(hidden_width(body), net.width, bias=bias)
        bound = hidden_width(body) ** -0.5
        for value in dense.parameters():
            nn.init.uniform_(value, -bound, bound, generator=generator)
        dense.to(next(body.parameters()).dtype)
    return SentenceNet(body, net.pooling, net.unit, dense, net.activation, net.most).eval()
