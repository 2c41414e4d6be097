"""Sections of the report on labels: how good the labeler is, and what is sensitive."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.figures_labeler import held_out_pairs, ranked_scores
from experiments.figures_units import told_choices
from experiments.markup import Cell, escape, figure, folded, heading, not_run, note, paragraph, table
from experiments.quantities import (
    NOTHING,
    format_count,
    format_damage,
    format_percent,
    format_ratio,
    format_seconds,
    ratio,
)
from experiments.run_files import RunFiles, number, pick

Report = Mapping[str, Any]
Figures = Mapping[str, str]

NOMINAL_COVERAGE = 0.9
_FIFTHS = ("lowest predictions", "second fifth", "middle fifth", "fourth fifth", "highest predictions")


def render_labeler(run: RunFiles, report: Report, figures: Figures) -> str:
    """Rank correlation beside every criterion, calibration, features that mattered."""
    if run.labeler is None:
        return not_run("Labeler", "no labeler.json")
    scores = ranked_scores(run)
    rows, own = [], []
    for i, score in enumerate(scores):
        own += [i] if score.get("kind") == "labeler" else []
        low, high = number(score, "lower"), number(score, "upper")
        between = f"{low:.3f} to {high:.3f}" if low is not None and high is not None else NOTHING
        within = number(score, "within_group")
        rows.append(
            [
                str(score.get("name")),
                f"{score['spearman']:.3f}",
                between,
                NOTHING if within is None else f"{within:.3f}",
            ]
        )
    return "".join(
        [
            paragraph(agreement_sentence(report)),
            paragraph(_cost_sentence(run)),
            figure(
                figures,
                "agreement",
                "How well each score orders the measured units. The labeler predicts groups that it was "
                "not trained on; criteria need no training. Dot: all units together; stroke: median within a group."
                + _counted(scores),
            ),
            folded(
                "the same as a table",
                table(["score", "Spearman, all units", "95 % interval", "within a group"], rows, own),
            )
            if rows
            else not_run("Held-out rank correlation"),
            heading("Measured against predicted"),
            figure(
                figures, "scatter", "Each dot is a measured unit, predicted by a labeler that had not seen its group."
            )
            or not_run("Scatter of held-out predictions", "no held_out.npz"),
            heading("Calibration of intervals"),
            _calibration(run, figures),
            heading("Features that mattered"),
            _features(run),
            heading("Why these labels"),
            _explanations(run, figures),
        ]
    )


def render_sensitivity(run: RunFiles, report: Report, figures: Figures) -> str:
    """Damage of each layer at each bit-width, and of removing more and more of a group."""
    if run.layer_labels is None:
        bits = not_run("Sensitivity of layers to bit-widths", "no layer_labels.npz")
    else:
        bits = (
            figure(
                figures,
                "layer_sensitivity",
                "Damage when the weights of one layer alone are stored in fewer bits, or it alone becomes two of low "
                f"rank. {_moment(run, 'layer_choice')}Bars: standard error.",
            )
            + note(_together(run))
            + folded("all layers as a table; outlined: the plan's choice", _layer_table(run))
        )
    groups = figure(
        figures,
        "group_sensitivity",
        "Sum of the single damages of the units of a group, the least harmful first. "
        f"Dots: what the plan removes. {_moment(run, 'removal')}Real damage of several removals together may differ.",
    )
    return "".join(
        [
            heading("Layers in fewer bits, or of low rank"),
            bits or not_run("Sensitivity of layers to bit-widths"),
            heading("Removing units of a group"),
            groups or not_run("Labels of units", "no labels.npz"),
            folded("what a channel or head less would cost, and save", _steps_table(run)) if run.group_steps else "",
        ]
    )


def _moment(run: RunFiles, name: str) -> str:
    """A sentence on when damage was looked at, where that is not at once and alone."""
    oracle = pick(run.manifest, "config", "oracles", name) or {}
    kind, steps = str(pick(oracle, "_target_")).split(".")[-2:][0], number(oracle, "training_steps")
    trained = f" and {steps:.0f} steps of training" if steps else ""
    if kind == "context":
        return "Measured among random removals of others. "
    if kind == "repaired":
        return f"Measured among random removals of others, after a refit{trained}. "
    if kind == "repaired_layer_choice":
        others = "beside random choices of other layers, " if number(oracle, "company") else ""
        return f"Measured {others}after the weights made up for it{trained}. "
    return ""


def agreement_sentence(report: Report) -> str:
    """Who orders the measured damages best, a formula that beats the labeler said plainly."""
    labeler = report["labeler"]
    ours, best = labeler["held_out_spearman"], labeler["best_formula"]
    if ours is None:
        return "Held-out rank correlation of the labeler: not run."
    if best is None:
        return f"Held-out Spearman of the labeler: {ours:.3f}. No criterion was compared."
    own = next(score for score in labeler["held_out"] if score.get("kind") == "labeler")
    low, high = number(own, "lower"), number(own, "upper")
    told = f"labeler {ours:.3f}, best formula {best['name']} {best['spearman']:.3f}"
    if best["spearman"] > ours:
        text = f"A formula beats the labeler on held-out units: {told}."
    elif best["spearman"] == ours:
        text = f"The labeler and a formula tie on held-out units: {told}."
    else:
        text = f"The labeler orders held-out units better than every formula: {told}."
    if low is not None and high is not None and low <= best["spearman"] <= high:
        text += f" The formula lies within the labeler's 95 % interval ({low:.3f} to {high:.3f}): no clear winner."
    return text


def _counted(scores: list[dict[str, Any]]) -> str:
    counts = {int(score["n"]) for score in scores if score["n"] is not None}
    return f" n = {', '.join(map(str, sorted(counts)))} measured units." if counts else ""


def _cost_sentence(run: RunFiles) -> str:
    measured, total = number(run.labeler, "n_measured"), number(run.labeler, "n_units")
    spent, naive = number(run.labeler, "forward_macs"), number(run.labeler, "naive_macs")
    text = f"{pick(run.labeler, 'labeler')}: {format_count(measured)} of {format_count(total)} units measured, "
    text += f"the rest predicted. Labels took {format_seconds(number(run.labeler, 'seconds'))}"
    if spent is not None:
        text += f" and {format_count(spent)} MACs"
    saved = ratio(naive, spent)
    return text + (
        f", {format_ratio(saved)} fewer than full masked forward passes would have." if saved is not None else "."
    )


def _calibration(run: RunFiles, figures: Figures) -> str:
    nominal = number(run.labeler, "nominal_coverage") or NOMINAL_COVERAGE
    covered = number(run.labeler, "coverage")
    if covered is None:
        words = not_run("Coverage of intervals")
    else:
        off = covered - nominal
        kind = "too narrow" if off < -0.05 else "wider than they need to be" if off > 0.05 else "about right"
        words = paragraph(
            f"{format_percent(covered)} of the held-out measured damages lie inside their interval; nominal is "
            f"{format_percent(nominal)}. The intervals are {kind}."
        )
    pairs = held_out_pairs(run)
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    if len(pairs) < 10:
        return words + note("Coverage along the predictions: not run (no held_out.npz with intervals).")
    pairs = pairs[np.argsort(pairs[:, 1], kind="stable")]
    rows = []
    for name, part in zip(_FIFTHS, np.array_split(pairs, 5), strict=True):
        inside = (part[:, 0] >= part[:, 2]) & (part[:, 0] <= part[:, 3])
        rows.append(
            [
                name,
                str(len(part)),
                format_percent(inside.mean()),
                format_damage(float(np.median(part[:, 3] - part[:, 2]))),
            ]
        )
    caption = "Measured units in the order of their prediction, with the held-out interval of each."
    return words + figure(figures, "calibration", caption) + table(["units", "n", "inside", "median width"], rows)


def _features(run: RunFiles) -> str:
    features = pick(run.labeler, "top_features") or ()
    if not features:
        return not_run("Attribution to features")
    most = max(number(feature, "share") or 0.0 for feature in features) or 1.0
    rows = "".join(
        f"<tr><td>{escape(pick(feature, 'name'))}</td>"
        f"<td class=text><span class=bar style='width:{120 * (number(feature, 'share') or 0.0) / most:.0f}px'></span>"
        f"{format_percent(number(feature, 'share'))}</td>"
        f"<td class=wrap>{escape(_explain(feature))}</td></tr>"
        for feature in features[:10]
    )
    return (
        "<div class=scroll><table><thead><tr><th>feature</th><th class=text>share of all contributions</th>"
        f"<th class=text>what it is</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _explanations(run: RunFiles, figures: Figures) -> str:
    """A few units, each with what moved its label and the measured units most alike."""
    if not run.explanations:
        return not_run("Explanation of single labels", "the labeler has no reasons to tell")
    rows = []
    for words, found in run.explanations.items():
        alike = "; ".join(f"{other['unit_id']}: {format_damage(other['damage'])}" for other in found["relatives"][:3])
        interval = f"{format_damage(found['lower'])} to {format_damage(found['upper'])}"
        why = "; ".join(map(_reason, found["reasons"][:3]))
        told = [words, found["unit_id"], format_damage(found["damage"]), interval]
        rows.append([*told, (why or NOTHING, "class=wrap"), (alike or NOTHING, "class=wrap")])
    caption = "What moved the label of each of these units most, in loss per example."
    about = note("Any other unit: autolabel.explain(labeler, features, unit_id), with the labeler of this run folder.")
    header = ["label", "unit", "predicted damage", "interval", ("why", "class=text"),
              ("measured, most alike", "class=text")]  # fmt: skip
    return figure(figures, "reasons", caption) + table(header, rows) + about


def _reason(reason: Mapping[str, Any]) -> str:
    """What one feature did to one label."""
    amount, means = reason["amount"], reason.get("means") or reason["name"]
    way = "raised" if amount >= 0 else "lowered"
    return f"{way} by {format_damage(abs(amount))}: {means}, higher than in {reason['above']:.0%} of units"


def _explain(feature: Mapping[str, Any]) -> str:
    """What a feature is, and which way it moved the predictions."""
    words = {1: "High values go with more predicted damage.", -1: "High values go with less predicted damage."}
    told = [str(pick(feature, "description") or ""), words.get(pick(feature, "direction"), "")]
    return " ".join(f"{text[0].upper()}{text[1:].rstrip('.')}." for text in told if text) or NOTHING


def _together(run: RunFiles) -> str:
    """What widths do in company."""
    if run.joint is None:
        return "Damages of widths are added as they are. quantize.joint_plans=50 learns what they do together."
    joint, plans = run.joint, f"{run.joint.plans} random plans were measured"
    if joint.exponent == 1 and joint.scale == 1:
        if len(joint.residuals) < 10:
            return f"{plans}: too few do damage beyond the noise of measuring, so damages are added as they are."
        return f"{plans}: no law predicts plans held out better than the sum, so damages are added as they are."
    factor = float(np.exp(np.sqrt(np.mean(np.square(joint.residuals)))))
    return (
        f"{plans}: damage of widths together grows like their weighted sum to the power {joint.exponent:.2f}. "
        f"The {len(joint.residuals)} that do damage beyond the noise of measuring, held out, are predicted within a "
        f"factor {factor:.2f} (root mean square). Methods that add damages chose widths by it."
    )


def _steps_table(run: RunFiles) -> str:
    """Growing numbers of units of every group: predicted damage, and what they would save."""
    rows: list[list[Cell]] = []
    for group, steps in sorted(run.group_steps.items()):
        for step in steps if isinstance(steps, list) else ():
            damage, macs, size = (number(step, key) for key in ("damage", "macs_saved", "bytes_saved"))
            if damage is not None and macs is not None and size is not None:
                rows.append([group, str(pick(step, "less")), format_damage(damage), f"{macs:.2%}", f"{size:.2%}"])
    return table(["group", "less", "sum of damages", "of the MACs", "of the bytes"], rows)


def _layer_table(run: RunFiles) -> str:
    """Damages as numbers on a scale of colour, the plan's choice outlined."""
    labels = run.layer_labels
    told = told_choices(labels.choices)
    rows = [i for i in range(len(labels.unit_ids)) if np.isfinite(labels.damage[i]).any()]
    if not told or not rows:
        return ""
    most = float(np.nanmax(np.abs(labels.damage[np.ix_(rows, [c for *_, c in told])]))) or 1.0
    formats = run.plan.layer_formats if run.plan is not None else {}
    body: list[list[Cell]] = []
    for i in rows:
        name = labels.unit_ids[i]
        cells: list[Cell] = [name]
        for _, bits, column in told:
            damage, error = labels.damage[i, column], labels.std_err[i, column]
            if not np.isfinite(damage):
                cells.append(NOTHING)
                continue
            share = 60 * min(1.0, np.sqrt(max(damage, 0.0) / most))
            own = formats.get(name)
            chosen = own is not None and own.bits == bits and (own.bits > 8 or own.scheme == "symmetric")
            kind = "heat chosen" if chosen else "heat"
            text = format_damage(damage) + (f" ± {format_damage(error)}" if np.isfinite(error) else "")
            cells.append(
                (text, f'class="{kind}" style="background:color-mix(in srgb,var(--s1) {share:.0f}%,transparent)"')
            )
        body.append(cells)
    return table(["layer", *(words for words, *_ in told)], body)
