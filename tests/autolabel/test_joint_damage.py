"""Damage of choices together: the law is found again, damages stay addable, plans are held out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import nn

from autolabel.joint_damage import JointDamage
from autolabel.joint_widths import WidthBench, joint_labels, learn_joint_widths
from autolabel.measuring import measure
from autolabel.oracles.layer_choice import LayerChoiceOracle
from compress import ArtifactError, ClassificationTask, CompressError, analyze
from compress.quantizer import dequantize_weight, quantize_weight
from compress.quantizers.minmax import MinMaxQuantizer
from compress.task import evaluate


def make_plans(n_plans, n_choices, seed, exponent=2.0, noise=0.0):
    rng = np.random.default_rng(seed)
    damage = rng.lognormal(-4, 1, n_choices)
    weight = rng.lognormal(0, 0.7, n_choices)
    taken = rng.random((n_plans, n_choices)) < 0.4
    taken[:, 0] |= ~taken.any(1)
    measured = 3.0 * (taken @ (weight * damage)) ** exponent * np.exp(noise * rng.standard_normal(n_plans))
    return damage, weight, taken, measured


def test_the_law_behind_the_plans_is_found_again():
    damage, weight, taken, measured = make_plans(200, 12, 0)
    found = JointDamage.fit(damage, taken[:150], measured[:150])
    np.testing.assert_allclose(found.predict(taken[150:]), measured[150:], rtol=0.05)
    assert found.exponent == pytest.approx(2.0, abs=0.1)
    # Up to one factor, which the scale takes.
    ratio = found.weight / weight
    assert np.ptp(np.log(ratio)) < 0.4


def test_with_few_plans_it_beats_the_sum():
    damage, _, taken, measured = make_plans(400, 30, 1, noise=0.2)
    found = JointDamage.fit(damage, taken[:40], measured[:40])
    rest = slice(40, None)
    learned, added = (spearmanr(p, measured[rest]).statistic
                      for p in (found.predict(taken[rest]), taken[rest] @ damage))  # fmt: skip
    assert learned > added + 0.05


def test_where_no_law_is_better_sums_are_left_alone():
    rng = np.random.default_rng(2)
    damage, taken = rng.lognormal(-4, 1, 20), rng.random((30, 20)) < 0.5
    measured = taken @ damage * np.exp(0.5 * rng.choice([-1, 1], 30))
    found = JointDamage.fit(damage, taken, measured)
    assert found.exponent == found.scale == 1
    np.testing.assert_array_equal(found.predict(taken), taken @ found.damage)
    np.testing.assert_allclose(found.residuals, np.log(measured / (taken @ damage)), atol=1e-3)


def test_damages_within_the_noise_do_not_bend_the_law():
    damage, _, taken, measured = make_plans(120, 12, 6)
    noise = float(np.quantile(measured, 0.3))
    noisy = measured + noise * np.random.default_rng(1).standard_normal(120)
    found = JointDamage.fit(damage, taken[:80], noisy[:80], noise=noise)
    large = measured[80:] > 3 * noise
    error = np.log(found.predict(taken[80:][large]) / measured[80:][large])
    assert np.median(np.abs(error)) < 0.3


def test_the_marginal_price_is_the_slope():
    damage, _, taken, measured = make_plans(60, 8, 7)
    found = JointDamage.fit(damage, taken, measured)
    total, step = float(taken[3] @ found.corrected), 1e-6
    slope = (found.of_sum(total + step) - found.of_sum(total - step)) / (2 * step)
    assert found.marginal(total) == pytest.approx(slope, rel=1e-4)
    assert np.isfinite(found.marginal(0.0))


def test_shared_weights_are_one():
    damage, _, taken, measured = make_plans(80, 12, 3)
    found = JointDamage.fit(damage, taken, measured, shared=np.repeat([7, 3, 5], 4))
    assert len(np.unique(found.weight)) <= 3
    assert (found.weight[:4] == found.weight[0]).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_more_choices_never_hurt_less_and_sums_order_alike(seed):
    damage, _, taken, measured = make_plans(30, 8, seed, noise=0.5)
    found = JointDamage.fit(damage, taken, measured)
    more = taken.copy()
    more[np.arange(30), np.random.default_rng(seed).integers(0, 8, 30)] = True
    assert (found.predict(more) >= found.predict(taken) - 1e-12).all()
    order = np.argsort(taken @ found.corrected)
    assert (np.diff(found.predict(taken)[order]) >= -1e-12).all()
    assert found.predict(np.zeros((1, 8), bool)) == 0


def test_nothing_is_learned_from_noise():
    damage, _, taken, measured = make_plans(60, 12, 8)
    noise = 10 * float(measured.max())
    found = JointDamage.fit(damage, taken, measured + noise * np.random.default_rng(0).standard_normal(60), noise=noise)
    assert found.exponent == found.scale == 1
    assert len(found.residuals) < 10
    assert found.plans == 60


def test_what_cannot_be_learned_from_is_refused():
    damage, _, taken, measured = make_plans(20, 5, 0)
    with pytest.raises(CompressError, match="at least 10"):
        JointDamage.fit(damage, taken[:5], measured[:5])
    with pytest.raises(CompressError, match="shape"):
        JointDamage.fit(damage[:-1], taken, measured)
    with pytest.raises(CompressError, match="finite"):
        JointDamage.fit(damage, taken, np.where(np.arange(20) == 3, np.nan, measured))
    with pytest.raises(CompressError, match="at least one choice"):
        JointDamage.fit(damage, np.zeros_like(taken), measured)
    with pytest.raises(CompressError, match="plans that differ"):
        JointDamage.fit(damage, np.repeat(taken[:1], 20, axis=0), measured)


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(16, 2, 6, 6, generator=generator), torch.arange(16) % 3) for _ in range(2)]
    return model, batches, analyze(model, batches[0][0])


def test_widths_are_those_of_the_quantizer_and_the_network_stays(network):
    model, batches, structure = network
    task, quantizer = ClassificationTask(), MinMaxQuantizer()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bench = WidthBench(structure, task, quantizer, (4, 2))
    assert bench.layers == ("0", "3")
    dense = evaluate(model, task, batches)
    assert bench.evaluate((32, 32), batches) == dense
    found = bench.evaluate((2, 4), batches)
    assert bench.evaluate((32, 32), batches) == dense
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    with torch.no_grad():
        for layer, bits in ((model[0], 2), (model[3], 4)):
            layer.weight.copy_(dequantize_weight(*quantize_weight(layer.weight, bits, quantizer)))
    assert found == pytest.approx(evaluate(model, task, batches))
    assert bench.taken(np.array([[2, 4], [32, 2]])).tolist() == [
        [False, True, True, False],
        [False, False, False, True],
    ]
    with pytest.raises(CompressError, match="widths needs one of"):
        bench.evaluate((3, 4), batches)


def test_fisher_is_that_of_single_examples(network):
    _, batches, structure = network
    task = ClassificationTask()
    bench = WidthBench(structure, task, MinMaxQuantizer(), (4, 2))
    fisher = bench.fisher(batches)
    module = structure.traced.module
    weight = module.get_parameter("3.weight")
    total = torch.zeros_like(weight)
    for x, y in batches:
        for i in range(16):
            loss = nn.functional.cross_entropy(module(x[i : i + 1]), y[i : i + 1])
            total += torch.autograd.grad(loss, weight)[0].square()
    torch.testing.assert_close(fisher["3"].float(), total / 64)
    errors = bench.storing_error(fisher).reshape(2, 2)
    assert (errors[:, 0] < errors[:, 1]).all()


def test_it_is_stored_without_loss(tmp_path):
    damage, _, taken, measured = make_plans(30, 6, 5, noise=0.3)
    found = JointDamage.fit(damage, taken, measured)
    found.save(tmp_path / "joint.npz")
    read = JointDamage.load(tmp_path / "joint.npz")
    np.testing.assert_array_equal(read.predict(taken), found.predict(taken))
    np.testing.assert_array_equal(read.residuals, found.residuals)
    assert read.plans == 30
    (tmp_path / "joint.npz").write_bytes(b"PK")
    with pytest.raises(ArtifactError, match=r"joint\.npz"):
        JointDamage.load(tmp_path / "joint.npz")


def test_labels_of_widths_add_up_to_what_is_predicted(network):
    _, batches, structure = network
    task, quantizer = ClassificationTask(), MinMaxQuantizer()
    bench = WidthBench(structure, task, quantizer, (4, 2))
    labels = measure(structure, None, task, batches, LayerChoiceOracle((4, 2), quantizer))
    joint = learn_joint_widths(bench, batches, labels, 12, seed=1)
    assert joint.plans == 12
    priced = joint_labels(labels, bench, joint, 3.0)
    rows = [priced.unit_ids.index(name) for name in bench.layers]
    for i, row in enumerate(rows):
        for k, bits in enumerate(bench.bits):
            found = priced.damage[row, priced.choices.index(f"{bits}bit")]
            assert found == pytest.approx(3 * joint.corrected[2 * i + k])
    with pytest.raises(CompressError, match="know nothing of '3bit'"):
        learn_joint_widths(WidthBench(structure, task, quantizer, (3, 2)), batches, labels, 12)
