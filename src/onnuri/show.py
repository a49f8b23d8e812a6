"""Results as text for a terminal."""

import json
from pathlib import Path
from typing import Any

from .figures import joules_text, number, scaled, size_text, time_text

BAR, MOST_PARTS = 24, 5  # letters of the longest bar, and bars


def result_text(result: dict[str, Any], out: str | None) -> str:
    """What one operation gave: a ledger line, a report, or where the records went."""
    if "out" in result and "records" in result:
        lines = [*told_lines(result.get("report") or {}), f"{result['records']} answers written to {result['out']}"]
        return "\n".join([*lines, *([f"drawn in {result['page']}"] if "page" in result else [])])
    if "answers" in result:
        found = told_lines(
            {name: part for name, part in (result.get("report") or {}).items() if isinstance(part, dict)}
        )
        return "\n\n".join([*map(answer_text, result["answers"]), *found])
    if "promises" in result:
        lines = [*measurement_lines(result.get("after")), *pace_lines(result.get("pace"))]
        lines += [*found_lines(result["found"])] if result.get("found") else bar_lines(result.get("bars") or {})
        lines += promise_lines(result)
        return "\n".join([*lines, f"written to {out}"])
    if "headline" in result:
        return "\n".join(measurement_lines(result))
    if "peak_memory_bytes_per_second" in result:
        return "\n".join([*cost_lines(result), *([f"written to {out}"] if out else [])])
    lines = law_lines(result) if "law" in result else filter(None, [result.get("summary")])
    return "\n".join([*lines, *([f"written to {out}"] if out else [])])


def told_lines(report: dict[str, Any]) -> list[str]:
    """What is known of all answers together: a line for each figure."""
    return [f"{name.replace('_', ' '):18} {told(value)}" for name, value in report.items()]


def told(value: Any) -> str:
    """A figure, or several of one thing."""
    if isinstance(value, dict):
        return value.get("summary") or ", ".join(f"{told(figure)} {name}" for name, figure in value.items())
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


def answer_text(record: dict[str, Any]) -> str:
    """An answer as a person reads it, and how sure the model is of it."""
    scores = next((value for name, value in record.items() if name.endswith("_scores")), {})
    text = record[next(name for name in record if f"{name}_scores" in record)]
    told = ", ".join(f"{name} {value:.3g}" for name, value in scores.items() if isinstance(value, float))
    return f"{'(withheld)' if text is None else text}\n  [{told}]"


def measurement_lines(m: dict[str, Any] | None) -> list[str]:
    if not m:
        return []
    metric = m["headline"][0]
    low, high = m["interval"]
    others = ", ".join(f"{name} {value:.4g}" for name, value in m["scores"].items() if name != metric)
    lines = [
        f"{metric:12} {m['scores'][metric]:.4g}  ({low:.4g} to {high:.4g}, {m['interval_method']}, {m['records']} records)"
    ]
    lines += [f"{'also':12} {others}"] if others else []
    lines += [f"{'size':12} {m['parameters']:,} numbers, {size_text(m['bytes'])}"] if m.get("bytes") else []
    lines += token_lines(m.get("tokens"))
    energy = m["energy_per_1000"]
    lines += [
        f"{'latency':12} {m['latency_ms']['p50']:.2f} ms median, {m['latency_ms']['p95']:.2f} ms 95 % ({m['runtime']}, batch 1)",
        f"{'energy':12} {energy['joules']:.3g} J per 1,000 answers ({energy['method']}, +- {energy['error']:.0%})",
    ]
    return lines


def token_lines(found: dict[str, float] | None) -> list[str]:
    """How the model cuts these texts."""
    if not found:
        return []
    rare = {"unknown": found["unknown"], "parts of characters": found["parts_of_characters"]}
    told = ", ".join(f"{share:.1%} {name}" for name, share in rare.items() if share)
    return [
        f"{'tokens':12} {found['tokens_per_word']:.3g} a word, {found['bytes_per_token']:.3g} bytes each"
        f"{', ' + told if told else ''}; {found['texts_that_come_back']:.1%} of the texts come back as they went in"
    ]


