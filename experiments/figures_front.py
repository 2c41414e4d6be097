"""The figure of what other budgets would cost in damage, as it is predicted."""

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from experiments.figure_style import INK, MUTED, SERIES, new_figure
from experiments.front_table import ON_FRONT
from experiments.quantities import format_bytes, format_count, format_ms
from experiments.run_files import RunFiles

_FORMATS = {"weight_bytes": format_bytes, "coded_bytes": format_bytes, "latency_ms": format_ms}


def draw_front(run: RunFiles) -> Figure | None:
    """Predicted damage against each cost that the budget bounds, what is proven of it, and where the plan lies."""
    rows = run.front or ()
    bounds = list(dict.fromkeys(row.bound for row in rows if row.plan == ON_FRONT))
    if not bounds:
        return None
    figure = new_figure(3.4)
    panels = figure.subplots(1, len(bounds), squeeze=False, sharey=True)[0]
    drawn = {}
    for axes, bound in zip(panels, bounds, strict=True):
        own = sorted((row for row in rows if row.bound == bound), key=lambda row: getattr(row, bound))
        spent = [getattr(row, bound) for row in own]
        (drawn["least sum that was found"],) = axes.plot(
            spent, [row.solved_damage for row in own], color=SERIES[0], marker="o", markersize=5, linewidth=1.6
        )
        proven = [(x, row.lower_bound) for x, row in zip(spent, own, strict=True) if row.lower_bound is not None]
        if proven:
            # Who spends less does no less damage; a straight line between two bounds would claim more than is proven.
            (drawn["no plan lies below (proven)"],) = axes.plot(
                *zip(*proven, strict=True), color=MUTED, drawstyle="steps-pre", linestyle="--", linewidth=1.1
            )
        for row in rows:
            if row.plan != ON_FRONT and row.solved_damage is not None and getattr(row, bound) is not None:
                drawn[f"the plan of this run ({row.plan})"] = axes.scatter(
                    [getattr(row, bound)], [row.solved_damage], marker="*", s=150, color=SERIES[1], edgecolors=INK,
                    linewidths=0.6, zorder=4,
                )  # fmt: skip
        form = _FORMATS.get(bound, format_count)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _, form=form: form(value)))
        axes.set_xlabel(f"{bound} of the plan")
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel("sum of predicted damages")
    figure.legend(list(drawn.values()), list(drawn), loc="outside upper right", ncols=len(drawn))
    return figure
