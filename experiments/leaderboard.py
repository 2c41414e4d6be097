"""The leaderboard of who predicts what: a page and a figure, drawn from the raw table that stays in the repository."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from compress.errors import ArtifactError
from experiments.choice_predictors import STORED_TRUTHS
from experiments.figure_style import FAINT, MUTED, SERIES, dots_and_mean, new_figure, plain_rows
from experiments.label_economy import STRATEGIES, EconomyRow, summarize_economy
from experiments.plan_intervals import IntervalRow, summarize_intervals
from experiments.prediction_goals import write_goals
from experiments.unit_economy import UnitEconomyRow, summarize_samplings
from experiments.who_predicts import FORMATTED_PLANS, PLAN_SCOPES, PLANS, SPLITS, Row, summarize

_TITLES = {
    "plans": "Plans of equal size",
    "formatted_plans": "Plans of equal bytes, layers in few bits",
    "within_layers": "Units within layers",
    "across_layers": "Units of all layers together",
    "choices": "Ways to store a layer",
    "configs": "All layers stored otherwise at once",
}
_TRUTHS = {
    "finetuned": "loss after repair and fine-tuning",
    "briefly_tuned": "loss after repair and 20 steps",
    "refitted": "loss after repair",
    "at_once": "damage at once",
    "in_context": "damage in thinned company",
    "repaired": "damage in thinned company after a refit",
    "trained": "damage in thinned company after a refit and some steps of training",
    "stored": "damage at once",
    "stored_repaired": "damage after the repair",
}
_MOST = 14
# In names of labelers that go without an ingredient: a table of their own.
_ABLATED = " without "
_ABLATIONS = """Labelers that go without something, of networks of a new family and task. Trees, linear model and
formula are the parts of the blend; groups of columns, networks to learn from, and labels were taken from the linear
model (*without labels but refitted* learns from the loss after the repair, *after_repair* from the mean over the three
moments after it). *Change* is that of the mean of families to the whole labeler's."""
_SHOTS = """Eight random plans of the judged network are measured, after the repair or after the whole fine-tuning, and
correct what a labeler says of the others (a search with `compare.search_plans` is corrected so by plans that it likes).
Regret is over all plans, measured ones too."""
_STORED = """The following is about layers that are stored in 2 to 8 bits, or with a half to a tenth of their weights,
one at a time and all at once, each in a way drawn at random. *fisher_error*: squared error of the weights times half
the diagonal of the empirical Fisher matrix; *weight_error*: squared error as a part of the layer's energy;
*dropped_bits*: bits saved, as a part of the network; *damage_alone*: the measured damages of the single layers, added
up. *labeler/...*: order all choices of a network, learned from others; for configurations the part of a network's mean
damage that choices at that place have on the others is added up, *.../typical* does so with the order of a formula.
Single layers are measured and judged on label examples, configurations judged on test examples. *After the repair*: of
single layers whose other weights made up for what went (SparseGPT's sweep) and for the rounding (GPTQ), repaired on one
half of the label examples and judged on the other, and the reverse."""
_FORMATTED = """Plans of one network and one size in bytes that remove units *and* store what stays in 2 to 8 bits: from
many units in few bits to few units in many. Weights are rounded after the refit, and trained on as rounded ones.
*fisher_error*: what rounding adds to the squared error of weights that stay, times half the diagonal of the empirical
Fisher matrix; *refit_residual/loss+fisher_error* adds what the refit leaves, in nats too, *second_order+fisher_error*
the second-order expansion of what goes. Other formulas know nothing of bits, like the labeler *without bits*. 16 random
plans of each network, another bank of the same recipes and a shorter training of 64 steps
(`results/who_predicts/formatted.csv`, `made_formatted.json`)."""
_OTHERS = """No setting of a labeler or a formula was chosen while looking at these {n} networks, numbers 102 to 133 of
the zoo: their plans were measured last, and judged once. Labelers learned from the first 74, of which the plans were
measured anew (`results/who_predicts_others/raw.csv`, `made.json`)."""
_MEASURED = {"refitted": "after repair", "briefly_tuned": "after 20 steps", "finetuned": "after fine-tuning"}
_ECONOMY = """How good the chosen plan is after fine-tuning if only a predictor's first favourites out of 30 plans are
measured, as a part of the test metric of the plan that fine-tuning all 30 would choose; and what these measurements
cost as a part of fine-tuning all 30 (in MACs; the statistics that features need are not counted). The labelers never
saw the network's family or its task. A single favourite costs nothing and is not drawn; dotted: 99 %."""
_COSTS = (1, 2, 5, 10, 20, 50, 100)
_SAMPLINGS = """Damage at once, summed over what a plan removes that saves half of what all units would, if only a part
of the units is measured and trees predict the others: 0 is the plan of all labels, 1 that of chance; median over
networks with at least 60 units, and the quartiles. *active* draws half of its units like *stratified* and spends the
other half in three rounds where the interval leaves open on which side of the cut a unit lies
(`measure.sampling=active`). Measured units are judged by the very measurements that chose them, noise included, which
favours all alike."""
_INTERVALS = """Conformal intervals around a labeler's score for where a plan stands among the plans of its board
(normal score of its loss after fine-tuning, on examples that decide nothing). Each network's interval is calibrated on
the predictions for other networks (for a new family and task: of other families and tasks), which were as blind as its
own; every network weighs the same."""
_EXPLANATION = """Spearman of each predictor with the truth within a network: median over networks with a 95 %
bootstrap interval, mean of the medians of the families, and the worst family; and the median of Kendall's tau. A
labeler judges networks of a *new family and task*, or of *known families* (only the network is new). *Measured* losses
need the plan to be run on the judged network; all others need no forward pass per plan. Regret: points of accuracy lost
by taking the predictor's favourite plan instead of the best one of the board, mean over networks and mean of the worst
family. The settings of the labelers were chosen while looking at these networks. The row of the truth itself
(*loss_finetuned* where that is the truth) is measured on other examples: what noise leaves to be predicted. Damage
after a refit in thinned company is measured with standard errors larger than most units' damage, so there none of
these orders single units well. Labelers of units learn one order, within layers or across them, and are judged by it.
Scores over the mean of their layer's (*.../normalised*) order no unit within it otherwise, and are left out there.
Of plans before the fine-tuning, and of units, the best 14 predictors of each table are shown. *damage_.../sum* adds up
what single units were measured to do, in each of the four moments. The networks are the first 102 of the zoo's 252
(`job.limit=102` of the bank). Tables of units and of ways to store layers are of a run of their own
(`results/who_predicts/made_units.json`), on networks of the same recipes, trained and measured anew; what is of units
after training, of a third run (`trained.csv`, measured with the same masks as after the refit alone: *damage_repaired*
shares its noise there, and orders that), where all 10,506 coefficients of plans came out as in `raw.csv`.

Formulas that are no [criterion](criteria.md): *silenced_error*, what the layers that read a unit lose of their outputs
when it is zero, as a part of their energy; *refitted_error* and *refit_residual*, what they lose after a least-squares
refit of the weights that stay, by units and by plans, for plans the mean over groups (*/macs*: weighed by their MACs;
*/output*, */loss*: added over reading layers as parts of the variance of the network's outputs, and in nats);
*kept_variance*, the sum of the logarithms of the parts that stay; *uniformity*, how little the group keeps that keeps
least. *taylor_mean_abs* of units is mean |t|, what *taylor* of plans sums. *loss_...* and *damage_...* are measured."""


