"""The page and the figure of the smallest files: error against bytes, layer by layer, beside what others reached."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from experiments.coded_table import CodedRow
from experiments.figure_style import MUTED, SERIES, new_figure

# (bytes of the dense float32 parameters over those of the file, error in %), as the papers give them.
OTHERS = {
    "record_lenet300": {"Deep Compression (Han et al. 2016, arXiv:1510.00149)": (40, 1.58)},
    "record_lenet5": {
        "Deep Compression (Han et al. 2016, arXiv:1510.00149)": (39, 0.74),
        "Bayesian compression (Louizos et al. 2017, arXiv:1705.08665)": (771, 1.0),
        "Weightless (Reagen et al. 2018, arXiv:1711.04686)": (382, 1.0),
        "MIRACLE (Havasi et al. 2019, arXiv:1810.00440), lowest error": (555, 0.69),
        "MIRACLE, highest compression": (1110, 0.96),
    },
    "cifar10_coded": {},
}
# Of each layer of Deep Compression, tables 2 and 3: weights kept in %, bits of one before Huffman coding, and all that
# is stored of the layer (weights and indices in Huffman code, codebook) in % of its float32 weights.
_DEEP_COMPRESSION = {
    "record_lenet300": {"fc1": (8, 6, 2.32), "fc2": (9, 6, 3.04), "fc3": (26, 6, 12.70)},
    "record_lenet5": {"conv1": (66, 8, 67.45), "conv2": (12, 8, 5.28), "fc1": (8, 5, 2.45), "fc2": (19, 5, 6.13)},
}
_TITLES = {"record_lenet300": "LeNet-300-100", "record_lenet5": "LeNet-5 (20-50-500)", "cifar10_coded": "ResNet-20"}


@dataclass(frozen=True)
class KeptFile:
    """A file of `results/records/`, in the newest version of the format.

    Attributes:
        file: its name; model, data: that it names; seed: of the run that made it.
        metric, error_percent: of the official test set, decoded in a fresh process.
        file_bytes: its size; before_bytes: in the version that it was written in.
        examples: that were scored.
    """

    file: str
    model: str
    data: str
    seed: int
    metric_name: str
    metric: float
    error_percent: float
    file_bytes: int
    examples: int
    before_bytes: int
    command: str
    commit: str
    versions: str


@dataclass(frozen=True)
class TensorRow:
    """A tensor of such a file.

    Attributes:
        file, name: which.
        values: how many are stored.
        bits: of each as stored without coding.
        raw_bytes, packed_bytes, coded_bytes: as float32, at its bits, and in the file.
        entropy: bits for each value; None of floats.
    """

    file: str
    name: str
    values: int
    bits: int
    packed_bytes: int
    coded_bytes: int
    raw_bytes: int
    entropy: float | None


def write_page(rows: Sequence[CodedRow], kept: Sequence[KeptFile] = (), tensors: Sequence[TensorRow] = ()) -> str:
    """Markdown: of each network its files, and of files of about one size the layers of the one of median error.

    Args:
        rows: of runs.
        kept: the files that are kept.
        tensors: of these.
    """
    text = [
        "# Whole networks in one small file", "",
        "Each file holds everything that a fresh process needs beside the code of the architecture: header, symbols, "
        "scales, biases, checksum. `python -m experiments.evaluate FILE` decodes it and scores it on the 10,000 test "
        "images of MNIST or CIFAR-10. Drawn from `results/NAME/raw.csv`, NAME being record_lenet300, record_lenet5 and "
        "cifar10_coded. Bits of Deep Compression are those of its codebooks; per dense "
        "weight, and bytes, they are after Huffman coding, indices and codebook included.", "",
        "![Error against bytes](records.svg)", "",
    ]  # fmt: skip
    if kept:
        text += [
            "## Files", "",
            "`results/records/`, written anew in the newest version of the format (`scripts/repack_records.py`, "
            "`raw.csv` there) and scored in a fresh process. Sizes below are of the version of their time. Readers of "
            "version 3 had learned headers of such networks beforehand, from their code, which made files up to 26 "
            "bytes smaller; version 4 knows nothing but the words that all headers are made of. Those of ResNet-20 are "
            "of seed 2.", "",
            "| file | error, % | bytes | bytes before |", "|---|---|---|---|",
            *(f"| {file.file} | {file.error_percent:.2f} | {file.file_bytes:,} | {file.before_bytes:,} |"
              for file in kept), "",
        ]  # fmt: skip
        for file in kept:
            text += _tensors(file, [tensor for tensor in tensors if tensor.file == file.file])
    for name, own in _by_experiment(rows):
        files = [row for row in own if not row.layer]
        text += [f"## {_TITLES.get(name, name)}", "", "| file | seed | error, % | bytes | times smaller |",
                 "|---|---|---|---|---|"]  # fmt: skip
        sizes = _by_size(files)
        for alike in sizes:
            for row in alike:
                text.append(f"| ours | {row.seed} | {_error(row):.2f} | {row.file_bytes:,} | {_ratio(row):.0f} |")
            # Of one setting with several seeds, not of several settings.
            if len({row.seed for row in alike}) == len(alike) > 2:
                error, size, ratio = (np.median([f(row) for row in alike]) for f in (_error, _bytes, _ratio))
                text.append(f"| **median** | | {error:.2f} | {size:,.0f} | {ratio:.0f} |")
        for title, (ratio, error) in OTHERS.get(name, {}).items():
            text.append(f"| {title} | | {error:.2f} | {files[0].dense_bytes / ratio:,.0f} | {ratio} |")
        text += ["", f"Dense: {100 - files[0].dense_metric:.2f} % error (seed {files[0].seed}).", ""]
        for alike in sizes:
            text += _layers(sorted(alike, key=_error)[(len(alike) - 1) // 2], own)
    return "\n".join(text).rstrip() + "\n"


def draw_records(rows: Sequence[CodedRow]) -> Figure:
    """Error against bytes of the files, one panel for each network."""
    networks = list(_by_experiment(rows))
    figure = new_figure(3.4)
    for axes, (name, own) in zip(figure.subplots(1, len(networks), squeeze=False)[0], networks, strict=True):
        files = [row for row in own if not row.layer]
        axes.scatter([row.file_bytes for row in files], [_error(row) for row in files], s=26, color=SERIES[0])
        first = min(files, key=_error)
        _name(axes, "ours", first.file_bytes, _error(first), 0, SERIES[0])
        others = sorted(OTHERS.get(name, {}).items(), key=lambda item: item[1])
        for place, (title, (ratio, error)) in enumerate(others):
            size = files[0].dense_bytes / ratio
            axes.scatter([size], [error], s=26, color=MUTED, marker="x")
            _name(axes, title.partition(" (")[0].partition(",")[0], size, error, place, MUTED)
        axes.set(xscale="log", xlabel="bytes of the file", title=_TITLES.get(name, name))
        axes.margins(0.3, 0.25)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    figure.axes[0].set_ylabel("error on the test set, %")
    return figure


def _name(axes: Any, text: str, x: float, y: float, place: int, color: str) -> None:
    """A label above or below its point, in turns, so that neighbours do not cover each other."""
    above = place % 2 == 0
    axes.annotate(text, (x, y), textcoords="offset points", xytext=(0, 7 if above else -7), fontsize=7, color=color,
                  ha="center", va="bottom" if above else "top")  # fmt: skip


def _tensors(file: KeptFile, tensors: Sequence[TensorRow]) -> list[str]:
    """What each tensor of integers takes, and all else together."""
    if not tensors:
        return []
    head = ["tensor", "stored values", "bytes as float32", "at its bits", "coded", "bits", "bits per value", "entropy"]
    lines = [f"Tensors of {file.file}, zeros that no mask leaves out among the values:", "", f"| {' | '.join(head)} |",
             "|" + "---|" * len(head)]  # fmt: skip
    integers = [tensor for tensor in tensors if tensor.entropy is not None and tensor.values]
    for tensor in integers:
        lines.append(
            f"| {tensor.name} | {tensor.values:,} | {tensor.raw_bytes:,} | {tensor.packed_bytes:,} | "
            f"{tensor.coded_bytes:,} | {tensor.bits} | {8 * tensor.coded_bytes / tensor.values:.3f} | "
            f"{tensor.entropy:.3f} |"
        )
    others = [tensor for tensor in tensors if tensor not in integers]
    rest = file.file_bytes - sum(tensor.coded_bytes for tensor in tensors)
    for name, own, more in (("floats (scales, biases)", others, 0), ("header, checksum", [], rest)):
        values, raw, packed, coded = (sum(getattr(tensor, key) for tensor in own)
                                      for key in ("values", "raw_bytes", "packed_bytes", "coded_bytes"))  # fmt: skip
        cells = [f"{values:,}", f"{raw:,}", f"{packed:,}"] if own else ["", "", ""]
        lines.append(f"| {name} | {' | '.join(cells)} | {coded + more:,} | | | |")
    return [*lines, ""]


def _layers(file: CodedRow, rows: Sequence[CodedRow]) -> list[str]:
    own = [row for row in rows if row.layer and _key(row) == _key(file)]
    others = _DEEP_COMPRESSION.get(file.experiment)
    head = ["layer", "weights", "kept, %", "bits", "bytes", "bits per dense weight"]
    head += ["Deep Compression: kept, %", "bits", "bytes", "bits per dense weight"] if others else []
    table = []
    for row in own:
        kept, rate = 100 * row.kept_weights / row.dense_weights, 8 * row.coded_bytes / row.dense_weights
        cells = [
            row.layer,
            f"{row.dense_weights:,}",
            f"{kept:.2f}",
            str(row.bits),
            f"{row.coded_bytes:,}",
            f"{rate:.3f}",
        ]
        if others:
            their_kept, bits, share = others[row.layer]
            size = 4 * row.dense_weights * share / 100
            cells += [f"{their_kept}", f"{bits}", f"{size:,.0f}", f"{32 * share / 100:.3f}"]
        table.append(cells)
    rest = file.file_bytes - sum(row.coded_bytes for row in own)
    table.append(["all else (biases, scales, header)", "", "", "", f"{rest:,}", *[""] * (len(head) - 5)])
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *table)]
    lines.insert(1, "|" + "---|" * len(head))
    return [f"Layers of the file of {file.file_bytes:,} bytes (seed {file.seed}):", "", *lines, ""]


def _by_experiment(rows: Sequence[CodedRow]) -> Any:
    ordered = sorted(rows, key=lambda row: row.experiment)
    return [(name, list(own)) for name, own in groupby(ordered, key=lambda row: row.experiment)]


def _by_size(files: Sequence[CodedRow]) -> list[list[CodedRow]]:
    """Files by size, those together that are at most 5 % larger than the smallest among them."""
    found: list[list[CodedRow]] = []
    for row in sorted(files, key=_bytes):
        if not found or row.file_bytes > 1.05 * found[-1][0].file_bytes:
            found.append([])
        found[-1].append(row)
    return found


def _key(row: CodedRow) -> tuple[Any, ...]:
    return row.experiment, row.seed, row.file_bytes, row.command


def _bytes(row: CodedRow) -> int:
    return row.file_bytes


def _error(row: CodedRow) -> float:
    return 100.0 - row.metric


def _ratio(row: CodedRow) -> float:
    return row.dense_bytes / row.file_bytes
