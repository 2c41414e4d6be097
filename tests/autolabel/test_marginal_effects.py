"""Marginal effects: Banzhaf values by hand, damage in context and after repair on nets whose answer is known."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

import compress
from autolabel.marginal_effects import marginal_effects, random_masks
from autolabel.measuring import measure
from autolabel.oracles import ContextOracle, RemovalOracle, RepairedOracle
from compress.counting import unit_costs
from compress.errors import CompressError
from compress.replay import Replay
from compress.structure import analyze

TASK = compress.ClassificationTask()


class SquaredError:
    """Regression: the loss is the squared distance to a target."""

    metric_name = "mse"
    higher_is_better = False

    def inputs(self, batch):
        return (batch[0],)

    def loss(self, outputs, batch):
        return (outputs - batch[1]).square().sum(dim=1)

    def score(self, outputs, batches):
        return 0.0


def test_over_all_masks_it_is_the_banzhaf_value():
    masks = np.array(list(itertools.product([False, True], repeat=3)))
    x = masks.astype(float)
    losses = 5 + 2 * x[:, 0] - 1 * x[:, 1] + 4 * x[:, 0] * x[:, 2]
    effect, std_err = marginal_effects(masks, losses)
    assert effect == pytest.approx([2 + 4 / 2, -1, 4 / 2])
    # What effects leave is 4 (x0 - 1/2) (x2 - 1/2) = +-1: eight of it over four degrees of freedom, x^T x being 8 / 4.
    assert std_err == pytest.approx(np.full(3, np.sqrt(8 / 4 / 2)))


def test_few_masks_are_compared_by_difference():
    masks = np.array(list(itertools.product([False, True], repeat=3)))[[0, 1, 3, 5, 6, 7]]
    losses = np.array([1.0, 4, 2, 8, 5, 7])
    effect, std_err = marginal_effects(masks, losses)
    gone, there = losses[masks[:, 1]], losses[~masks[:, 1]]
    assert effect[1] == pytest.approx(gone.mean() - there.mean())
    assert std_err[1] == pytest.approx(np.sqrt(gone.var(ddof=1) / 3 + there.var(ddof=1) / 3))


def test_blocks_of_one_mask_take_nothing_out():
    rng = np.random.default_rng(0)
    masks = rng.random((60, 50)) < 0.5
    losses = masks[:, 0] + 0.01 * rng.standard_normal(60)
    alone = marginal_effects(masks, losses, np.arange(60))
    np.testing.assert_array_equal(alone, marginal_effects(masks, losses))
    assert alone[0][0] == pytest.approx(1.0, abs=0.1)


def test_what_examples_differ_by_is_no_noise():
    rng = np.random.default_rng(0)
    masks, blocks = rng.random((400, 5)) < 0.5, np.repeat(np.arange(40), 10)
    true = np.array([1.0, -2, 0, 0.5, 3])
    losses = masks @ true + 100 * rng.standard_normal(40)[blocks]
    effect, std_err = marginal_effects(masks, losses, blocks)
    assert effect == pytest.approx(true, abs=1e-9)
    assert std_err.max() < 1e-6
    assert marginal_effects(masks, losses)[1].min() > 1


def test_effects_that_differ_between_examples_have_the_error_of_so_many_examples():
    rng, found = np.random.default_rng(0), []
    for _ in range(60):
        blocks = np.repeat(np.arange(64), 16)
        masks, slopes = rng.random((len(blocks), 3)) < 0.5, 1.0 + 0.6 * rng.standard_normal((64, 3))
        losses = (masks * slopes[blocks]).sum(axis=1) + 0.1 * rng.standard_normal(len(blocks))
        found.append(marginal_effects(masks, losses, blocks))
    effect, std_err = (np.stack(part) for part in zip(*found, strict=True))
    # The error of a mean over 64 examples: .6 / 8.
    assert effect.std() == pytest.approx(0.075, rel=0.15)
    assert std_err.mean() == pytest.approx(0.075, rel=0.15)


def test_a_unit_that_never_goes_is_not_known():
    masks = np.array([[True, False], [False, False], [True, False], [False, False]])
    effect, std_err = marginal_effects(masks, np.arange(4.0))
    assert effect[1] == 0
    assert np.isinf(std_err[1])
    assert np.isfinite(std_err[0])


def test_masks_are_around_the_size_and_empty_no_group():
    model = nn.Sequential(nn.Linear(3, 20), nn.ReLU(), nn.Linear(20, 4), nn.ReLU(), nn.Linear(4, 2))
    units = analyze(model, (torch.randn(2, 3),)).units
    masks = random_masks(units, 0.4, 400, np.random.default_rng(0))
    kept = ~masks[:, units.group == "0:out"]
    assert kept.mean() == pytest.approx(0.4, abs=0.03)
    assert kept.mean(axis=0) == pytest.approx(np.full(20, 0.4), abs=0.12)
    assert kept.sum(axis=1).std() == pytest.approx(np.sqrt(20 * 0.4 * 0.6), rel=0.15)
    assert kept.sum(axis=1).min() >= 1
    assert (~masks[:, units.group == "2:out"]).sum(axis=1).min() >= 1
    assert not masks[:, ~units.removable].any()
    with pytest.raises(CompressError, match="'kept'"):
        random_masks(units, 1.0, 1, np.random.default_rng(0))


@pytest.fixture(scope="module")
def twins():
    """Four hidden units, the first two alike; the output is their weighted sum, and the target is that output."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0.1]]))
        model[0].bias.fill_(0.3)
        model[2].weight.copy_(torch.tensor([[1.0, 1, 0, 1], [0, 0, 1, 0]]))
        model[2].bias.zero_()
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(4):
        x = torch.randn(64, 3, generator=generator)
        batches.append((x, model(x).detach()))
    return model.eval(), batches


