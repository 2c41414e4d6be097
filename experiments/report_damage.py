"""The section of the report on damage: predicted, proven, realised, and what other budgets would cost."""

from collections.abc import Mapping
from typing import Any

from experiments.front_table import ON_FRONT, FrontRow
from experiments.markup import figure, folded, heading, not_run, note, paragraph, table
from experiments.quantities import NOTHING, format_count, format_damage, format_percent, format_ratio, stage_words
from experiments.run_files import RunFiles

Report = Mapping[str, Any]
Figures = Mapping[str, str]
# Solvers stop at a gap of 1e-4: nothing closer is told.
_CLOSEST = 1e-4


def render_damage(run: RunFiles, report: Report, figures: Figures) -> str:
    """What the plan was predicted to cost in loss, and what it cost."""
    predicted, realised = report["predicted_damage"], report["realised_damage_by_stage"]
    about = note(
        "Damage: increase of the loss per example (nats for cross-entropy), on the label examples; the table of stages "
        "is about the test examples. Planning assumes that damages of single choices add; here is how far that held. "
        "The sum counts all choices of the plan and knows of no repair; bit-widths are realised only at the end."
    )
    if predicted is None and not realised:
        return about + not_run("Damage of the whole plan", "neither number is in result.json")
    by = f" by {report['chosen']}" if report["chosen"] else ""
    rows = [
        [f"predicted{by}, sum over the plan", format_damage(predicted) if predicted is not None else "not predicted"]
    ]
    rows += _recovered_row(report["predicted_recovered_damage"])
    missed = {"recovered": _missed(report["predicted_recovered_damage"], realised.get("recovered"))}
    rows += [
        [f"realised, {stage_words(stage)}", format_damage(value) + missed.get(stage, "")]
        for stage, value in realised.items()
    ]
    student = "Nothing was predicted: a student of another architecture has no damage to be labelled."
    words = student if report["student"] else _damage_sentence(predicted, realised.get("pruned"))
    caption = "Damage of the whole plan, predicted and realised."
    drawn = figure(figures, "damage", caption)
    body = paragraph(words) + table(["damage of the whole plan", "loss per example"], rows) + drawn
    return about + body + _proof(report["solve"]) + _front(run, figures)


def _proof(solve: Mapping[str, Any] | None) -> str:
    """How far the plan may be from the best one, where it comes from one solve."""
    if solve is None:
        return ""
    if solve["lower_bound"] is None or solve["damage"] is None:
        return paragraph(
            "How close the plan is to the least possible sum of damages under this budget is not proven: "
            "allocator.proof_rounds=0, or no time was left."
        )
    damage, least = solve["damage"], solve["lower_bound"]
    what = f"The plan's predicted damage of {format_damage(damage)}"
    if solve["counted"] is not None:
        what = f"The sum of damages that the solve made least, {format_damage(damage)} (it counts {solve['counted']}),"
    if damage <= 0:
        told = f"{what} is the least possible."
    elif least <= 0:
        told = f"Of {what[0].lower()}{what[1:].rstrip(',')} nothing is proven: the least possible may be 0."
    else:
        over = max(damage / least - 1, _CLOSEST)
        told = f"{what} is proven to be within {100 * over:.2g} % of the least possible under this budget."
    late = " The time for the proof was over before it was closed." if solve["timed_out"] else ""
    return paragraph(told + late)


def _front(run: RunFiles, figures: Figures) -> str:
    """Damage that is predicted for other budgets."""
    if not run.front:
        return ""
    caption = "Least sum of predicted damages against each cost that the budget bounds, the other bounds held."
    about = note(
        "These are predictions, not measurements: damages of single choices, as the labeler predicts them, are added "
        "(those that seem to help count as 0), and none of these plans but the run's own was applied. The run's plan "
        "is placed by the same sums, whichever method made it."
    )
    own = [i for i, row in enumerate(run.front) if row.plan != ON_FRONT]
    header = ["bound", "of dense", "plan", "sum", "proven least", "gap", "MACs", "bytes", "units removed", "mean bits"]
    listing = table(header, [_front_cells(row) for row in run.front], own)
    drawn = figure(figures, "front", caption)
    return heading("What other budgets would cost") + about + drawn + folded("the same as a table", listing)


def _gap(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{100 * value:.2g} %" if value > _CLOSEST else f"below {100 * _CLOSEST:g} %"


def _front_cells(row: FrontRow) -> list[str]:
    size = row.coded_bytes if row.coded_bytes is not None else row.weight_bytes
    return [
        row.bound or NOTHING, NOTHING if row.fraction is None else format_percent(row.fraction), row.plan,
        format_damage(row.solved_damage), format_damage(row.lower_bound),
        _gap(row.gap), format_count(row.macs), format_count(size),
        str(row.units_removed), f"{row.mean_bits:.2f}",
    ]  # fmt: skip


def _recovered_row(found: Mapping[str, Any] | None) -> list[list[str]]:
    if found is None:
        return []
    if "skipped" in found:
        return [["predicted after the repair", found["skipped"]]]
    low, high = (format_damage(found[end]) for end in ("low", "high"))
    about = f"predicted after the repair, from {found['measured']} other plans that were repaired and measured"
    return [[about, f"{format_damage(found['nats'])} ({100 * found['coverage']:.0f} % interval {low} to {high})"]]


def _missed(found: Mapping[str, Any] | None, realised: float | None) -> str:
    """What is said beside a damage after the repair that lies outside of its interval."""
    if found is None or "skipped" in found or realised is None or found["low"] <= realised <= found["high"]:
        return ""
    side = "above" if realised > found["high"] else "below"
    return f", {side} the predicted {100 * found['coverage']:.0f} % interval"


def _damage_sentence(predicted: float | None, realised: float | None) -> str:
    if predicted is None:
        return "Nothing was predicted: the plan was made from scores that only order units."
    if realised is None:
        return "The realised damage before repair was not measured."
    if predicted <= 0 or realised <= 0:
        return f"Before repair, realised minus predicted damage is {format_damage(realised - predicted)}."
    times = realised / predicted
    told = f"Before repair the realised damage is {format_ratio(times)} the predicted one: "
    if times > 1.25:
        return told + "removals together hurt more than the sum says."
    return told + ("less than the sum says." if times < 0.8 else "about what the sum says.")
