"""The page of the smallest files."""

from matplotlib.figure import Figure

from experiments.coded_table import CodedRow
from experiments.records_page import KeptFile, TensorRow, draw_records, write_page


def row(layer, seed=0, experiment="record_lenet5", metric=99.25, size=2000, weights=500, kept=50, coded=100):
    return CodedRow(experiment, seed, "accuracy_percent", metric, 99.4, size, 1_724_320, layer, weights, kept, 3, coded,
                    "python -m experiments.run experiment=record_lenet5", "abc", "{}")  # fmt: skip


ROWS = [row(""), row("conv1", kept=250, coded=120), row("fc1", weights=400_000, kept=1000, coded=1500)]


def test_a_file_is_told_with_its_error_ratio_and_layers():
    page = write_page(ROWS)
    assert "| ours | 0 | 0.75 | 2,000 | 862 |" in page  # 1,724,320 / 2,000
    assert "| conv1 | 500 | 50.00 | 3 | 120 | 1.920 | 66 | 8 | 1,349 | 21.584 |" in page  # 8 * 120 / 500; 67.45 %
    assert "| fc1 | 400,000 | 0.25 | 3 | 1,500 | 0.030 | 8 | 5 | 39,200 | 0.784 |" in page
    assert "| all else (biases, scales, header) |  |  |  | 380 |  |  |  |  |" in page
    assert "Deep Compression" in page
    assert "median" not in page


def test_layers_that_others_did_not_compress_stand_alone():
    page = write_page([row("", experiment="cifar10_coded"), row("conv1", experiment="cifar10_coded")])
    assert "| conv1 | 500 | 10.00 | 3 | 100 | 1.600 |\n" in page
    assert "Deep Compression: " not in page


def test_files_that_are_kept_are_told_as_they_are_now():
    kept = KeptFile(
        "a.packed", "lenet5", "mnist", 0, "accuracy_percent", 99.0, 1.0, 1234, 10_000, 1200, "c", "abc", "{}"
    )
    assert "| a.packed | 1.00 | 1,234 | 1,200 |" in write_page(ROWS, [kept])
    tensors = [TensorRow("a.packed", "fc1.weight", 1000, 3, 375, 250, 4000, 2.25),
               TensorRow("a.packed", "fc1.bias", 10, 32, 40, 35, 40, None),
               TensorRow("b.packed", "fc2.weight", 1000, 3, 375, 250, 4000, 2.25)]  # fmt: skip
    page = write_page(ROWS, [kept], tensors)
    assert "| fc1.weight | 1,000 | 4,000 | 375 | 250 | 3 | 2.000 | 2.250 |" in page
    assert "| floats (scales, biases) | 10 | 40 | 40 | 35 | | | |" in page
    assert "| header, checksum |  |  |  | 949 | | | |" in page
    assert "fc2.weight" not in page
    assert "## Files" not in write_page(ROWS)


def test_several_seeds_have_a_median():
    rows = [row("", seed, metric=metric) for seed, metric in enumerate((99.0, 99.3, 99.2))]
    assert "| **median** | | 0.80 | 2,000 | 862 |" in write_page(rows)


def test_files_of_two_sizes_are_two_settings():
    rows = [
        row("", seed, metric=metric, size=size + seed)
        for size, metric in ((2000, 99.0), (3000, 99.3))
        for seed in range(3)
    ]
    page = write_page(rows)
    assert "| **median** | | 1.00 | 2,001 | 862 |" in page
    assert "| **median** | | 0.70 | 3,001 | 575 |" in page
    assert page.count("Layers of the file") == 2


def test_the_figure_has_a_panel_for_each_network():
    figure = draw_records([*ROWS, row("", experiment="record_lenet300")])
    assert isinstance(figure, Figure)
    assert [axes.get_title() for axes in figure.axes] == ["LeNet-300-100", "LeNet-5 (20-50-500)"]