def removal(model, batches, oracle):
    table = measure(model, None, SquaredError(), batches, oracle)
    return table.damage[:4, 0], table.std_err[:4, 0]


def test_after_repair_a_twin_costs_nothing_and_in_context_it_costs_more_than_alone(twins):
    alone, _ = removal(*twins, RemovalOracle())
    context, error = removal(*twins, ContextOracle(kept=0.8, masks=96))
    repaired, _ = removal(*twins, RepairedOracle(kept=0.8, masks=160, ridge=1e-6))
    assert alone[0] == pytest.approx(alone[1], rel=1e-5)
    # (a + b)^2 grows by more than a^2 once b is gone too.
    assert (context[:2] > alone[:2] + 2 * error[:2]).all()
    assert np.abs(context[2] - alone[2]) < 5 * error[2]
    # One twin stands in for the other: what is left of their cost comes from masks that lack both.
    assert (repaired[:2] < 0.5 * context[:2]).all()
    assert repaired[2] > repaired[3]


def test_training_after_the_refit_loses_less_and_is_paid_for(twins):
    model, batches = twins
    before = copy.deepcopy(model.state_dict())
    structure, lost, cost = analyze(model, batches[0][0]), [], []
    for steps in (0, 3, 60):
        notes = {}
        replay = Replay(structure, SquaredError(), batches)
        oracle = RepairedOracle(kept=0.5, masks=8, ridge=1e-6, training_steps=steps, lr=2e-2)
        rows = list(oracle.measure(structure, replay, np.arange(4), notes=notes))
        lost.append([notes[f"mask {number}"][0] for number in range(8)])
        cost.append(sum(row.forward_macs for row in rows))
    # Half of four units: what goes cannot be made up for by the others' outputs alone.
    assert sum(lost[2]) < 0.8 * sum(lost[0])
    assert lost[1] != lost[0]
    # A step of 64 examples counts three forwards, each half is trained on, and no teacher is asked.
    small = sum(unit_costs(structure).total(mask)[0]
                for mask in random_masks(structure.units, 0.5, 8, np.random.default_rng([0, 5])))  # fmt: skip
    # So does the pass that batch norms would take their statistics from, over all 256 examples.
    assert cost[1] - cost[0] == pytest.approx((2 * 3 * 64 * 3 + 256) * small)
    assert cost[2] - cost[0] == pytest.approx((2 * 60 * 64 * 3 + 256) * small)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_a_labeler_can_learn_from_them(twins):
    table = measure(twins[0], None, SquaredError(), twins[1], ContextOracle(masks=8), sample=2)
    assert np.isfinite(table.damage[:, 0]).sum() == 2
    assert table.forward_macs > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ContextOracle(kept=0.0), "'kept' parameter of ContextOracle"),
        (lambda: ContextOracle(masks=0), "'masks' parameter of ContextOracle"),
        (lambda: RepairedOracle(kept=1.0), "'kept' parameter of RepairedOracle"),
        (lambda: RepairedOracle(masks=2), "'masks' parameter of RepairedOracle"),
        (lambda: RepairedOracle(training_steps=-1), "'training_steps' parameter of RepairedOracle"),
        (lambda: RepairedOracle(lr=0.0), "'lr' parameter of RepairedOracle"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(CompressError, match=message):
        make()


def test_a_loss_that_is_not_finite_is_no_label():
    """A batch norm has no statistics of one example."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
    batches = [(torch.randn(n, 3), torch.randn(n, 2)) for n in (8, 8, 1)]
    measure(model, None, SquaredError(), batches, RepairedOracle(masks=4))
    with pytest.raises(CompressError, match=r"not finite|more than 1 value"):
        measure(model, None, SquaredError(), batches, RepairedOracle(masks=4, training_steps=4))


def test_rows_of_refits_alone_are_those_from_before_there_was_a_training(twins, tmp_path):
    model, batches = twins
    first = RepairedOracle(masks=4)
    first.training_steps, first.lr = 0, 1.0
    for oracle in (first, RepairedOracle(masks=4)):
        measure(model, None, SquaredError(), batches, oracle, rows_file=tmp_path / "rows.jsonl")


def test_one_batch_cannot_be_halved(twins):
    with pytest.raises(CompressError, match="at least two batches"):
        removal(twins[0], twins[1][:1], RepairedOracle())


class Recurrent(nn.Module):
    """A GRU in front of two linear layers: which of its values belong to which example is not known."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(3, 6, batch_first=True)
        self.hidden, self.out = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(torch.relu(self.hidden(self.gru(x)[0][:, -1])))


def test_examples_that_cannot_be_told_apart_share_a_mask():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Recurrent().eval()
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(8, 4, 3, generator=generator), torch.randint(0, 3, (8,), generator=generator))
               for _ in range(3)]  # fmt: skip
    table = measure(model, None, TASK, batches, ContextOracle(masks=40))
    found = table.damage[:, 0]
    assert np.isfinite(found).sum() == 8
    assert np.ptp(found[np.isfinite(found)]) > 0
