"""Teach a smaller model to answer as a larger one does (Hinton, Vinyals and Dean, 2015).

The student's loss is `weight` parts agreement with the teacher's outputs and the rest its own loss on the true answers.
Agreement is the divergence of softened distributions for logits (times temperature squared, as in the paper) and the
squared error, in units of the teacher's variance, for values. Differences to the paper: it is summed over places and
records, so that it is exact under any cut of the batch; a student may be of any family whose outputs mean the same; it
may begin as the teacher with fewer blocks (DistilBERT: Sanh et al., arXiv:1910.01108). What the student's inside is taught
stands in `hints.py`. It may also learn from records that the teacher writes (Kim & Rush, arXiv:1606.07947, there for
translations): the teacher's own answers to questions of the train records, and where it is asked nothing, whatever it draws.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..blocks import spaced, with_blocks
from ..data import Data, Record, Records, joined, records_of
from ..errors import BadSettings, Refusal
from ..family import Batch, Collate, Generators, mix
from ..fit.loop import Objective, fit
from ..hints import Hints, hints_of
from ..model import Model, count_parameters
from ..observe import Seen, inside
from ..operation import Log, Operation, Promise, Result, Way
from ..registry import family as find_family
from ..weights.attach import plain_copy
from .train import NewModel, trained, validation_of

PREFIX = "teacher "
TRIED = 8  # records on which it is seen whether teacher and student answer at the same places
SPREAD_RECORDS = 256  # records on which the spread of a teacher's values is measured
WRITTEN_AT_ONCE = 64  # records that the teacher answers at a time
PROMISED = 1.1  # times the size that was asked for, at most
ROUNDING = 1.02  # times the size that was asked for: half the width has a little more than a quarter of the parameters
SEARCH_STEPS = 12  # halvings of the interval in which the student's width is sought


class Settings(NewModel):
    size: float = Field(0.1, gt=0, le=1, description="the student's share of the teacher's parameters, same design")
    depth: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the teacher's blocks that the student begins with, as they are; then not --size. 1: a fresh student",
    )
    family: str = Field("", description="another kind of student; then --config gives its design, not --size")
    config: dict = Field({}, description="the design of a student of another kind, as NAME=VALUE,...")
    temperature: float = Field(2.0, gt=0, description="how much both distributions are softened")
    weight: float = Field(0.7, ge=0, le=1, description="the teacher's part of the loss; the rest is the true answers'")
    hidden: float = Field(
        0.0, ge=0, description="weight of the gap between what the student's and the teacher's blocks put out"
    )
    attention: float = Field(
        0.0, ge=0, description="weight of the gap between how the student's and the teacher's attention relates places"
    )
    written: int = Field(
        0,
        ge=0,
        description="records that the teacher answers itself, learnt beside the others; 0: none of the data, all --questions",
    )


def apply(
    settings: Settings, log: Log, model: Model, data: Data, student: Model | None = None, questions: Data | None = None
) -> Result:
    """A student fitted to the answers of `model` on the train split, and on what else it is to answer."""
    require_effect(settings, student)
    train = data.split("train")
    fresh = student is None and settings.depth == 1
    student = student or new_student(settings, model, train)
    student.check(data.records)
    if questions:
        student.check(questions.records, judged=False)
    student.require_players()
    require_same_meaning(model, student)
    objective = agreement(settings, model, student, train)
    if settings.written or questions:
        train = joined(train, written(settings, model, asked(model, train, questions), train, log))
    progress = fit(objective, train, validation_of(data), settings, log, fresh)
    return trained(student, progress)


def asked(teacher: Model, train: Records, questions: Data | None) -> Records:
    """The records that the teacher is asked."""
    if questions is None:
        return train
    if not teacher.family.fields(teacher.assets)[0]:
        raise BadSettings("'questions' has no effect on a teacher that answers without being asked", hint="--written N")
    return questions.records


def written(settings: Settings, teacher: Model, questions: Records, like: Records, log: Log) -> Records:
    """`settings.written` of the questions, or all, each once and evenly spaced, with the teacher's answers; the fields are
    those of `like`. BadSettings where fewer questions are asked."""
    count, asks = settings.written or len(questions), bool(teacher.family.fields(teacher.assets)[0])
    if asks and count > len(questions):
        raise BadSettings(f"'written' {count}: only {len(questions)} questions are asked", hint="--written fewer")
    some, found = questions.some(count), list[Record]()

    def told(done: int) -> None:
        log.progress(len(found) + done, count, "records written by the teacher")

    for start in range(0, count, window := teacher.window(WRITTEN_AT_ONCE)):
        keys = range(start, min(start + window, count))
        rows = teacher.asked(some[[key % len(some) for key in keys]].list())
        found += teacher.answers(rows, mix(settings.seed, 3), keys, WRITTEN_AT_ONCE, told)
    rows = [{name: record.get(name) for name in like.fields} for record in found]
    return records_of(rows, like.fields, like.answer)


def require_effect(settings: Settings, student: Model | None) -> None:
    """BadSettings for what was set and would change nothing."""
    other_kind, there = bool(settings.family), student is not None
    faults = []
    if "size" in settings.model_fields_set and (there or other_kind):
        faults.append("'size' has no effect on a student that is named")
    if settings.depth < 1 and (there or other_kind):
        faults.append("'depth' has no effect on a student that is named")
    if settings.depth < 1 and "size" in settings.model_fields_set:
        faults.append("'size' has no effect beside 'depth': the blocks that are left say how large the student is")
    if other_kind and there:
        faults.append("'family' has no effect on a student that is there")
    if settings.config and not other_kind:
        faults.append("'config' has no effect without 'family'")
    if faults:
        raise BadSettings(*faults)


def new_student(settings: Settings, teacher: Model, records) -> Model:
    """A random student, of the teacher's own design and `size` times its parameters or of the family asked for; or the
    teacher itself with `depth` of its blocks."""
    generator = torch.Generator().manual_seed(mix(settings.seed, 1))
    if settings.family:
        family = find_family(settings.family)
        return Model(family, *family.start(settings.config, records, generator))
    if not teacher.players:
        raise Refusal(
            "a student of this teacher's own design could not follow a gradient",
            "a student of another kind that answers the same: --family NAME",
        )
    if settings.depth < 1:
        return shallower(teacher, settings.depth)
    return sized(teacher, settings.size, mix(settings.seed, 1))


def shallower(teacher: Model, share: float) -> Model:
    """The teacher with `share` of its blocks, tensors of its own. BadSettings where that is all of them."""
    names = spaced(teacher, share)
    if len(names) == len(teacher.blocks):
        raise BadSettings(
            f"'depth' {share:g} has no effect: it keeps all {len(names)} blocks", hint="a smaller --depth"
        )
    return with_blocks(teacher, names)


def sized(teacher: Model, size: float, seed: int) -> Model:
    """The widest fresh net of the teacher's design with at most `size` times its parameters, or 2 % more (widths are whole
    numbers, so it can be somewhat smaller, and never less than the narrowest)."""
    wanted = size * ROUNDING * count_parameters(teacher.net)
    plain = plain_copy(teacher.net)  # codes have no shapes of parameters

    def at(scale: float) -> Model:
        made = teacher.family.like(plain, teacher.assets, scale, torch.Generator().manual_seed(seed))
        return Model(teacher.family, *made, folder=teacher.files)

    low, high = 0.0, 1.0
    best = at(low + 1e-6)
    if count_parameters(best.net) > PROMISED * size * count_parameters(teacher.net):
        least = count_parameters(best.net) / count_parameters(teacher.net)
        raise Refusal(
            f"the narrowest student of this design has {least:.2g} of the teacher's parameters, not {size:g}",
            f"--size {least:.2g} or more, or a student of another kind: --family NAME",
        )
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        candidate = at(middle)
        if count_parameters(candidate.net) <= wanted:
            low, best = middle, candidate
        else:
            high = middle
    return best


def require_same_meaning(teacher: Model, student: Model) -> None:
    """Raise Refusal unless the last axis of both outputs means the same."""
    one, other = teacher.family.axis(teacher.assets), student.family.axis(student.assets)
    if one != other or teacher.family.kind(teacher.assets) != student.family.kind(student.assets):
        raise Refusal(
            f"the outputs of teacher and student mean different things: {str(one)[:80]} and {str(other)[:80]}",
            "a student started on the teacher's own labels, in the same order",
        )


def agreement(settings: Settings, teacher: Model, student: Model, records: Records) -> Objective:
    """Both models see the same records with the same noise; the teacher's part of a batch is prefixed."""
    apart = divergence_of(settings, teacher, records)
    hints = hints_wanted(settings, teacher, student, records)
    pieces = pieces_for(teacher, student)
    collates = alike(teacher, student, pieces(records.some(TRIED)), rows=hints is not None)

    def collate(records, generators):
        mine = collates[0](records, student.assets, generators)
        theirs = collates[1](records, teacher.assets, generators)
        return mine | {f"{PREFIX}{name}": value for name, value in theirs.items()}

    def lengths(records):
        return student.family.lengths(records, student.assets)

    def loss(batch, player):
        mine = {name: value for name, value in batch.items() if not name.startswith(PREFIX)}
        theirs = {name.removeprefix(PREFIX): value for name, value in batch.items() if name.startswith(PREFIX)}
        with torch.no_grad(), watched(teacher, theirs, hints) as shown:
            wanted, places = teacher.family.outputs(teacher.net, theirs)
        with watched(student, mine, hints) as seen:
            given, mask = student.family.outputs(student.net, mine)
        if not torch.equal(places, mask):
            raise Refusal(
                "teacher and student answer at different places of these records",
                "a student that cuts its records as the teacher does (max_length)",
            )
        total, count = (apart(given.float(), wanted.float()) * mask).sum(1), mask.sum(1).float()
        if settings.weight < 1:
            hard, hard_count = student.family.loss(student.net, mine, judge)
            # both means per counted thing, brought to one count so that the sum stays exact under any cut
            hard = hard * count / hard_count.clamp_min(1e-12)
            total = settings.weight * total + (1 - settings.weight) * hard
        return (total if hints is None else total + hints(seen, shown) * count), count

    judge = next(iter(student.players))
    net, prefix = (student.net, "") if hints is None else (beside(student, hints), "student.")
    pruned, blocks = (tuple(f"{prefix}{name}" for name in names) for names in (student.pruned, student.blocks))
    return Objective(net, {"all": net}, collate, loss, pruned, (teacher.net,), blocks, pieces, lengths)


