"""Write answers token by token: batched, with a draft, bound to a form, with log-probabilities and a confidence that is true."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ...data import Data, Record, as_label
from ...decoding import Chooser, Sampling, answer_of, written
from ...decoding.choosing import Answer
from ...decoding.drafting import drafted
from ...decoding.grammar import Bound, bound, require_form
from ...errors import BadInput, BadSettings, Refusal, propose
from ...family import Generators, Writing
from ...model import Model
from ...operation import Log, Operation, Result
from ...unfinished import answered
from . import compiling, confidence
from .settings import Settings

CALIBRATED = 1024  # answers of which a temperature is fitted at most


@dataclass
class Task:
    """How answers are written, by one model and perhaps a draft."""

    model: Model
    writing: Writing
    draft: Writing | None
    settings: Settings
    form: Bound | None

    @property
    def most(self) -> int:
        return self.settings.max_new_tokens or self.writing.most

    def prompts(self, records: Sequence[Record]) -> tuple[list[list[int]], int]:
        """The questions in tokens, each cut where it leaves no room for an answer; and how many were."""
        room, whole = self.writing.room(self.most), self.writing.prompts(records)
        return [self.writing.shortened(ids, room) for ids in whole], sum(len(ids) > room for ids in whole)

    @torch.no_grad()
    def answers(
        self, records: Sequence[Record], keys: range, temperatures: Sequence[float]
    ) -> tuple[list[Answer], Counter[str]]:
        """And what was counted on the way. `keys`: the numbers of these records among all."""
        settings, (prompts, cut) = self.settings, self.prompts(records)
        drawn = list(Generators(settings.seed, keys)) if settings.temperature else [None] * len(records)
        rules = [self.form and self.form.copy() for _ in records]
        sampling = Sampling(settings.temperature or 1.0, settings.top_k, settings.top_p)
        chooser = Chooser(drawn, self.writing.stops, sampling, rules, temperatures, settings.logprobs)
        counts = Counter(cut=cut)
        if self.draft is None:
            written(self.writing, prompts, self.most, chooser)
        else:
            seen = drafted(self.writing, self.draft, prompts, self.most, settings.ahead, chooser)
            counts.update(guessed=seen.guessed, kept=seen.kept)
        return chooser.answers, counts

    def text(self, answer: Answer) -> str:
        return self.writing.text(answer_of(answer.tokens, self.writing.stops)[0])


def apply(
    settings: Settings,
    log: Log,
    model: Model,
    data: Data | None = None,
    draft: Model | None = None,
    calibration: Data | None = None,
) -> Result:
    """Each record with its answer and, under ANSWER_scores, what is known of it: tokens, whether it came to an end, the
    log-probability of all of it and the confidence."""
    task = task_of(settings, model, draft)
    records = questions(settings, task, data, log)
    if calibration is not None and settings.changed("confidence_temperature"):
        raise BadSettings(
            "'confidence_temperature' has no effect beside --calibration, which fits it", hint="leave one out"
        )
    if settings.compile:
        first, _ = task.prompts(model.asked(records[: settings.batch_size]))
        task = replace(task, writing=compiling.compiled_if_it_pays(model.net, task.writing, first, log))
    fit = fitted(task, calibration, log) if calibration is not None else None
    if fit:
        warn_of(fit, log)
    heat = fit.temperature if fit else settings.confidence_temperature
    temperatures = list(dict.fromkeys((1.0, heat)))

    def answering(places: range) -> tuple[list[Record], Counter[str]]:
        part = model.asked(records[places.start : places.stop])
        began = time.perf_counter_ns()
        answers, counts = task.answers(part, places, temperatures)
        counts += counted(answers, time.perf_counter_ns() - began)
        return [recorded(task, *pair) for pair in zip(part, answers)], counts

    found, counts = answered(len(records), settings.batch_size, answering, log, "answers written")
    report = told(task, records, found, counts) | ({"calibration": facts(fit)} if fit else {})
    warn(task, counts, len(found), log)
    return Result(records=found, report=report, charts=[confidence.picture(fit)] if fit else [])


def task_of(settings: Settings, model: Model, draft: Model | None) -> Task:
    """Refusal where an answer is not written token by token; BadInput where the draft speaks of other tokens."""
    writing = writing_of(model)
    if writing.room(settings.max_new_tokens or writing.most) < 1:
        raise BadSettings(
            f"{settings.max_new_tokens:,} new tokens leave no room for the question: this model reads {writing.longest:,}",
            hint=f"--max-new-tokens {writing.longest // 2}",
        )
    if draft is None:
        if settings.changed("ahead"):
            raise BadSettings("'ahead' has no effect without a draft model", hint="--draft FOLDER")
        return Task(model, writing, None, settings, form_of(settings, writing))
    if settings.changed("batch_size"):
        raise BadSettings("'batch_size' has no effect with a draft: texts are written one by one", hint="leave one out")
    if settings.compile:
        raise BadSettings("a compiled step reads one token, and those guessed are read at once", hint="leave one out")
    if draft.family.axis(draft.assets) != model.family.axis(model.assets):
        raise BadInput(
            "the draft writes other tokens than the model", hint="a draft that was trained with the model's tokenizer"
        )
    small = writing_of(draft)
    if writing.alone is not None or small.alone is not None:
        raise Refusal(
            "a model that its runtime or its library lets write cannot check guesses, nor make them",
            "models of torch or ONNX Runtime that keep what they have read",
        )
    if small.longest < writing.longest:
        raise BadInput(
            f"the draft reads {small.longest:,} tokens, the model {writing.longest:,}",
            hint="a draft that reads as many",
        )
    return Task(model, writing, small, settings, form_of(settings, writing))


def writing_of(model: Model) -> Writing:
    found = model.family.writing(model.net, model.assets)
    if found is None:
        raise Refusal("this model does not write: its answer comes at once", "predict")
    return found


def form_of(settings: Settings, writing: Writing) -> Bound | None:
    return bound(writing, require_form(*settings.form)) if settings.form else None


def questions(settings: Settings, task: Task, data: Data | None, log: Log) -> list[Record]:
    """The records to answer: those of the data, or the one prompt."""
    if data is not None and settings.prompt:
        raise BadSettings("'prompt' stands in place of data, and has no effect beside them", hint="leave one out")
    column = task.writing.question
    if data is not None and column not in data.records.fields:
        if task.model.answer not in data.records.fields:
            raise BadInput(
                f"the column '{column}' that is answered is missing; {propose(column, data.records.fields)}",
                hint="rename the column of the questions",
            )
        log.warn(f"no column '{column}' that could be continued: every text is written from nothing")
    if data is not None:
        found = data.records.list()
        if empty := sum(not record.get(column) for record in found if column in record):
            log.warn(f"{empty:,} of {len(found):,} questions are empty: their answers are written from nothing")
        return found
    if not settings.prompt:
        raise BadSettings("nothing is asked", hint="--prompt TEXT, or --data with a column of questions")
    return [{column: settings.prompt}]


# ------------------------------------------------------------------------------------------------------------- confidence


def fitted(task: Task, calibration: Data, log: Log) -> confidence.Calibration:
    """The temperature at which the answers to questions whose answers are known are as sure as they are right."""
    known = [(record, wanted) for record in calibration.records if (wanted := as_label(record[task.model.answer]))]
    if len(known) < confidence.FEWEST:
        raise BadInput(
            f"{len(known)} answers are too few to fit a temperature", hint=f"{confidence.FEWEST} or more, better 1,000"
        )
    known = known[:: math.ceil(len(known) / CALIBRATED)]
    answers = all_answers(task, [record for record, _ in known], confidence.GRID, log)
    right = [confidence.same(task.text(one), wanted) for one, (_, wanted) in zip(answers, known)]
    nats = np.stack([answer.nats.numpy() for answer in answers]).astype(np.float64)
    return confidence.fitted(nats, np.array(right))


def all_answers(task: Task, records: list[Record], temperatures: Sequence[float], log: Log) -> list[Answer]:
    found: list[Answer] = []
    for start in range(0, len(records), task.settings.batch_size):
        part = task.model.asked(records[start : start + task.settings.batch_size])
        found += task.answers(part, range(start, start + len(part)), temperatures)[0]
        log.progress(len(found), len(records), "answers to calibrate by")
    return found


def warn_of(fit: confidence.Calibration, log: Log) -> None:
    if fit.right in (0, 1):
        log.warn(
            f"all answers to calibrate by are {'right' if fit.right else 'wrong'}: confidence only says the same of the others; "
            "questions of which some are answered rightly tell them apart"
        )
    elif fit.error["fitted"] > fit.error["as it is"]:
        log.warn("the fitted confidence is further from the truth than the plain one: more answers to calibrate by")


def facts(found: confidence.Calibration) -> dict[str, Any]:
    return {
        "temperature": found.temperature,
        "answers": found.answers,
        "share_right": found.right,
        "expected_calibration_error": found.error,
        "summary": f"temperature {found.temperature:.3g}, fitted to {found.answers} answers of which {found.right:.1%} were right: "
        f"stated and true confidence were {found.error['as it is']:.3f} apart, are {found.error['fitted']:.3f} apart",
    }


# ----------------------------------------------------------------------------------------------------------------- answers


def recorded(task: Task, record: Record, answer: Answer) -> Record:
    """The record with its answer, which is empty where it is withheld."""
    sure = confidence.confidence(float(answer.nats[-1]))
    withheld = sure < task.settings.abstain_below
    written, finished = answer_of(answer.tokens, task.writing.stops)
    scores: dict[str, Any] = {
        "new_tokens": len(written),
        "finished": finished,
        "logprob": -float(answer.nats[0]),
        "confidence": sure,
        **({"withheld": True} if withheld else {}),
        **({"tokens": listed(task, answer)} if task.settings.logprobs else {}),
    }
    name = task.model.answer
    return {**record, name: None if withheld else task.text(answer), f"{name}_scores": scores}


def listed(task: Task, answer: Answer) -> list[dict[str, Any]]:
    """What was written at each place, and the likeliest tokens there with their log-probabilities."""

    def named(token: int) -> str:
        return task.writing.tokenizer.convert_ids_to_tokens(token) or f"<{token}>"

    return [
        {"token": named(token), "likeliest": {named(other): nats for other, nats in others}}
        for token, others in zip(answer.tokens, answer.likeliest)
    ]


def counted(answers: list[Answer], nanoseconds: int) -> Counter[str]:
    """What is added up over all answers."""
    complete = sum(bool(answer.rule and answer.rule.complete) for answer in answers)
    tokens = sum(len(answer.tokens) for answer in answers)
    return Counter(tokens=tokens, complete=complete, nanoseconds=nanoseconds)


def told(task: Task, records: list[Record], found: list[Record], counts: Counter[str]) -> dict[str, Any]:
    """What is known of all answers together; and of those that were given, how many say what the data say."""
    name = task.model.answer
    pairs = [(one[name], as_label(record.get(name))) for one, record in zip(found, records)]
    given = [(text, wanted) for text, wanted in pairs if text is not None and wanted]
    report: dict[str, Any] = {
        "answers": len(found),
        "finished": sum(one[f"{name}_scores"]["finished"] for one in found),
        "tokens": counts["tokens"],
        "tokens_per_second": 1e9 * counts["tokens"] / counts["nanoseconds"],
    }
    if task.settings.abstain_below:
        report["withheld"] = sum(one[name] is None for one in found)
    if given:
        report["share_right"] = confidence.shares([confidence.same(*pair) for pair in given])
    if task.draft is not None:
        report["draft"] = {"guessed": counts["guessed"], "kept": counts["kept"]}
    if task.form is not None:
        report["complete"] = counts["complete"]
    return report


def warn(task: Task, counts: Counter[str], answers: int, log: Log) -> None:
    if counts["cut"]:
        log.warn(
            f"{counts['cut']} questions are longer than the {task.writing.room(task.most)} tokens that the model has room for: "
            "they were cut to these, as in training"
        )
    if task.form is not None and counts["complete"] < answers:
        log.warn(
            f"{answers - counts['complete']} answers were cut before their form was complete; "
            "more --max-new-tokens, or a shorter form"
        )


OPERATION = Operation(
    "generate",
    Settings,
    {"model": "model", "data": "data to answer?", "draft": "model?", "calibration": "data?"},
    "records",
    apply,
)
