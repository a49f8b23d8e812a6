"""LightGBM's text model, checked before LightGBM reads it: a damaged text can end the process or hang it.

The format is that of `GBDT::SaveModelToString` and `Tree::ToString` (version v4): a head, the trees,
`end of trees`, then importances and parameters, which no answer needs. A tree of L leaves is arrays over its
L - 1 splits and its leaves; a child of -1 - i means leaf i.
"""

import re

import numpy as np

SPLITS = {
    "split_feature": int,
    "split_gain": float,
    "threshold": float,
    "decision_type": int,
    "left_child": int,
    "right_child": int,
    "internal_value": float,
    "internal_weight": float,
    "internal_count": int,
}
LEAVES = {"leaf_value": float, "leaf_weight": float, "leaf_count": int}
SINGLE = ("num_leaves", "num_cat", "is_linear")
HEADER = (
    "version",
    "num_class",
    "num_tree_per_iteration",
    "label_index",
    "max_feature_idx",
    "objective",
    "feature_names",
    "feature_infos",
    "tree_sizes",
)
BY_CATEGORY = 1  # the bit of decision_type that says that a threshold numbers a set of categories


def checked(text: str, num_columns: int, num_outputs: int) -> str:
    """The text without parameters: an unknown name there ends the process, and one is the number of threads.
    Raises ValueError, naming the place, unless LightGBM can read it and it fits the table."""
    body, _, tail = text.partition("\nend of trees\n")
    head, _, trees = body.partition("\nTree=")
    require("\0" not in text, "it holds a character that ends it for LightGBM")
    require("\npandas_categorical:null" in tail, "it is truncated: its end is missing")
    sizes = check_head(head, num_columns, num_outputs)
    trees = f"Tree={trees}\n"
    require(sum(sizes) == len(trees), f"its trees have {len(trees)} characters, not {sum(sizes)}")
    for place, end in enumerate(np.cumsum(sizes).tolist()):
        try:
            check_tree(entries(trees[end - sizes[place] : end]), place, num_columns)
        except (ValueError, KeyError) as error:
            raise ValueError(f"tree {place}: {error}") from error
    return f"{body}\nend of trees\n\npandas_categorical:null\n"


def require(sound: bool | np.bool_, fault: str) -> None:
    if not sound:
        raise ValueError(fault)


def entries(block: str) -> dict[str, str]:
    """{key: value} of lines KEY=VALUE."""
    pairs = [line.split("=", 1) for line in block.split("\n") if line]
    require(all(len(pair) == 2 for pair in pairs), "a line is not KEY=VALUE")
    require(len({pair[0] for pair in pairs}) == len(pairs), "a key occurs twice")
    return dict(pairs)


def numbers(text: str, kind: type) -> np.ndarray:
    """float64 or int64 of a line of numbers; neither huge ones nor Python's own notations."""
    allowed, bound = (r"[-+.0-9e ]*", 1.8e308) if kind is float else (r"[-0-9 ]*", 2.0**53)
    require(re.fullmatch(allowed, text) is not None, f"'{text[:40]}' are no numbers")
    values = np.array(text.split(), dtype=np.float64)
    require((np.abs(values) < bound).all(), "a number is too large")
    return values.astype(kind)


def number(text: str, kind: type) -> float:
    values = numbers(text, kind)
    require(len(values) == 1, f"'{text[:40]}' is not one number")
    return values.item()


def check_head(head: str, num_columns: int, num_outputs: int) -> list[int]:
    """The length of each tree."""
    first, _, rest = head.partition("\n")
    found = entries(rest)
    require(first == "tree" and set(found) == set(HEADER), "its head is not that of a LightGBM model")
    num_scores = num_outputs if num_outputs > 2 else 1
    objective = (
        ("regression", "binary sigmoid:1")[num_outputs - 1]
        if num_outputs < 3
        else f"multiclass num_class:{num_outputs}"
    )
    wanted = {
        "num_class": str(num_scores),
        "num_tree_per_iteration": str(num_scores),
        "label_index": "0",
        "max_feature_idx": str(num_columns - 1),
        "objective": objective,
    }
    for name, value in wanted.items():
        require(found[name] == value, f"{name} is {found[name][:40]}, but its table needs {value}")
    for name in ("feature_names", "feature_infos"):
        listed = found[name].split(" ")
        require(
            len(listed) == num_columns and all(map(str.strip, listed)), f"{name} does not list {num_columns} columns"
        )
    sizes = numbers(found["tree_sizes"], int)
    whole = len(sizes) > 0 and len(sizes) % num_scores == 0
    require(whole and (sizes > 0).all(), "its number of trees is wrong")
    return sizes.tolist()


def check_tree(found: dict[str, str], place: int, num_columns: int) -> None:
    require(found.pop("Tree") == str(place), "it is out of place")
    num_leaves, num_sets, linear = (int(number(found.pop(name), int)) for name in SINGLE)
    number(found.pop("shrinkage"), float)
    require(num_leaves >= 1 and num_sets >= 0 and linear == 0, "it has no leaves, or is linear")
    sets = [numbers(found.pop(name), int) for name in ("cat_boundaries", "cat_threshold")] if num_sets else []
    require(found.keys() == (SPLITS | LEAVES).keys(), "an array is missing or unknown")
    arrays = {name: numbers(found[name], kind) for name, kind in (SPLITS | LEAVES).items()}
    for name, values in arrays.items():
        lengths = {num_leaves - 1} if name in SPLITS else {num_leaves, 0} if num_leaves == 1 else {num_leaves}
        require(len(values) in lengths, f"{name} has {len(values)} entries for {num_leaves} leaves")
    require(len(arrays["leaf_value"]) == num_leaves, "leaf_value is empty")
    check_splits(arrays, num_leaves, num_columns)
    check_sets(arrays, num_sets, sets)


def check_splits(arrays: dict[str, np.ndarray], num_leaves: int, num_columns: int) -> None:
    """Every split and every leaf is the child of one split, which stands before it."""
    features, decisions = arrays["split_feature"], arrays["decision_type"]
    require(((features >= 0) & (features < num_columns)).all(), "split_feature names no column")
    require(((decisions >= 0) & (decisions < 16)).all(), "decision_type is unknown")
    children = np.concatenate([arrays["left_child"], arrays["right_child"]])
    every = np.r_[-num_leaves:0, 1 : num_leaves - 1] if num_leaves > 1 else children[:0]
    require(np.array_equal(np.sort(children), every), "its children are not each split and leaf once")
    parents = np.tile(np.arange(num_leaves - 1), 2)
    require(((children < 0) | (children > parents)).all(), "a split is its own ancestor")


def check_sets(arrays: dict[str, np.ndarray], num_sets: int, sets: list[np.ndarray]) -> None:
    """The sets of categories: words of 32 bits from one boundary to the next."""
    chosen = arrays["threshold"][(arrays["decision_type"] & BY_CATEGORY) == 1]
    require(np.isin(chosen, np.arange(num_sets)).all(), "a threshold names no set of categories")
    if num_sets:
        bounds, words = sets
        rising = len(bounds) == num_sets + 1 and bounds[0] == 0 and (np.diff(bounds) > 0).all()
        require(rising and bounds[-1] == len(words), "its sets of categories are wrong")
        require(((words >= 0) & (words < 2**32)).all(), "a set of categories is wrong")
