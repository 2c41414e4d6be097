"""Replay of removals and of other weights against full forwards of the masked or changed model."""

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from zoo import ZOO, build

import compress
from compress.attributes import value_of
from compress.errors import CompressError, DataError
from compress.gates import gated_module
from compress.graph import as_inputs
from compress.replay import Replay
from compress.structure import Structure

# One of each mechanism: convs of every sort, joins, norms, attention, tied weights, a recurrent layer behind channels.
ARCHITECTURES = (
    "residual_projection", "resnext", "dense_concat", "grouped_transposed", "squeeze_excite", "group_norms", "convnext",
    "SharedConv", "TiedGPT", "gqa_sdpa", "encoder_pre_norm_time_first", "SoftmaxChannels", "GruFront",
)  # fmt: skip
SIZES = (3, 3, 2)


class AnyTask:
    """A loss of each example for any outputs that lead with the examples: a smooth function of all of them."""

    metric_name, higher_is_better = "negative_loss", True

    def inputs(self, batch: Any) -> tuple[Any, ...]:
        return batch

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
        rows = torch.cat([leaf.reshape(batch[0].shape[0], -1) for leaf in leaves], dim=1)
        weights = torch.linspace(-1, 1, rows.shape[1], dtype=rows.dtype)
        return (rows.tanh() * weights).sum(1) + 0.1 * (rows * rows).mean(1)

    def score(self, outputs: Tensor, batches: list[Any]) -> float:
        return 0.0


@cache
def make_case(name: str, dtype: torch.dtype) -> tuple[Structure, list[tuple[Any, ...]]]:
    """The analysed architecture and batches of two sizes; those of the same size differ in their order."""
    architecture = ZOO[name]
    model = build(architecture).to(dtype)
    batches = []
    for number, size in enumerate(SIZES):
        inputs = pytree.tree_map(lambda x: x.to(dtype) if x.is_floating_point() else x, architecture.inputs(size))
        if number == 1:
            inputs = pytree.tree_map(lambda x, size=size: _turned(x, size), inputs)
        args, kwargs = as_inputs(inputs)
        batches.append((*args, *kwargs.values()))
    return compress.analyze(model, batches[0]), batches


def _turned(leaf: Tensor, size: int) -> Tensor:
    """The examples in another order, wherever they lie."""
    return leaf.flip([dim for dim, n in enumerate(leaf.shape) if n == size][:1])


def masked_losses(structure: Structure, batches: list[Any], row: int, task: Any) -> list[np.ndarray]:
    """Losses per batch of a full forward of the masked model."""
    module = gated_module(structure).eval()
    dtype = next(module.parameters()).dtype
    module.gates = torch.ones(1, structure.n_removable, dtype=dtype)
    module.gates[0, row] = 0
    with torch.no_grad():
        return [task.loss(module(*task.inputs(batch)), batch).double().numpy() for batch in batches]


def replayed_losses(replay: Replay, group: str) -> dict[int, list[np.ndarray]]:
    """Row -> losses per batch, as many batches in one call as may be."""
    suffix = replay.group_suffix(group)
    calls = replay.calls(suffix, range(len(replay.batches)))
    assert calls == ([[0], [1], [2]] if suffix.single else [[0, 1], [2]])
    return {
        row: [losses for call in calls for losses in replay.removal_losses(suffix, [(row, n) for n in call])]
        for row in suffix.local
    }


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        *((name, torch.float64, 1e-9) for name in ARCHITECTURES),
        ("residual_projection", torch.float32, 1e-6),
        ("gqa_sdpa", torch.float32, 1e-6),
    ],
)
def test_replay_is_a_full_masked_forward(name: str, dtype: torch.dtype, tolerance: float) -> None:
    structure, batches = make_case(name, dtype)
    task = AnyTask()
    replay = Replay(structure, task, batches)
    scale = max(1.0, max(float(np.abs(losses).max()) for losses in replay.dense))
    seen = []
    for group in structure.units.groups:
        for row, losses in replayed_losses(replay, group).items():
            seen.append(row)
            for found, expected in zip(losses, masked_losses(structure, batches, row, task), strict=True):
                np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale, err_msg=group)
    assert sorted(seen) == list(range(structure.n_removable))
    assert replay.forward_macs - 2 * replay.full_macs * replay.n_examples < replay.naive_macs
    assert replay.naive_macs == pytest.approx(replay.full_macs * replay.n_examples * structure.n_removable)


@pytest.mark.parametrize("name", ["TiedGPT", "SharedConv", "grouped_transposed"])
def test_another_weight_is_the_model_with_that_weight(name: str) -> None:
    structure, batches = make_case(name, torch.float64)
    task = AnyTask()
    replay = Replay(structure, task, batches)
    module = copy.deepcopy(structure.traced.module)
    for layer in {layer.name: layer for layer in structure.traced.layers()}.values():
        weight = (value_of(structure.traced.module, layer.weight).detach() * 8).round() / 8
        suffix = replay.layer_suffix(layer.name)
        changed = value_of(module, layer.weight)
        before = changed.detach().clone()
        with torch.no_grad():
            changed.copy_(weight)
            for number, batch in enumerate(batches):
                expected = task.loss(module(*task.inputs(batch)), batch).numpy()
                np.testing.assert_allclose(replay.layer_losses(suffix, weight, number), expected, atol=1e-9)
            changed.copy_(before)


def test_work_of_a_chain_in_closed_form() -> None:
    """Linear 4-6-5-3: a hidden unit costs its share of the next layer and all that follows."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    batch = (torch.randn(7, 4, generator=torch.Generator().manual_seed(0)),)
    replay = Replay(compress.analyze(model, batch), AnyTask(), [batch])
    assert replay.full_macs == 24 + 30 + 15
    assert replay.group_suffix("0:out").macs == pytest.approx(30 / 6 + 15)
    assert replay.group_suffix("2:out").macs == pytest.approx(15 / 5)
    assert replay.layer_suffix("2").macs == 30 + 15
    assert replay.forward_macs == 7 * 69
    assert replay.naive_macs == 0
    replay.removal_losses(replay.group_suffix("2:out"), [(6, 0), (7, 0)])
    assert replay.forward_macs == pytest.approx(7 * (69 + 69 + 2 * 3))
    assert replay.naive_macs == 7 * 2 * 69


def test_a_small_cache_gives_the_same_losses() -> None:
    structure, batches = make_case("residual_projection", torch.float64)
    small, large = (Replay(structure, AnyTask(), batches, cache_bytes=size) for size in (1, 1 << 30))
    suffixes = [large.group_suffix(group) for group in structure.units.groups]
    assert large.keep(suffixes)
    assert not small.keep(suffixes)
    for group in structure.units.groups:
        found, expected = (replayed_losses(replay, group) for replay in (small, large))
        small.forget()
        for row in expected:
            np.testing.assert_array_equal(np.concatenate(found[row]), np.concatenate(expected[row]))


def test_bad_input_is_named() -> None:
    structure, batches = make_case("SharedConv", torch.float64)
    with pytest.raises(DataError, match="'batches' parameter of Replay must hold at least one batch"):
        Replay(structure, AnyTask(), [])
    with pytest.raises(DataError, match="loss is not finite"):
        Replay(structure, AnyTask(), [(batches[0][0] * float("inf"),)])
    with pytest.raises(CompressError, match="Unknown layer 'nowhere'"):
        Replay(structure, AnyTask(), batches).layer_suffix("nowhere")
