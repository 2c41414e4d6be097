"""The page and the figure of mixed-precision configurations, drawn from the raw tables that stay in the repository."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.figure_style import FAINT, MUTED, SERIES, new_figure
from experiments.mixed_precision import SUM, AllocationRow, WidthRow, summarize_widths

_ABOUT = {
    "mean_bits": "mean width",
    "weight_error": "rounding error of each weight tensor over its energy, added",
    "fisher": "rounding error times half the empirical Fisher diagonal, added (HAWQ-style)",
    "gauss_newton": "second-order expansion of the loss in what each layer and width changes of the outputs, added",
    "gauss_newton_pairs": "the same with the terms of pairs of layers (CLADO's, arXiv:2307.05657)",
    "sum": "measured damage of each layer and width alone, added",
    "true": "learned from the judged configurations themselves",
}
_TRUE = "true"
_NOTE = """Every layer of the trained ResNet-20 takes 8, 6, 4, 3 or 2 bits at random; weights are rounded per channel,
activations stay float, nothing is trained. `joint_N` and `fisher_joint_N` are `autolabel.joint_damage`: the damages of
`sum` or of `fisher`, each with its weight, added and raised to a power, learned from N other random configurations
measured on label examples (three draws of them; the spread is over these); `pairs_joint_N` adds a learned term for
each pair of layers to the logarithm of `joint_N`. Judged on test examples that no predictor saw. The dense network
knows its label examples by heart, so predicted nats are on another scale than test nats; order
is what is compared, and the factor 1.5 is given for what it is. For comparison, with other networks and spaces: EMQ
(Dong et al. 2023, arXiv:2307.10554) reports .79 over all and .43 within the best fifth on ResNet-18."""


def write_page(rows: Sequence[WidthRow], chosen: Sequence[AllocationRow], command: str) -> str:
    """Markdown: a table of predictors, one of the allocations that follow from them."""
    n_configs = len({row.config for row in rows})
    text = [
        "# Mixed precision: whose damages tell what widths do together", "",
        f"{n_configs} configurations; drawn from `results/mixed_precision/raw.csv` and `allocations.csv` ({command}).",
        "", _NOTE, "", *_goals(rows, chosen), "![Predicted and measured damage](mixed_precision.svg)", "",
        "| predictor | | Spearman with test loss | within the best fifth | within a factor 1.5 | labels, 10^9 MACs |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for line in summarize_widths(rows):
        spread = line["seeds"] > 1
        values = (
            f"{line[key]:.3f}" + (f" ± {line[std]:.3f}" if spread else "")
            for key, std in (("spearman", "spearman_std"), ("spearman_best_fifth", "best_fifth_std"))
        )
        within = line["within_1.5"]
        told = "" if within is None else f"{100 * within:.0f} %"
        cost = f"{line['label_cost_forward_macs'] / 1e9:.0f}"
        text.append(f"| {line['predictor']} | {_about(line['predictor'])} | {' | '.join(values)} | {told} | {cost} |")
    text += [
        "", "## What is chosen with them", "",
        "The same exact knapsack adds the damages of each and chooses widths within a budget of bytes; test accuracy "
        f"without training (dense {chosen[0].dense_metric:.2f} %). `true` uses labels that no one has.", "",
    ]  # fmt: skip
    budgets = sorted({row.bits for row in chosen})
    text += ["| labels | " + " | ".join(f"{bits:g} bits" for bits in budgets) + " |", "|---" * (len(budgets) + 1) + "|"]
    for name in dict.fromkeys(row.labels for row in chosen):
        cells = [_mean([row.metric for row in chosen if row.labels == name and row.bits == bits]) for bits in budgets]
        text.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(text) + "\n"


def _goals(rows: Sequence[WidthRow], chosen: Sequence[AllocationRow]) -> list[str]:
    """What was asked, beside what damages learned together reached."""
    lines = [line for line in summarize_widths(rows) if str(line["predictor"]).startswith("joint_")]
    if not lines or not any(row.labels == _TRUE for row in chosen):
        return []
    text = [
        "| predictor | Spearman >= .90 | within the best fifth >= .70 | allocations <= 2 % below those of `true` |",
        "|---|---|---|---|",
    ]
    for line in sorted(lines, key=lambda line: int(str(line["predictor"]).removeprefix("joint_"))):
        means = {(name, bits): np.mean([r.metric for r in chosen if (r.labels, r.bits) == (name, bits)])
                 for name in (_TRUE, line["predictor"]) for bits in {row.bits for row in chosen}}  # fmt: skip
        behind = max(
            float(1 - means[line["predictor"], bits] / means[_TRUE, bits]) for bits in {row.bits for row in chosen}
        )
        cells = (
            (f"{line['spearman']:.3f}", line["spearman"] >= 0.9),
            (f"{line['spearman_best_fifth']:.3f}", line["spearman_best_fifth"] >= 0.7),
            (f"{100 * behind:.1f} %", behind <= 0.02),
        )
        told = " | ".join(f"{value} ({'met' if met else '**missed**'})" for value, met in cells)
        text.append(f"| {line['predictor']} | {told} |")
    return [*text, ""]


def draw_widths(rows: Sequence[WidthRow]) -> Figure:
    """Predicted against measured damage: added as they are, and learned together."""
    most = max(int(row.predictor.removeprefix("joint_")) for row in rows if row.predictor.startswith("joint_"))
    shown = [SUM, f"joint_{most}"]
    figure = new_figure(3.6)
    for axes, name in zip(figure.subplots(1, len(shown), sharey=True, squeeze=False)[0], shown, strict=True):
        own = [row for row in rows if row.predictor == name]
        own = [row for row in own if row.seed == own[0].seed]
        predicted, damage = np.array([row.predicted for row in own]), np.array([row.damage for row in own])
        axes.scatter(predicted, damage, s=7, color=SERIES[0 if name == SUM else 1], alpha=0.6, linewidths=0)
        axes.axline((0.1, 0.1), (1, 1), color=FAINT, linewidth=0.8)
        axes.set(xscale="log", yscale="log", xlabel="predicted damage, nats", title=name)
        line = summarize_widths(own)[0]
        axes.text(0.03, 0.93, f"Spearman {line['spearman']:.2f}", transform=axes.transAxes, color=MUTED)
    figure.axes[0].set_ylabel("measured on test examples, nats")
    return figure


def _about(name: str) -> str:
    if "joint" not in name:
        return _ABOUT[name]
    number = name.rpartition("_")[2]
    base = {"fisher": "fisher", "pairs": "sum and pairs of layers"}.get(name.partition("_")[0], "sum")
    return f"{base}, learned with {number} configurations"


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}"
