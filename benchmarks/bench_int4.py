"""4 bits on a Llama of 23 M that learnt Korean film reviews: ours beside llm-compressor, torchao and llama.cpp, at equal bytes.

All sides see the same 128 windows of 128 tokens, quantize the same matrices in groups of 32, and are judged on the same 512
held-out windows: how much the perplexity rises, and how far the next token's distribution is from that of the float model. The
codes have no offset, but for torchao's. Ours measures the model before and after, writes a card, a report and a ledger line, and
opens what it wrote again; the peers write the folder. They have the setting of our allocator.
"""

import sys

from .harness import ALLOCATOR, Found, Race, Row, Side

MODEL = ("python", "{here}/sides/int4.py", "--kept", "{kept}", "--data", "{data}")
TEXTS = ("--data", "{kept}/texts", "--answer", "text")
JUDGE = (sys.executable, "{here}/sides/int4_score.py", "--kept", "{kept}", "--model", "{work}/model")
JUDGE_GGUF = (sys.executable, "{here}/sides/int4_gguf.py", "--kept", "{kept}", "--file")
EQUAL, BELOW = 1.0, 1 / 0.7  # goals of a divergence, as ratios

# ------------------------------------------------------------------------------------------- folders of transformers


def ours(method: str) -> Side:
    quantize = ("onnuri", "quantize", "{kept}/lm", *TEXTS, "--scheme", "int4", "--layout", "compressed-tensors")
    return Side("onnuri", ((*quantize, "--method", method, "--out", "{work}/model", "--json"), JUDGE), judged)


def peer(name: str, script: str, *how: str) -> Side:
    """`script`: its name ends with that of its venv."""
    command = ("python", f"{{here}}/sides/{script}.py", "--kept", "{kept}", "--out", "{work}/model", *how)
    return Side(name, (command, JUDGE), judged, ALLOCATOR, script.removeprefix("int4_"))


def judged(lines: list[Found]) -> Found:
    """What the judge says; of its maker the seconds without opening and writing, and what the process took. `matrix_bytes`: of
    codes and scales, which a maker tells that writes plain numbers."""
    made, says = lines
    seconds = made.get("quantizing_seconds", made.get("seconds"))
    size = made.get("matrix_bytes", says["matrix_bytes"])
    return {**says, "quantizing_seconds": seconds, "matrix_bytes": size, **taken(lines[:-1])}


def taken(made: list[Found]) -> Found:
    """By the processes that made something, without the judge."""
    return {
        "wall_seconds": sum(line["process_seconds"] for line in made),
        "peak_memory_bytes": max(line["process_bytes"] for line in made),
    }


FLOAT = (Row("perplexity_before", "", "lower", None, "ours"),)
FOLDERS = (
    Row("perplexity_rise", "%", "lower", 1.0),
    Row("divergence", "nats", "lower", 1.0),
    Row("matrix_bytes", "B", "lower", 1.0),
    Row("quantizing_seconds", "s", "lower", 1.0),
    Row("wall_seconds", "s", "lower", 1.0),
)
LLM = "llm-compressor"
PEERS: dict[str, tuple[Side, ...]] = {
    "nearest": (peer(LLM, "int4_llmcompressor", "--method", "rtn"),),
    "gptq": (
        peer(LLM, "int4_llmcompressor", "--method", "gptq"),
        peer(f"{LLM}, mse", "int4_llmcompressor", "--method", "gptq", "--observer", "memoryless_mse"),
    ),
    "awq": (peer(LLM, "int4_llmcompressor", "--method", "awq"), peer("torchao", "int4_torchao")),
    "awq-gptq": (peer(LLM, "int4_llmcompressor", "--method", "awq-gptq"),),
}


def race(method: str) -> Race:
    rows = {"": FLOAT} | {side.name: FOLDERS for side in PEERS[method]}
    return Race(f"23 M Llama, {method}", ours(method), PEERS[method], rows, MODEL)


# ---------------------------------------------------------------------------------------------------- files of llama.cpp


def our_file() -> Side:
    how = ("--scheme", "int4", "--method", "gptq", "--no-embeddings", "--out", "{work}/packed", "--json")
    quantize = ("onnuri", "quantize", "{kept}/lm", *TEXTS, *how)
    export = ("onnuri", "export", "{work}/packed", *TEXTS, "--to", "gguf", "--precision", "int4")
    judge = (*JUDGE_GGUF, "{work}/model/onnuri/model.gguf")
    return Side("onnuri", (quantize, (*export, "--out", "{work}/model", "--json"), judge), judged_file)


def their_file(name: str, how: str) -> Side:
    judge = (*JUDGE_GGUF, "{work}/model.gguf")
    return Side(name, ((*judge, "--make", how), judge), judged_file)


def judged_file(lines: list[Found]) -> Found:
    return {**lines[-1], **taken(lines[:-1])}


def file_rows(goal: float | None) -> tuple[Row, ...]:
    return (
        Row("divergence", "nats", "lower", goal),
        Row("perplexity_rise", "%", "lower"),
        Row("file_bytes", "B", "lower", 1.0),
        Row("wall_seconds", "s", "lower"),
    )


FILES = {
    "plain": ("llama.cpp Q4_0", BELOW),
    "imatrix": ("llama.cpp Q4_0, imatrix", EQUAL),
    "plain-table": ("llama.cpp Q4_0, its table in Q6_K", None),
}
"""{how it is made: (name, goal of the divergence)}"""

GGUF = Race(
    "23 M Llama, gptq to GGUF",
    our_file(),
    tuple(their_file(name, how) for how, (name, _) in FILES.items()),
    {name: file_rows(goal) for name, goal in FILES.values()},
    MODEL,
)

RACES = (*map(race, PEERS), GGUF)
