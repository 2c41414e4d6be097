"""The page and the figure of the boards on which plans are compared."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from compress.errors import ArtifactError
from experiments.figure_style import FAINT, SERIES, dots_and_mean, new_figure, plain_rows
from experiments.regret import compare_pair, summarize

_EXPLANATION = """Every method gets the same budget (MACs), the same repair and the same fine-tuning; each board is one
network at one budget, and every method runs with the same seeds (examples, repair, training). *Rank* is among all
methods by mean test metric, ties sharing the better rank; *behind* is the distance in points to the board's best
method, chosen with hindsight; *within 1 sd* counts boards where that distance is at most one standard deviation of the
best method over its seeds (boards of one seed do not count). Intervals are of 95 %, by resampling boards. *Label cost*
is what choosing the plan took on the judged network itself, in forward MACs (statistics, and for a race its trainings),
before the repair and the fine-tuning that all share, on the median board. `labeler/search` is the plan that a plan
labeler likes best among hundreds, nothing being run; `labeler/race` lets the favourites of three searches and five
plans of formulas, those that the labeler likes best, compete in brief trainings that are judged on validation examples.
`refit_loss/search` and `refit_loss/race` are the same with a formula in the labeler's place (the error in nats that a
refit leaves): what learning adds is the difference between the two. The labeler of a zoo network never saw its family
or its task; its few settings were chosen while looking at networks of the same zoo. The network of a zoo board is the
one of its family and task with the best dense test accuracy. On networks whose data the zoo has nothing of
(`results/no_regret/trained_*.csv`, `experiment=no_regret_trained`) it is the labeler that ships with the package.
ResNet-20 at .3 of its MACs trains at a rate of 0.005. At 0.02, the rate of its board at .5, the training of some plans
breaks, good ones among them: the labeler's searched plan at .3 came to 20 % (`at_rate_0.02_resnet20_0.3.csv`)."""


def read_rows(path: str | Path) -> list[dict[str, str]]:
    """The rows of a raw table. Raises ArtifactError if it is missing or empty."""
    path = Path(path)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise ArtifactError(f"Cannot read {path}: {error.strerror or error}.") from error
    if not rows or "board" not in rows[0]:
        raise ArtifactError(f"{path} is not a table of boards.")
    return rows


def write_page(rows: Sequence[Mapping[str, Any]], command: str) -> str:
    """A Markdown page: all methods over all boards, then each board."""
    found = summarize(rows)
    boards = found["boards"]
    least, most = (bound(board["seeds"] for board in boards) for bound in (min, max))
    seeds = f"{least} to {most} seeds" if least < most else f"{most} seed{'s' * (most > 1)}"
    page = ["# No regret: the learned plan against formulas", "",
            f"{len(boards)} boards, {seeds}; drawn from `results/no_regret/raw.csv` ({command}).", "",
            _EXPLANATION, "", "![Ranks and distances](no_regret.svg)", ""]  # fmt: skip
    page += [
        "| method | mean rank | best on | within 1 sd | mean behind | worst behind | label cost |",
        "|" + "---|" * 7,
    ]
    for name, line in found["overall"].items():
        page.append(
            f"| {name} | {line['mean_rank']:.2f} ({_interval(line['mean_rank_interval'], 1)}) | "
            f"{100 * line['wins']:.0f} % | "
            f"{_percent(line['within_one_deviation'])} | {line['mean_behind']:.2f} | {line['worst_behind']:.2f} | "
            f"{line['label_cost_forward_macs']:.2g} |"
        )
    ours = [name for name in found["overall"] if name.startswith("labeler/")]
    for name in ours:
        formula = name.replace("labeler/", "refit_loss/")
        if formula in found["overall"]:
            pair = compare_pair(boards, name, formula)
            page += ["", f"`{name}` is {pair['points']:.2f} points ({_interval(pair['points_interval'], 2)}) and "
                     f"{pair['ranks']:.2f} ranks ({_interval(pair['ranks_interval'], 2)}) ahead of "
                     f"`{formula}` on the mean, ahead on {pair['ahead']} of {pair['boards']} boards, alike on "
                     f"{pair['alike']}."]  # fmt: skip
    page += [
        "",
        "## Boards",
        "",
        "| board | dense | best (sd) | " + " | ".join(ours) + " |",
        "|" + "---|" * (3 + len(ours)),
    ]
    for board in boards:
        spread = "one seed" if board["spread"] is None else f"{board['spread']:.2f}"
        best = f"{board['mean'][board['best']]:.2f} {board['best']} ({spread})"
        cells = [f"{board['mean'][name]:.2f} (rank {board['rank'][name]:.0f})" for name in ours]
        page.append(f"| {board['board']} | {board['dense']:.2f} | {best} | " + " | ".join(cells) + " |")
    return "\n".join([*page, ""])


def _interval(interval: tuple[float, float], digits: int) -> str:
    return f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def draw_regret(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Rank, and points behind the best, of every method: a small dot for each board, a large one for their mean."""
    found = summarize(rows)
    names = list(found["overall"])
    figure = new_figure(1.0 + 0.26 * len(names))
    left, right = figure.subplots(1, 2, sharey=True)
    for i, name in enumerate(names):
        colour = SERIES[1] if name.startswith("labeler/") else FAINT if name.startswith("random") else SERIES[0]
        own = [board for board in found["boards"] if name in board["rank"]]
        for axes, values in (
            (left, [board["rank"][name] for board in own]),
            (right, [max(board["behind"][name], 0.0) for board in own]),
        ):
            dots_and_mean(axes, i, values, colour)
    for axes in (left, right):
        plain_rows(axes, len(names))
    left.set_yticks(range(len(names)), names)
    left.set_xlabel("rank among all methods")
    right.set_xscale("symlog", linthresh=1.0)
    right.set_xlim(left=-0.1)
    right.xaxis.set_major_formatter("{x:g}")
    right.set_xlabel("points behind the best of the board")
    return figure
