"""What races over operations share: a model that is trained first, by the command line, and what its ledger lines say."""

from typing import Any

from .harness import Found, train

MODELS: dict[str, tuple[str, ...]] = {
    "MNIST": ("--family", "image_classifier", "--data", "{data}/mnist", "--epochs", "1"),
    "NSMC": (
        "--family",
        "text_classifier",
        "--data",
        "{data}/nsmc",
        "--fields",
        "document=text,label=category",
        "--epochs",
        "2",
    ),
    "Adult": ("--family", "tabular", "--data", "{data}/adult", "--epochs", "4"),
}
"""The training of each model that is shrunk; short, since only what is lost afterwards is judged."""


def trained(name: str, folder: str) -> tuple[str, ...]:
    return train(*MODELS[name], "--answer", answer_of(name), out=folder)


def answer_of(name: str) -> str:
    return "income" if name == "Adult" else "label"


def data_of(name: str) -> tuple[str, ...]:
    words = MODELS[name]
    fields = ("--fields", words[words.index("--fields") + 1]) if "--fields" in words else ()
    return ("--data", words[words.index("--data") + 1], *fields, "--answer", answer_of(name))


def headline(line: Found) -> float:
    """The score by which a model is judged, in its ledger line."""
    measured: dict[str, Any] = line["after"]
    return measured["scores"][measured["headline"][0]]


def broken_promises(line: Found) -> float:
    """How many promises on saving and opening again were broken; each is measured on the reopened folder."""
    return float(sum(not promise["kept"] for promise in line["promises"]))