def pace_lines(pace: dict[str, Any] | None) -> list[str]:
    """How fast a training was, and how near to what the machine can do."""
    if not pace:
        return []
    share = pace["share_of_peak"]
    products = (  # a net that looks up and adds is bound by other things
        f", {scaled(pace['flops_per_second'], 'FLOP/s')}: {share:.0%} of this machine's {pace['precision']} peak of "
        f"{scaled(pace['peak_flops_per_second'], 'FLOP/s')}"
    ) * (share >= 0.01)
    return [f"{'training':12} {number(pace['records_per_second'])} records/s{products}"]


def bar_lines(bars: dict[str, dict[str, float]]) -> list[str]:
    """That there is something to look at: what was measured of the parts of a model is read as a picture."""
    parts = {name for values in bars.values() for name in values}
    return [f"{'drawn':12} {len(bars)} measurements of its {len(parts)} parts, in onnuri/reports"] if parts else []


def found_lines(found: dict[str, Any]) -> list[str]:
    """What became of data: how much is left, for what the rest was removed, and the scores."""
    most = max(found["removed"].values(), default=1)
    lines = [f"{'kept':12} {found['summary']}"]
    lines += [
        f"{'removed' if place == 0 else '':12} {count:9,}  {'█' * round(BAR * count / most):{BAR}}  {name}"
        for place, (name, count) in enumerate(found["removed"].items())
    ]
    edited = ", ".join(f"{name} {count:,}" for name, count in found["edited"].items())
    scores = ", ".join(f"{name} {value:.3g}" for name, value in found["scores"].items() if value is not None)
    languages = ", ".join(f"{name} {count:,}" for name, count in found["languages"].items())
    return [
        *lines,
        *([f"{'changed':12} {edited}"] if edited else []),
        f"{'languages':12} {languages}",
        f"{'scores':12} {scores}",
    ]


def law_lines(report: dict[str, Any]) -> list[str]:
    """A scaling law, the trainings that it stands on, and what it says of the design."""
    law, end = report["law"], report["predicted"]
    signs = {"parameters": "N", "records": "D"}
    terms = "".join(
        f" + {law[name]['factor']:.3g} / {sign}^{law[name]['exponent']:.3g}"
        for name, sign in signs.items()
        if name in law
    )
    lines = [f"{'parameters':>14} {'records':>10} {'steps':>7} {'rate':>9} {'loss':>9} {'seconds':>8}"]
    lines += [
        f"{run['parameters']:14,} {run['records']:10,} {run['steps']:7,} {run['learning_rate']:9.2g} {run['loss']:9.4f} "
        f"{run['seconds']:8.1f}"
        for run in [*report["runs"], *([report["checked"]] if "checked" in report else [])]
    ]
    lines += [
        f"{'law':12} loss = {law['least_loss']:.4g}{terms}; off by {report['largest_error_of_the_fit']:.1%} at most",
        f"{'predicted':12} {end['loss']:.4f} ({end['low']:.4f} to {end['high']:.4f}) for {end['parameters']:,} parameters on "
        f"{end['records']:,} records",
    ]
    if "checked" in report:
        one = report["checked"]
        return [
            *lines,
            f"{'measured':12} {one['loss']:.4f}: the prediction is off by {one['error_of_the_prediction']:+.1%}",
        ]
    return [*lines, f"{'to check it':12} --check, about {time_text(report['training_the_design_would_take_seconds'])}"]


def cost_lines(report: dict[str, Any]) -> list[str]:
    """Size, time and memory of a model, predicted beside measured, under the ceilings of this machine or of a target."""
    roles = ", ".join(f"{role} {scaled(n, '', least=1)}" for role, n in report["parameters_by_role"].items())
    kinds = ", ".join(f"{kind} {size_text(n)}" for kind, n in report["bytes_in_memory_by_type"].items())
    lines = [
        f"{'parameters':14} {report['parameters']:,}  ({roles or 'none of torch'})",
        f"{'bytes':14} {size_text(report['bytes_on_disk'])} on disk, {size_text(report['bytes_in_memory'])} in memory  ({kinds})",
        *ceiling_lines(report),
        "",
        f"{'work':14} {'records':>7} {'FLOPs':>11} {'moved':>9} {'roofline':>9} {'predicted':>9} {'measured':>9}  bound by",
    ]
    lines += [
        f"{one['work']:14} {one['records']:7} {scaled(one['flops'], 'FLOP', least=1):>11} {size_text(one['bytes_moved']):>9} "
        f"{time_text(one['roofline_seconds']):>9} {time_text(one['predicted_seconds']):>9} "
        f"{time_text(one['measured_seconds']):>9}  {one['bottleneck']}"
        for one in report["work"]
    ]
    lines += ["", *(target_lines(report) if "target" in report else [])]
    lines += [f"{'memory':14} {'records':>7} {'predicted':>11} {'measured':>9}  largest batch, and what it is made of"]
    for one in report["memory"]:
        made = ", ".join(
            f"{name.removesuffix('_bytes')} {size_text(one[name])}"
            for name in ("process_bytes", "weights_bytes", "gradients_bytes", "moments_bytes", "activations_bytes")
            if name in one
        )
        verdict = "" if one["fits"] else ", does not fit"
        lines.append(
            f"{'to ' + one['work']:14} {one.get('records', '-'):>7} {size_text(one['predicted_bytes']):>11} "
            f"{size_text(one.get('measured_bytes')):>9}  {one.get('largest_batch') or '-'}{verdict}  ({made})"
        )
    return [*lines, *(f"{'note':14} {text}" for text in report["notes"])]


