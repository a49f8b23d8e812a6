"""What Onnuri takes for itself: starting, and the evidence around the work. No peer keeps such evidence; goals stand alone."""

from .harness import Race, Row, Side

STARTS = 5

BARE = Side("python", (("python", "-c", "pass"),))
EVIDENCE = Side("onnuri", (("python", "{here}/sides/evidence.py", "--work", "{work}"),))


def start(case: str, *command: str) -> Race:
    """A process of ours against one of Python that does nothing."""
    rows = {"": (Row("wall_seconds", "s", "lower", 0.3, "ours"),), BARE.name: (Row("wall_seconds", "s", "lower"),)}
    return Race(case, Side(case, (command,)), (BARE,), rows, repeats=STARTS)


RACES = (
    start("onnuri --help", "onnuri", "--help"),
    start("import onnuri", "python", "-c", "import onnuri"),
    Race(
        "evidence of a training of 60 s",
        EVIDENCE,
        (),
        {
            "": (
                Row("evidence_share", "of the operation", "lower", 0.02, "ours"),
                Row("report_seconds", "s", "lower", 1.0, "ours"),
                Row("measuring_seconds", "s", "lower"),
            )
        },
        repeats=3,
    ),
)
