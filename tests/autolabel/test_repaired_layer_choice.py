"""Damage of stored layers after the weights made up for it."""

import numpy as np
import pytest
import torch
from torch import nn

from autolabel.oracles import LayerChoiceOracle, RepairedLayerChoiceOracle
from compress.errors import CompressError, DataError
from compress.replay import Replay
from compress.structure import analyze
from compress.task import Task


class Squares(Task):
    """Squared error of outputs; a batch is (inputs, outputs)."""

    metric_name, higher_is_better = "squared_error", False

    def inputs(self, batch):
        return (batch[0],)

    def loss(self, outputs, batch):
        return (outputs - batch[1]).square().sum(1)

    def score(self, outputs, batches):
        return 0.0


@pytest.fixture
def doubled():
    """`(structure, replay)` of a linear layer whose inputs come twice: either half of its weights can do it all."""
    layer = nn.Linear(6, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 1.0, 2.0, 2.0, 1.0, 3.0], [1.0, 2.0, 3.0, 3.0, 2.0, 1.0]]))
    model = nn.Sequential(layer)
    x = torch.randn(4, 16, 3, generator=torch.Generator().manual_seed(0)).repeat(1, 1, 2)
    structure = analyze(model, x[0])
    return structure, Replay(structure, Squares(), [(part, model(part).detach()) for part in x])


@pytest.fixture
def chain():
    """`(structure, replay)` of a small network that is asked for its own outputs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3)).eval()
        batches = [(x := torch.randn(32, 8), model(x).detach()) for _ in range(4)]
    structure = analyze(model, batches[0][0])
    return structure, Replay(structure, Squares(), batches)


def layers_of(structure):
    return np.flatnonzero(structure.units.kind == "layer")


def damages(oracle, case, notes=None):
    structure, replay = case
    found = oracle.measure(structure, replay, layers_of(structure), notes=notes)
    return {(m.unit_id, m.choice): m.damage for m in found}


def test_weights_that_stay_make_up_for_those_that_go(doubled):
    (at_once,) = damages(LayerChoiceOracle(bits=(32,), densities=(0.5,)), doubled).values()
    (repaired,) = damages(RepairedLayerChoiceOracle(bits=(32,), densities=(0.5,)), doubled).values()
    assert at_once > 1
    # The sweep damps its moments by a hundredth.
    assert 0 <= repaired < 0.01 * at_once


def test_rounding_is_made_up_for_too(doubled):
    (at_once,) = damages(LayerChoiceOracle(bits=(2,)), doubled).values()
    (repaired,) = damages(RepairedLayerChoiceOracle(bits=(2,)), doubled).values()
    assert 0 < repaired < 0.8 * at_once


def test_few_bits_and_few_weights_are_one_choice(chain):
    structure, replay = chain
    oracle = RepairedLayerChoiceOracle(bits=(4,), densities=(1.0, 0.25), training_steps=2)
    assert oracle.choices == ("4bit", "4bit_d0.25")
    name = structure.units.ids[layers_of(structure)[1]]
    small = oracle._repaired(structure, replay, {name: oracle.layer_choices[1]}, replay.batches[:2])
    weights = {reader: value for reader, value in small.named_parameters() if reader.endswith("weight")}
    kept = {reader: float((value != 0).double().mean()) for reader, value in weights.items()}
    assert kept.pop(f"{name}.weight") == pytest.approx(0.25, abs=0.01)  # two steps later still
    assert set(kept.values()) == {1.0}
    dense = dict(structure.traced.module.named_parameters())
    assert all(not torch.equal(value, dense[reader]) for reader, value in weights.items())  # all were trained


def test_training_heals_more(chain):
    def total(**settings):
        return sum(damages(RepairedLayerChoiceOracle(bits=(2,), densities=(0.5,), **settings), chain).values())

    assert total(training_steps=20, lr=5e-3) < 0.8 * total()


def test_among_others_a_choice_costs_what_it_adds(chain):
    def found(**settings):
        return damages(RepairedLayerChoiceOracle(bits=(6, 2), **settings), chain)

    alone, together, another = found(), found(company=0.5, plans=48), found(company=0.5, plans=48, seed=1)
    assert together.keys() == alone.keys()
    assert together != alone
    for case in (alone, together, another):
        few, many = (sum(case[name, bits] for name, _ in alone) for bits in ("2bit", "6bit"))
        assert few > 3 * abs(many)
    assert sum(together.values()) == pytest.approx(sum(another.values()), rel=0.5)


def test_a_plan_that_was_measured_is_not_measured_again(chain):
    oracle, notes = RepairedLayerChoiceOracle(bits=(4,), company=0.5), {}
    first = damages(oracle, chain, notes)
    assert len(notes) == 3 * len(first)  # three of each layer and choice
    chain[1].task = None  # nothing can be measured any more
    assert damages(oracle, chain, notes) == first


def test_too_few_plans_or_batches_are_refused(chain, doubled):
    structure, replay = chain
    with pytest.raises(CompressError, match="10 plans do not tell 6 choices of 3 layers apart"):
        damages(RepairedLayerChoiceOracle(bits=(4, 2), company=0.5, plans=10), chain)
    with pytest.raises(CompressError, match="at least two batches"):
        damages(RepairedLayerChoiceOracle(), (structure, Replay(structure, replay.task, replay.batches[:1])))


def test_a_loss_that_is_not_finite_is_refused(chain):
    with pytest.raises(DataError, match="Lower the 'lr'"):
        damages(RepairedLayerChoiceOracle(bits=(2,), training_steps=5, lr=1e30), chain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"densities": (0.0,)}, "'densities'"), ({"company": 1.0}, "'company'"), ({"plans": 0}, "'plans'"),
     ({"training_steps": -1}, "'training_steps'"), ({"lr": 0.0}, "'lr'"), ({"ranks": (0.5,)}, "'ranks'"),
     ({"schemes": ("ternary",)}, "'schemes'")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(CompressError, match=message):
        RepairedLayerChoiceOracle(**settings)
