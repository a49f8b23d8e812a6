"""What Onnuri takes for itself: starting, and the evidence around the work. No peer keeps such evidence; goals stand alone."""

from .harness import Race, Row, Side

STARTS = 5

HELP = Side("onnuri --help", (("onnuri", "--help"),))
IMPORT = Side("import onnuri", (("python", "-c", "import onnuri"),))
BARE = Side("python", (("python", "-c", "pass"),))
EVIDENCE = Side("onnuri", (("python", "{here}/sides/evidence.py", "--work", "{work}"),))

RACES = (
    Race(
        "onnuri --help",
        HELP,
        (BARE,),
        {"": (Row("wall_seconds", "s", "lower", 0.3, "ours"),), "python": (Row("wall_seconds", "s", "lower"),)},
        repeats=STARTS,
    ),
    Race(
        "import onnuri",
        IMPORT,
        (BARE,),
        {"": (Row("wall_seconds", "s", "lower", 0.3, "ours"),), "python": (Row("wall_seconds", "s", "lower"),)},
        repeats=STARTS,
    ),
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
