"""evaluate --tasks: the figures of lm-evaluation-harness's own model, and what is said where a task cannot be run."""

import json
import math
import re
import socket
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
import torch
from jinja2.exceptions import SecurityError

from command import onnuri, refused
from onnuri.data import records_of
from onnuri.errors import BadInput, Refusal
from onnuri.model import Model, open_model, write_model
from onnuri.operation import Quiet
from onnuri.operations.evaluate import OPERATION, Settings
from onnuri.operations.evaluate.harness import offline
from onnuri.operations.evaluate.tasks import chosen, foreign
from onnuri.operations.evaluate.templates import Sandbox
from onnuri.registry import family

WORDS = re.findall(
    r"\w+", "the cat sat on a mat and the dog ran to the old house by the sea while two birds sang a song of rain"
)


def sentence(n: int) -> str:
    return " ".join(WORDS[(n * 7 + i * (n % 5 + 1)) % len(WORDS)] for i in range(6 + n % 9))


TASKS = {
    "choice": """
        output_type: multiple_choice
        doc_to_text: "{{question}}"
        doc_to_choice: "{{choices}}"
        doc_to_target: "{{label}}"
        metric_list: [{metric: acc}, {metric: acc_norm}]
        """,
    "rolling": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{text}}"
        metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
        """,
    "sums": """
        output_type: generate_until
        fewshot_split: test
        num_fewshot: 1
        doc_to_text: "Question: {{question}}\\nAnswer:"
        doc_to_target: "{{answer}}"
        generation_kwargs: {until: ["Question:", " the"], do_sample: false, max_gen_toks: 12}
        metric_list: [{metric: exact_match, regexes_to_ignore: [",", "\\\\$"]}]
        filter_list:
          - name: first-word
            filter: [{function: regex, regex_pattern: "([a-z]+)"}, {function: take_first}]
        """,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny model that learnt a little, a folder of tasks, and their data."""
    from textwrap import dedent

    place = tmp_path_factory.mktemp("harness")
    texts = [sentence(n) for n in range(200)]
    rows = {
        "choice": [
            {"question": t.rsplit(" ", 2)[0], "choices": [" of rain", " a mat and", " " + " ".join(t.split()[-2:])], "label": 2}
            for t in texts[:24]
        ],
        "rolling": [{"text": " ".join(texts[n : n + 6])} for n in range(8)],
        "sums": [{"question": t, "answer": WORDS[n % 5]} for n, t in enumerate(texts[:10])],
    }  # fmt: skip
    for name, text in TASKS.items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[name]), encoding="utf-8")
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {name}.jsonl}}}}\ntest_split: test\n"
        (place / f"{name}.yaml").write_text(head + dedent(text), encoding="utf-8")
    records = records_of([{"text": text} for text in texts], {"text": "text"}, "text")
    config = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 300, "max_length": 64}
    kind = family("causal_lm")
    model = Model(kind, *kind.start(config, records, torch.Generator().manual_seed(0)))
    with torch.no_grad():
        for parameter in model.net.parameters():
            parameter.mul_(3)  # far from even chances, so that a slip shows
    (place / "model").mkdir()
    write_model(model, place / "model")
    return place


def measured(place, **settings) -> dict:
    result = OPERATION.apply(Settings.model_validate(settings), Quiet(), open_model(place / "model"))
    assert result.report
    return result.report


