"""Labels at the level of weights: damage measured on cells of alike weights, learned, and told of every weight."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from autolabel.feature import log_size
from autolabel.labeler import Labeler
from autolabel.oracle import Measurement, Moments
from autolabel.row_log import RowLog
from autolabel.tables import FeatureTable, LabelTable
from compress.errors import CompressError, DataError
from compress.hashing import hash_state, hash_values
from compress.prunable_weights import PrunableWeight, prunable_weights
from compress.replay import Replay
from compress.statistics import check_batches
from compress.structure import analyze
from compress.task import Batch, Task
from compress.weight_score import WeightScore, score_weights
from compress.weight_scores import FisherWeightScore, MagnitudeWeightScore, TaylorWeightScore

CHOICE = "removed"
# Part of the largest damage that orders the weights within a cell.
_TIE = 1e-6


@dataclass(frozen=True, eq=False)
class WeightCells:
    """Every weight of some layers in one cell of weights that are alike.

    Attributes:
        ids: `n_cells` names such as `fc1:cell[3]`.
        layer: `(n_cells,)` str, the layer of each.
        sizes: `(n_cells,)` number of weights, at least 1.
        of: layer name -> int64 of the weight's shape, the row of each weight's cell.
    """

    ids: tuple[str, ...]
    layer: np.ndarray
    sizes: np.ndarray
    of: Mapping[str, Tensor]

    def means(self, scores: Mapping[str, Tensor]) -> np.ndarray:
        """`(n_cells,)` float64 mean of a score (layer name -> values of the weights' shapes) over each cell."""
        total = np.zeros(len(self.ids))
        for name, cells in self.of.items():
            total += np.bincount(cells.flatten().numpy(), scores[name].flatten().numpy(), len(self.ids))
        return total / self.sizes


@dataclass(frozen=True, eq=False)
class WeightLabels:
    """What `label_weights` found.

    Attributes:
        scores: layer name -> float64 predicted damage of removing each weight, in nats, for `choose_masks`.
        cells: the measured cells; features: of them; labels: their damage per weight.
    """

    scores: dict[str, Tensor]
    cells: WeightCells
    features: FeatureTable
    labels: LabelTable


def divide_weights(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], bins: tuple[int, int] = (6, 3)
) -> WeightCells:
    """Cells of weights of one layer that are alike in two scores: quantiles of the second within those of the first.

    Args:
        first, second: layer name -> score of each weight.
        bins: how many quantiles of each; a layer with fewer weights has fewer cells. All cells of a layer are of the
            same size, but for one weight.
    """
    if min(bins) < 1:
        raise CompressError(f"The 'bins' parameter of divide_weights must be two ints of at least 1. Got {bins!r}.")
    ids: list[str] = []
    layer: list[str] = []
    sizes: list[int] = []
    of: dict[str, Tensor] = {}
    for name, values in first.items():
        a, b = values.flatten().numpy(), second[name].flatten().numpy()
        cells, before = np.empty(len(a), dtype=np.int64), len(ids)
        for rows in _quantiles(a, np.arange(len(a)), bins[0]):
            for part in _quantiles(b, rows, bins[1]):
                cells[part] = len(ids)
                ids.append(f"{name}:cell[{len(ids) - before}]")
                layer.append(name)
                sizes.append(len(part))
        of[name] = torch.from_numpy(cells).reshape(values.shape)
    return WeightCells(tuple(ids), np.array(layer, dtype=str), np.array(sizes, dtype=np.int64), of)


def measure_cells(
    model: nn.Module, task: Task, batches: Sequence[Batch], cells: WeightCells, *,
    rows_file: str | Path | None = None, on_row: Callable[[int, int], None] | None = None,
) -> LabelTable:  # fmt: skip
    """Damage per weight, in nats, of setting a whole cell to zero: the increase of the loss over the cell's size.

    Dividing by the size takes the damages within a cell as adding up; what weights do together counts in equal parts.

    Args:
        model: stays as it is.
        task: gives per-example losses.
        batches: examples to measure on.
        cells: of layers of this model.
        rows_file: takes each row as soon as it is known, and gives those that an earlier call knew, see `measure`.
        on_row: called with (rows done, rows in all).

    Raises:
        DataError: without batches. ArtifactError: if `rows_file` belongs to something else.
    """
    batches = list(batches)
    if not batches:
        raise DataError("The 'batches' parameter of measure_cells must hold at least one batch. Got none.")
    structure = analyze(model, task.inputs(batches[0]))
    check_batches(structure, task, batches)
    replay = Replay(structure, task, batches)
    weights = prunable_weights(model)
    key = hash_values(structure.traced.fingerprint, hash_state(structure.traced.module), batches, cells.of)
    log = RowLog(rows_file, key, cells.ids, (CHOICE,))
    for name in cells.of:
        missing = [i for i in np.flatnonzero(cells.layer == name) if (cells.ids[i], CHOICE) not in log.rows]
        for measurement in _measure_layer(replay, weights[name], cells, missing) if missing else ():
            log.add(measurement)
            if on_row is not None:
                on_row(len(log.rows), len(cells.ids))
    rows = [log.rows[unit, CHOICE] for unit in cells.ids]
    damage, error = (np.array([[getattr(r, f)] for r in rows]) / cells.sizes[:, None] for f in ("damage", "std_err"))
    spent = sum(r.forward_macs for r in rows) + 2 * replay.full_macs * replay.n_examples
    return LabelTable(cells.ids, (CHOICE,), damage, error, damage - 1.96 * error, damage + 1.96 * error,
                      np.full(len(rows), "measured"), spent, sum(r.naive_macs for r in rows))  # fmt: skip


