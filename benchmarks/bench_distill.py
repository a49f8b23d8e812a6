"""A student with 40 % fewer parameters keeps 97 % of its teacher's score; beside the same student, taught alone."""

from .harness import Found, Race, Row, Side
from .lives import data_of, headline, trained

SIZE = "0.5"  # of the teacher's parameters


def taught(name: str, side: str, *how: str) -> Side:
    student = ("onnuri", "distill", "{work}/teacher", *data_of(name), "--size", SIZE, "--epochs", "1", *how)
    return Side(side, (trained(name, "{work}/teacher"), (*student, "--out", "{work}/student", "--json")), found)


def found(lines: list[Found]) -> Found:
    teacher, student = lines
    return {
        "score_kept": headline(student) / headline(teacher),
        "parameters_kept": student["after"]["parameters"] / teacher["after"]["parameters"],
        "teacher": headline(teacher),
        "student": headline(student),
    }


def race(name: str) -> Race:
    rows = (
        Row("score_kept", "of the teacher's", "higher", 0.97, "ours"),
        Row("parameters_kept", "of the teacher's", "lower", 0.6, "ours"),
        Row("student", "", "higher"),
    )
    alone = taught(name, "the same student, alone", "--weight", "0")
    return Race(
        f"{name}, half as large", taught(name, "onnuri"), (alone,), {"": rows[:2], alone.name: rows[2:]}, repeats=1
    )


RACES = tuple(race(name) for name in ("MNIST", "NSMC"))