def test_figures_are_those_of_the_programs_own_model(place, monkeypatch):
    """Same folder through HFLM: every metric and standard error. fp32 sums in other orders: relative 1e-5."""
    pytest.importorskip("lm_eval", reason="the extra harness is not installed")
    monkeypatch.chdir(place)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from onnuri.operations.evaluate import harness

    found = measured(place, tasks=str(place), batch_size=5)
    with harness.offline():
        theirs = simple_evaluate(
            model=HFLM(pretrained=str(place / "model"), device="cpu", dtype="float32", batch_size=3, max_length=64),
            tasks=chosen(str(place)), bootstrap_iters=harness.SAMPLES, log_samples=False,
        )  # fmt: skip
    assert found["tasks"].keys() == TASKS.keys() == theirs["results"].keys()
    for task, result in theirs["results"].items():
        wanted = harness.figures(result)
        assert wanted and found["tasks"][task].keys() == wanted.keys()
        for metric, one in wanted.items():
            assert found["tasks"][task][metric] == {
                name: None if value is None else pytest.approx(value, rel=1e-5) for name, value in one.items()
            }
    assert 0 < found["tasks"]["choice"]["acc"]["value"] < 1 and found["tasks"]["choice"]["acc"]["error"] > 0
    assert found["documents"] == {"choice": 24, "rolling": 8, "sums": 10}


def test_whole_texts_are_judged_in_windows(place):
    """Byte perplexity of long texts against a sum over all windows made by hand, with transformers alone."""
    pytest.importorskip("lm_eval", reason="the extra harness is not installed")
    model = open_model(place / "model")
    nats = size = 0.0
    for line in (place / "rolling.jsonl").read_text(encoding="utf-8").splitlines():
        text = json.loads(line)["text"]
        ids = model.assets.tokenizer(text).input_ids
        assert len(ids) > 64, "longer than the model reads"
        begin = model.assets.tokenizer.bos_token_id
        whole = [model.assets.end if begin is None else begin, *ids]
        for start in range(0, len(ids), 64):
            end = min(start + 64, len(ids))
            first = max(0, end - 64)
            with torch.no_grad():
                logits = model.net(torch.tensor([whole[first:end]])).logits[0].log_softmax(-1)
            wanted = torch.tensor(whole[start + 1 : end + 1])
            nats -= float(logits[start - first :].gather(1, wanted[:, None]).sum())
        size += len(text.encode())
    found = measured(place, tasks=f"{place}/rolling.yaml")["tasks"]["rolling"]
    assert found["byte_perplexity"]["value"] == pytest.approx(math.exp(nats / size), rel=1e-5)


def test_names_limits_and_batches(place):
    pytest.importorskip("lm_eval", reason="the extra harness is not installed")
    one, many = (measured(place, tasks=f"{place},sums,choice", limit=4, batch_size=n) for n in (1, 64))
    assert one["tasks"].keys() == {"sums", "choice"} and one["documents"] == {"sums": 4, "choice": 4}
    for task, result in one["tasks"].items():
        assert {name: pytest.approx(value["value"], abs=1e-6) for name, value in result.items()} == {
            name: value["value"] for name, value in many["tasks"][task].items()
        }
    assert "choice: acc " in onnuri("evaluate", place / "model", "--tasks", f"{place},choice", "--limit", 4).out


HUB = "task: far\ndataset_path: openai/gsm8k\noutput_type: generate_until\n"
CODE = "task: own\ndataset_path: json\ndataset_kwargs: {data_files: x.jsonl}\nprocess_docs: !function utils.process\n"
OWN = "task: own\ndataset_path: json\ndataset_kwargs:\n  data_files: x.jsonl\n"
GONE = "task: gone\ndataset_path: json\ndataset_kwargs: {data_files: {test: nowhere.jsonl}}\n"


@pytest.mark.parametrize(
    "text, said",
    [
        (HUB, "far: its data 'openai/gsm8k' are on the Hub, and nothing is fetched; save them to a file and say"),
        (CODE, "own: !function utils.process would run a Python file of the task's own"),
        (GONE, "gone: there is no data file"),
        ("task: bare\ndataset_path: csv\n", "bare: `dataset_kwargs: {data_files: ...}` names no file to read"),
        ("dataset_path: json\n", "has no task"),
        ("task: [1\n", "cannot be read"),
        ("- 1\n", "is no task"),
        ("include: a.yaml\n", "includes itself"),
        (f"{OWN}  data_dir: https://host/folder\n", "own: 'data_dir' in `dataset_kwargs` is not taken here"),
        (f"{OWN}use_prompt: promptsource:all\n", "own: `use_prompt` takes templates from elsewhere"),
    ],
)
def test_what_cannot_be_run_is_told(text, said, tmp_path):
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=said[:4]) as error:
        chosen(str(tmp_path))
    assert said in str(error.value)


