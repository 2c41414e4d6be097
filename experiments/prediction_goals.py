"""What was asked of predicting the loss after fine-tuning, beside what was found, misses told as plainly."""

from collections.abc import Sequence

import numpy as np

from experiments.who_predicts import PLANS, SPLITS, Row, summarize

JUDGED = "labeler/blend"
_TRUTH = "finetuned"
_MEDIAN, _WORST, _KNOWN, _REGRET = 0.85, 0.75, 0.93, 0.5
_RESAMPLINGS = 2000


def write_goals(rows: Sequence[Row], judged: str = JUDGED) -> str:
    """A part of the page; empty if the labeler was not judged on networks of a new family and task."""
    rows = [row for row in rows if row.scope == PLANS and row.truth == _TRUTH]
    lines = {(str(line["predictor"]), str(line["zero_shot"])): line for line in summarize(rows)}
    own, known = lines.get((judged, SPLITS[0])), lines.get((judged, SPLITS[1]))
    if own is None:
        return ""
    table = [
        ("median over networks, new family and task", f">= {_MEDIAN}", own["spearman_median"], _MEDIAN),
        (f"worst family ({own['worst_family']})", f">= {_WORST}", own["spearman_worst_family"], _WORST),
    ]
    if known is not None:
        table.append(("median over networks, known families", f">= {_KNOWN}", known["spearman_median"], _KNOWN))
    page = [
        f"## Goals and what `{judged}` reached",
        "",
        "Of the loss after fine-tuning; Spearman within a network.",
        "",
    ]
    page += ["| goal | asked | found | |", "|---|---|---|---|"]
    for what, asked, found, least in table:
        page.append(f"| {what} | {asked} | {float(str(found)):.2f} | {_verdict(float(str(found)) >= least)} |")
    regrets = {name.removeprefix("regret/"): float(str(value)) for name, value in own.items()
               if name.startswith("regret/")}  # fmt: skip
    told = ", ".join(f"{family} {value:.2f}" for family, value in sorted(regrets.items(), key=lambda item: item[1]))
    truth = lines.get((f"loss_{_TRUTH}", "measured"))
    if truth is not None:
        told += f"; the truth itself, measured on other examples, up to {float(str(truth['regret_worst_family'])):.2f}"
    page.append(
        f"| points lost by picking its favourite, mean of each family | <= {_REGRET} on every family | {told} | "
        f"{_verdict(max(regrets.values()) <= _REGRET)} |"
    )
    mean = float(str(own["spearman_mean_of_families"]))
    ahead = [(predictor, line) for (predictor, seen), line in lines.items()
             if not predictor.startswith("labeler/") and float(str(line["spearman_mean_of_families"])) > mean
             and predictor != f"loss_{_TRUTH}"]  # fmt: skip
    told = ", ".join(f"{predictor} {float(str(line['spearman_mean_of_families'])):.2f}" for predictor, line in ahead)
    page.append(
        f"| no fixed predictor is better on the mean over families ({mean:.2f}) | none | {told or 'none'} | "
        f"{_verdict(not ahead)} |"
    )
    formulas = {predictor: float(str(line["spearman_mean_of_families"])) for (predictor, seen), line in lines.items()
                if seen == ""}  # fmt: skip
    if formulas:
        best = max(formulas, key=formulas.__getitem__)
        low, high = difference(rows, (judged, SPLITS[0]), (best, ""))
        page += [
            "",
            f"The best formula is `{best}`; on the mean over families `{judged}` is {mean - formulas[best]:+.3f} ahead "
            f"of it (95 % by resampling networks within families: {low:+.3f} to {high:+.3f}).",
            "",
            *_by_part(rows, {(judged, SPLITS[0]), (best, "")}),
        ]
    return "\n".join([*page, ""])


def _by_part(rows: Sequence[Row], predictors: set[tuple[str, str]]) -> list[str]:
    """Median Spearman of each task and family, beside that of the truth on other examples, which is noise too."""
    shown = {(f"loss_{_TRUTH}", "measured"), ("loss_refitted", "measured"), *predictors}
    page = [
        f"By task and by family, median over networks. *loss_{_TRUTH}* is the truth itself, measured on other "
        "examples; where both sides have as much noise, a predictor without any would come to about the square root "
        "of it (digits has 310 images for validation and 400 for testing, the others 1,512 and 2,000 or more).",
        "",
    ]
    for kind in ("task", "family"):
        found: dict[tuple[str, str], dict[str, list[float]]] = {}
        for row in rows:
            if (row.predictor, row.zero_shot) in shown:
                own = found.setdefault((row.predictor, row.zero_shot), {})
                own.setdefault(getattr(row, kind), []).append(row.spearman)
        parts = list(dict.fromkeys(getattr(row, kind) for row in rows))
        page += [f"| predictor | {' | '.join(parts)} |", f"|---|{'---|' * len(parts)}"]
        for key in sorted(found, key=lambda key: -max(float(np.median(values)) for values in found[key].values())):
            cells = [f"{np.median(found[key][part]):.2f}" if part in found[key] else "" for part in parts]
            page.append(f"| {key[0]} | {' | '.join(cells)} |")
        page.append("")
    return page[:-1]


def difference(rows: Sequence[Row], ours: tuple[str, str], theirs: tuple[str, str]) -> tuple[float, float]:
    """95 % interval of how far one predictor's mean over families (of medians over networks) is ahead of another's.

    Networks are drawn anew within each family, the same for both.

    Args:
        ours, theirs: predictor and what it never saw, as in `Row`.
    """
    found = [{row.network: row for row in rows if (row.predictor, row.zero_shot) == key} for key in (ours, theirs)]
    families: dict[str, list[str]] = {}
    for network in sorted(set(found[0]) & set(found[1])):
        families.setdefault(found[0][network].family, []).append(network)
    rng = np.random.default_rng(0)
    gaps = []
    for names in families.values():
        pair = np.array([[own[name].spearman for name in names] for own in found])
        drawn = rng.integers(0, len(names), (_RESAMPLINGS, len(names)))
        medians = np.median(pair[:, drawn], axis=2)
        gaps.append(medians[0] - medians[1])
    low, high = np.quantile(np.mean(gaps, axis=0), [0.025, 0.975])
    return float(low), float(high)


def _verdict(reached: bool) -> str:
    return "reached" if reached else "**missed**"
