"""Promises measured: on the result as it was saved and opened again, against the inputs, opened anew."""

from typing import Any

from .data import Data
from .operation import Operation, Promise, Result, Settings


def reopened(result: Result, tensors: str) -> dict[str, Any]:
    """The promise that every result keeps: what was saved is what is read."""
    from .model import tensor_digest

    assert result.model is not None
    text = "tensors that differ after saving and opening again"
    return judged(Promise(text, "at most", 0.0, lambda *_: 0.0), float(tensor_digest(result.model.net) != tensors))


def anew(operation: Operation, inputs: dict[str, str], data: Data) -> dict[str, Any]:
    """The models that came in, opened again: the operation may have changed them."""
    from .model import open_model

    taken = [name for name, kind in operation.takes.items() if kind.startswith("model") and name in inputs]
    return {name: open_model(inputs[name]) for name in taken if operation.promises} | {"data": data}


def promises_of(
    operation: Operation, settings: Settings, fresh: dict[str, Any], result: Result
) -> list[dict[str, Any]]:
    """Every promise that applies, measured on the reopened result against the inputs."""
    found = [(promise, promise.measure(settings, fresh, result)) for promise in operation.promises]
    return [judged(promise, value) for promise, value in found if value is not None]


def judged(promise: Promise, value: float) -> dict[str, Any]:
    """What the ledger says of a promise that was measured."""
    right = value <= promise.bound if promise.sense == "at most" else value >= promise.bound
    return {"text": promise.text, "value": value, "bound": promise.bound, "sense": promise.sense, "kept": right}