ESCAPES = (
    "{{ cycler.__init__.__globals__.os.popen('touch marker').read() }}",
    "{{ (cycler|attr('__in' ~ 'it__')).x }}",
    "{{ '{0.__class__}'.format(text) }}",
    "{{ text.append('more') }}",
    "{{ file.write_text('more') }}",
)


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_reaches_nothing_but_the_data(template, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SecurityError):
        Sandbox({}).from_string(template).render(text=["one"], file=tmp_path / "marker")
    assert not (tmp_path / "marker").exists()
    plain = "{% for word in text %}{{ loop.index }} {{ word.split(' ')[0] | upper }}{% endfor %}\n"
    assert Sandbox({}).from_string(plain).render(text=["one two"]) == "1 ONE\n"


def test_metrics_from_elsewhere_are_told():
    listed = [{"metric": "acc"}, {"metric": "./own.py"}, {"metric": "acc", "hf_evaluate": True}, {}]
    said = foreign({"task": "t", "metric_list": listed}, ["acc"])
    assert [fault.split("'")[1] for fault in said] == ["./own.py", "acc", "None"]
    assert not foreign({"task": "t"}, ["acc"]) and "must be a list" in foreign({"task": "t", "metric_list": "x"}, [])[0]


EVIL = "import pathlib\npathlib.Path('marker').touch()\n"


@pytest.mark.parametrize(
    "was, now, said",
    [
        ('doc_to_text: "{{question}}"', f'doc_to_text: "{ESCAPES[0]}"', "evil.yaml: a template may only use the data"),
        ("{metric: acc}", "{metric: ./marker.py}", "choice: the metric './marker.py' would be a program"),
        ("{metric: acc}", "{metric: ./marker.py, hf_evaluate: true}", "choice: the metric './marker.py' would be"),
    ],
)
def test_no_task_runs_a_program(was, now, said, place, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="the extra harness is not installed")
    monkeypatch.chdir(tmp_path)
    task = (place / "choice.yaml").read_text(encoding="utf-8")
    assert was in task
    (tmp_path / "choice.jsonl").write_bytes((place / "choice.jsonl").read_bytes())
    (tmp_path / "evil.yaml").write_text(task.replace(was, now), encoding="utf-8")
    (tmp_path / "marker.py").write_text(EVIL, encoding="utf-8")
    with pytest.raises(BadInput, match=said):
        measured(place, tasks=f"{tmp_path}/evil.yaml")
    assert not (tmp_path / "marker").exists()


