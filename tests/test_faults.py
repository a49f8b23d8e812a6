"""A fault in a family, of the kind that no exception tells: one fact is changed, and the check that is named must find it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from onnuri import hub, registry
from onnuri.conformance import FACTS
from onnuri.conformance.subject import ANSWER, Subject
from onnuri.errors import BrokenPromise, OnnuriError
from onnuri.family import Family, Generators
from onnuri.weights.matrices import weights

Mutation = Callable[[Family], dict[str, Any]]


def outputs(change: Callable) -> Mutation:
    """The fact `outputs` with its values changed; what the family's own functions call stays as it is."""
    return lambda family: {"outputs": lambda net, batch: change(*family.outputs(net, batch))}


def loss(change: Callable) -> Mutation:
    return lambda family: {"loss": lambda net, batch, player: change(*family.loss(net, batch, player))}


def squares_turned(values: torch.Tensor, mask: torch.Tensor) -> tuple:
    side = round(values.shape[2] ** 0.5)
    return values.unflatten(2, (side, side)).transpose(2, 3).flatten(2), mask


def with_buffer(persistent: bool) -> Mutation:
    """A net that holds what it learnt from the data in a buffer that write leaves out and read sets to ones."""

    def mutation(family: Family) -> dict[str, Any]:
        def start(config, records, generator):
            net, assets = family.start(config, records, generator)
            net.register_buffer("spread", torch.full((3,), float(len(records))), persistent=persistent)
            return net, assets

        def write(net, assets, folder, weights):
            held = net._buffers.pop("spread")
            family.write(net, assets, folder, weights)
            net.register_buffer("spread", held, persistent=persistent)

        def read(folder, empty):
            net, assets = family.read(folder, empty)
            net.register_buffer("spread", torch.ones(3), persistent=persistent)
            return net, assets

        return {"start": start, "write": write, "read": read}

    return mutation


def forgotten_number(family: Family) -> dict[str, Any]:
    """Outputs are multiplied by a number that lies in no tensor at all."""

    def start(config, records, generator):
        net, assets = family.start(config, records, generator)
        net.__dict__["unit"] = 3.0
        return net, assets

    def scaled(net, batch):
        values, mask = family.outputs(net, batch)
        return values * net.__dict__.get("unit", 1.0), mask

    return {"start": start, "outputs": scaled}


def untied(family: Family) -> dict[str, Any]:
    def read(folder, empty):
        net, assets = family.read(folder, empty)
        for weight in weights(net):
            for module, attribute in weight.homes[1:]:
                setattr(module, attribute, torch.nn.Parameter(weight.value.detach().clone()))
        return net, assets

    return {"read": read}


def labels_turned_when_read(family: Family) -> dict[str, Any]:
    def read(folder, empty):
        net, assets = family.read(folder, empty)
        return net, replace(assets, labels=assets.labels[::-1])

    return {"read": read}


def labels_turned_in_batches(family: Family) -> dict[str, Any]:
    def collate(records, assets, generators):
        batch = family.collate(records, assets, generators)
        return batch | ({"labels": 1 - batch["labels"]} if "labels" in batch else {})

    return {"collate": collate}


def one_generator(family: Family) -> dict[str, Any]:
    return {
        "collate": lambda records, assets, gs: family.collate(records, assets, [gs[0] for _ in range(len(records))])
    }


def sampled(change: Callable[[dict, dict], dict]) -> Mutation:
    """The fact `sample` with each answer changed: (record, answer) -> answer."""

    def mutation(family: Family) -> dict[str, Any]:
        def sample(net, assets, records, generators):
            return [change(*pair) for pair in zip(records, family.sample(net, assets, records, generators))]

        return {"sample": sample}

    return mutation


def own_generators(family: Family) -> dict[str, Any]:
    def sample(net, assets, records, generators):
        return family.sample(net, assets, records, Generators(0, range(len(records))))

    return {"sample": sample}


def scored(change: Callable[[dict], dict]) -> Mutation:
    return lambda family: {"score": lambda records, answers, assets: change(family.score(records, answers, assets))}


def numbers_of_another_type(family: Family) -> dict[str, Any]:
    def encoding(assets) -> dict[str, dict]:
        others = {"float32": "float64", "float64": "float32", "int64": "int32"}
        return {name: {**entry, "type": others[entry["type"]]} for name, entry in family.encoding(assets).items()}

    return {"encoding": encoding}


def lucky(family: Family) -> dict[str, Any]:
    """Draws from the global state: the same generators, other tensors."""

    def start(config, records, generator):
        return family.start(config, records, torch.Generator().manual_seed(int(torch.randint(99, ()))))

    return {"start": start}


