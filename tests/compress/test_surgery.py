"""Every architecture of the zoo through the whole surgery: units, masks, slices, training, saving, exporting."""

import copy
import io
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from zoo import ZOO, Architecture, build

import compress
from compress.application import slice_model
from compress.gates import gated_module, gates_of
from compress.graph import as_inputs

SEEDS = (0, 1, 2)


@dataclass
class Case:
    """An architecture, traced once for all tests of this module."""

    architecture: Architecture
    model: nn.Module
    before: dict[str, Tensor]
    structure: compress.Structure
    masks: list[np.ndarray]
    small: fx.GraphModule

    def run(self, model: nn.Module, batch: int = 2, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Output tensors on a batch of this size."""
        return run(model, self.architecture, batch, dtype)


def run(model: nn.Module, architecture: Architecture, batch: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    inputs = pytree.tree_map(lambda x: x.to(dtype) if x.is_floating_point() else x, architecture.inputs(batch))
    args, kwargs = as_inputs(inputs)
    out = model(*args, **kwargs)
    return [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]


def random_mask(structure: compress.Structure, seed: int) -> np.ndarray:
    """`(n_units,)` removed units: of each group a random number, up to all but one."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(len(structure.units), dtype=bool)
    for group in structure.units.groups:
        rows = np.flatnonzero((structure.units.group == group) & structure.units.removable)
        number = len(rows) - 1 if seed == SEEDS[-1] else rng.integers(0, len(rows))
        mask[rng.choice(rows, number, replace=False)] = True
    return mask


def plan_of(structure: compress.Structure, mask: np.ndarray) -> compress.CompressionPlan:
    return compress.CompressionPlan.removing(structure.units, [structure.units.ids[i] for i in np.flatnonzero(mask)])


def relative_error(expected: list[Tensor], found: list[Tensor]) -> float:
    assert [e.shape for e in expected] == [f.shape for f in found]
    assert all(torch.isfinite(e).all() for e in expected)
    return max(
        ((e - f).abs().max() / e.abs().max().clamp_min(1e-12)).item() for e, f in zip(expected, found, strict=True)
    )


@pytest.fixture(scope="module", params=list(ZOO))
def case(request: pytest.FixtureRequest) -> Case:
    torch.set_num_threads(1)
    architecture = ZOO[request.param]
    model = build(architecture)
    before = copy.deepcopy(model.state_dict())
    structure = compress.analyze(model, architecture.inputs(2))
    masks = [random_mask(structure, seed) for seed in SEEDS]
    small = compress.apply_plan(structure, plan_of(structure, masks[0]))
    return Case(architecture, model, before, structure, masks, small)


def test_units_are_those_expected(case: Case) -> None:
    units = case.structure.units
    found = {group: int(((units.group == group) & units.removable).sum()) for group in units.groups}
    assert found, units.blocked
    assert min(found.values()) >= 2
    if case.architecture.groups is not None:
        assert found == dict(case.architecture.groups)
    assert set(units.group[units.kind == "head"].tolist()) == set(case.architecture.heads)
    blocked = dict(units.blocked)
    for name, reason in case.architecture.blocked.items():
        assert reason in blocked[name]


def test_trace_computes_the_same(case: Case) -> None:
    for batch in (2, 3):
        with torch.no_grad():
            assert relative_error(case.run(case.model, batch), case.run(case.structure.traced.module, batch)) < 1e-6


@pytest.mark.parametrize("seed", SEEDS)
def test_sliced_equals_masked(case: Case, seed: int) -> None:
    mask = case.masks[seed]
    small = case.small if seed == 0 else compress.apply_plan(case.structure, plan_of(case.structure, mask))
    masked = compress.simulate_plan(case.structure, plan_of(case.structure, mask))
    assert not mask.any() or n_parameters(small) < n_parameters(case.model)
    with torch.no_grad():
        for batch in (2, 3):
            assert relative_error(case.run(masked, batch), case.run(small, batch)) < 1e-5
        exact = [case.run(copy.deepcopy(m).double(), 2, torch.float64) for m in (masked, small)]
        assert relative_error(*exact) < 1e-9


def n_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_names_and_ties_stay(case: Case) -> None:
    assert set(case.small.state_dict()) == set(case.model.state_dict())
    assert ties(case.small) == ties(case.model)


def ties(model: nn.Module) -> set[frozenset[str]]:
    found: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), set()).add(name)
    return {frozenset(names) for names in found.values() if len(names) > 1}