def write_page(rows: Sequence[Row], command: str) -> str:
    """A Markdown page with one table for each scope and truth, the best on the mean over families first.

    Raises:
        ArtifactError: if a predictor has two rows of a network, which would count twice.
    """
    judged = Counter((row.truth, row.scope, row.network, row.predictor, row.zero_shot) for row in rows)
    for told, count in judged.most_common(1):
        if count > 1:
            raise ArtifactError(f"The table of who predicts what holds {count} rows of {told}.")
    n = len({row.network for row in rows})
    page = ["# Who predicts what", "", f"{n} networks; drawn from `results/who_predicts/raw.csv` ({command}).", ""]
    goals = write_goals(rows)
    return "\n".join([*page, _EXPLANATION, "", *([goals] if goals else []), *_tables(_whole(rows))])


def _whole(rows: Sequence[Row]) -> list[Row]:
    """What has no part of its own on the page: neither ablations, nor plans measured first, nor few bits."""
    return [row for row in _plain(rows) if row.truth not in STORED_TRUTHS and row.scope != FORMATTED_PLANS]


def _plain(rows: Sequence[Row]) -> list[Row]:
    """Neither labelers that go without something, nor those for which some plans were measured first."""
    return [row for row in rows if _ABLATED not in row.predictor and "+" not in row.zero_shot]