def ceiling_lines(report: dict[str, Any]) -> list[str]:
    """What the machine, or the target, can do at its best."""
    if "target" in report:
        target = report["target"]
        peaks = ", ".join(f"{name} {scaled(peak, 'FLOP/s')}" for name, peak in target["peaks"].items())
        room = size_text(target["usable"] * target["memory_bytes"])
        return [
            f"{'target':14} {target['name']}: {target['title']}",
            f"{'':14} {peaks}, memory {scaled(target['bandwidth'], 'B/s')}, {room} for one process, {target['watts']:g} W",
        ]
    peaks = ", ".join(
        f"{kind} {scaled(report[f'peak_{kind}_flops_per_second'], 'FLOP/s')}" for kind in ("fp32", "bf16", "int8")
    )
    return [
        f"{'this machine':14} {peaks}, memory {scaled(report['peak_memory_bytes_per_second'], 'B/s')}, "
        f"{report['threads']} threads, {size_text(report['machine_memory_bytes'])}"
    ]


def target_lines(report: dict[str, Any]) -> list[str]:
    """Where the time of an answer goes, what it draws, how fast a text is written, and what training takes."""
    one = next(work for work in report["work"] if work["work"] == "answer")
    parts, whole = one["predicted_parts"], one["predicted_seconds"] or 1.0
    lines = [
        f"{'an answer' if place == 0 else '':14} {'█' * round(BAR * seconds / whole):{BAR}} {seconds / whole:4.0%}  {kind}"
        for place, (kind, seconds) in enumerate(list(parts.items())[:MOST_PARTS])
    ]
    if answer := report.get("answer"):
        lines.append(
            f"{'':14} first {answer['piece']} after {time_text(answer['seconds_to_first'])}, "
            f"then {number(answer['pieces_per_second'])} a second"
        )
    works = ", ".join(
        f"{work['work']} of {work['records']} {joules_text(work['joules'])}"
        for work in report["work"]
        if work["joules"]
    )
    lines += [f"{'energy':14} {works}"] * bool(works)
    if fleet := report.get("fleet"):
        shared = f", {fleet['all_reduce_share']:.0%} of it to share gradients" * (fleet["devices"] > 1)
        lines.append(
            f"{'training':14} {fleet['devices']} x {fleet['records_per_device']} records, {time_text(fleet['step_seconds'])} "
            f"a step{shared}; devices needed: {fleet['devices_needed'] or 'no number is enough'}"
        )
    return [*lines, ""]


def promise_lines(line: dict[str, Any]) -> list[str]:
    return [f"{'promise':12} {p['text']}: {p['value']:.3g} ({p['sense']} {p['bound']:.3g})" for p in line["promises"]]


def config_text(family: str, entries: dict[str, Any]) -> str:
    """What the config of a new model holds, and how it is said."""
    lines = [
        f"  {name:18} {'from the data' if value is None else json.dumps(value, ensure_ascii=False)}"
        for name, value in entries.items()
    ]
    return "\n".join([f"onnuri train --family {family} --config ENTRY=VALUE,...", *lines])


