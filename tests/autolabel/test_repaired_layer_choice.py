"""Damage of stored layers after the weights made up for it."""

import numpy as np
import pytest
import torch
from torch import nn

from autolabel.oracles import LayerChoiceOracle, RepairedLayerChoiceOracle
from compress.errors import CompressError, DataError
from compress.layer_choice import LayerChoice
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
    small, _ = oracle._repaired(structure, replay, {name: oracle.layer_choices[1]}, replay.batches[:2])
    weights = {reader: value for reader, value in small.named_parameters() if reader.endswith("weight")}
    kept = {reader: float((value != 0).double().mean()) for reader, value in weights.items()}
    assert kept.pop(f"{name}.weight") == pytest.approx(0.25, abs=0.01)  # two steps later still
    assert set(kept.values()) == {1.0}
    dense = dict(structure.traced.module.named_parameters())
    assert all(not torch.equal(value, dense[reader]) for reader, value in weights.items())  # all were trained


def test_only_zeros_of_masks_are_held(chain):
    structure, replay = chain
    oracle = RepairedLayerChoiceOracle(bits=(32, 2), densities=(1.0, 0.5), training_steps=40, lr=1e-2)
    masked, rounded = (LayerChoice(32, 0.5), LayerChoice(2))

    def zeros(steps):
        oracle.training_steps = steps
        small, _ = oracle._repaired(structure, replay, {"0": masked, "2": rounded}, replay.batches[:2])
        return small.get_parameter("0.weight") == 0, small.get_parameter("2.weight") == 0

    (mask, few), (held, left) = zeros(0), zeros(40)
    assert few.any()
    assert torch.equal(mask, held)
    assert (few & left).sum() < few.sum() / 2


def test_an_all_zero_layer_can_be_trained_beside(chain):
    structure, replay = chain
    with torch.no_grad():
        structure.traced.module.get_parameter("4.weight").zero_()
    oracle = RepairedLayerChoiceOracle(bits=(32,), densities=(0.5,), training_steps=2)
    (found,) = oracle.measure(structure, replay, layers_of(structure)[:1])
    assert np.isfinite(found.damage)


@pytest.mark.parametrize(("scheme", "granularity"), [
    ("symmetric", "tensor"), ("symmetric", "group"), ("affine", "channel"), ("codebook", "channel"),
    ("power_of_two", "channel"), ("ternary", "channel"), ("binary", "channel"),
])  # fmt: skip
def test_formats_that_are_not_on_integers_are_rounded_to_nearest(chain, scheme, granularity):
    oracle = RepairedLayerChoiceOracle(
        (2,), densities=(1.0, 0.5), scheme=scheme, granularity=granularity, training_steps=1
    )
    found = damages(oracle, chain)
    assert len(found) == 6
    assert all(np.isfinite(list(found.values())))


def test_training_heals_more(chain):
    def total(**settings):
        return sum(damages(RepairedLayerChoiceOracle(bits=(2,), densities=(0.5,), **settings), chain).values())

    assert total(training_steps=20, lr=5e-3) < 0.8 * total()


def test_what_training_alone_gains_is_no_merit_of_a_choice(doubled):
    structure, replay = doubled
    batches = [(x, y + 1) for x, y in replay.batches]  # there is much to learn
    replay = Replay(structure, replay.task, batches)
    oracle = RepairedLayerChoiceOracle(bits=(8,), training_steps=30, lr=1e-2)
    before = float(np.concatenate(replay.dense).mean())
    after = float(oracle._losses(structure, replay, {})[0].mean())
    (found,) = damages(oracle, (structure, replay)).values()
    assert after < before - 0.2
    assert abs(found) < 0.1 * (before - after)


def test_among_others_a_choice_costs_what_it_adds(chain):
    def found(**settings):
        return damages(RepairedLayerChoiceOracle(bits=(6, 2), **settings), chain)

    alone, together, another = found(), found(company=0.5), found(company=0.5, seed=1)
    assert together.keys() == alone.keys()
    assert together != alone
    for case in (alone, together, another):
        few, many = (sum(case[name, bits] for name, _ in alone) for bits in ("2bit", "6bit"))
        assert few > 3 * abs(many)
    assert sum(together.values()) == pytest.approx(sum(another.values()), rel=0.5)


@pytest.mark.parametrize(("company", "n_layers"), [(0.05, 2), (0.3, 3), (0.5, 1), (0.95, 4)])
def test_every_choice_is_drawn_often_enough_to_be_known(company, n_layers):
    oracle = RepairedLayerChoiceOracle(bits=(8, 4, 2), densities=(1.0, 0.5), company=company)
    drawn = oracle._draw(n_layers)
    assert drawn.sum(0).min() == drawn.sum(0).max() >= 4
    stays = ~drawn.reshape(len(drawn), n_layers, -1).any(2)
    assert stays.sum(0).min() >= 4
    assert len(drawn) >= 2 * drawn.shape[1] + 2


def test_of_examples_that_repaired_a_network_it_is_not_judged_on_any(chain):
    structure, replay = chain
    oracle = RepairedLayerChoiceOracle(bits=(2,), densities=(0.5,), training_steps=2)
    taken = {"2": oracle.layer_choices[0]}
    before, _ = oracle._losses(structure, replay, taken)
    other = [(x + 1, y) if number == 0 else (x, y) for number, (x, y) in enumerate(replay.batches)]
    after, _ = oracle._losses(structure, Replay(structure, replay.task, other), taken)
    same = np.split(before == after, len(other))
    assert same[2].all()  # repaired on the second and fourth, as before
    assert not same[1].any()
    assert not same[3].any()


@pytest.mark.parametrize(("bits", "density", "passes"), [(32, 0.5, 1), (4, 1.0, 1), (4, 0.5, 2), (16, 1.0, 0)])
def test_what_it_costs(chain, bits, density, passes):
    structure, replay = chain
    (found, *_) = RepairedLayerChoiceOracle((bits,), densities=(density,)).measure(
        structure, replay, layers_of(structure)
    )
    assert found.forward_macs == (passes + 1) * 128 * replay.full_macs


def test_a_plan_that_was_measured_is_not_measured_again(chain):
    oracle, notes = RepairedLayerChoiceOracle(bits=(4,), company=0.5), {}
    first = damages(oracle, chain, notes)
    assert len(notes) == 3 * len(first)  # three of each layer and choice
    chain[1].task = None  # nothing can be measured any more
    assert damages(oracle, chain, notes) == first


def test_too_few_plans_or_batches_are_refused(chain, doubled):
    structure, replay = chain
    with pytest.raises(CompressError, match="10 plans do not tell 2 choices of each of 3 layers"):
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
