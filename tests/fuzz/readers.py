"""Every reader of the product as a target: where its input is put, how it is read, and what then must be true."""

import math
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import beds
import numpy as np
from contract import Invalid
from mutate import Mutate, cells_form, header_form, json_form, lines_form, plain, png_form, words_form, zip_form

from onnuri.data import SPLITS, Data, Sound
from onnuri.errors import OnnuriError

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Reader:
    """`put` writes an input into an empty folder and gives what `read` then reads, every part of it."""

    name: str
    put: Callable[[bytes, Path], Any]
    read: Callable[[Any], Any]
    form: Mutate
    share: int
    """How many inputs it gets in proportion to the others: the quick ones more."""

    notes: bool = False
    """Whether native code may write to stderr: the decoder of MP3 tells there what it skips, and cannot be told not to."""

    @property
    def corpus(self) -> list[Path]:
        """Its inputs in the repository; those that once failed have names that tell why."""
        return sorted((CORPUS / self.name).iterdir())

    @property
    def seeds(self) -> list[bytes]:
        """The corpus, and the file of the bed as it is written today, whatever layout it has by now."""
        return [*beds.own(self.name), *(path.read_bytes() for path in self.corpus)]


def file(name: str) -> Callable[[bytes, Path], Path]:
    """The input is the file `name` of the folder; its path."""

    def put(data: bytes, folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    return put


# ---------------------------------------------------------------------------------------------------------------- data


def read_data(path: Path, **options: Any) -> None:
    """Open a source and read all of it, as a training would."""
    from onnuri.data import labels_of
    from onnuri.run import limited_warnings
    from onnuri.sources import open_data

    with limited_warnings():  # as every command reads them
        data = open_data(str(path), **options)
        records = data.records.list()
        for record in records:
            for name, kind in data.records.fields.items():
                check_value(record[name], kind, name)
        check_data(data, len(records))
        for step in (lambda: labels_of(data.records), lambda: data.split("test").some(3).list()):
            try:
                step()
            except OnnuriError as error:
                if not str(error).strip():
                    raise


def check_value(value: Any, kind: str, name: str) -> None:
    """What data.py promises of a value of each kind."""
    right = {
        "number": lambda: value is None or (type(value) in (int, float) and math.isfinite(value)),
        "category": lambda: value is None or isinstance(value, str),
        "text": lambda: isinstance(value, str),
        "image": lambda: value.dtype == np.uint8 and value.shape[2:] in ((), (3,)) and value.size,
        "audio": lambda: (
            isinstance(value, Sound) and value.samples.dtype == np.float32 and abs(value.samples).max() <= 1
        ),
        "series": lambda: value.dtype == np.float32 and value.ndim == 2 and np.isfinite(value).all(),
    }
    if not right[kind]():
        raise Invalid(f"{name}: {value!r:.80} is no {kind}")


def check_data(data: Data, count: int) -> None:
    rows = sorted(row for part in SPLITS for row in data.parts[part])
    if len(data.digest) != 64 or rows != sorted(set(rows)) or (not data.official and rows != list(range(count))):
        raise Invalid("the splits are no division of the rows")


def read_windows(path: Path) -> None:
    from onnuri.sources import open_data

    data = open_data(str(path), window="3,1")
    for record in data.records.list():
        check_value(record["past"], "series", "past")
        check_value(record["future"], "series", "future")


def beside(name: str, good: str) -> Callable[[bytes, Path], Path]:
    """The input as a file of one class, a good file in another; the folder."""

    def put(data: bytes, folder: Path) -> Path:
        for path, content in ((folder / "a" / name, data), (folder / "b" / name, (CORPUS / good).read_bytes())):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        return folder

    return put


def chosen(data: bytes, folder: Path) -> tuple[str, ...]:
    """The choice of columns of a table, as words: answer, fields, window."""
    (folder / "rows.csv").write_bytes((CORPUS / "csv" / "kinds.csv").read_bytes())
    words = data.decode("utf-8", "replace").split("\n")
    return (str(folder / "rows.csv"), *[*words, "", "", ""][:3])


def read_choice(words: tuple[str, ...]) -> None:
    from onnuri.cli import pairs

    source, answer, fields, window = words
    options = {"answer": answer, "fields": pairs(fields), "window": window}
    read_data(Path(source), **{name: value for name, value in options.items() if value})


# ------------------------------------------------------------------------------------------- recipes, ledgers, licenses


def read_recipe(path: Path) -> None:
    from onnuri import recipe

    with chdir(path.parent):
        found = recipe.read_recipe(path.name, {})
        recipe.check_settings(list(found.steps))
    if not found.steps or not all(isinstance(step.inputs["data"], str) for step in found.steps):
        raise Invalid("a recipe without steps")


def read_ledger(folder: Path) -> None:
    """All that is read unasked from a ledger that is of the right shape."""
    from onnuri import ledger, show
    from onnuri.card import card
    from onnuri.license import combined, origins

    lines = ledger.read(folder)
    if not lines:
        raise Invalid("no lines")
    card(lines)
    show.timeline(folder, lines)
    combined(origins(folder, lines))
    if not isinstance(ledger.folder_digest(folder), str) or any(not fault for fault in ledger.verify(folder)):
        raise Invalid("no digest")


def put_ledger(data: bytes, folder: Path) -> Path:
    file("onnuri/ledger.jsonl")(data, folder)
    return folder


def put_license(data: bytes, folder: Path) -> Path:
    """A card, and behind the first line of tildes a license file."""
    card, _, license_file = data.partition(b"\n~~~~\n")
    (folder / "README.md").write_bytes(card)
    (folder / "LICENSE").write_bytes(license_file)
    return folder


def read_license(folder: Path) -> None:
    from onnuri.license import combined, stated, texts

    found = stated(folder)
    made = combined(found)
    texts(folder)
    for one in found:
        if set(one) != {"path", "id", "name", "link"} or not all(isinstance(part, str) for part in one.values()):
            raise Invalid(f"{one} is no origin")
    if not made["name"] or any("\n" in part for part in made["front"].values()):
        raise Invalid("a license that no card could carry")


# ------------------------------------------------------------------------------------------------------ the command line


def put_words(data: bytes, folder: Path) -> list[str]:
    """Words as the system hands them over: none holds a NUL, bytes that are no UTF-8 become halves of characters."""
    return data.replace(b"\0", b"").decode("utf-8", "surrogateescape").split("\n")


def read_words(words: list[str]) -> None:
    """A command up to the point where it would be carried out."""
    from unittest.mock import patch

    import click

    from onnuri import cli, plan, registry

    def execute(name: str, settings: dict, inputs: dict, out: Path | None, options: dict, quiet: bool) -> dict:
        chosen = plan.settings_of(registry.operation(name), settings)
        if plan.settings_of(registry.operation(name), chosen.model_dump()) != chosen:
            raise Invalid("the settings change when they are read again")
        return {}

    if not words or words[0] not in registry.entries("operations"):
        words = ["train", *words]
    words = [word for word in words if word != "--help"]
    with patch("onnuri.run.execute", execute), patch.object(click, "echo"), patch("onnuri.show.result_text"):
        try:
            cli.command.main(words, standalone_mode=False)
        except (click.ClickException, click.exceptions.Exit) as error:
            if isinstance(error, click.ClickException) and not error.format_message().strip():
                raise


READERS = {
    reader.name: reader
    for reader in (
        Reader("csv", file("rows.csv"), read_data, cells_form, 8),
        Reader("windows", file("rows.csv"), read_windows, cells_form, 6),
        Reader("choice", chosen, read_choice, words_form, 6),
        Reader("parquet", file("rows.parquet"), read_data, plain, 10),
        Reader("jsonl", file("rows.jsonl"), read_data, lines_form, 8),
        Reader("text", file("a.txt"), read_data, plain, 4),
        Reader("page", file("a.html"), read_data, plain, 4),
        Reader("pdf", file("a.pdf"), read_data, plain, 6),
        Reader("docx", file("a.docx"), read_data, zip_form, 6),
        Reader("hwpx", file("a.hwpx"), read_data, zip_form, 6),
        Reader("image", beside("x.png", "image/grey.png"), read_data, png_form, 12),
        Reader("sound", beside("x.wav", "sound/pcm16.wav"), read_data, plain, 12, notes=True),
        Reader("recipe", file("r.yaml"), read_recipe, plain, 6),
        Reader("ledger", put_ledger, read_ledger, lines_form, 16),
        Reader("license", put_license, read_license, plain, 12),
        Reader("command", put_words, read_words, words_form, 12),
        *(
            Reader(f"{bed}-{name.replace('/', '-')}", beds.put(bed, name), beds.read, form, share)
            for bed, name, form, share in (
                ("tabular", "config.json", json_form, 4),
                ("tabular", "model.safetensors", header_form, 4),
                ("tabular", "model.safetensors.index.json", json_form, 1),
                ("tabular", "onnuri/pruned.json", json_form, 1),
                ("packed", "onnuri/packed.safetensors", header_form, 3),
                ("baked", "onnuri/baked.safetensors", header_form, 2),
                ("own_adapter", "onnuri/adapter.safetensors", header_form, 3),
                ("peft_adapter", "adapter_config.json", json_form, 3),
                ("peft_adapter", "adapter_model.safetensors", header_form, 2),
                ("exported", "onnuri/model.onnx", plain, 2),
                ("forest", "config.json", json_form, 2),
                ("forest", "model.txt", plain, 3),
                ("gan", "config.json", json_form, 3),
                ("sequence", "config.json", json_form, 3),
                ("image_classifier", "config.json", json_form, 3),
                ("speech_classifier", "config.json", json_form, 3),
                ("text_classifier", "config.json", json_form, 1),
                ("text_classifier", "tokenizer.json", json_form, 1),
                ("text_classifier", "tokenizer_config.json", json_form, 1),
                ("causal_lm", "config.json", json_form, 1),
                ("causal_lm", "generation_config.json", json_form, 1),
                ("masked_lm", "config.json", json_form, 1),
                ("embedder", "config.json", json_form, 1),
                ("embedder", "modules.json", json_form, 1),
                ("embedder", "1_Pooling/config.json", json_form, 1),
                ("embedder", "sentence_bert_config.json", json_form, 1),
                ("embedder", "config_sentence_transformers.json", json_form, 1),
                ("seq2seq", "config.json", json_form, 1),
                ("seq2seq", "generation_config.json", json_form, 1),
                ("gpt2", "config.json", json_form, 1),
                ("vit", "config.json", json_form, 1),
                ("vit", "preprocessor_config.json", json_form, 1),
                ("resnet", "config.json", json_form, 1),
                ("wav2vec2", "config.json", json_form, 1),
                ("wav2vec2", "preprocessor_config.json", json_form, 1),
                ("whisper_audio", "config.json", json_form, 1),
                ("diffusion", "model_index.json", json_form, 1),
                ("diffusion", "onnuri_sampling.json", json_form, 1),
                ("diffusion", "unet/config.json", json_form, 1),
                ("diffusion", "scheduler/scheduler_config.json", json_form, 1),
            )
        ),
    )
}
