"""Facts that every one-label classifier shares: answers to indices, the loss, the answers, the scores.

Letters: B records, D labels. Scores: accuracy, macro F1 (the mean over the labels that occur, as scikit-learn
has it), log loss in nats, expected calibration error with 15 equal bins (Guo et al., arXiv:1706.04599).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..data import Kind, Record, Records, as_label, labels_of, required_answer
from ..errors import BadInput
from ..family import Outputs

BINS = 15
SMALLEST = 1e-7  # what a smaller probability counts as: one sure mistake must not make the log loss infinite


def question_of(records: Records, kind: Kind, also: Kind | None = None) -> str:
    """The first question of `kind`, else of kind `also`; BadInput says what was found."""
    for wanted in (kind, also):
        if names := [name for name, found in records.questions.items() if found == wanted]:
            return names[0]
    found = ", ".join(f"{name} ({kind})" for name, kind in records.fields.items())
    raise BadInput(f"no column of kind {kind} to ask about; found {found}", hint=f"--fields NAME={kind},...")


def learn_labels(records: Records) -> tuple[str, ...]:
    """The labels in order; BadInput where the answer is a picture, a sound, a series or a quantity."""
    name = required_answer(records)
    kind = records.fields[name]
    if kind in ("image", "audio", "series"):
        raise BadInput(f"the answer '{name}' holds {kind}, a classifier needs labels", hint="--answer NAME")
    if kind == "number" and any(value and value % 1 for value in records.column(name)):
        raise BadInput(
            f"the answer '{name}' holds numbers with fractions, a classifier needs labels",
            hint=f"another column: --answer NAME, or --fields {name}=category",
        )
    return tuple(labels_of(records))


def label_batch(records: Sequence[Record], answer: str, labels: Sequence[str]) -> dict[str, Tensor]:
    """{"labels": (B,) int64}, or {} where a record lacks its answer."""
    values = [label for record in records if (label := as_label(record.get(answer))) is not None]
    if len(values) < len(records):
        return {}
    index = {label: place for place, label in enumerate(labels)}
    return {"labels": torch.tensor([index[value] for value in values], dtype=torch.int64)}


def stated_labels(config: dict, outputs: int) -> tuple[str, ...]:
    """The labels of a config.json of ours; ValueError unless they are as many as the net has outputs, all unlike."""
    names = tuple(config["labels"])
    if len(names) != outputs or len(set(names)) != len(names):
        raise ValueError(f"it has {outputs} outputs, and {len(set(names))} unlike labels")
    return names


def cross_entropy(outputs: Outputs, labels: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Total (B,) in nats and count (B,), from values (B, 1, D). `smoothing`: the share of each label that all are given
    (Szegedy et al., arXiv:1512.00567)."""
    total = functional.cross_entropy(outputs[0][:, 0].float(), labels, reduction="none", label_smoothing=smoothing)
    return total, torch.ones_like(total)


def one_place(logits: Tensor) -> Outputs:
    """Logits (B, D) as values (B, 1, D) float and a full mask (B, 1)."""
    values = logits.float().unsqueeze(1)
    return values, torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)


def answered(records: Sequence[Record], outputs: Outputs, answer: str, labels: Sequence[str]) -> list[Record]:
    """The records with the likeliest label and {label: probability} in ANSWER_scores."""
    probabilities = outputs[0][:, 0].float().softmax(-1).tolist()
    return [
        {**record, answer: labels[int(np.argmax(row))], f"{answer}_scores": dict(zip(labels, row))}
        for record, row in zip(records, probabilities)
    ]


def label_scores(records: Sequence[Record], answers: Sequence[Record], answer: str) -> dict[str, float]:
    """accuracy, macro_f1, log_loss, calibration_error. A true label unknown to the model is a mistake."""
    truth = np.array([str(as_label(record[answer])) for record in records])
    guess = np.array([found[answer] for found in answers])
    scores = [found[f"{answer}_scores"] for found in answers]
    given = np.array([row.get(label, 0.0) for row, label in zip(scores, truth)])
    right = truth == guess
    return {
        "accuracy": float(right.mean()),
        "macro_f1": float(np.mean([f1(truth == name, guess == name) for name in np.union1d(truth, guess)])),
        "log_loss": float(-np.log(np.maximum(given, SMALLEST)).mean()),
        "calibration_error": calibration_error(np.array([max(row.values()) for row in scores]), right),
    }


def f1(truth: np.ndarray, guess: np.ndarray) -> float:
    """2 TP / (2 TP + FP + FN) of one label that occurs."""
    return float(2 * (truth & guess).sum() / (truth.sum() + guess.sum()))


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """The mean distance of confidence and accuracy over equal bins of confidence, weighted by records."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=confidence - right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(right))