def timeline(folder: Path, lines: list[dict[str, Any]]) -> str:
    """A model's life, one line per operation."""
    kind = ", ".join(filter(None, (lines[-1].get("family", "?"), lines[-1].get("task", "?"))))
    rows = [f"{folder}  ({kind})"]
    for place, line in enumerate(lines):
        after = line.get("after")
        score = (
            f"{after['headline'][0]} {after['scores'][after['headline'][0]]:.4g}, {size_text(after['bytes'])}"
            if after
            else (line.get("found") or {}).get("summary", "")
        )
        data = next((entry["path"] for entry in line["inputs"] if entry["role"] == "data"), "")
        changed = ", ".join(f"{k}={v}" for k, v in line["settings"].items() if v not in ("", {}, 0, 0.0, None, False))
        rows += [
            f"{'└' if place == len(lines) - 1 else '├'}─ {line['started'][:16].replace('T', ' ')}  {line['operation']:10} {score}",
            f"{' ' if place == len(lines) - 1 else '│'}    {data}  {line['seconds']:.1f} s, {line['energy']['joules']:.0f} J "
            f"+- {line['energy']['error']:.0%}",
            f"{' ' if place == len(lines) - 1 else '│'}    {changed[:110]}",
        ]
        rows += [
            f"{' ' if place == len(lines) - 1 else '│'}    {text}"
            for text in (*parent_texts(line), *license_texts(line))
        ]
        rows += [
            f"{' ' if place == len(lines) - 1 else '│'}    {'kept' if p['kept'] else 'BROKEN'}: {p['text']} {p['value']:.3g}"
            for p in line["promises"]
        ]
        rows += [
            f"{' ' if place == len(lines) - 1 else '│'}    found: {f['name']}, {f['evidence']}"
            for f in line["findings"]
        ]
        rows += [
            f"{' ' if place == len(lines) - 1 else '│'}    warned: {text}"
            for text in line.get("warnings") or ()
            if not any(text.startswith(f["name"]) for f in line["findings"])
        ]
    return "\n".join(rows)


def parent_texts(line: dict[str, Any]) -> list[str]:
    """The scores of further models that went in."""
    return [
        f"{role}: {one['headline'][0]} {one['scores'][one['headline'][0]]:.4g}"
        for role, one in (line.get("parents") or {}).items()
        if one
    ]


def license_texts(line: dict[str, Any]) -> list[str]:
    """The license and what it permits, in one line; nothing where no other model went in."""
    found = line.get("license") or {}
    permitted = "; ".join(f"{name}: {value}" for name, value in found.get("permitted", {}).items())
    return [f"license: {found['name']}; {permitted}"] if found.get("parents") else []


def recipe_text(result: dict[str, Any]) -> str:
    """The steps of a recipe as a table, and where the report is."""
    rows = [f"{'step':12} {'operation':10} {'score':>22} {'size':>9} {'latency':>10} {'seconds':>8}"]
    for step in result["steps"]:
        if step.get("headline"):
            low, high = step["interval"]
            score = f"{step['scores'][step['headline'][0]]:.4g} ({low:.3g}-{high:.3g})"
            latency = f"{step['latency_ms']['p50']:.2f} ms"
        else:
            score, latency = step.get("found", "").partition(" documents")[0], ""
        rows.append(
            f"{step['name']:12} {step['operation']:10} {score:>22} {size_text(step.get('bytes')):>9} {latency:>10} "
            f"{'cached' if step['cached'] else format(step['seconds'], '.1f'):>8}"
        )
    return "\n".join([*rows, f"report: {result['report']}  ({result['seconds']:.1f} s)"])


def shrink_text(result: dict[str, Any]) -> str:
    """The front of a search, smallest first, with the winner marked, and where it is."""
    winner = result["winner"]
    rows = [f"{'point':7} {'validation':>10} {'test':>10} {'size':>9} {'latency':>9}  operations"]
    for one in result["front"]:
        found, tested = one["validation"], one["test"]
        metric = found["headline"][0]
        test = f"{tested['scores'][metric]:.4g}" if tested else "-"
        rows.append(
            f"{one['point']:03d}{' *' if one['point'] == winner['point'] else '  '}   {found['scores'][metric]:>10.4g} "
            f"{test:>10} {size_text(found['bytes']):>9} {found['latency_ms']['p50']:>6.2f} ms  {one['chain']}"
        )
    lines = [f"* the winner: {winner['path']}, again by {winner['command']}", f"report: {result['report']}"]
    return "\n".join([*rows, *lines])
