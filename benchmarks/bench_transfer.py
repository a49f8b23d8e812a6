"""What reading without labels is worth: a body that learnt to write reviews, given a head and a share of NSMC's labels.

Beside it the same net from nothing, and TF-IDF with logistic regression; all are judged on the 50,000 reviews of the test. The body
reads for STEPS, a small part of what such nets are given elsewhere: the goals are those of a body that read enough.
"""

from .bench_families import measured, peer
from .harness import Race, Row, Side, train

STEPS = "2400"  # steps of 128 reviews: three quarters of them once
BODY = "hidden_size=192,num_layers=3,num_heads=3,vocab_size=8000,max_length=64"
GOALS = {1: None, 10: 0.878, 100: 0.89}
EPOCHS = {1: "10", 10: "3", 100: "1"}
MAKE = ("python", "{here}/sides/transfer.py", "--data", "{data}", "--kept", "{kept}", "--steps", STEPS, "--body", BODY)


def race(share: int) -> Race:
    labels = f"{{kept}}/labels-{share}"

    def side(name: str, body: str, rate: str) -> Side:
        how = ("--data", labels, "--epochs", EPOCHS[share], "--batch-size", "64", "--learning-rate", rate)
        return Side(name, (train(f"{{kept}}/{body}", "--family", "text_classifier", "--new-head", *how),), measured)

    ours, same = side("onnuri", "body", "0.0005"), side("the same net from nothing", "nothing", "0.001")
    words = peer("TF-IDF + logistic regression", "reviews_sklearn", "--data", labels)
    rows = {each.name: (Row("accuracy", "", "higher", 1.0),) for each in (same, words)}
    rows |= {"": (Row("accuracy", "", "higher", GOALS[share], "ours"),)}
    return Race(f"NSMC with {share} % of its labels", ours, (same, words), rows, MAKE, repeats=1, timed=False)


RACES = tuple(race(share) for share in GOALS)
