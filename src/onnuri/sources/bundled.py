"""Data that need no file: the sets that scikit-learn carries inside its package, and the toys of the families' tests."""

import numpy as np

from .. import registry
from ..data import Kind, Records, records_of
from ..errors import UnknownName, needs_extra, propose

BUILTIN = ("digits", "breast_cancer", "diabetes", "iris", "wine")


def builtin(name: str) -> Records:
    """One of the real data sets that scikit-learn carries inside its package."""
    if name not in BUILTIN:
        raise UnknownName(f"no built-in data is called '{name}'; {propose(name, BUILTIN)}")
    try:
        from sklearn import datasets
    except ImportError:
        raise needs_extra("tabular", "scikit-learn") from None
    bunch = getattr(datasets, f"load_{name}")()
    if name == "digits":  # 8 x 8 pixels of 0..16
        images = np.round(bunch.images * (255 / 16)).astype(np.uint8)
        rows = [{"image": image, "label": str(label)} for image, label in zip(images, bunch.target)]
        return records_of(rows, {"image": "image", "label": "category"}, "label")
    answer = "target" if name == "diabetes" else "label"
    kind: Kind = "number" if name == "diabetes" else "category"
    values = (
        bunch.target.astype(float).tolist() if kind == "number" else [str(bunch.target_names[i]) for i in bunch.target]
    )
    columns = [str(column) for column in bunch.feature_names]
    fields: dict[str, Kind] = {**dict.fromkeys(columns, "number"), answer: kind}
    rows = [{**dict(zip(columns, map(float, row))), answer: value} for row, value in zip(bunch.data, values)]
    return records_of(rows, fields, answer)


def toy(name: str, n: int = 200) -> Records:
    """The generator of a family's own tests, as data."""
    return registry.family(name).toy(n, 0)