def test_no_file_of_a_task_is_fetched_from_elsewhere(place, tmp_path):
    """A parquet file may say of a column that it is pictures, which lie at addresses."""
    datasets = pytest.importorskip("datasets", reason="the extra harness is not installed")
    pytest.importorskip("lm_eval", reason="the extra harness is not installed")
    import pyarrow as pa
    import pyarrow.parquet as pq

    asked = []

    class Told(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

    server = HTTPServer(("127.0.0.1", 0), Told)
    Thread(target=server.serve_forever, daemon=True).start()
    rows = [json.loads(line) for line in (place / "choice.jsonl").read_text(encoding="utf-8").splitlines()]
    pictures = [{"bytes": None, "path": f"http://127.0.0.1:{server.server_port}/one"} for _ in rows]
    table = pa.table({"picture": pictures, **{name: [row[name] for row in rows] for name in rows[0]}})
    plain = datasets.Features.from_arrow_schema(table.schema)
    features = datasets.Features({**plain, "picture": datasets.Image()})
    table = table.replace_schema_metadata(features.arrow_schema.metadata)
    pq.write_table(table, tmp_path / "choice.parquet")
    task = (place / "choice.yaml").read_text(encoding="utf-8")
    task = task.replace("dataset_path: json", "dataset_path: parquet").replace("choice.jsonl", "choice.parquet")
    (tmp_path / "choice.yaml").write_text(task, encoding="utf-8")
    folders = datasets.config.HF_DATASETS_CACHE
    try:
        with offline():
            assert folders != datasets.config.HF_DATASETS_CACHE
            with pytest.raises(OSError, match="no network"):
                socket.create_connection(("127.0.0.1", server.server_port))
        found = measured(place, tasks=f"{tmp_path}/choice.yaml")
    finally:
        server.shutdown()
        server.server_close()
    assert found["tasks"]["choice"] and not asked and folders == datasets.config.HF_DATASETS_CACHE


def test_an_empty_text_ends_nothing(place):
    """`until: [""]` is in every text."""
    pytest.importorskip("lm_eval", reason="the extra harness is not installed")
    from onnuri.decoding import written
    from onnuri.operations.evaluate.tokens import Until

    model = open_model(place / "model")
    writing = model.family.writing(model.net, model.assets)
    assert writing
    one, none = (written(writing, [[5, 6]], 8, Until(writing, 1, until)) for until in ([""], []))
    assert one == none and len(one[0]) > 1


def test_a_model_that_reads_question_and_answer_apart_refuses(tmp_path):
    kind = family("seq2seq")
    model = Model(kind, *kind.start(kind.tiny(), kind.toy(32, 0), torch.Generator().manual_seed(0)))
    with pytest.raises(Refusal, match="reads the two apart"):
        OPERATION.apply(Settings(tasks=str(tmp_path)), Quiet(), model)


def test_all_faults_of_all_tasks_at_once_and_names_are_proposed(tmp_path):
    for number, text in enumerate((HUB, CODE, GONE)):
        (tmp_path / f"{number}.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(BadInput) as error:
        chosen(str(tmp_path))
    assert len(error.value.faults) == 3
    with pytest.raises(BadInput, match="has no task 'fra'; did you mean far"):
        chosen(f"{tmp_path},fra")
    with pytest.raises(BadInput, match="does not exist"):
        chosen(str(tmp_path / "no"))


def test_included_entries_give_way_to_the_tasks_own(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "dataset_path: json\noutput_type: multiple_choice\nrepeats: 2\n", encoding="utf-8"
    )
    (tmp_path / "d.jsonl").write_text("{}\n", encoding="utf-8")
    text = "task: one\ninclude: base.yaml\nrepeats: 1\ndataset_kwargs: {data_files: {test: [d.jsonl]}}\n"
    (tmp_path / "one.yaml").write_text(text, encoding="utf-8")
    (task,) = chosen(str(tmp_path))
    assert task["output_type"] == "multiple_choice" and task["repeats"] == 1
    assert task["dataset_kwargs"] == {"data_files": {"test": [str(tmp_path / "d.jsonl")]}}


def test_a_model_that_answers_at_once_refuses(tmp_path):
    kind = family("tabular")
    model = Model(kind, *kind.start(kind.tiny(), kind.toy(32, 0), torch.Generator().manual_seed(0)))
    with pytest.raises(Refusal, match="answers come at once"):
        OPERATION.apply(Settings(tasks=str(tmp_path)), Quiet(), model)


def test_settings_that_say_nothing_or_too_much_are_told(place):
    model = place / "model"
    refused(onnuri("evaluate", model), "nothing to measure on")
    refused(onnuri("evaluate", model, "--data", "toy:causal_lm", "--limit", 2), "'limit' has no effect without 'tasks'")
    refused(onnuri("evaluate", model, "--data", "toy:causal_lm", "--tasks", place), "'tasks' bring their own data")
    idle = refused(
        onnuri("evaluate", model, "--tasks", place, "--split", "all", "--seed", 1), "'split' has no effect with"
    )
    assert "'seed' has no effect with 'tasks'" in idle
