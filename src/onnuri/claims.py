"""Whose folder is this? Exactly one family's; else what was found, what was looked for, and which families come near.
And what executes it, where that is not torch."""

from pathlib import Path

from . import registry
from .errors import BadInput
from .family import Family, Session
from .hub import guarded, known_types, peek, unknown_type


def claimed_by(folder: Path) -> Family:
    """The one family whose folder this is."""
    families = registry.families()
    claims = [family for family in families if guarded(family.claims, folder)]
    if len(claims) == 1:
        return claims[0]
    if claims:
        raise BadInput(f"{folder} is claimed by several families: {', '.join(f.name for f in claims)}")
    near = [family for family in families if comes_near(family, folder)]
    raise BadInput(
        f"no family knows {folder}: {describe(folder)}",
        *(f"{family.name} comes near: its body could carry a head for {family.tag}" for family in near),
        "looked for: " + ", ".join(f"{family.name} ({family.tag})" for family in families),
        *filter(None, (registry.fault_of("families", name) for name in registry.entries("families"))),
        hint=f"onnuri train {folder} --family {'|'.join(f.name for f in near) or 'NAME'} --data D --out DIR adopts its body",
    )


def open_session(folder: Path) -> Session | None:
    """The session of the runtime whose artefact lies in the folder; None for a plain torch model."""
    for name in registry.entries("runtimes"):
        runtime = registry.runtime(name)
        if (folder / runtime.artefact).exists():
            return runtime.open(folder)
    return None


def describe(folder: Path) -> str:
    """What a folder says of itself, for an error."""
    config = peek(folder)
    if not config:
        files = sorted(p.name for p in folder.iterdir())
        return f"it has no readable config.json or model_index.json; it holds {', '.join(files[:8]) or 'nothing'}"
    kind = config.get("model_type")
    said = f"its config.json says model_type {kind!r}, architectures {config.get('architectures')!r}"
    return said if isinstance(kind, str) and kind in known_types() else f"{said}; {unknown_type(kind)}"


def comes_near(family: Family, folder: Path) -> bool:
    """Whether transformers has a model for the family's task with the body that lies in the folder."""
    from transformers import CONFIG_MAPPING, AutoModelForSeq2SeqLM
    from transformers.pipelines import SUPPORTED_TASKS

    kind = peek(folder).get("model_type")
    if not isinstance(kind, str) or kind not in known_types():
        return False
    without_pipeline = {"text2text-generation": (AutoModelForSeq2SeqLM,)}  # a task of the Hub still
    autos = SUPPORTED_TASKS.get(family.tag, {}).get("pt", without_pipeline.get(family.tag, ()))
    return any(CONFIG_MAPPING[kind] in auto._model_mapping for auto in autos)
