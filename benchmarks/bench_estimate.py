"""What `estimate` predicts beside what it then measures: seconds and peak memory of a forward pass and of a training step.

Ten nets of six unlike families, each at one batch: twenty configurations. `ours` is what was predicted before anything was
timed, `peer` what the machine then took; the last rows are the means of the errors.
"""

from .harness import Found, Race, Row, Side

CASES: dict[str, tuple[str, str, str, int]] = {
    "table, 0.6 M": ("tabular", "width=256,layers=3", "columns=20", 512),
    "table, 8 M": ("tabular", "width=1024,layers=4", "columns=60", 1024),
    "convolutions, 32 pixels": ("image_classifier", "width=32", "side=32", 64),
    "convolutions, 64 pixels": ("image_classifier", "width=32", "side=64", 32),
    "text encoder, 2 layers": ("text_classifier", "net=bert", "words=20", 64),
    "text encoder, 4 layers": ("text_classifier", "net=bert,hidden_size=256,num_layers=4,num_heads=4", "words=40", 64),
    "language model, 3 M": ("causal_lm", "", "words=20", 16),
    "language model, 19 M": ("causal_lm", "hidden_size=512,num_layers=6,num_heads=8", "words=40", 16),
    "diffusion, 32 pixels": ("diffusion", "width=64", "side=32", 8),
    "series, convolutions": ("sequence", "design=tcn,width=128,layers=4", "past=192,columns=8", 128),
}
"""{case: (family, config, shape of a record, batch)}."""

WORKS = {"forward pass": ("run", "run"), "training step": ("train", "train")}
"""{work: (its line of memory, its short name)}."""


def side(family: str, config: str, shape: str, batch: int) -> tuple[str, ...]:
    given = ("--family", family, "--config", config, "--shape", shape, "--batch", str(batch))
    return ("python", "{here}/sides/estimates.py", *given)


def figures(report: Found, side: str) -> Found:
    """Of both works: seconds and bytes, predicted or measured."""
    found: Found = {}
    for work, (line, name) in WORKS.items():
        timed = [one for one in report["work"] if one["work"] == work][
            -1
        ]  # of a batch, where one record has a line too
        held = next(one for one in report["memory"] if one["work"] == line)
        found |= {f"{name}_seconds": timed[f"{side}_seconds"], f"{name}_bytes": held[f"{side}_bytes"]}
    return found


def error(report: Found, ending: str) -> list[float]:
    predicted, measured = (figures(report, side) for side in ("predicted", "measured"))
    return [abs(predicted[name] / measured[name] - 1) for name in predicted if name.endswith(ending)]


def errors(reports: list[Found]) -> Found:
    """Means over all configurations."""
    time = [one for report in reports for one in error(report, "_seconds")]
    memory = [one for report in reports for one in error(report, "_bytes")]
    return {
        "mean_error_of_time": sum(time) / len(time),
        "mean_error_of_memory": sum(memory) / len(memory),
        "largest_error_of_time": max(time),
        "largest_error_of_memory": max(memory),
        "configurations": len(time),
    }


def errors_of_one(reports: list[Found]) -> Found:
    """Of one net, and what was predicted."""
    (report,) = reports
    return {
        **figures(report, "predicted"),
        **{
            f"{name}_error_of_{what}": one
            for what, end in (("time", "_seconds"), ("memory", "_bytes"))
            for (_, name), one in zip(WORKS.values(), error(report, end))
        },
    }


def measured_of_one(reports: list[Found]) -> Found:
    return figures(reports[0], "measured")


ALL = "all twenty"
MEANS = (
    Row("mean_error_of_time", "of what is measured", "lower", 0.20, "ours"),
    Row("mean_error_of_memory", "of what is measured", "lower", 0.10, "ours"),
    Row("largest_error_of_time", "of what is measured", "lower"),
    Row("largest_error_of_memory", "of what is measured", "lower"),
)
ONE = tuple(
    Row(f"{name}_error_of_{what}", "of what is measured", "lower")
    for _, name in WORKS.values()
    for what in ("time", "memory")
)
RACES = (
    *(
        Race(case, Side("onnuri", (side(*given),), errors_of_one), (), {"": ONE}, repeats=3)
        for case, given in CASES.items()
    ),
    Race(ALL, Side("onnuri", tuple(side(*given) for given in CASES.values()), errors), (), {"": MEANS}, repeats=3),
)
