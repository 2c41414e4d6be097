"""The page and the figure of predicted and realised damage of whole plans, drawn from raw tables."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from autolabel.plan_damage import SMALLEST
from experiments.figure_style import FAINT, MUTED, SERIES, new_figure
from experiments.plan_damages import FACTOR, DamageRow, summarize_damages
from experiments.regret import mean_interval

_ABOUT = f"""`autolabel.plan_damage` predicts what a whole plan costs in nats: a regression on numbers that need no
forward pass of the plan, learned on other networks, and corrected by other random plans of the judged network that were
repaired and measured (on label and validation examples), by those most that are most like it. It is judged on test
examples. Neither the family nor the task of a judged zoo network was in what it learned from; its form was chosen while
looking at random plans of 102 networks of the same zoo. Plans whose realised damage is below {SMALLEST} nats have no
ratio and are counted as silent. *Covered*: part of the realised damages within the 90 % interval; *width*: factor from
its middle to its ends (median); *order*: Spearman within a board (median)."""
_FINETUNED = """After fine-tuning many damages are not positive, and what is left is small: no factor can be held
there."""
_ASKED = 0.8
_HEADER = ("| after | measured plans | plans | silent | within a factor 1.5 | worst family | covered | width "
           "| order |\n"
           "|" + "---|" * 9)  # fmt: skip


def _of_methods(rows: Sequence[DamageRow]) -> str:
    count = len({row.method for row in rows})
    return f", a plan of each of {count} methods" if count > 1 else ""


def write_page(
    boards: Sequence[DamageRow], bank: Sequence[DamageRow] = (), trained: Sequence[DamageRow] = (),
    again: Sequence[DamageRow] = (),
) -> str:  # fmt: skip
    """Markdown: plans of formulas and searches on the boards of `no_regret`, the same of a zoo that was trained anew,
    those of its trained networks that are judged with what ships, and random plans of the whole bank."""
    about = [_FINETUNED] if any(row.moment == "finetuned" for row in bank) else []
    text = ["# Predicted and realised damage of whole plans", "", _ABOUT, *about, "",
            "![Predicted and realised damage](plan_damage.svg)", ""]  # fmt: skip
    for rows, title, source in (
        (boards, "Plans of formulas and searches",
         "`results/plan_damage/raw.csv` (command: `results/plan_damage/made.json`)"),
        (again, "The same where zoo and bank were made anew",
         "`results/plan_damage/again.csv` (command: `made_again.json`; of each family and task the best of 145 "
         "networks is judged, not of 252, so that nine of the boards have another network)"),
        (trained, "Trained networks, with the regression that ships",
         "`results/plan_damage/trained.csv` (commands: `made_trained.json`, `made_trained_minilm.json`; the loss of "
         "MiniLM is the squared distance of its embeddings, no nats)"),
        (bank, "Random plans", "`results/plan_damage/bank.csv` (`experiment=who_predicts`)"),
    ):  # fmt: skip
        if not rows:
            continue
        lines = summarize_damages(rows)
        count = len({row.board for row in rows})
        number = f"{count} board{'s' * (count > 1)}{_of_methods(rows)}"
        text += [f"## {title}", "", f"{number}; drawn from {source}.", "", _HEADER]
        told = [line for line in lines if "within" in line]
        text += [_line(line) for line in told]
        text.append("")
    for rows, when in ((boards, ""), (again, ", made anew")):
        whole = [line for line in summarize_damages([*rows, *trained]) if "within" in line] if rows else []
        if whole:
            best = max(whole, key=lambda line: line["within"])
            text += [f"Asked{when}: within a factor {FACTOR:g} for {100 * _ASKED:.0f} % of the plans. Reached: "
                     f"{100 * best['within']:.1f} % of the {best['plans']} plans of {best['boards']} boards with "
                     f"{best['measured']} measured plans ({_interval([*rows, *trained], best)} by resampling "
                     f"boards), {'met' if best['within'] >= _ASKED else '**missed**'}; intervals cover "
                     f"{100 * best['covered']:.1f} %.",
                     ""]  # fmt: skip
    return "\n".join(text)


def _interval(rows: Sequence[DamageRow], line: dict) -> str:
    """95 % interval of what a line says of all boards, by resampling these."""
    own = [row for row in rows if (row.moment, row.measured) == (line["moment"], line["measured"])]
    boards = [summarize_damages([row for row in own if row.board == name]) for name in {row.board: 0 for row in own}]
    low, high = mean_interval([board["within"] for (board,) in boards if "within" in board])
    return f"{100 * low:.0f} to {100 * high:.0f} %"


def _line(line: dict) -> str:
    order = "" if line["spearman"] is None else f"{line['spearman']:.2f}"
    cells = [
        line["moment"], line["measured"], line["plans"], line["silent"], f"{100 * line['within']:.0f} %",
        f"{100 * line['within_worst_family']:.0f} % ({line['worst_family']})", f"{100 * line['covered']:.0f} %",
        f"{line['width']:.1f}", order,
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def draw_damages(rows: Sequence[DamageRow]) -> Figure:
    """Predicted against realised damage: with nothing measured, and with the most plans measured."""
    moment = rows[0].moment
    numbers = sorted({row.measured for row in rows if row.moment == moment})
    figure = new_figure(3.6)
    shown = dict.fromkeys((numbers[0], numbers[-1]))
    for axes, number in zip(figure.subplots(1, len(shown), sharey=True, squeeze=False)[0], shown, strict=True):
        own = [r for r in rows if r.moment == moment and r.measured == number and r.realised >= SMALLEST]
        predicted, realised = np.array([r.predicted for r in own]), np.array([r.realised for r in own])
        ends = np.array([realised.min(initial=1.0), realised.max(initial=1.0)])
        axes.fill_between(ends, ends / FACTOR, ends * FACTOR, color=FAINT, alpha=0.5, linewidth=0)
        axes.scatter(predicted, realised, s=7, color=SERIES[0 if number == numbers[0] else 1], alpha=0.6, linewidths=0)
        axes.set(xscale="log", yscale="log", xlabel="predicted, nats", title=f"{number} plans measured")
        within = np.mean(np.maximum(predicted / realised, realised / predicted) <= FACTOR)
        axes.text(0.03, 0.93, f"{100 * within:.0f} % within {FACTOR:g}", transform=axes.transAxes, color=MUTED)
    figure.axes[0].set_ylabel(f"realised ({moment}) on test examples, nats")
    return figure