def write_ingredients(rows: Sequence[Row]) -> str:
    """The part of the page on what a labeler is made of, on plans measured first, and on how layers are stored."""
    page = ["## Ingredients", "", _ABLATIONS, "", *_ablation_lines(rows, PLANS)]
    shots = [row for row in rows if row.scope == PLANS and row.zero_shot.partition("+")[0] == SPLITS[0]
             and row.truth == "finetuned"]  # fmt: skip
    shots = [row for row in shots if row.predictor in {r.predictor for r in shots if "+" in r.zero_shot}]
    page += ["## A few plans of the network measured first", "", _SHOTS, "", *_table_lines(summarize(shots), True)]
    page += _formatted_lines([row for row in rows if row.scope == FORMATTED_PLANS])
    return "\n".join([*page, _STORED, "", *_tables([row for row in rows if row.truth in STORED_TRUTHS])])


def write_others(rows: Sequence[Row]) -> str:
    """The part of the page on networks that no setting was chosen on; of formulas the best five."""
    lines = summarize([row for row in _plain(rows) if row.scope == PLANS and row.truth == "finetuned"])
    formulas = [line for line in lines if line["zero_shot"] == ""]
    lines = [line for line in lines if line not in formulas[5:]]
    page = ["## Networks that no setting was chosen on", "", _OTHERS.format(n=len({row.network for row in rows})), ""]
    return "\n".join([*page, *_table_lines(lines, True)])


def _formatted_lines(rows: Sequence[Row]) -> list[str]:
    """The part on plans that also store layers in few bits; nothing where none were judged."""
    if not rows:
        return []
    return [_FORMATTED, "", *_tables(_plain(rows)), *_ablation_lines(rows, FORMATTED_PLANS)]


def _tables(rows: Sequence[Row]) -> list[str]:
    """A table with its heading for each scope and truth."""
    lines, page = summarize(rows), []
    for scope, truth in dict.fromkeys((line["scope"], line["truth"]) for line in lines):
        mine = [line for line in lines if (line["scope"], line["truth"]) == (scope, truth)]
        page += [f"## {_TITLES[str(scope)]}: {_TRUTHS[str(truth)]}", ""]
        whole = scope in PLAN_SCOPES and truth == "finetuned"
        page += _table_lines(mine if whole else mine[:_MOST], scope in PLAN_SCOPES)
    return page


def _table_lines(lines: Sequence[Mapping[str, Any]], regret: bool) -> list[str]:
    head = ["predictor", "sees", "median", "95 %", "mean of families", "worst family", "Kendall",
            *(["regret", "worst regret"] if regret else [])]  # fmt: skip
    page = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for line in lines:
        cells = [
            line["predictor"], _sees(str(line["zero_shot"])), f"{line['spearman_median']:.2f}",
            f"{line['low']:.2f} to {line['high']:.2f}", f"{line['spearman_mean_of_families']:.2f}",
            f"{line['spearman_worst_family']:.2f} ({line['worst_family']})",
            f"{line['kendall_median']:.2f}",
            *([f"{line['regret_mean']:.1f}", f"{line['regret_worst_family']:.1f}"] if regret else []),
        ]  # fmt: skip
        page.append("| " + " | ".join(map(str, cells)) + " |")
    return [*page, ""]


