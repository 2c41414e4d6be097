"""The page of one comparison, from its raw rows."""

from dataclasses import replace

import pytest

from compress.errors import ArtifactError
from experiments.comparison_page import draw_methods, write_page
from experiments.results import COLUMNS
from experiments.run_files import read_comparison

NAMES = ("labeler/knapsack", "second_order/bits", "second_order/uniform_bits", "labeler/mac", "taylor/mac", "taylor")


@pytest.fixture
def trials(tmp_path):
    """Three seeds of every method, the later in `NAMES` the worse."""
    lines = [",".join(COLUMNS)]
    values = {"weight_bytes": "4e5", "macs": "20e6"}
    for place, method in enumerate(NAMES):
        for seed in range(3):
            for stage, lift in (("pruned", -40), ("recovered", -4), ("fine_tuned", 0)):
                row = {**values, "method": method, "seed": str(seed), "stage": stage}
                row["metric"] = str(91 - place + lift + 0.1 * seed)
                lines.append(",".join(row.get(column, "0") for column in COLUMNS))
    path = tmp_path / "raw.csv"
    path.write_text("\n".join(lines) + "\n")
    return read_comparison(path)


def test_channels_alone_and_ranks_have_tables_of_their_own(trials):
    page = write_page(trials, "A network", "some_experiment", 92.0)
    ranks, channels = page.split("## Channels alone")
    assert "| **labeler/knapsack** | 51.10 ± 0.10 (n=3) | 87.10 ± 0.10 (n=3) | 91.10 ± 0.10 (n=3) | 20.00 |" in ranks
    assert "| second_order/uniform_bits |" in ranks
    assert "| taylor |" not in ranks
    assert "| **labeler/mac** |" in channels
    assert "/knapsack" not in channels
    assert "After fine-tuning, the labeler beats taylor/mac." in channels
    assert "over 3 seeds" in page


def test_rows_of_another_precision_are_told(trials):
    page = write_page(trials, "A network", "some_experiment", 92.0)
    assert "float32" not in page
    command = "python -m experiments.run experiment=some_experiment finetune.precision=float32"
    mixed = [replace(t, command=command) if (t.method, t.seed) in (("taylor", "1"), ("taylor/mac", "1")) else t
             for t in trials]  # fmt: skip
    page = write_page(mixed, "A network", "some_experiment", 92.0)
    assert "without bfloat16, seed 1 of `taylor/mac`, `taylor` was trained in float32 instead." in page


def test_other_tables_have_their_own_headings(trials):
    page = write_page(trials, "A network", "some_experiment", 92.0, {"Trained longer": trials[:9], "Nothing": []})
    own = page.split("## Trained longer")[1]
    assert own.count("| **labeler/knapsack** |") == 1
    assert "Nothing" not in page


def test_the_figure_has_a_row_for_every_method(trials):
    figure = draw_methods(trials, 92.0)
    assert [axes.get_title() for axes in figure.axes] == ["after recovery", "after fine-tuning"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(NAMES)


def test_a_table_of_something_else_is_refused(tmp_path):
    path = tmp_path / "raw.csv"
    path.write_text("board,network\na,b\n")
    with pytest.raises(ArtifactError, match="lacks the columns"):
        read_comparison(path)
