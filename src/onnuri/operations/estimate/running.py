"""Running and answering: FLOPs, bytes, time and memory of a forward pass and of one answer."""

from ...costs import peaks
from ...costs.count import Line, passes, tensors_of, watched
from ...costs.efficiency import python_calls
from ...figures import scaled, size_text
from .look import Look

ROOM = 0.9  # of the free memory that may be taken for measuring
FORMATS = {"fp16": 2.0, "int8": 1.0, "int4": 0.5}  # bytes of a weight


def runs(look: Look) -> None:
    """FLOPs, bytes, time and memory of a forward pass, of one record and of a batch."""
    model, report, one = look.model, look.report, look.batch(1)
    known = tensors_of(model.net)
    model.outputs(one)
    process = look.process = max(0, peaks.resident_bytes() - report["bytes_in_memory"])
    alone = look.watched(lambda: model.outputs(one), known)
    calls = python_calls(lambda: model.outputs(one))
    places = int(model.outputs(one)[1].sum())
    report |= {
        "forward_flops": alone.total_flops or None,
        "forward_flops_per_place": alone.total_flops / places if alone.flops and places else None,
        "places": places,
        "forward_weight_bytes": alone.read_once,
        "forward_activation_bytes": 2 * alone.made,
        "flops_per_byte": alone.total_flops / alone.once().moved if alone.flops else None,
    }
    if not alone.flops:
        look.note("torch does not execute this net: no FLOPs, no roofline, and what it holds while it runs is not seen")
    look.work("forward pass", 1, alone.once(), look.timed(lambda: model.outputs(one)), calls)
    batches = [look.batch(n) for n in look.probes]
    probes = [look.watched(lambda batch=batch: model.outputs(batch), known) for batch in batches]
    line = Line.of(probes, look.probes, report["bytes_in_memory"] + (0 if look.target else process))
    measured, seconds = (None, None) if look.target else measured_run(look, line)
    if look.size > 1:
        one_cost, two_cost = (watch.once() for watch in probes)
        look.work("forward pass", look.size, one_cost.at(two_cost, look.probes, look.size), seconds, calls)
    own = {} if look.target else {"process_bytes": process}
    look.fits("run", line, measured, **own, weights_bytes=report["bytes_in_memory"])
    if look.target and report["forward_flops"]:
        advise(look, line)


def measured_run(look: Look, line: Line) -> tuple[float | None, float | None]:
    """(bytes at the peak, seconds) of a forward pass of the whole batch; (None, None) where the memory is not free."""
    if line.at(look.size) - line.fixed >= ROOM * peaks.free_memory():
        look.note(f"a batch of {look.size} was not run: it needs more memory than is free")
        return None, None
    extra = peaks.peak_of(lambda: look.model.outputs(look.batch(look.size)))
    many = look.batch(look.size)
    return (line.fixed + extra if extra is not None else None), peaks.timed(lambda: look.model.outputs(many))


def advise(look: Look, line: Line) -> None:
    """Where the batch does not fit into the target: what would."""
    found, room, size = look.report["memory"][-1], look.memory, look.size
    if found["fits"]:
        return
    if most := found["largest_batch"]:
        return look.note(f"a batch of {size} does not fit into {size_text(room)}; {most} would")
    parameters, working = max(look.report["parameters"], 1), line.at(1) - line.fixed
    left, held = room - working, look.report["bytes_in_memory"] / parameters
    shorter = [form for form, size in FORMATS.items() if size < held and parameters * size <= left]
    need = f"it does not fit: one record needs {size_text(line.at(1))}, and one process may take {size_text(room)}"
    if shorter:
        return look.note(f"{need}; with its weights in {shorter[0]} it would")
    if left <= 0:
        return look.note(
            f"{need}; what one record makes, {size_text(working)}, is too much for it with no weights at all"
        )
    look.note(
        f"{need}; what would fit is a net of {scaled(left / min(held, FORMATS['int4']), '', least=1)} parameters in int4"
    )


def answers(look: Look) -> None:
    """What one answer costs: a family may ask its net many times for it, as when it writes a text. The first pass then
    reads the question, and each later one adds a piece."""
    model, record = look.model, look.model.asked(look.some(1).list())
    with watched(tensors_of(model.net)) as watch, passes(model.net, watch) as starts:
        model.sample(record)
    look.report["uncounted_operators"] |= watch.unknown
    look.report["answer_flops"] = watch.total_flops or None
    cost, calls = watch.each(), python_calls(lambda: model.sample(record))
    look.work("answer", 1, cost, look.timed(lambda: model.sample(record)), calls)
    if not cost.flops or len(starts) < 2:
        return
    share = calls / len(starts)
    first = look.time(cost.between(0, starts[1]), share).seconds
    later = look.time(cost.between(starts[1], len(cost.tasks)), calls - share).seconds / (len(starts) - 1)
    piece = "token" if model.family.fields(model.assets)[1][1] == "text" else "pass"
    look.report["answer"] = {
        "piece": piece,
        "pieces": len(starts),
        "seconds_to_first": first,
        "seconds_of_each_later": later,
        "pieces_per_second": 1 / later if later else None,
    }