def pieces_for(teacher: Model, student: Model) -> Callable[[Records], Records]:
    """The pieces that the student reads, where the teacher can read them too; else the records."""
    if teacher.family.pieces is not student.family.pieces:
        return lambda records: records
    return lambda records: student.family.pieces(records, student.assets)


def alike(teacher: Model, student: Model, some: Records, rows: bool) -> tuple[Collate, Collate]:
    """What collates for student and teacher: several records in a row where both then answer at the same places. `rows`: a
    row must be a record, since the insides of the nets are compared row by row."""
    models = (student, teacher)
    packed = tuple(model.family.packed(model.net, model.assets) for model in models)
    tried = some.list(slice(0, TRIED))
    masks = [
        model.outputs(collate(tried, model.assets, Generators(0, range(len(tried)))))[1]
        for model, collate in zip(models, packed)
    ]
    same = masks[0].shape == masks[1].shape and torch.equal(*masks)
    return packed if same and not rows else (student.family.collate, teacher.family.collate)  # type: ignore[return-value]


def hints_wanted(settings: Settings, teacher: Model, student: Model, records: Records) -> Hints | None:
    if not settings.hidden and not settings.attention:
        return None
    return hints_of(settings.hidden, settings.attention, teacher, student, records)


def beside(student: Model, hints: Hints) -> nn.Module:
    """The student's net and the maps of its hints as one: trained, moved and kept for resuming together."""
    return nn.ModuleDict({"student": student.net, "maps": hints.maps})


