"""The page and the figure of the boards on which plans are compared."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from compress.errors import ArtifactError
from compress.files import read_json
from experiments.figure_style import FAINT, SERIES, dots_and_mean, new_figure, plain_rows
from experiments.regret import compare_pair, is_derived, summarize

_EXPLANATION = """Every method gets the same budget (MACs), the same repair and the same fine-tuning; each board is one
network at one budget, and every method runs with the same seeds (examples, repair, training). *Rank* is one more than
the methods with a better mean test metric; *behind* is the distance in points to the board's best method, chosen with
hindsight; *within 1 sd* counts boards where that distance is at most one standard deviation of the best method over its
seeds. Intervals are of 95 %, by resampling boards. *Label cost* is what choosing the plan took on the judged network
itself, in forward MACs (statistics, and for a race its trainings), before the repair and the fine-tuning that all
share, on the median board. Boards *within* the labeler's competence lie near networks that it learned from, others
*outside*. `labeler/search` is the plan that a plan labeler likes best among hundreds, nothing being
run; `labeler/race` lets the favourites of three searches and five plans of formulas, those that the labeler likes best,
compete in brief trainings that are judged on validation examples. `refit_loss/search` and `refit_loss/race` are the
same with a formula in the labeler's place (the error in nats that a refit leaves): what learning adds is the difference
between the two. The labeler of a zoo network never saw its family or its task; its few settings were chosen while
looking at networks of the same zoo. The network of a zoo board is the one of its family and task with the best dense
test accuracy."""
_DERIVED = """Some methods take plans that others found, and are ranked among these without being their rivals:
`.../finals` fine-tunes the plans of a race's last round to the end and takes the one that loses least on validation
examples; `all/finals` does so with the plans of all methods, at the price of training them all. `both/search` and
`both/race`, where they are, are what a run does by default, but with searches half as long: of one search of the
labeler and one of the formula the favourite that loses less after its repair, and a race of two favourites of the
labeler, one of the formula and five plans of criteria. On the boards of the zoo they were measured in a run of
their own, see "Searches that measure plans"; in the first table `all/finals` chose, and paid, among two more plans (of
an earlier rule for who leads), of which none was its best."""
_TRAINED = """The labeler is the one that ships with the package, which saw nothing of these data; without six of the
seven methods that came last above (`results/no_regret/trained_*.csv`). ResNet-20 is trained for 128 steps at a rate of
0.005, since at 0.02 the training of some plans broke. Methods that were not measured
with all seeds of a board are left out: of ResNet-20 `both/*`, which has the last seed alone; with the others
`all/finals` chose among two more plans, of an earlier rule for who leads."""
# Goals of ranks were set for a field of many methods.
_FEWEST_RANKED = 10
_MEASURED = """`.../measured` goes on where one search ends (`.../search` is the best of three): plans that it likes, at
first also those of single criteria, are repaired and measured on validation examples, eight at a time; what they lose
corrects the judge (a Gaussian process over the numbers of plans), their children are judged anew, and the plan that
loses least after the repair is taken. 64 plans are measured (or `job.measured`), none is trained; their repairs are the
label cost. In `.../measured_race` the three best of them stand where `.../race` has favourites of searches. A run does
so on its label examples (`compare.search_plans`), here validation examples were taken too. All methods ran anew, on
networks that were built again on another machine; fifteen of the 22 zoo boards of `measured_zoo.csv` have another
budget than in the first table. `measured_refitted.csv` has the boards of the first table, with a
labeler that learned what a plan loses after the refit alone (`job.truth=refitted`); the one that ships learned what is
lost after the fine-tuning, and of it only ResNet-20's table tells what measuring adds.
`measured_refitted_again.csv` repeats three of its methods on networks of the same recipes that were trained once more:
there that labeler is not ahead of the formula, so that the lead in the first run may be chance."""
_FORMATTED = """Here the budget is bytes, and what stays is stored in 2 to 8 bits, rounded after the repair and trained
on as rounded weights; another run, on networks of a part of the zoo that was built on another machine (names end at
173), so that six of the 16 are not those above. `refit_loss/search` and `labeler/search` search what
goes *and* the bits of each layer in one evolution, led by a formula (the error in nats that the refit leaves, and what
rounding adds to it: squared error times half the diagonal of the empirical Fisher matrix) or by a labeler that learned
from 102 networks with 16 such plans each, blind to the family and the task it is judged on.
`refit_loss/search@4bit` gives all layers 4 bits and searches what goes; `fisher/bits` removes nothing as long as bits
alone meet the size; `random` is one plan drawn as those that the labeler learned
from (its label cost is not counted). A search led by a ridge regression, which orders random
plans better than the blend, ends .37 points behind the formula's (-.95 to .05) and .29 behind the blend's (-.62 to
-.01; `formatted_ridge.csv`): a search finds what a labeler is wrong about."""
_OTHERS = """Searches of plans, nothing being run, led by labelers of other kinds and of other labels
(`job.labeler`, `job.truth`), beside that of the formula; boards, seeds, repair and fine-tuning are the same for all,
and every labeler is blind to the family and the task that it is judged on. They learned from plans of the zoo's first
102 networks, measured anew (`experiment=bank job.limit=102 job.context_masks=0 job.repaired_masks=0 job.trained_masks=0
'job.bits=[4]' 'job.densities=[]' job.configs=1`)."""
_WITHIN, _RANK = 0.8, 1.5
_LED, _FORMULA_LED = "labeler/search", "refit_loss/search"


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


def read_trained(folder: str | Path) -> list[dict[str, str]]:
    """The rows of trained networks, of all such files in a folder."""
    return [row for path in sorted(Path(folder).glob("trained_*.csv")) for row in read_rows(path)]


def read_measured(folder: str | Path) -> dict[str, list[dict[str, str]]]:
    """What made them -> rows of boards on which searches measured plans, of all such files in a folder."""
    found = {}
    for path in sorted(Path(folder).glob("measured_*.csv")):
        made = read_json(path.with_name(f"made_{path.stem}.json"))
        found[f"`results/no_regret/{path.name}` (`{made['command']}`):"] = read_rows(path)
    return found


def read_others(folder: str | Path) -> list[dict[str, str]]:
    """Rows of searches led by several labelers, of all such files in a folder: methods say which, and of what label."""
    found = []
    for path in sorted(Path(folder).glob("search_*.csv")):
        job = read_json(path.with_name(f"made_{path.stem}.json"))["job"]
        name = f"{job['labeler']}/search, {job['truth']}"
        found += [{**row, "method": name if row["method"] == _LED else row["method"]} for row in read_rows(path)]
    return found


def write_page(
    rows: Sequence[Mapping[str, Any]], command: str, trained: Sequence[Mapping[str, Any]] = (),
    measured: Mapping[str, Sequence[Mapping[str, Any]]] | None = None, formatted: Sequence[Mapping[str, Any]] = (),
    others: Sequence[Mapping[str, Any]] = (),
) -> str:  # fmt: skip
    """A Markdown page: all methods over all boards, then each board; then trained networks, by themselves.

    Args:
        rows, command: of the boards, and what made them.
        trained: rows of trained networks.
        measured: what they are -> rows of boards on which searches that measure plans took part.
        formatted: rows of boards of so many bytes, whose plans also store layers in few bits.
        others: rows of searches led by several labelers, see `read_others`.
    """
    found = summarize(rows)
    boards, overall = found["boards"], found["overall"]
    least, most = (bound(board["seeds"] for board in boards) for bound in (min, max))
    seeds = f"{least} to {most} seeds" if least < most else f"{most} seed{'s' * (most > 1)}"
    page = ["# No regret: the learned plan against formulas", "",
            f"{len(boards)} boards, {seeds}; drawn from `results/no_regret/raw.csv` ({command}).", "",
            _EXPLANATION, "", *([_DERIVED, ""] if any(map(is_derived, overall)) else []),
            *_goals(overall), "![Ranks and distances](no_regret.svg)", "", *_method_table(overall)]  # fmt: skip
    page += _pairs(boards)
    page += ["", "## Boards", "", *_board_table(boards)]
    if trained:
        trained = _with_all_seeds(trained)
        page += ["", "## Trained networks that the zoo has nothing of", "", _TRAINED, ""]
        # Each by itself: not all methods were measured on all of them.
        for network in dict.fromkeys(row["network"] for row in trained):
            found = summarize([row for row in trained if row["network"] == network])
            n_seeds = max(board["seeds"] for board in found["boards"])
            page += [f"### {network}, {n_seeds} seed{'s' * (n_seeds > 1)}", "", *_method_table(found["overall"]),
                     *_pairs(found["boards"]), ""]  # fmt: skip
        page += ["### Their boards", ""]
        page += _board_table(summarize(trained)["boards"])
    if others:
        found = summarize(others)
        n_seeds = max(board["seeds"] for board in found["boards"])
        page += ["", "## Searches led by other labelers", "",
                 f"{len(found['boards'])} boards, {n_seeds} seeds; `results/no_regret/search_*.csv`.", "", _OTHERS, "",
                 *_method_table(found["overall"]), *_beside(found["boards"], _FORMULA_LED)]  # fmt: skip
    if measured:
        page += ["", "## Searches that measure plans", "", _MEASURED]
    for what, own in (measured or {}).items():
        found = summarize(own)
        goals = _goals(found["overall"]) if len(found["overall"]) >= _FEWEST_RANKED else []
        page += ["", what, "", *goals, *_method_table(found["overall"]), *_pairs(found["boards"])]
    if formatted:
        found = summarize(formatted)
        n_seeds = max(board["seeds"] for board in found["boards"])
        page += ["", "## Boards of bytes: what goes and bits", "",
                 f"{len(found['boards'])} boards, {n_seeds} seeds; "
                 "`results/no_regret/formatted.csv` (command: `made_formatted.json`).", "", _FORMATTED, "",
                 *_method_table(found["overall"]), *_pairs(found["boards"]), "",
                 *_board_table(found["boards"])]  # fmt: skip
    return "\n".join([*page, ""])


def _with_all_seeds(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Without methods that were measured with some seeds of their board only: seeds differ more than methods do."""
    seeds: dict[str, dict[str, set[str]]] = {}
    for row in rows:
        seeds.setdefault(row["board"], {}).setdefault(row["method"], set()).add(str(row["seed"]))
    most = {board: max(map(len, methods.values())) for board, methods in seeds.items()}
    return [row for row in rows if len(seeds[row["board"]][row["method"]]) == most[row["board"]]]


