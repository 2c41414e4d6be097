"""Cells of alike weights: by hand on a linear layer, then on a net that reads digits."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import nn

from autolabel.labelers import GBDTLabeler, RidgeLabeler
from autolabel.weight_cells import cell_features, divide_weights, label_weights, measure_cells
from compress import ArtifactError, ClassificationTask, CompressError, DataError, evaluate
from compress.finetuning import finetune_
from compress.masking import apply_masks_, choose_masks
from compress.sparsifier import Sparsifier
from compress.weight_score import score_weights
from compress.weight_scores import MagnitudeWeightScore, RandomWeightScore, TaylorWeightScore, WandaWeightScore

TASK = ClassificationTask()


class SumTask:
    """The loss of an example is the sum of its outputs."""

    metric_name, higher_is_better = "sum", False

    def inputs(self, batch):
        return (batch[0],)

    def loss(self, outputs, batch):
        return outputs.flatten(1).sum(1)


def one_layer():
    model = nn.Sequential(nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0, 3.0, -4.0], [5.0, 6.0, -7.0, 8.0]]))
    return model


X = torch.tensor([[1.0, 2.0, 3.0, 4.0], [3.0, 0.0, 1.0, 0.0]])


def test_cells_are_quantiles_within_quantiles():
    first = {"0": torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])}
    second = {"0": torch.tensor([[9.0, 0, 8, 1], [7, 2, 3, 6]])}
    cells = divide_weights(first, second, (2, 2))
    assert cells.of["0"].tolist() == [[1, 0, 1, 0], [3, 2, 2, 3]]
    assert cells.ids == ("0:cell[0]", "0:cell[1]", "0:cell[2]", "0:cell[3]")
    assert cells.sizes.tolist() == [2, 2, 2, 2]
    assert cells.means(first).tolist() == [3.0, 2.0, 6.5, 6.5]
    single = divide_weights(first, second, (9, 9))
    assert single.sizes.tolist() == [1] * 8
    with pytest.raises(CompressError, match="'bins' parameter"):
        divide_weights(first, second, (0, 3))


def test_damage_per_weight_is_that_of_the_whole_cell_over_its_size():
    model = one_layer()
    scores = {"0": torch.arange(8.0).reshape(2, 4)}
    cells = divide_weights(scores, scores, (2, 2))
    labels = measure_cells(model, SumTask(), [(X[:1],), (X[1:],)], cells)
    # Inputs have the means 2, 1, 2, 2: without weights 1 and -2 the loss changes by -2 + 2, and so on.
    np.testing.assert_allclose(labels.damage[:, 0], [0.0, (-6 + 8) / 2, (-10 - 6) / 2, (14 - 16) / 2], atol=1e-6)
    # Example by example the first cell changes it by 3 and -3.
    np.testing.assert_allclose(labels.std_err[0, 0], 3.0 / 2, rtol=1e-6)
    assert labels.unit_ids == cells.ids
    assert torch.equal(model[0].weight, one_layer()[0].weight)


def test_rows_are_kept_and_belong_to_their_cells(tmp_path):
    model, file = one_layer(), tmp_path / "rows.jsonl"
    scores = {"0": torch.arange(8.0).reshape(2, 4)}
    cells = divide_weights(scores, scores, (4, 1))
    whole = measure_cells(model, SumTask(), [(X,)], cells)

    def stop(done, total):
        assert total == 4
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_cells(model, SumTask(), [(X,)], cells, rows_file=file, on_row=stop)
    seen = []
    again = measure_cells(model, SumTask(), [(X,)], cells, rows_file=file, on_row=lambda done, _: seen.append(done))
    assert seen == [4]
    np.testing.assert_array_equal(again.damage, whole.damage)
    with pytest.raises(ArtifactError, match="another model"):
        measure_cells(model, SumTask(), [(X,)], divide_weights(scores, scores, (2, 1)), rows_file=file)
    with pytest.raises(DataError, match="at least one batch"):
        measure_cells(model, SumTask(), [], cells)


def test_features_by_hand():
    scores = {"a": torch.tensor([[1.0, 1.0, 100.0, 298.0]]), "b": torch.tensor([[4.0]])}
    cells = divide_weights(scores, scores, (2, 1))
    table = cell_features(cells, {"size": scores})
    assert table.group.tolist() == ["a", "a", "b"]
    np.testing.assert_allclose(table.column("size_log"), np.log10([1, 199, 4]), rtol=1e-6)
    np.testing.assert_allclose(table.column("size_in_layer"), np.log10([0.01, 1.99, 1]), atol=1e-6)
    np.testing.assert_allclose(table.column("size_level"), np.log10([100, 100, 4]), rtol=1e-6)
    np.testing.assert_allclose(table.column("layer_log_weights"), np.log10([4, 4, 1]), rtol=1e-6)
    assert table.column("layer_depth").tolist() == [0, 0, 1]


@pytest.fixture(name="digits", scope="module")
def a_net_that_reads_digits():
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16 - 0.3, dtype=torch.float32), torch.tensor(y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    parts = [[(x[rows], y[rows]) for rows in part.split(100)] for part in order.split([1000, 200, 200, 397])]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 10))
    finetune_(model, TASK, parts[0], epochs=12, lr=5e-3, optimizer="adamw")
    assert evaluate(model, TASK, parts[3])[0] > 88
    return model, *parts[1:]


@pytest.mark.parametrize("labeler", [GBDTLabeler, RidgeLabeler])
def test_what_is_learned_of_large_cells_holds_for_others_and_for_masks(digits, labeler):
    model, calibration, label, test = digits
    found = label_weights(model, TASK, calibration, label, labeler())
    assert len(found.cells.ids) == 3 * 18
    # Other cells, by other scores, measured on other examples.
    wanda, taylor = (score_weights(model, s(), TASK, calibration) for s in (WandaWeightScore, TaylorWeightScore))
    others = divide_weights(wanda, taylor, (7, 2))
    measured = measure_cells(model, TASK, test, others).damage[:, 0]
    assert spearmanr(others.means(found.scores), measured).statistic > 0.85

    def loss(scores):
        pruned = copy.deepcopy(model)
        apply_masks_(pruned, choose_masks(pruned, scores, 0.3, scope="global", floor=0.02))
        return evaluate(pruned, TASK, test)[1]

    ours = loss(found.scores)
    assert ours < 0.5 * loss(score_weights(model, RandomWeightScore()))
    assert ours < 1.1 * loss(score_weights(model, MagnitudeWeightScore()))


def test_the_scores_drive_a_sparsifier(digits):
    model, calibration, label, test = digits
    scores = label_weights(model, TASK, calibration, label, RidgeLabeler(), skip=["4"], bins=(3, 2)).scores
    assert set(scores) == {"0", "2"}
    assert all(values.shape == model.get_submodule(name).weight.shape for name, values in scores.items())
    assert all(len(values.unique()) == values.numel() for values in scores.values())
    pruned = copy.deepcopy(model)
    finetune_(pruned, TASK, calibration, hooks=[Sparsifier(0.3, skip=["4"], scores=scores)], epochs=3)
    assert evaluate(pruned, TASK, test)[0] > 85
    with pytest.raises(CompressError, match="must hold two or more"):
        label_weights(model, TASK, calibration, label, RidgeLabeler(), scores=[MagnitudeWeightScore()])