IMAGES, LABELS, ALL = (
    ("gan", "diffusion"),
    ("image_classifier", "text_classifier", "tabular"),
    ("tabular", "sequence", "gan"),
)
FACT_FAULTS: dict[str, tuple[Mutation, str, tuple[str, ...]]] = {
    # what was changed: (the mutation, the check that must find it, the families)
    "places and depth swapped": (
        outputs(lambda values, mask: (values.transpose(1, 2), mask)),
        "outputs",
        ("causal_lm", "sequence", "text_classifier"),
    ),
    "labels in another order": (
        outputs(lambda values, mask: (values.flip(2), mask)),
        "sample on any runtime",
        (*LABELS, "forest"),
    ),
    "height and width swapped": (outputs(squares_turned), "sample on any runtime", IMAGES),
    "time runs backward": (
        outputs(lambda values, mask: (values.flip(1), mask)),
        "sample on any runtime",
        ("sequence",),
    ),
    "padding counts as places": (
        outputs(lambda values, mask: (values, torch.ones_like(mask))),
        "each record for itself",
        ("causal_lm",),
    ),
    "outputs are centered over the batch": (
        outputs(lambda values, mask: (values - values.mean(0), mask)),
        "each record for itself",
        (*ALL, "forest"),
    ),
    "mean over the batch": (
        loss(lambda total, count: (total.mean().expand_as(total), count)),
        "each record for itself",
        ("tabular", "causal_lm", "gan", "diffusion"),
    ),
    "one number for the batch": (loss(lambda total, count: (total.mean(), count)), "each record for itself", ALL),
    "divided by the batch's size": (
        loss(lambda total, count: (total / len(total), count)),
        "each record for itself",
        (*ALL, "image_classifier"),
    ),
    "mean over places": (
        loss(lambda total, count: (total / count, count)),
        "loss is a sum",
        ("causal_lm", "sequence", "diffusion"),
    ),
    "the loss follows no gradient": (
        loss(lambda total, count: (total.detach(), count)),
        "players and learning",
        (*ALL, "text_classifier"),
    ),
    "a stored buffer is left out": (with_buffer(True), "write and read: tensors", (*ALL, "image_classifier")),
    "a learnt buffer is not stored": (with_buffer(False), "write and read: tensors", (*ALL, "image_classifier")),
    "a number beside the tensors": (forgotten_number, "write and read: outputs", (*ALL, "causal_lm")),
    "untied when read": (untied, "write and read: tied weights", ("causal_lm",)),
    "labels turned when read": (labels_turned_when_read, "write and read: outputs", LABELS),
    "labels turned in batches": (labels_turned_in_batches, "players and learning", LABELS),
    "read in training mode": (
        lambda family: {
            "read": lambda folder, empty: (lambda net, assets: (net.train(), assets))(*family.read(folder, empty))
        },
        "write and read: tensors",
        ALL,
    ),
    "one generator for a batch": (one_generator, "collate", (*IMAGES, "speech_classifier")),
    "sample has generators of its own": (own_generators, "sample", IMAGES),
    "sample draws from the global state": (
        sampled(lambda record, answer: {**answer, f"{ANSWER}_scores": {"luck": float(torch.rand(()))}}),
        "sample",
        ("tabular", "causal_lm", "sequence"),
    ),
    "sample repeats the answer that it was given": (
        sampled(lambda record, answer: {**answer, ANSWER: record.get(ANSWER, answer[ANSWER])}),
        "sample",
        ("tabular", "sequence", "image_classifier"),
    ),
    "a question is changed": (
        sampled(lambda record, answer: {**answer, **{name: None for name in record if name != ANSWER}}),
        "sample",
        LABELS,
    ),
    "a batch is described of another type": (numbers_of_another_type, "encoding", (*LABELS, "forest")),
    "the headline is not scored": (scored(lambda scores: {"other": 1.0}), "score and headline", ALL),
    "a score is no number": (scored(lambda scores: scores | {"other": float("nan")}), "score and headline", ALL),
    "start draws from the global state": (lucky, "start", (*ALL, "forest")),
    "start leaves its generator alone": (
        lambda family: {"start": lambda config, records, _: family.start(config, records, torch.Generator())},
        "start",
        ALL,
    ),
    "the answer's name is fixed": (
        lambda family: {"fields": lambda assets: (family.fields(assets)[0], ("label", family.fields(assets)[1][1]))},
        "fields",
        ALL,
    ),
    "every folder is mine": (lambda family: {"claims": lambda folder: True}, "claims", ALL),
    "a size is ignored": (
        lambda family: {"like": lambda net, assets, scale, generator: family.like(net, assets, 1, generator)},
        "like",
        ALL,
    ),
    "a part is never trained": (
        lambda family: {"players": lambda net: {"first": next(net.children())}},
        "players and learning",
        ("gan", "tabular", "image_classifier"),
    ),
    "no block is left out": (lambda family: {"keep": lambda net, assets, names: (net, assets)}, "keep", ALL[:2]),
    "features on the records' axis": (
        lambda family: {"blocks": lambda net: {name: (block, 0) for name, (block, _) in family.blocks(net).items()}},
        "blocks",
        ALL,
    ),
}


@pytest.mark.parametrize(
    ("fault", "name"), [(fault, name) for fault, (_, _, names) in FACT_FAULTS.items() for name in names]
)
def test_a_fault_in_a_family_is_found(fault, name, tmp_path):
    mutation, check, _ = FACT_FAULTS[fault]
    family = registry.family(name)
    with pytest.raises(OnnuriError):
        FACTS[check](Subject(replace(family, **mutation(family)), tmp_path))


@pytest.mark.parametrize("name", sorted({name for _, _, names in FACT_FAULTS.values() for name in names}))
def test_without_a_fault_the_same_checks_pass(name, tmp_path):
    subject = Subject(registry.family(name), tmp_path)
    for check in {check for _, check, names in FACT_FAULTS.values() if name in names}:
        assert len(FACTS[check](subject)) > 5


@pytest.mark.parametrize("name", ("tabular", "gan", "causal_lm"))
def test_a_loader_whose_report_nobody_reads_is_found(name, tmp_path, monkeypatch):
    subject = Subject(registry.family(name), tmp_path)
    assert subject.written and subject.described
    monkeypatch.setattr(hub, "check_report", lambda report, folder: None)
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", loose(torch.nn.Module.load_state_dict))
    with pytest.raises(BrokenPromise, match="report is not checked"):
        FACTS["read damaged"](subject)


def loose(load: Callable) -> Callable:
    return lambda net, tensors, strict=True, assign=False: load(net, tensors, strict=False, assign=assign)
