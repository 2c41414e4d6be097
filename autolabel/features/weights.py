"""The numbers that make a unit and read it."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from autolabel.feature import log_size, ratio
from compress.normalization import normalize_groups
from compress.statistics import Statistics


class WeightFeatures:
    """Moments of producing and consuming weights, batch-norm parameters."""

    name: ClassVar[str] = "weights"
    choice: ClassVar[str] = "removed"
    columns: ClassVar[Mapping[str, str]] = {
        "weight_log_norm": "log10 of the Euclidean norm of the producing weights",
        "weight_mean_abs": "mean magnitude of the producing weights",
        "weight_mean": "mean of the producing weights",
        "weight_std": "standard deviation of the producing weights",
        "weight_max": "largest magnitude of a producing weight",
        "weight_peak": "largest magnitude over root mean square of the producing weights",
        "weight_kurtosis": "excess kurtosis of the producing weights",
        "weight_zeros": "part of the producing weights that is exactly zero",
        "consumer_log_norm": "log10 of the Euclidean norm of the reading weights",
        "consumer_mean_abs": "mean magnitude of the reading weights",
        "consumer_mean": "mean of the reading weights",
        "consumer_std": "standard deviation of the reading weights",
        "consumer_max": "largest magnitude of a reading weight",
        "consumer_peak": "largest magnitude over root mean square of the reading weights",
        "consumer_kurtosis": "excess kurtosis of the reading weights",
        "consumer_zeros": "part of the reading weights that is exactly zero",
        "consumer_norm_relative": "norm of the reading weights over the mean in the group",
        "path_log_norm": "log10 of the product of both norms",
        "path_norm_relative": "product of both norms over the mean in the group",
        "bn_gamma": "mean |scale| of the batch norms on the unit, 1 without",
        "bn_beta": "mean shift of the batch norms on the unit, 0 without",
        "bn_beta_over_gamma": "shift over scale: below -2 a rectifier is nearly always shut",
    }

    def compute(self, statistics: Statistics) -> np.ndarray:
        produced, norm = _moments(statistics, statistics.producer_places)
        read, read_norm = _moments(statistics, statistics.consumer_places)
        gamma = np.nan_to_num(statistics.bn_scale, nan=1.0)
        beta = np.nan_to_num(statistics.bn_shift, nan=0.0)
        groups = statistics.group_rows
        return np.column_stack([
            *produced, *read, normalize_groups(read_norm, groups, "mean"), log_size(norm * read_norm),
            normalize_groups(norm * read_norm, groups, "mean"), gamma, beta, np.clip(ratio(beta, gamma), -1e3, 1e3),
        ])  # fmt: skip


def _moments(statistics: Statistics, places: Sequence[tuple[str, int]]) -> tuple[list[np.ndarray], np.ndarray]:
    """The eight columns of one side, and the norms."""
    n = statistics.n_units
    count, zeros, size = np.zeros(n), np.zeros(n), np.zeros(n)
    powers, largest = np.zeros((4, n)), np.zeros(n)
    for rows, values in statistics.slices(places):
        count += statistics.total(rows, np.full(len(rows), float(values.shape[1])))
        zeros += statistics.total(rows, (values == 0).sum(axis=1).astype(float))
        size += statistics.total(rows, np.abs(values).sum(axis=1))
        for power in range(4):
            powers[power] += statistics.total(rows, (values ** (power + 1)).sum(axis=1))
        np.maximum.at(largest, rows, np.abs(values).max(axis=1, initial=0.0))
    mean, square, cube, fourth = ratio(powers, count)
    variance = np.maximum(square - mean**2, 0.0)
    central = fourth - 4 * mean * cube + 6 * mean**2 * square - 3 * mean**4
    spread = variance > 1e-12 * np.maximum(square, 1e-30)
    kurtosis = np.where(spread, central / np.where(spread, variance, 1.0) ** 2 - 3, 0.0)
    norm = np.sqrt(powers[1])
    columns = [log_size(norm), ratio(size, count), mean, np.sqrt(variance), largest, ratio(largest, np.sqrt(square)),
               np.clip(kurtosis, -3, 1e6), ratio(zeros, count)]  # fmt: skip
    return columns, norm
