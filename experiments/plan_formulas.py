"""Formulas that order plans of one size: they need neither a forward pass per plan nor learning."""

from collections.abc import Mapping

import numpy as np

from autolabel.feature import unsigned_log
from autolabel.plan_board import PlanBoard

# Criteria of units that the summary of a plan does not hold, in columns of the table of units; those of features as
# their signed logarithm.
_OF_UNITS = {"bn_scale": "feature_bn_scale_raw", "apoz": "feature_apoz_raw",
             "geometric_median": "feature_geometric_median_raw", "ziplm": "score_ziplm"}  # fmt: skip

_OF_FORMATS = {"fisher_error": "log_format_nats", "refit_residual/loss+fisher_error": "log_refit_and_format_nats",
               "second_order+fisher_error": "log_second_order_and_format_nats"}  # fmt: skip


def formulas(board: PlanBoard) -> dict[str, np.ndarray]:
    """Name -> `(n_plans,)`, higher is worse, of everything that needs neither a forward pass per plan nor learning."""
    summary = board.summary
    found = {}
    for i, name in enumerate(summary.plan_names):
        if name.startswith("log_removed_"):
            found[f"{name.removeprefix('log_removed_')}"] = summary.plan_values[:, i]
    for i, name in enumerate(summary.names):
        if name.endswith("_share") and f"log_removed_{name.removesuffix('_share')}" in summary.plan_names:
            found[f"{name.removesuffix('_share')}/normalised"] = 1 - summary.values[:, :, i].mean(axis=1)
    residual = summary.values[:, :, summary.names.index("refitted_error")]
    macs = summary.values[:, :, summary.names.index("macs_share")]
    found["refit_residual"] = residual.mean(axis=1)
    found["refit_residual/macs"] = (residual * macs).sum(axis=1)
    found["kept_variance"] = -summary.plan_values[:, summary.plan_names.index("refitted_kept_variance")]
    # The same, as the network's outputs and its loss see it; each reading layer counts once.
    for what in ("output", "loss"):
        name = f"refitted_{what}_sum"
        found[f"refit_residual/{what}"] = summary.plan_values[:, summary.plan_names.index(name)]
    # Of plans that store layers in few bits.
    for name, column in _OF_FORMATS.items():
        if column in summary.plan_names:
            found[name] = summary.plan_values[:, summary.plan_names.index(column)]
    found["uniformity"] = -summary.values[:, :, summary.names.index("log_kept")].min(axis=1)
    return found


def unit_formulas(units: Mapping[str, np.ndarray], masks: np.ndarray) -> dict[str, np.ndarray]:
    """Name -> `(n_plans,)`, higher is worse, of criteria that no summary holds: summed over what each plan removes, and
    the mean over groups of the part of their sizes that goes (`/normalised`).

    Args:
        units: rows of one network in a bank's table of units.
        masks: `(n_plans, n_units)` bool, what each plan removes.
    """
    found = {}
    _names, place = np.unique(units["group"], return_inverse=True)
    for name, column in _OF_UNITS.items():
        if column not in units:
            continue
        values = units[column].astype(np.float64)
        score = unsigned_log(values) if column.startswith("feature_") else values
        found[name] = masks @ score
        size = np.abs(score)
        part = size / np.maximum(np.bincount(place, size)[place], np.finfo(np.float64).tiny)
        found[f"{name}/normalised"] = masks @ part / (place.max() + 1)
    return found


def measured_sums(units: Mapping[str, np.ndarray], masks: np.ndarray) -> dict[str, np.ndarray]:
    """Name -> `(n_plans,)`: measured damages of single units, at each moment, summed over what each plan removes; those
    that seem to help, or were not measured, count as none."""
    return {
        f"{name}/sum": masks @ np.maximum(np.nan_to_num(values.astype(np.float64)), 0)
        for name, values in units.items()
        if name.startswith("damage_")
    }


def unpack_masks(packed: np.ndarray, n_units: int) -> np.ndarray:
    """`(n_plans, n_units)` bool of the column `removed` of a bank's plans."""
    bits = [
        np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8), count=n_units) for text in packed.tolist()
    ]
    return np.array(bits, dtype=bool)