def _ablation_lines(rows: Sequence[Row], scope: str) -> list[str]:
    """What goes without an ingredient beside what does not, of the loss after fine-tuning."""
    rows = [row for row in rows if row.truth == "finetuned" and row.scope == scope and row.zero_shot == SPLITS[0]]
    whole = {row.predictor.partition(_ABLATED)[0] for row in rows if _ABLATED in row.predictor}
    lines = {line["predictor"]: line for line in summarize(rows) if line["predictor"].partition(_ABLATED)[0] in whole}
    page = ["| labeler | median | mean of families | change | worst family |", "|---|---|---|---|---|"]
    for predictor in sorted(lines, key=lambda name: (name.partition(_ABLATED)[0], _ABLATED in name)):
        line, base = lines[predictor], lines.get(predictor.partition(_ABLATED)[0])
        mean = line["spearman_mean_of_families"]
        change = f"{mean - base['spearman_mean_of_families']:+.3f}" if base is not None and base is not line else ""
        page.append(
            f"| {predictor} | {line['spearman_median']:.3f} | {mean:.3f} | {change} | "
            f"{line['spearman_worst_family']:.2f} ({line['worst_family']}) |"
        )
    return [*page, ""]


# What was asked: this part of the metric for this part of the cost.
_SHARE, _COST = 0.99, 0.05


def write_economy(rows: Sequence[EconomyRow]) -> str:
    """The part of the page on what labels are worth."""
    page = ["## Label economy", "", _ECONOMY, "", "![Final quality against label cost](label_economy.svg)", ""]
    head = ["favourites of", "measured", "plans", "label cost", "metric", "worst tenth", "at least 99 %"]
    page += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    # One labeler is enough to read; the raw table holds all.
    labelers = dict.fromkeys(row.predictor for row in rows if row.predictor.startswith("labeler/"))
    others = list(labelers)[1:]
    lines = summarize_economy([row for row in rows if row.predictor not in others])
    for line in lines:
        page.append(
            f"| {line['predictor']} | {_MEASURED[str(line['strategy'])]} | {line['measured']} | "
            f"{100 * line['cost_share']:.1f} % | {100 * line['mean_share']:.2f} % | "
            f"{100 * line['worst_tenth_share']:.1f} % | {100 * line['at_least_99']:.0f} % of networks |"
        )
    told = []
    for predictor in dict.fromkeys(line["predictor"] for line in lines):
        cheap = [line for line in lines if line["predictor"] == predictor and line["cost_share"] <= _COST]
        best = max(cheap, key=lambda line: line["mean_share"], default=None)
        if best is not None:
            met = "met" if best["mean_share"] >= _SHARE else "**missed**"
            told.append(
                f"{predictor} {100 * best['mean_share']:.2f} % for {100 * best['cost_share']:.1f} % ({met}, on "
                f"{100 * best['at_least_99']:.0f} % of networks)"
            )
    if told:
        page += ["", f"Asked: at least {100 * _SHARE:.0f} % of the metric for at most {100 * _COST:.0f} % of the cost. "
                     f"Found, on the mean over networks: {'; '.join(told)}."]  # fmt: skip
    return "\n".join([*page, ""])


def write_samplings(rows: Sequence[UnitEconomyRow]) -> str:
    """The part of the page on which units to measure."""
    networks = len({row.network for row in rows})
    page = ["## Which units to measure", "", _SAMPLINGS, "",
            f"{networks} networks, those with enough units, from a run and a bank of its own "
            "(`results/unit_economy/made.json`).", ""]  # fmt: skip
    lines = summarize_samplings(rows)
    parts, samplings = (list(dict.fromkeys(line[key] for line in lines)) for key in ("part", "sampling"))
    page += ["| drawn | " + " | ".join(f"{100 * float(part):.0f} % measured" for part in parts) + " |"]
    page += ["|" + "---|" * (1 + len(parts))]
    for sampling in samplings:
        own = {line["part"]: line for line in lines if line["sampling"] == sampling}
        cells = [f"{own[p]['median']:.2f} ({own[p]['low']:.2f} to {own[p]['high']:.2f})" for p in parts]
        page.append(f"| {sampling} | " + " | ".join(cells) + " |")
    return "\n".join([*page, ""])