def cell_features(cells: WeightCells, scores: Mapping[str, Mapping[str, Tensor]], model: str = "model") -> FeatureTable:
    """Of each cell the mean of every score, on its own scale and within its layer, and statistics of the layer.

    They say the same of a cell of any size, so a labeler of large cells may be asked about small ones.

    Args:
        cells: any division of the weights.
        scores: name of a score -> layer name -> score of each weight.
        model: name of the network, for tables of several.
    """
    layers, row = np.unique(cells.layer, return_inverse=True)
    order = list(cells.of)
    columns: dict[str, np.ndarray] = {}
    for name, values in scores.items():
        means = cells.means(values)
        level = np.array([float(values[layer].double().mean()) for layer in layers])[row]
        columns[f"{name}_log"] = log_size(means, 1e-30)
        columns[f"{name}_in_layer"] = log_size(means / np.maximum(level, 1e-30), 1e-6)
        columns[f"{name}_level"] = log_size(level, 1e-30)
    columns["layer_log_weights"] = np.log10([cells.of[layer].numel() for layer in layers])[row]
    columns["layer_depth"] = np.array([order.index(layer) / max(len(order) - 1, 1) for layer in layers])[row]
    table = np.column_stack(list(columns.values())).astype(np.float32)
    return FeatureTable(table, tuple(columns), cells.ids, cells.layer, np.full(len(cells.ids), model))


def label_weights(
    model: nn.Module, task: Task, calibration: Sequence[Batch], label_batches: Sequence[Batch], labeler: Labeler, *,
    scores: Sequence[WeightScore] | None = None, bins: tuple[int, int] = (6, 3), fine_bins: tuple[int, int] = (48, 8),
    skip: Collection[str] = (), rows_file: str | Path | None = None,
    on_row: Callable[[int, int], None] | None = None,
) -> WeightLabels:  # fmt: skip
    """Predicted damage of removing each weight: measured on large cells, learned, predicted for small ones.

    All weights of a small cell get its prediction; among them a millionth of the largest damage orders by the last
    score.

    Args:
        model: stays as it is.
        task: gives per-example losses.
        calibration: batches for the scores; label_batches: others, for measuring.
        labeler: fitted here.
        scores: the features, two or more; the first and the last divide the weights. Magnitude, Taylor and Fisher if
            None.
        bins, fine_bins: of the measured and of the predicted cells, see `divide_weights`.
        skip: layers to leave out, with wildcards.
        rows_file, on_row: see `measure_cells`.

    Raises:
        CompressError: for fewer than two scores. DataError: without batches.
    """
    used = (MagnitudeWeightScore(), TaylorWeightScore(), FisherWeightScore()) if scores is None else tuple(scores)
    if len(used) < 2:
        raise CompressError(f"The 'scores' parameter of label_weights must hold two or more. Got {len(used)}.")
    known = {score.name: score_weights(model, score, task, calibration, skip=skip) for score in used}
    first, last = known[used[0].name], known[used[-1].name]
    cells, fine = (divide_weights(first, last, some) for some in (bins, fine_bins))
    labels = measure_cells(model, task, label_batches, cells, rows_file=rows_file, on_row=on_row)
    features = cell_features(cells, known)
    predicted = labeler.fit(features, labels).predict(cell_features(fine, known)).damage[:, 0]
    found = {}
    for name, places in fine.of.items():
        ranks = last[name].flatten().argsort(stable=True).argsort().reshape(places.shape) / places.numel()
        found[name] = torch.from_numpy(predicted)[places] + _TIE * float(np.abs(predicted).max()) * ranks.double()
    return WeightLabels(found, cells, features, labels)


def _quantiles(values: np.ndarray, rows: np.ndarray, n: int) -> list[np.ndarray]:
    """The rows in at most `n` parts of equal size, by their value."""
    order = rows[np.argsort(values[rows], kind="stable")]
    return [part for part in np.array_split(order, min(n, len(order))) if len(part)]


def _measure_layer(
    replay: Replay, weight: PrunableWeight, cells: WeightCells, rows: Sequence[int]
) -> Iterator[Measurement]:
    suffix = replay.layer_suffix(weight.name)
    replay.forget()
    replay.keep([suffix])
    for row in rows:
        value = weight.tensor.detach().masked_fill((cells.of[weight.name] == row).to(weight.tensor.device), 0.0)
        moments = Moments()
        for number in range(len(replay.batches)):
            moments.add(replay.layer_losses(suffix, value, number) - replay.dense[number])
        yield Measurement(cells.ids[row], CHOICE, moments.mean, moments.std_err, moments.n,
                          suffix.macs * moments.n, replay.full_macs * replay.n_examples)  # fmt: skip
