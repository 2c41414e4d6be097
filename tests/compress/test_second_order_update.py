"""Pruning and rounding with update of the rest: hand-computed, against least squares, and what must always hold."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import CompressError, DataError
from compress.least_squares import solve_change
from compress.optimal_brain_surgeon import remove_weights, solve_for_mask
from compress.second_order_update import damped, inverse_factor, output_error, sweep_columns

# Two inputs with correlation 1/2: the inverse is [[4, -2], [-2, 4]] / 3.
PAIR = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
# A chain: the inverse is [[3, 2, 1], [2, 4, 2], [1, 2, 3]] / 4.
CHAIN = torch.tensor([[2.0, -1.0, 0.0], [-1.0, 2.0, -1.0], [0.0, -1.0, 2.0]], dtype=torch.float64)


def correlated(seed: int, n: int, n_rows: int = 400, rank: int | None = None) -> torch.Tensor:
    """Rows of inputs that a few hidden causes share."""
    g = torch.Generator().manual_seed(seed)
    causes = torch.randn(n_rows, rank or max(n // 2, 1), generator=g, dtype=torch.float64)
    mixing = torch.randn(causes.shape[1], n, generator=g, dtype=torch.float64)
    return causes @ mixing + 0.3 * torch.randn(n_rows, n, generator=g, dtype=torch.float64)


def moment_of(x: torch.Tensor) -> torch.Tensor:
    return x.T @ x / len(x)


def weights(seed: int, rows: int, n: int) -> torch.Tensor:
    return torch.randn(rows, n, generator=torch.Generator().manual_seed(1000 + seed), dtype=torch.float64)


def total_error(new: torch.Tensor, old: torch.Tensor, moment: torch.Tensor) -> float:
    return float(output_error(new - old, moment).sum())


def to_integers(values: torch.Tensor, column: int) -> torch.Tensor:
    return torch.round(values)


class TestByHand:
    def test_two_inputs_the_first_goes(self):
        # What x0 gave is predicted from x1 as x1 / 2: the weight 1 of x0 becomes 1/2 on x1. Error: 1 - 1/4.
        weight = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
        new, kept = sweep_columns(weight, PAIR, keep=torch.tensor([[False, True]]), damping=0.0)
        torch.testing.assert_close(new, torch.tensor([[0.0, 3.5]], dtype=torch.float64))
        assert kept.tolist() == [[False, True]]
        assert total_error(new, weight, PAIR) == pytest.approx(0.75)

    def test_three_inputs_the_middle_goes(self):
        # Exact: w2 times -(2, 2) / 4 onto its neighbours. The sweep has fixed the first column and updates the third
        # alone, by what predicts x1 from x2: -1/2.
        weight, mask = torch.tensor([[1.0, 2.0, 1.0]], dtype=torch.float64), torch.tensor([[True, False, True]])
        exact = solve_for_mask(weight, CHAIN, mask, damping=0.0)
        torch.testing.assert_close(exact, torch.tensor([[0.0, 0.0, 0.0]], dtype=torch.float64))
        swept, _ = sweep_columns(weight, CHAIN, keep=mask, damping=0.0)
        torch.testing.assert_close(swept, torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64))

    def test_exact_order_and_costs(self):
        # w^2 over the inverse's diagonal: 4 / 3, 4, 16 / 3. The first goes: the inverse of what is left is
        # [[2, -1], [-1, 2]]^-1 = [[2, 1], [1, 2]] / 3, the weights (2, 2) - 1 (2, 1) / 3 = (4/3, 5/3).
        weight = torch.tensor([[1.0, 2.0, 2.0]], dtype=torch.float64)
        new, kept, costs = remove_weights(weight, CHAIN, 1 / 3, damping=0.0)
        assert kept.tolist() == [[False, False, True]]
        torch.testing.assert_close(costs, torch.tensor([4 / 3, (4 / 3) ** 2 * 1.5], dtype=torch.float64))
        torch.testing.assert_close(new, torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64))

    def test_rounding_hands_its_error_on(self):
        # 0.4 rounds to 0; its error 0.4 x0 is worth 0.2 x1, which lifts 0.4 to 0.6, and that rounds to 1.
        weight = torch.tensor([[0.4, 0.4]], dtype=torch.float64)
        new, _ = sweep_columns(weight, PAIR, nearest=to_integers, damping=0.0)
        assert new.tolist() == [[0.0, 1.0]]
        assert total_error(new, weight, PAIR) < total_error(torch.zeros(1, 2), weight, PAIR)

    def test_pruned_and_rounded_in_one_pass(self):
        # x0 goes and leaves half of its weight: 1.2 + 0.5 rounds to 2, alone it would to 1.
        weight = torch.tensor([[1.0, 1.2]], dtype=torch.float64)
        new, _ = sweep_columns(weight, PAIR, keep=torch.tensor([[False, True]]), nearest=to_integers, damping=0.0)
        assert new.tolist() == [[0.0, 2.0]]

    def test_columns_keep_their_numbers_in_any_order(self):
        seen = []

        def nearest(values, column):
            seen.append(column)
            return torch.full_like(values, float(column))

        moment = torch.diag(torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64))
        new, _ = sweep_columns(torch.ones(2, 3), moment, nearest=nearest, activation_order=True)
        assert seen == [1, 2, 0]
        assert new.tolist() == [[0.0, 1.0, 2.0]] * 2

    def test_damping_is_relative(self):
        torch.testing.assert_close(damped(4 * PAIR, 0.5), 4 * PAIR + 2 * torch.eye(2, dtype=torch.float64))


class TestUncorrelatedInputs:
    def test_pruning_is_by_magnitude_and_changes_nothing_else(self):
        weight = weights(0, 6, 20)
        new, kept = sweep_columns(weight, torch.eye(20), keep=0.3, block_size=20)
        largest = weight.abs().flatten().topk(36).indices
        expected = torch.zeros(120, dtype=torch.bool).index_fill(0, largest, True).reshape(6, 20)
        assert torch.equal(kept, expected)
        torch.testing.assert_close(new, weight.where(expected, 0.0))

    def test_energy_counts(self):
        moment = torch.diag(torch.tensor([1.0, 100.0]))
        _, kept = sweep_columns(torch.tensor([[1.0, 0.2]]), moment, keep=0.5)
        assert kept.tolist() == [[False, True]]

    def test_rounding_is_nearest(self):
        weight = 3 * weights(1, 5, 9)
        new, _ = sweep_columns(weight, torch.eye(9), nearest=to_integers, activation_order=True)
        assert torch.equal(new, weight.round())


class TestLeastSquares:
    @pytest.mark.parametrize("seed", range(3))
    def test_the_solution_for_a_mask_is_the_refit_on_what_stays(self, seed):
        x, weight = correlated(seed, 8), weights(seed, 5, 8)
        x = x / x.square().mean(0).sqrt()  # so that the penalties of both are relative to the same
        gone = torch.tensor([0, 1, 0, 0, 1, 1, 0, 0], dtype=torch.bool)
        kept = (~gone).expand_as(weight)
        inputs, target = x[None, :, ~gone], (x @ weight.T)[None]
        change = solve_change(inputs, inputs @ weight.T[~gone], target, ridge=0.02, offset=False)
        refit = torch.zeros_like(weight)
        refit[:, ~gone] = weight[:, ~gone] + change.matrix[0].T
        torch.testing.assert_close(solve_for_mask(weight, moment_of(x), kept, 0.02), refit)

    def test_all_updates_together_are_the_solution_for_their_mask(self):
        moment, weight = moment_of(correlated(5, 10)), weights(5, 4, 10)
        new, kept, increases = remove_weights(weight, moment, 0.4)
        torch.testing.assert_close(new, solve_for_mask(weight, moment, kept))
        # What each removal adds is all there is, under the moment that was used.
        assert float(increases.sum()) == pytest.approx(total_error(new, weight, damped(moment, 0.01)))

    def test_a_sweep_whose_mask_ends_with_the_rows_is_exact(self):
        # Only the last column stays: nothing that the sweep holds fixed could have moved.
        moment, weight = moment_of(correlated(6, 6)), weights(6, 3, 6)
        mask = torch.zeros(3, 6, dtype=torch.bool)
        mask[:, -1] = True
        swept, _ = sweep_columns(weight, moment, keep=mask)
        torch.testing.assert_close(swept, solve_for_mask(weight, moment, mask))

    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 10**6), st.integers(2, 12), st.floats(0.1, 0.9))
    def test_no_weight_on_a_mask_is_better_than_the_solution(self, seed, n, density):
        moment, weight = moment_of(correlated(seed, n)), weights(seed, 3, n)
        swept, kept = sweep_columns(weight, moment, keep=density)
        matrix = damped(moment, 0.01)
        best = total_error(solve_for_mask(weight, moment, kept), weight, matrix)
        assert best <= total_error(swept, weight, matrix) + 1e-9
        assert best <= total_error(weight.where(kept, 0.0), weight, matrix) + 1e-9


class TestProperties:
    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 6), st.floats(0, 1), st.integers(1, 20))
    def test_a_density_is_met_and_the_mask_held_exactly(self, seed, n, rows, density, block_size):
        weight = weights(seed, rows, n)
        new, kept = sweep_columns(weight, moment_of(correlated(seed, n)), keep=density, block_size=block_size)
        assert int(kept.sum()) == round(density * rows * n)
        assert (new[~kept] == 0).all()
        assert torch.isfinite(new).all()

    @pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (0, 2), (3, 3)])
    def test_n_of_m_in_every_group_of_every_row(self, n, m):
        _, kept = sweep_columns(weights(0, 5, 48), moment_of(correlated(0, 48)), keep=(n, m), block_size=10)
        assert (kept.reshape(5, -1, m).sum(-1) == n).all()

    def test_a_rest_shorter_than_m_keeps_at_most_n(self):
        _, kept = sweep_columns(weights(0, 5, 9), moment_of(correlated(0, 9)), keep=(2, 4))
        assert kept[:, 8].all()

    def test_blocks_change_nothing_but_the_choice(self):
        moment, weight = moment_of(correlated(2, 30)), weights(2, 4, 30)
        mask = weights(3, 4, 30) > 0
        whole, _ = sweep_columns(weight, moment, keep=mask, nearest=to_integers, block_size=1000)
        pieces, _ = sweep_columns(weight, moment, keep=mask, nearest=to_integers, block_size=7)
        assert torch.equal(whole, pieces)

    def test_groups_are_layers_of_their_own(self):
        moments = torch.stack([moment_of(correlated(s, 12)) for s in range(3)])
        stacked = torch.stack([weights(s, 4, 12) for s in range(3)])
        together, kept = sweep_columns(stacked, moments, keep=0.5)
        for g in range(3):
            alone, mask = sweep_columns(stacked[g], moments[g], keep=0.5)
            torch.testing.assert_close(together[g], alone)
            assert torch.equal(kept[g], mask)
        kept = weights(9, 12, 12).reshape(3, 4, 12) > 0
        solved = solve_for_mask(stacked, moments, kept)
        torch.testing.assert_close(solved[1], solve_for_mask(stacked[1], moments[1], kept[1]))

    def test_pruning_with_update_beats_magnitude(self):
        better = [
            total_error(sweep_columns(w, h, keep=0.4)[0], w, h) < total_error(w.where(w.abs() > cut(w, 0.4), 0.0), w, h)
            for w, h in ((weights(s, 12, 24), moment_of(correlated(s, 24))) for s in range(10))
        ]
        assert sum(better) == 10

    @pytest.mark.parametrize("keep", [0.5, (2, 4)])
    def test_exact_removal_is_better_than_the_sweep(self, keep):
        for s in range(5):
            w, h = weights(s, 4, 12), moment_of(correlated(s, 12))
            exact, kept, _ = remove_weights(w, h, keep)
            swept, mask = sweep_columns(w, h, keep=keep)
            assert int(kept.sum()) == int(mask.sum()) == 24
            assert total_error(exact, w, h) < total_error(swept, w, h)

    def test_exact_removal_takes_the_cheapest_of_all_rows(self):
        weight, moment = weights(4, 3, 5), moment_of(correlated(4, 5))
        matrix, kept = damped(moment, 0.01), torch.ones(3, 5, dtype=torch.bool)
        costs = []
        for _ in range(10):
            tried = {}
            for r, q in kept.nonzero().tolist():
                mask = kept.clone()
                mask[r, q] = False
                tried[r, q] = total_error(solve_for_mask(weight, moment, mask), weight, matrix)
            kept[min(tried, key=tried.get)] = False
            costs.append(min(tried.values()) - sum(costs))
        _, found, increases = remove_weights(weight, moment, 1 / 3)
        assert torch.equal(found, kept)
        torch.testing.assert_close(increases, torch.tensor(costs, dtype=torch.float64))

    @pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 3), (0, 2), (3, 3)])
    def test_exact_n_of_m(self, n, m):
        _, kept, increases = remove_weights(weights(0, 5, 12), moment_of(correlated(0, 12)), (n, m))
        assert (kept.reshape(5, -1, m).sum(-1) == n).all()
        assert len(increases) == int((~kept).sum())

    def test_the_inverse_factor(self):
        moment = moment_of(correlated(0, 7))
        factor = inverse_factor(moment)
        assert torch.equal(factor, factor.triu())
        torch.testing.assert_close(factor.T @ factor, torch.linalg.inv(moment))
        # The square of its diagonal is what is left of the inverse's when the inputs before are out.
        for j in (0, 3, 6):
            rest = torch.linalg.inv(moment[j:, j:])
            assert float(factor[j, j] ** 2) == pytest.approx(float(rest[0, 0]))


def cut(weight: torch.Tensor, density: float) -> float:
    return float(weight.abs().flatten().quantile(1 - density))


class TestDegenerate:
    def test_dead_inputs_go_first_and_take_nothing_over(self):
        x, weight = correlated(0, 6), weights(0, 3, 6)
        x[:, 2] = 0
        new, kept = sweep_columns(weight, moment_of(x), keep=5 / 6, damping=1e-6, block_size=6)
        assert not kept[:, 2].any()
        torch.testing.assert_close(new[:, kept[0]], weight[:, kept[0]])

    @pytest.mark.parametrize("damping", [0.0, 0.01])
    def test_fewer_samples_than_inputs(self, damping):
        x, weight = correlated(1, 40, n_rows=10), weights(1, 5, 40)
        new, _ = sweep_columns(weight, moment_of(x), keep=0.5, damping=damping)
        assert torch.isfinite(new).all()
        assert total_error(new, weight, moment_of(x)) < 0.5 * total_error(
            torch.zeros_like(weight), weight, moment_of(x)
        )

    def test_nothing_but_zeros_is_magnitude(self):
        weight = weights(2, 3, 5)
        new, kept = sweep_columns(weight, torch.zeros(5, 5), keep=0.4)
        torch.testing.assert_close(new, weight.where(kept, 0.0))
        assert weight[kept].abs().min() > weight[~kept].abs().max()

    def test_float32_weights_stay_float32_and_are_left_as_they_were(self):
        weight = weights(3, 3, 5).float()
        before = weight.clone()
        new, _ = sweep_columns(weight, moment_of(correlated(3, 5)), keep=0.5)
        assert new.dtype == torch.float32
        assert torch.equal(weight, before)

    @pytest.mark.parametrize(
        "keep", [1.5, -0.1, True, (3, 2), (1, 0), (1.0, 2), torch.ones(2, 2), torch.ones(3, 2) > 0]
    )
    def test_refuses_what_is_no_choice(self, keep):
        with pytest.raises(CompressError, match="What is kept of a weight"):
            sweep_columns(torch.ones(2, 2), PAIR, keep=keep)

    def test_refuses_unfit_arguments(self):
        with pytest.raises(CompressError, match="'moment' parameter"):
            sweep_columns(torch.ones(2, 3), PAIR, keep=0.5)
        with pytest.raises(CompressError, match="'damping' parameter"):
            sweep_columns(torch.ones(2, 2), PAIR, keep=0.5, damping=-1.0)
        with pytest.raises(CompressError, match="'activation_order' parameter"):
            sweep_columns(torch.ones(2, 2), PAIR, keep=(1, 2), activation_order=True)
        with pytest.raises(DataError, match="not positive"):
            sweep_columns(torch.ones(2, 2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]), keep=0.5)
        with pytest.raises(DataError, match="NaN or infinite"):
            sweep_columns(torch.ones(2, 2), PAIR * torch.nan, keep=0.5)
        with pytest.raises(CompressError, match="'keep' parameter"):
            remove_weights(torch.ones(2, 2), PAIR, torch.ones(2, 2) > 0)
