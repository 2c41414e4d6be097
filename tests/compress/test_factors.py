"""Factors of one weight against answers worked out by hand, and against torch's own decompositions."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from compress.factors import factor_weight, full_rank

CHANNEL, SPATIAL = (0, 1), (0,)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(rows: Tensor) -> Tensor:
    return rows.T @ rows / len(rows)


def test_a_weight_of_rank_one_needs_one_channel():
    weight = torch.tensor([[1.0, 2.0], [-2.0, -4.0]])
    (found,) = factor_weight(weight, (), [1])
    assert found.reduce.shape == (1, 2)
    assert found.expand.shape == (2, 1)
    assert found.weight_error == pytest.approx(0, abs=1e-15)
    assert math.isnan(found.output_error)
    torch.testing.assert_close(found.expand @ found.reduce, weight)
    # The only singular value is 5: each factor gets its root.
    assert found.reduce.norm() == pytest.approx(5**0.5)
    assert found.expand.norm() == pytest.approx(5**0.5)


def test_the_largest_singular_values_stay():
    weight = torch.diag(torch.tensor([1.0, 3.0, 2.0]))
    one, two = factor_weight(weight, (), [1, 2])
    torch.testing.assert_close(one.weight, torch.diag(torch.tensor([0.0, 3.0, 0.0])))
    torch.testing.assert_close(two.weight, torch.diag(torch.tensor([0.0, 3.0, 2.0])))
    assert one.weight_error == pytest.approx(5 / 14)
    assert two.weight_error == pytest.approx(1 / 14)


def test_inputs_decide_which_output_matters():
    weight, second = torch.diag(torch.tensor([2.0, 1.0])), torch.diag(torch.tensor([1.0, 9.0]))
    # The outputs have energies 4 * 1 and 1 * 9: the second is the one to keep, though its weight is smaller.
    (found,) = factor_weight(weight, (), [1], second, ridge=0.0)
    torch.testing.assert_close(found.weight, torch.diag(torch.tensor([0.0, 1.0])))
    assert found.output_error == pytest.approx(4 / 13)
    assert found.weight_error == pytest.approx(4 / 5)


@pytest.mark.parametrize("first_dims", [CHANNEL, SPATIAL])
def test_errors_are_the_tail_of_the_singular_values(first_dims):
    weight = random(4, 3, 2, 5)
    matrix = weight.flatten(1) if first_dims == CHANNEL else weight.permute(0, 3, 1, 2).reshape(20, 6)
    sigma = torch.linalg.svdvals(matrix)
    found = factor_weight(weight, first_dims, range(1, len(sigma) + 1))
    assert full_rank(weight.shape, first_dims) == len(sigma)
    for rank, factors in enumerate(found, start=1):
        expected = float(sigma[rank:].square().sum() / sigma.square().sum())
        assert factors.weight_error == pytest.approx(expected, abs=1e-12)
        gap = (factors.weight - weight).square().sum() / weight.square().sum()
        assert float(gap) == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(found[-1].weight, weight)


def test_output_errors_are_the_tail_of_the_whitened_singular_values():
    weight, rows = random(6, 8), random(50, 8, seed=1) @ random(8, 8, seed=2)
    second = moment(rows)
    sigma = torch.linalg.svdvals(rows @ weight.T)
    plain = factor_weight(weight, (), range(1, 7))
    for rank, found in enumerate(factor_weight(weight, (), range(1, 7), second, ridge=0.0), start=1):
        measured = (rows @ (found.weight - weight).T).square().sum() / (rows @ weight.T).square().sum()
        assert found.output_error == pytest.approx(float(measured), abs=1e-9)
        assert found.output_error == pytest.approx(float(sigma[rank:].square().sum() / sigma.square().sum()), abs=1e-9)
        without = (rows @ (plain[rank - 1].weight - weight).T).square().sum() / (rows @ weight.T).square().sum()
        if rank < 6:
            assert found.output_error < 0.99 * without
            assert found.weight_error > plain[rank - 1].weight_error


@pytest.mark.parametrize("first_dims", [CHANNEL, SPATIAL])
def test_white_inputs_change_nothing(first_dims):
    weight = random(4, 3, 3, 2)
    plain, aware = (factor_weight(weight, first_dims, [2], second)[0] for second in (None, 3 * torch.eye(18)))
    torch.testing.assert_close(aware.weight, plain.weight)
    assert aware.output_error == pytest.approx(plain.weight_error)


def test_a_separable_kernel_is_a_column_and_a_row():
    kernel = torch.outer(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0, 3.0]))
    (found,) = factor_weight(kernel[None, None], SPATIAL, [1])
    assert found.reduce.shape == (1, 1, 2, 1)
    assert found.expand.shape == (1, 1, 1, 3)
    torch.testing.assert_close(found.expand * found.reduce, kernel[None, None])
    assert found.weight_error == pytest.approx(0, abs=1e-15)


def test_the_second_spatial_conv_is_the_least_squares_solution():
    # A picture whose neighbours are alike: patches at several offsets are far from independent.
    x = F.avg_pool2d(random(6, 2, 13, 13), 3, 1)
    weight = random(3, 2, 3, 3, seed=1)
    patches = F.unfold(x, 3).movedim(1, 2).reshape(-1, 18)
    (found,) = factor_weight(weight, SPATIAL, [2], moment(patches), ridge=0.0)
    between = F.conv2d(x, found.reduce)
    features = F.unfold(between, (1, 3)).movedim(1, 2).reshape(-1, 6)
    target = F.conv2d(x, weight).movedim(1, 3).reshape(-1, 3)
    best = torch.linalg.lstsq(features, target).solution
    torch.testing.assert_close(found.expand.flatten(1), best.T, rtol=1e-5, atol=1e-5)
    measured = (features @ best - target).square().sum() / target.square().sum()
    assert found.output_error == pytest.approx(float(measured), rel=1e-5)
    torch.testing.assert_close(F.conv2d(between, found.expand), F.conv2d(x, found.weight))
    (plain,) = factor_weight(weight, SPATIAL, [2])
    gap = F.conv2d(x, plain.weight - weight).square().sum() / target.square().sum()
    assert found.output_error < 0.95 * float(gap)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_more_rank_is_never_worse_and_full_rank_is_exact(out_ch, in_ch, height, width, spatial, seed):
    weight = random(out_ch, in_ch, height, width, seed=seed)
    first_dims = SPATIAL if spatial else CHANNEL
    n = weight[0].numel()
    second = moment(random(2 * n, n, seed=seed + 1) @ random(n, n, seed=seed + 2))
    ranks = range(1, full_rank(weight.shape, first_dims) + 1)
    plain = factor_weight(weight, first_dims, ranks)
    aware = factor_weight(weight, first_dims, ranks, second, ridge=0.0)
    energy = float((weight.flatten(1) @ second @ weight.flatten(1).T).trace())
    for name, found in (("weight_error", plain), ("output_error", aware)):
        errors = [1.0, *(getattr(factors, name) for factors in found)]
        tolerance = 1e-9
        if name == "weight_error" or not spatial:  # directions of two spatial convs are not the best of each rank
            assert all(a >= b - tolerance for a, b in itertools.pairwise(errors))
        assert all(-tolerance <= error <= 1 + tolerance for error in errors)
        torch.testing.assert_close(found[-1].weight, weight, rtol=1e-6, atol=1e-6)
    for factors, other, rank in zip(aware, plain, ranks, strict=True):
        gap = (other.weight - weight).flatten(1)
        assert factors.output_error * energy <= float((gap @ second @ gap.T).trace()) + 1e-9 * energy
        assert factors.reduce.shape[0] == factors.expand.shape[1] == rank
        sizes = factors.reduce.flatten(1).norm(dim=1), factors.expand.movedim(1, 0).flatten(1).norm(dim=1)
        torch.testing.assert_close(*sizes)


def test_nothing_to_go_by_is_survived():
    zero = torch.zeros(3, 4)
    (found,) = factor_weight(zero, (), [2], torch.zeros(4, 4))
    assert not found.weight.any()
    assert found.weight_error == found.output_error == 0
    weight = random(3, 4)
    silent, plain = factor_weight(weight, (), [2], torch.zeros(4, 4))[0], factor_weight(weight, (), [2])[0]
    torch.testing.assert_close(silent.weight, plain.weight)
    # One direction is never seen: it is judged by its weight, and full rank keeps it.
    second = torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0]))
    torch.testing.assert_close(factor_weight(weight, (), [3], second)[0].weight, weight)
