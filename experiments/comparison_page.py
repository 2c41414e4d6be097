"""The page and the figure of one comparison of methods at the same budget, drawn from its raw rows."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from experiments.compared_methods import Method as Compared
from experiments.figure_style import FAINT, INK, SERIES, dots_and_mean, new_figure, plain_rows
from experiments.methods import Method, compared_stages, gather_methods, judge
from experiments.quantities import STAGE_WORDS
from experiments.run_files import Trial

_EXPLANATION = """All methods have the same budget, the same repair without training and the same fine-tuning. A plain
name removes channels below one threshold; `/mac` spends by score per MAC; `/knapsack` chooses channels and ranks of
layers in one solve, channels by the scores that it names and ranks by their measured damage; `/bits` removes nothing,
ranks alone; `/uniform_bits` gives all layers the same part of their rank. Numbers are mean
± standard deviation over {n} seeds (examples that are measured on, and order and augmentation of the training)."""


def write_page(
    trials: Sequence[Trial], title: str, name: str, dense: float, others: Mapping[str, Sequence[Trial]] | None = None
) -> str:
    """Markdown: who won, the figure, and every method, those that remove channels alone apart from the others.

    Args:
        title: of the network and its budget. name: of the experiment. dense: test metric of the dense network, in %.
        others: heading -> rows of a table that differs from this one as the heading says.
    """
    methods = gather_methods(trials)
    stages = compared_stages(methods)
    n = max(len(method.stages[stages[0]].values) for method in methods)
    page = [f"# {title}", "", f"Drawn from `results/{name}/raw.csv`, whose rows name the command and "
            f"the commit that made each; today `python -m experiments.run experiment={name}`.",
            "", _EXPLANATION.format(n=n), f"The dense network has {dense:.2f} %.", "",
            *_in_float32(trials), f"![Accuracy of every method]({name}.svg)", ""]  # fmt: skip
    page += _section("Channels, or ranks, or both", [method for method in methods if _with_ranks(method)])
    page += _section("Channels alone", [method for method in methods if not _with_ranks(method)])
    for heading, own in (others or {}).items():
        page += _section(heading, gather_methods(own))
    return "\n".join(page)


def _in_float32(trials: Sequence[Trial]) -> list[str]:
    """What was trained in another precision than the experiment's own, in words."""
    rows = [trial for trial in trials if "finetune.precision=float32" in trial.command]
    seeds = sorted({trial.seed for trial in rows})
    names = ", ".join(f"`{name}`" for name in dict.fromkeys(trial.method for trial in rows))
    told = f"On a processor without bfloat16, seed {', '.join(seeds)} of {names} was trained in float32 instead."
    return [told, ""] if rows else []


def _section(heading: str, methods: Sequence[Method]) -> list[str]:
    """What was found in words, and a row for each method; nothing without methods."""
    if not methods:
        return []
    stages = compared_stages(methods)
    verdicts = [judge(methods, stage) for stage in stages if stage != "pruned"]
    told = [verdict.sentence for verdict in verdicts if verdict]
    page = [f"## {heading}", "", *([*told, ""] if told else [])]
    words = [f"{STAGE_WORDS[stage]}, %" for stage in stages]
    page += [f"| method | {' | '.join(words)} | MACs, millions |", "|" + "---|" * (2 + len(stages))]
    for method in methods:
        cells = [str(method.stages[stage]) if stage in method.stages else "" for stage in stages]
        shown = f"**{method.name}**" if method.learned else method.name
        page.append(f"| {shown} | {' | '.join(cells)} | {method.macs / 1e6:.2f} |")
    return [*page, ""]


def draw_methods(trials: Sequence[Trial], dense: float) -> Figure:
    """Test accuracy of every method after each stage but the first cut: a dot a seed, a large one for their mean."""
    methods = gather_methods(trials)
    stages = [stage for stage in compared_stages(methods) if stage != "pruned"]
    figure = new_figure(1.1 + 0.26 * len(methods))
    panels = figure.subplots(1, len(stages), sharey=True, squeeze=False)[0]
    for axes, stage in zip(panels, stages, strict=True):
        for row, method in enumerate(methods):
            colour = SERIES[0] if method.learned else SERIES[1] if _with_ranks(method) else FAINT
            if stage in method.stages:
                dots_and_mean(axes, row, method.stages[stage].values, colour)
        axes.axvline(dense, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
        plain_rows(axes, len(methods))
        axes.set_title(STAGE_WORDS[stage])
        axes.set_xlabel("test accuracy, % (dashed: dense)")
    panels[0].set_yticks(range(len(methods)), [method.name for method in methods])
    return figure


def _with_ranks(method: Method) -> bool:
    """Whether ranks of layers are on its menu: only where all is solved at once, or formats alone are chosen."""
    compared = Compared(method.name)
    return compared.spending == "knapsack" or compared.keeps_units
