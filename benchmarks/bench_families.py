"""Quality on real data, trained from scratch by the command line, beside what people would use instead.

Figures with a limit of time have a row for their seconds: those of the whole command, with opening, measuring and evidence.
"""

from .harness import Found, Race, Row, Side, last, train

PICTURES = 600.0  # seconds for the whole command of each picture model
MADE = 180.0  # seconds of training for each generator
MUON = ("--epochs", "6.8", "--optimizer", "muon", "--learning-rate", "0.008", "--weight-decay", "0.3")
MUON += ("--batch-size", "128", "--config", "smoothing=0.1")
GAN = ("--epochs", "2", "--batch-size", "32", "--config", "width=16")
REVIEWS = ("--family", "text_classifier", "--data", "{data}/nsmc", "--epochs", "3", "--batch-size", "1024")
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")


def script(name: str, *how: str) -> tuple[str, ...]:
    return ("python", f"{{here}}/sides/{name}.py", *how)


def measured(lines: list[Found]) -> Found:
    """The scores of the last ledger line, and the bytes of its model."""
    return {**lines[-1]["after"]["scores"], "bytes": lines[-1]["after"]["bytes"]}


def ours(*commands: tuple[str, ...]) -> Side:
    return Side("onnuri", commands, measured)


def peer(name: str, script_name: str, *how: str) -> Side:
    return Side(name, (script(script_name, *how),), last)


def least(metric: str, goal: float, seconds: float) -> tuple[Row, ...]:
    return (Row(metric, "", "higher", goal, "ours"), Row("wall_seconds", "s", "lower", seconds, "ours"))


def pictures(name: str, how: tuple[str, ...], goal: float, seconds: float, *mirror: str) -> Race:
    """`seconds`: about what ours trains, and so what the peer may."""
    data = f"{{data}}/{name}"
    bare = peer("bare loop, as long", "pictures_torch", "--data", data, "--seconds", f"{seconds:g}", *mirror)
    mine = ours(train("--family", "image_classifier", "--data", data, *how))
    rows = {"": least("accuracy", goal, PICTURES), bare.name: (Row("accuracy", "", "higher"),)}
    return Race(name.upper(), mine, (bare,), rows, repeats=1)


def reviews() -> Race:
    bag, words = (
        peer("hashed n-grams", "reviews_torch", "--data", "{data}/nsmc"),
        peer("TF-IDF + logistic regression", "reviews_sklearn", "--data", "{data}/nsmc"),
    )
    rows = {
        "": least("accuracy", 0.880, 300),
        **{one.name: (Row("accuracy", "", "higher", 1.0),) for one in (bag, words)},
    }
    return Race("NSMC", ours(train(*REVIEWS)), (bag, words), rows, repeats=1)


def small_reviews() -> Race:
    packed = ("onnuri", "quantize", "{work}/large", "--data", "{data}/nsmc", "--out", "{work}/small", "--json")
    rows = (Row("accuracy", "", "higher", 0.875, "ours"), Row("bytes", "B", "lower", 20e6, "ours"))
    return Race("NSMC, packed", ours(train(*REVIEWS, out="{work}/large"), packed), (), {"": rows}, repeats=1)


def income(family: str, goal: float, *how: str) -> Race:
    boosted = peer("HistGradientBoosting", "table_sklearn", "--data", "{data}/adult")
    mine = ours(train("--family", family, "--data", "{data}/adult", *how))
    rows = {"": least("auc", goal, 20), boosted.name: (Row("auc", "", "higher"),)}
    return Race(f"Adult, {family}", mine, (boosted,), rows)


def digits() -> Race:
    machine = peer("MFCC + SVM", "speech_sklearn", "--data", "{data}/fsdd")
    data = ("--data", "{data}/fsdd", "--fields", "audio=audio,label=category")
    how = ("--family", "speech_classifier", *data, "--epochs", "15")
    rows = {"": (Row("accuracy", "", "higher", 0.99, "ours"),), machine.name: (Row("accuracy", "", "higher", 1.0),)}
    return Race("spoken digits, official split", ours(train(*how)), (machine,), rows, repeats=1)


def unheard() -> Race:
    machine = peer("MFCC + SVM", "speech_sklearn", "--data", "{data}/fsdd", "--apart")
    divide = ("python", "{here}/speakers.py", "--data", "{data}/fsdd", "--out", "{work}/apart")
    commands = [
        train(
            "--family", "speech_classifier", "--data", f"{{work}}/apart/{name}", "--epochs", "8", out=f"{{work}}/{name}"
        )
        for name in SPEAKERS
    ]
    mine = Side("onnuri", (divide, *commands), mean_accuracy)
    rows = {"": (Row("accuracy", "", "higher", 0.85, "ours"),), machine.name: (Row("accuracy", "", "higher", 1.0),)}
    return Race("spoken digits, unheard speakers", mine, (machine,), rows, repeats=1)


def mean_accuracy(lines: list[Found]) -> Found:
    scores = [line["after"]["scores"]["accuracy"] for line in lines if "after" in line]
    return {"accuracy": sum(scores) / len(scores)}


def series() -> Race:
    linear = peer("DLinear", "series_torch", "--data", "{data}/ett/ETTh1.csv")
    data = ("--data", "{data}/ett/ETTh1.csv", "--window", "336,96,8640,2880,2880")
    how = ("--family", "sequence", *data, "--patience", "2")
    rows = (Row("mse", "", "lower", 1.0), Row("mae", "", "lower", 1.0))
    return Race("ETTh1, 96 hours", ours(train(*how)), (linear,), {linear.name: rows}, repeats=1)


def generator(family: str, how: tuple[str, ...], **peers: str) -> Race:
    """Handwritten digits made from nothing, judged by a classifier trained here; the peers get about as many seconds.
    `peers`: {their script, after "generator_": their name}."""
    data = "{data}/mnist"
    judging = ("--classifier", "{kept}/judge", "--data", data, "--grid")
    look = ("python", "{here}/frechet.py", "--model", "{work}/model", *judging, "{here}/results/" + family + ".png")
    mine = Side("onnuri", (train("--family", family, "--data", data, *how), look))
    others = tuple(
        peer(
            name, f"generator_{script}", *judging, f"{{here}}/results/generator_{script}.png", "--seconds", f"{MADE:g}"
        )
        for script, name in peers.items()
    )
    prepare = train("--family", "image_classifier", "--data", data, "--epochs", "1", out="{kept}/judge")
    rows = {other.name: (Row("frechet", "", "lower", 1.0),) for other in others}
    return Race(f"handwriting made by {family}", mine, others, rows, prepare, repeats=1)


RACES = (
    pictures("mnist", ("--epochs", "2"), 0.992, 240, "--no-mirror"),
    pictures("cifar10", MUON, 0.88, 540),
    reviews(),
    small_reviews(),
    income("forest", 0.9285),
    income("tabular", 0.912, "--epochs", "5", "--batch-size", "256"),
    digits(),
    unheard(),
    series(),
    generator("gan", GAN, dcgan="PyTorch's DCGAN tutorial", sklearn="PCA + mixture of Gaussians"),
    generator("diffusion", ("--epochs", "0.4"), diffusers="diffusers' tutorial"),
)