def _pairs(boards: Sequence[Mapping[str, Any]]) -> list[str]:
    """What learning adds: each plan that a labeler liked best beside that of the formula; what measuring adds."""
    names = dict.fromkeys(name for board in boards for name in board["rank"])
    pairs = [(name, name.replace("labeler/", f"{other}/")) for name in names if name.startswith("labeler/")
             for other in ("refit_loss", "both")]  # fmt: skip
    pairs += [(name, other) for name in names for other in names
              if name.endswith("/search") and other.startswith("refit_loss/search@")]  # fmt: skip
    pairs += [(name, name.replace("/measured", way)) for name in names if name.endswith("/measured")
              for way in ("/search", "/race")]  # fmt: skip
    pairs += [(name, name.replace("/measured_race", way)) for name in names if name.endswith("/measured_race")
              for way in ("/race", "/measured")]  # fmt: skip
    lines: list[str] = []
    known = [board for board in boards if board["competence"] is not None]
    parts = {"within": [board for board in known if board["competence"] <= 1],
             "outside": [board for board in known if board["competence"] > 1]}  # fmt: skip
    for name, other in pairs:
        if other not in names:
            continue
        lines.append(f"| {name} | {other} | all | {_compared(boards, name, other)} |")
        if name.startswith("labeler/") and other.startswith("refit_loss/") and all(parts.values()):
            lines += [f"| | | {where} | {_compared(part, name, other)} |" for where, part in parts.items()]
    return _pair_table(lines)