def write_intervals(rows: Sequence[IntervalRow]) -> str:
    """The part of the page on intervals."""
    head = ["predictor", "sees", "asked", "covered", "worst tenth of networks", "half-width"]
    page = ["## Intervals", "", _INTERVALS, "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for line in summarize_intervals(rows):
        page.append(
            f"| {line['predictor']} | {_sees(str(line['zero_shot']))} | {100 * float(line['asked']):.0f} % | "
            f"{100 * float(line['coverage']):.1f} % | {100 * float(line['worst_tenth']):.0f} % | "
            f"{line['half_width']:.2f} |"
        )
    return "\n".join([*page, ""])


def draw_economy(rows: Sequence[EconomyRow]) -> Figure:
    """How good the chosen plan is against what measuring some favourites cost, one curve for each predictor."""
    figure = new_figure(3.4)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, strategy in zip(panels, STRATEGIES, strict=True):
        lines = summarize_economy([row for row in rows if row.strategy == strategy])
        for colour, predictor in zip(SERIES, dict.fromkeys(line["predictor"] for line in lines), strict=False):
            own = [line for line in lines if line["predictor"] == predictor and line["measured"] != 1]
            cost, share = ([100 * float(line[key]) for line in own] for key in ("cost_share", "mean_share"))
            axes.plot(cost, share, marker="o", markersize=3.5, linewidth=1.3, color=colour, label=str(predictor))
        axes.set_xscale("log")
        axes.set_xticks(_COSTS, [str(cost) for cost in _COSTS])
        axes.minorticks_off()
        axes.axhline(99, color=MUTED, linewidth=0.8, linestyle=":")
        axes.set_xlabel(f"cost in % of all labels, measured {_MEASURED[strategy]}")
    panels[0].set_ylabel("% of the metric of all labels' plan")
    panels[1].legend(loc="lower right")
    return figure


def _sees(split: str) -> str:
    known, _, measured = split.partition("+")
    told = {"": "formula", "measured": "measured", "network": "known families"}.get(known, "new family and task")
    number, _, moment = measured.partition(" ")
    at = f" {_MEASURED[moment]}" if moment else ""
    return f"{told}, {number} plans measured{at}" if measured else told


def draw_plans(rows: Sequence[Row]) -> Figure:
    """Spearman with the loss after fine-tuning, and regret, of every predictor of plans.

    A small dot for the median of each family, a large one for their mean.
    """
    lines = [line for line in summarize(_whole(rows)) if line["scope"] == PLANS and line["truth"] == "finetuned"]
    figure = new_figure(1.0 + 0.24 * len(lines))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[2, 1])
    names = [f"{line['predictor']} ({_sees(str(line['zero_shot']))})" for line in lines]
    for i, line in enumerate(lines):
        learned = str(line["predictor"]).startswith("labeler")
        colour = SERIES[1] if learned else FAINT if line["zero_shot"] == "measured" else SERIES[0]
        for axes, prefix in ((left, "spearman/"), (right, "regret/")):
            values = [float(v) for key, v in line.items() if key.startswith(prefix)]
            dots_and_mean(axes, i, values, colour)
    for axes in (left, right):
        plain_rows(axes, len(lines))
    left.set_yticks(range(len(lines)), names)
    left.set_xlabel("Spearman with the loss after fine-tuning")
    right.set_xlabel("points lost by its favourite")
    left.axvline(0, color=MUTED, linewidth=0.8)
    return figure
