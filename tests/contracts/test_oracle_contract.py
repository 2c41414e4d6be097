"""What holds of every oracle in `autolabel.oracles`, found by walking the package."""

import copy
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from implementations import implementations
from torch import nn

import autolabel.oracles
import conf
from autolabel.measuring import measure
from autolabel.oracle import Measurement, Moments, Oracle
from compress.errors import CompressError
from compress.replay import Replay
from compress.structure import analyze
from compress.task import ClassificationTask

TASK = ClassificationTask()


class Countdown(ClassificationTask):
    """Counts losses, and is interrupted instead of the last."""

    def __init__(self, until=None):
        super().__init__()
        self.losses, self.until = 0, until

    def loss(self, outputs, batch):
        self.losses += 1
        if self.losses == self.until:
            raise KeyboardInterrupt
        return super().loss(outputs, batch)


ORACLES = implementations(autolabel.oracles, "measure")


@pytest.fixture(name="case", scope="module")
def a_small_net_with_norm_and_dropout():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 3, 2),
                              nn.ReLU(), nn.Flatten(), nn.Linear(27, 3))  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(n, 1, 6, 6, generator=generator), torch.randint(0, 3, (n,), generator=generator)) for n in (6, 4)
    ]
    return model, batches


@pytest.fixture(scope="module")
def structure(case):
    model, batches = case
    return analyze(model, batches[0][0])


def rows_of(structure, oracle):
    return np.flatnonzero(structure.units.removable == (oracle.kind == "removable"))


def test_the_package_is_walked():
    assert {kind.name for kind in ORACLES} >= {"removal", "layer_choice"}
    assert {kind.__name__ for kind in ORACLES} == set(autolabel.oracles.__all__)


def test_moments_are_those_of_the_stream():
    values = np.random.default_rng(0).normal(3, 2, 11)
    moments = Moments()
    assert moments.std_err == float("inf")
    for part in np.split(values, [1, 4]):
        moments.add(part)
    assert moments.mean == pytest.approx(values.mean())
    assert moments.std_err == pytest.approx(values.std(ddof=1) / np.sqrt(11))


def made(kind):
    """With few masks, each of which is a repair or two."""
    return kind(masks=16) if "masks" in inspect.signature(kind).parameters else kind()


@pytest.mark.parametrize("kind", ORACLES)
class TestOracle:
    def test_satisfies_the_seam(self, kind):
        oracle = kind()
        assert isinstance(oracle, Oracle)
        assert kind.name == kind.__module__.rpartition(".")[2]
        assert oracle.kind in ("removable", "layer")
        assert oracle.choices
        assert inspect.getdoc(kind)

    def test_has_a_config(self, kind):
        config = Path(conf.__file__).parent / "oracle" / f"{kind.name}.yaml"
        assert f"_target_: {kind.__module__}.{kind.__name__}\n" in config.read_text(encoding="utf-8")

    def test_measures_every_unit_and_choice_once(self, kind, case, structure):
        oracle, batches = made(kind), case[1]
        rows = rows_of(structure, oracle)
        found = list(oracle.measure(structure, Replay(structure, TASK, batches), rows))
        assert all(isinstance(m, Measurement) for m in found)
        cells = [(m.unit_id, m.choice) for m in found]
        assert len(set(cells)) == len(cells)
        assert set(cells) == {(structure.units.ids[row], c) for row in rows for c in oracle.choices}
        for m in found:
            assert np.isfinite([m.damage, m.std_err]).all()
            assert m.n_examples == 10
            assert 0 < m.forward_macs <= m.naive_macs
        assert list(oracle.measure(structure, Replay(structure, TASK, batches), rows[:0])) == []

    def test_says_how_many_batches_it_needs(self, kind, case, structure):
        oracle, batches = made(kind), case[1]
        row = rows_of(structure, oracle)[:1]
        assert next(iter(oracle.measure(structure, Replay(structure, TASK, batches[: oracle.least_batches]), row)))
        if oracle.least_batches > 1:
            with pytest.raises(CompressError, match="two batches"):
                list(oracle.measure(structure, Replay(structure, TASK, batches[: oracle.least_batches - 1]), row))

    def test_order_and_company_of_units_change_nothing(self, kind, case, structure):
        oracle, batches = made(kind), case[1]
        rows = rows_of(structure, oracle)
        together = {(m.unit_id, m.choice): m.damage
                    for m in oracle.measure(structure, Replay(structure, TASK, batches), rows[::-1])}  # fmt: skip
        for row in rows[:3]:
            for m in oracle.measure(structure, Replay(structure, TASK, batches), np.array([row])):
                assert m.damage == pytest.approx(together[m.unit_id, m.choice], abs=1e-6)

    def test_a_killed_measuring_goes_on(self, kind, case, tmp_path):
        model, batches, path = case[0], [*case[1], *case[1]], tmp_path / "rows.jsonl"
        oracle = made(kind)
        whole, rest = Countdown(), Countdown()
        undisturbed = measure(model, None, whole, batches, oracle)
        with pytest.raises(KeyboardInterrupt):
            measure(model, None, Countdown(whole.losses * 2 // 3), batches, oracle, rows_file=path)
        found = measure(model, None, rest, batches, oracle, rows_file=path)
        # The dense losses are computed anew, and what was in hand.
        assert rest.losses < 0.75 * whole.losses
        for name in ("damage", "std_err", "forward_macs", "naive_macs"):
            np.testing.assert_array_equal(getattr(found, name), getattr(undisturbed, name), err_msg=name)

    @pytest.mark.parametrize("training", [True, False])
    def test_the_model_stays_as_it_was(self, kind, case, training):
        model, batches = copy.deepcopy(case[0]).train(training), case[1]
        model[1].eval()
        x, y = batches[0]
        TASK.loss(model(x), (x, y)).mean().backward()
        modes = [module.training for module in model.modules()]
        grads = [parameter.grad.clone() for parameter in model.parameters()]
        state, rng = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
        numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
        table = measure(model, None, TASK, batches, made(kind))
        assert [module.training for module in model.modules()] == modes
        for name, value in model.state_dict().items():
            assert torch.equal(value, state[name]), name
        for parameter, grad in zip(model.parameters(), grads, strict=True):
            assert torch.equal(parameter.grad, grad)
            assert parameter.requires_grad
        assert torch.equal(torch.random.get_rng_state(), rng)
        np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
        expected = measure(copy.deepcopy(case[0]).eval(), None, TASK, batches, made(kind))
        np.testing.assert_array_equal(table.damage, expected.damage)