def test_original_is_untouched(case: Case) -> None:
    after = case.model.state_dict()
    assert list(after) == list(case.before)
    assert all(torch.equal(after[name], value) for name, value in case.before.items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in case.model.parameters())
    assert not any(module.training for module in case.model.modules())


def test_sliced_model_trains(case: Case) -> None:
    small = copy.deepcopy(case.small)
    assert not small.training
    small.train()
    assert small.training
    sum(out.square().mean() for out in case.run(small, 4) if out.requires_grad).backward()
    reached = {name for name, parameter in small.named_parameters() if parameter.grad is not None}
    dense = copy.deepcopy(case.model).train()
    sum(out.square().mean() for out in case.run(dense, 4) if out.requires_grad).backward()
    assert reached == {name for name, parameter in dense.named_parameters() if parameter.grad is not None}
    assert all(torch.isfinite(p.grad).all() for p in small.parameters() if p.grad is not None)
    counted = [name for name, _ in dense.named_buffers() if name.endswith(("running_mean", "running_var"))]
    assert all(not torch.equal(small.get_buffer(name), case.small.get_buffer(name)) for name in counted)
    small.eval()
    with torch.no_grad():
        assert relative_error(case.run(small), case.run(small)) == 0


def test_sliced_model_saves_and_loads(case: Case) -> None:
    file = io.BytesIO()
    torch.save(case.small.state_dict(), file)
    other = slice_model(case.structure, case.masks[0])
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        assert relative_error(case.run(case.small), case.run(other)) == 0


def test_sliced_model_exports_again(case: Case) -> None:
    args, kwargs = as_inputs(case.architecture.inputs(2))
    exported = torch.export.export(case.small, args, kwargs, strict=False).module()
    with torch.no_grad():
        assert relative_error(case.run(case.small), case.run(exported)) < 1e-6


def test_open_gates_change_nothing(case: Case) -> None:
    with torch.no_grad():
        assert relative_error(case.run(case.model, 3), case.run(gated_module(case.structure), 3)) < 1e-5


def test_gates_of_each_example(case: Case) -> None:
    """Measuring in batches rests on this: every example may have its own gates."""
    batch = 3
    module = copy.deepcopy(gated_module(case.structure)).double()
    unknown = [site for site in case.structure.sites if site.batch is None]
    masks = [random_mask(case.structure, seed)[: case.structure.n_removable] for seed in (3, 4, 5)]
    with torch.no_grad():
        module.gates = torch.cat([gates_of(mask) for mask in masks]).double()
        if unknown:
            with pytest.raises(compress.CompressError, match="known batch"):
                case.run(module, batch, torch.float64)
            return
        together = case.run(module, batch, torch.float64)
        for i, mask in enumerate(masks):
            module.gates = gates_of(mask).double()
            alone = case.run(module, batch, torch.float64)
            rows = [slice(i * len(out) // batch, (i + 1) * len(out) // batch) for out in alone]
            wanted, found = ([o[r] for o, r in zip(outs, rows, strict=True)] for outs in (alone, together))
            assert relative_error(wanted, found) < 1e-9


def test_gradients_of_gates_are_finite(case: Case) -> None:
    module = gated_module(case.structure)
    for mask in (np.zeros_like(case.masks[0]), case.masks[0]):
        gates = gates_of(mask[: case.structure.n_removable]).requires_grad_()
        module.gates = gates
        sum(out.square().sum() for out in case.run(module) if out.is_floating_point()).backward()
        assert torch.isfinite(gates.grad).all()
    for parameter in case.model.parameters():
        parameter.grad = None


@pytest.mark.parametrize("name", ["ResidualPad", "convnext", "TiedGPT", "gqa_expand", "Buffers", "group_norms"])
def test_double_precision_from_the_start(name: str) -> None:
    architecture = ZOO[name]
    model = build(architecture).double()
    inputs = pytree.tree_map(lambda x: x.double() if x.is_floating_point() else x, architecture.inputs(2))
    structure = compress.analyze(model, inputs)
    mask = random_mask(structure, 0)
    small = compress.apply_plan(structure, plan_of(structure, mask))
    masked = compress.simulate_plan(structure, plan_of(structure, mask))
    with torch.no_grad():
        assert relative_error(*(run(m, architecture, 3, torch.float64) for m in (masked, small))) < 1e-9
