"""Section of the report on methods at the same budget: who won, and whose plan was taken."""

from collections.abc import Mapping
from typing import Any

from experiments.markup import Cell, figure, heading, items, not_run, note, paragraph, table
from experiments.quantities import (
    STAGE_WORDS,
    STAGES,
    format_bytes,
    format_count,
    format_loss,
    format_metric,
    format_percent,
    format_spread,
    metric_words,
)
from experiments.run_files import RunFiles, number, pick

Report = Mapping[str, Any]
Figures = Mapping[str, str]


def render_comparison(run: RunFiles, report: Report, figures: Figures) -> str:
    """All methods at the same budget, same recovery, same fine-tuning, over seeds."""
    methods = report["baselines"]
    if not methods:
        return not_run("Comparison of methods", "no comparison.csv") + _choice(run)
    stages = [stage for stage in STAGES if any(stage in method["stages"] for method in methods)]
    metric = pick(report, "dense", "metric", "name")
    rows, own = [], []
    for i, method in enumerate(methods):
        own += [i] if method["kind"] == "labeler" else []
        cells: list[Cell] = [method["method"]]
        for stage in stages:
            s = method["stages"].get(stage)
            failed = f", {len(s['failed_seeds'])} failed" if s and s["failed_seeds"] else ""
            cells.append(format_spread(s["mean"], s["std"], s["n"]) + failed if s else ("not run", "class=absent"))
        rows.append([*cells, format_count(method["macs"]), format_bytes(method["weight_bytes"])])
    verdicts = items([verdict["sentence"] for verdict in report["verdicts"]])
    header = ["method", *(STAGE_WORDS[stage] for stage in stages), "MACs", "weight bytes"]
    return "".join(
        [
            verdicts or note("The labeler or a formula to compare it with is absent: no verdict."),
            figure(
                figures,
                "comparison",
                f"Test {metric_words(metric)} at the same budget, recovery and fine-tuning. Rings: "
                "seeds; dot: mean; bar: one standard deviation; dashed: dense. In blue what the labeler decided. "
                "Scales differ from panel to panel.",
            ),
            table(header, rows, own),
            _unspent(methods) if "macs" in (pick(report, "budget", "asked") or ()) else "",
            note(
                "Mean ± standard deviation over n seeds; n=1 has no spread. How the budget is spent over the scores: a "
                "plain name removes below one threshold, “/mac” spends by score per MAC, “/uniform” keeps the same "
                "fraction of every group, “/knapsack” solves for everything together, “/unmasked” too "
                "but leaves no single weights out, “/bits” too but removes nothing, "
                "“/widths” the same without leaving single weights out, “/masks” leaves single weights out at the most "
                "bits, “/uniform_bits” removes nothing either and stores all layers alike; “@0.1” counts a tenth of "
                "the damage of formats; “plans/search” is what a labeler of whole plans likes best among thousands, "
                "“refit_loss/search” what a formula does, and “plans/race” the winner of brief trainings among "
                "favourites of both and plans of criteria, judged on validation data."
                + _searched_after(run)
                + (f" “criterion” is {report['criterion']}." if report["criterion"] else "")
            ),
            figure(
                figures,
                "accuracy_against_macs",
                "The same against MACs, one mark a seed. Hollow or pale marks: the method of "
                "that colour with its budget spent per MAC, or in another way. Star: dense.",
            ),
            _choice(run),
        ]
    )


def _choice(run: RunFiles) -> str:
    """Why this plan, and what its rivals had on the validation set."""
    if run.choice is None:
        return heading("Choice of the plan") + not_run("Choice among plans", "no choice.json")
    chosen = pick(run.choice, "chosen")
    candidates = sorted(pick(run.choice, "candidates") or (), key=_validation_loss)
    own = [i for i, entry in enumerate(candidates) if pick(entry, "method") == chosen]
    rows = [
        [
            str(pick(entry, "method")),
            format_metric(number(entry, "validation_metric")),
            format_loss(number(entry, "validation_loss")),
            format_count(number(entry, "macs")),
        ]
        for entry in candidates
    ]
    listing = table(["candidate", "validation metric", "validation loss", "MACs"], rows, own) if rows else ""
    return (
        heading("Choice of the plan")
        + paragraph(f"{chosen}: {pick(run.choice, 'reason') or 'no reason given'}")
        + listing
        + "".join(paragraph(f"The labeler of whole plans: {text}") for text in pick(run.choice, "plan_labeler") or ())
    )


def _searched_after(run: RunFiles) -> str:
    """How many plans the searches of whole plans measured, which other methods did not."""
    count = pick(run.manifest, "config", "compare", "search_plans")
    return f" Each search of whole plans repaired and measured up to {count} of them." if count else ""


def _unspent(methods: list[Mapping[str, Any]]) -> str:
    """A warning about methods that removed more than they had to: they are at a disadvantage."""
    known = {method["method"]: method["macs"] for method in methods if method["macs"] is not None}
    most = max(known.values(), default=0.0)
    told = [f"{name} ({format_percent(macs / most)})" for name, macs in known.items() if macs < 0.98 * most]
    if not told:
        return ""
    return note(f"Left more than 2 % of the MACs of the largest plan unspent, a disadvantage: {', '.join(told)}.")


def _validation_loss(entry: Any) -> float:
    loss = number(entry, "validation_loss")
    return float("inf") if loss is None else loss
