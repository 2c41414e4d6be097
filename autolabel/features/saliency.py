"""How the loss answers to a unit's gate: first and second order, over examples."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from autolabel.feature import log_size, ratio
from compress.statistics import Statistics


class SaliencyFeatures:
    """Moments of t, an example's derivative of the loss by the gate (activation x gradient)."""

    name: ClassVar[str] = "saliency"
    choice: ClassVar[str] = "removed"
    columns: ClassVar[Mapping[str, str]] = {
        "grad_mean": "-E[t]: expected damage to first order, nats (its signed log and rank: taylor_signed)",
        "grad_mean_abs": "E|t|, nats",
        "grad_mean_abs_log": "log10 of E|t|",
        "grad_square": "0.5 E[t^2]: Fisher term, nats",
        "grad_square_log": "log10 of 0.5 E[t^2]",
        "grad_std": "standard deviation of t over examples",
        "grad_second_order": "-E[t] + 0.5 E[t^2]: expected damage to second order, nats",
        "grad_second_order_floored": "log10 of max(it, 0.05 E[t^2]): where the first-order term cancels the second",
        "grad_sign_consistency": "|E[t]| / E|t|: 1 if all examples agree on the sign",
        "grad_t_value": "-E[t] over its standard error, within -100 and 100",
        "grad_concentration": "largest t^2 over the sum: 1 if a single example needs the unit",
        "grad_active": "part of the examples with t != 0",
        "grad_share_of_group": "E[t^2] as a part of the group's sum",
        "grad_share_of_network": "E[t^2] as a part of all units' sum",
        "grad_group_log": "log10 of the group's mean E[t^2]",
        "grad_per_activation": "log10 of E|t| over mean magnitude and positions: the gradient alone",
    }

    def compute(self, statistics: Statistics) -> np.ndarray:
        t, groups = statistics.need_gradients(), statistics.group_rows
        mean, mean_abs, square = t.mean(axis=0), np.abs(t).mean(axis=0), (t**2).mean(axis=0)
        std = np.sqrt(np.maximum(square - mean**2, 0.0))
        second = -mean + 0.5 * square
        share, typical = np.zeros_like(square), np.zeros_like(square)
        for rows in groups.values():
            share[rows], typical[rows] = ratio(square[rows], square[rows].sum()), square[rows].mean()
        activations = statistics.need_activations()
        spent = activations.mean_abs * np.maximum(activations.positions, 1.0)
        return np.column_stack([
            -mean, mean_abs, log_size(mean_abs), 0.5 * square, log_size(0.5 * square), std, second,
            log_size(np.maximum(second, 0.05 * square)), ratio(np.abs(mean), mean_abs),
            np.clip(ratio(-mean, std / np.sqrt(len(t))), -100, 100), ratio((t**2).max(axis=0), square * len(t)),
            (t != 0).mean(axis=0), share, ratio(square, square.sum()), log_size(typical),
            log_size(ratio(mean_abs, spent)),
        ])  # fmt: skip