def watched(model: Model, batch: Batch, hints: Hints | None) -> AbstractContextManager[Seen]:
    """Inside, what the hints compare is noted; without hints nothing is watched."""
    return nullcontext(Seen()) if hints is None else inside(model.blocks, len(next(iter(batch.values()))))


def divergence_of(settings: Settings, teacher: Model, records: Records) -> Callable[[Tensor, Tensor], Tensor]:
    """(given (B, T, D), wanted (B, T, D)) -> how far they are apart at each place (B, T)."""
    t = settings.temperature
    if teacher.family.kind(teacher.assets) == "logits":
        return lambda given, wanted: (
            t
            * t
            * F.kl_div(
                F.log_softmax(given / t, 2), F.log_softmax(wanted / t, 2), reduction="none", log_target=True
            ).sum(2)
        )
    # values have units: the error is taken in the teacher's own spread, so that it weighs the same in any of them
    some = records.some(SPREAD_RECORDS).list()
    values, mask = teacher.outputs(teacher.collate(some, settings.seed))
    spread = values.float()[mask].var(0, unbiased=False).mean().clamp_min(1e-12)
    return lambda given, wanted: (given - wanted).square().mean(2) / spread


def smaller(settings: Settings, inputs: dict, result: Result) -> float | None:
    if inputs.get("student") or settings.family or settings.depth < 1 or result.model is None:
        return None
    return count_parameters(result.model.net) / count_parameters(inputs["model"].net) / settings.size


OPERATION = Operation(
    "distill",
    Settings,
    {"model": "model", "data": "data", "student": "model?", "questions": "data to answer?"},
    "model",
    apply,
    (Promise("the student has the share of parameters that was asked for, or less", "at most", PROMISED, smaller),),
    (
        Way("design", {"size": (0.1, 0.02, 0.05, 0.2, 0.4), "epochs": (10, 30)}),
        Way("design", {"depth": (0.5, 0.25, 0.75), "epochs": (10, 30)}),
        Way("repair", {"epochs": (3, 10), "learning_rate": (0.0005, 0.002)}, role="student"),
    ),
)