def _beside(boards: Sequence[Mapping[str, Any]], other: str) -> list[str]:
    """Every method beside one of them."""
    names = dict.fromkeys(name for board in boards for name in board["rank"] if name != other)
    return _pair_table([f"| {name} | {other} | all | {_compared(boards, name, other)} |" for name in names])


def _pair_table(lines: Sequence[str]) -> list[str]:
    titles = ("method", "beside", "boards", "points ahead (95 %)", "ranks ahead (95 %)", "ahead on", "alike on")
    return ["", f"| {' | '.join(titles)} |", "|" + "---|" * len(titles), *lines] if lines else []


def _method_table(overall: Mapping[str, Any]) -> list[str]:
    """Each method over all boards."""
    titles = ("method", "mean rank", "best on", "within 1 sd", "mean behind", "worst behind", "label cost")
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    return lines + [
        f"| {name} | {line['mean_rank']:.2f} ({_interval(line['mean_rank_interval'], 1)}) | "
        f"{100 * line['wins']:.0f} % | "
        f"{_percent(line['within_one_deviation'])} | {line['mean_behind']:.2f} | {line['worst_behind']:.2f} | "
        f"{line['label_cost_forward_macs']:.2g} |"
        for name, line in overall.items()
    ]


def _goals(overall: Mapping[str, Any]) -> list[str]:
    """What was asked of the learned plan, beside what was found."""
    ours = [name for name in ("labeler/race", "labeler/measured", "labeler/measured_race", "labeler/finals",
                              "both/race", "both/measured_race", "both/finals", "all/finals")
            if name in overall and overall[name]["within_one_deviation"] is not None]  # fmt: skip
    if set(ours) <= {"all/finals"}:
        return []
    lines = ["| goal | asked | " + " | ".join(ours) + " |", "|" + "---|" * (2 + len(ours))]
    for what, asked, key, met, show in (
        ("boards within one standard deviation of the best in hindsight", f">= {100 * _WITHIN:.0f} %",
         "within_one_deviation", lambda value: value >= _WITHIN, _percent),
        ("mean rank", f"<= {_RANK}", "mean_rank", lambda value: value <= _RANK, lambda value: f"{value:.2f}"),
    ):  # fmt: skip
        cells = [f"{show(overall[name][key])} ({'met' if met(overall[name][key]) else '**missed**'})" for name in ours]
        lines.append(f"| {what} | {asked} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _compared(boards: Sequence[Mapping[str, Any]], first: str, second: str) -> str:
    pair = compare_pair(boards, first, second)
    points, ranks = (f"{pair[what]:.2f} ({_interval(pair[f'{what}_interval'], 2)})" for what in ("points", "ranks"))
    return f"{points} | {ranks} | {pair['ahead']} of {pair['boards']} | {pair['alike']}"


def _board_table(boards: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each board: the best of it, what learning came to, and how far the network lies from what was learned."""
    ours = [name for name in dict.fromkeys(name for board in boards for name in board["rank"])
            if name.startswith(("labeler/", "both/race"))]  # fmt: skip
    known = any(board["competence"] is not None for board in boards)
    lines = [
        "| board | dense | best (sd) | " + " | ".join(ours) + (" | distance |" if known else " |"),
        "|" + "---|" * (3 + len(ours) + known),
    ]
    for board in boards:
        spread = "one seed" if board["spread"] is None else f"{board['spread']:.2f}"
        best = f"{board['mean'][board['best']]:.2f} {board['best']} ({spread})"
        cells = [f"{board['mean'][name]:.2f} (rank {board['rank'][name]:.0f})" if name in board["rank"] else "-"
                 for name in ours]  # fmt: skip
        if known:
            far = board["competence"]
            cells.append("-" if far is None else f"{far:.2f}{' (outside)' * (far > 1)}")
        lines.append(f"| {board['board']} | {board['dense']:.2f} | {best} | " + " | ".join(cells) + " |")
    if known:
        lines += ["", "*Distance*: to the nearest network that was learned from; beyond 1 a network lies outside."]
    return lines


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
        colour = (
            SERIES[1]
            if name.startswith(("labeler/", "both/", "all/"))
            else FAINT
            if name.startswith("random")
            else SERIES[0]
        )
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
