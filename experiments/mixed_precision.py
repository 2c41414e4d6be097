"""How well damages of single widths tell the loss of a network whose layers all take some width at once."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from autolabel.joint_damage import JointDamage
from autolabel.joint_widths import WidthBench
from autolabel.measuring import measure
from autolabel.oracle import Moments
from autolabel.oracles.layer_choice import LayerChoiceOracle
from autolabel.pair_terms import LearnedPairs, second_order_pairs
from compress.allocation import allocate
from compress.allocator import Constraints
from compress.allocators.knapsack import KnapsackAllocator
from compress.budget import Budget
from compress.costs import CostTable
from compress.counting import unit_costs
from compress.files import read_json, write_json
from compress.quantizer import FLOAT_BITS, Quantizer
from compress.scores import Scores
from compress.structure import Structure
from compress.task import Batch, Task

log = logging.getLogger(__name__)
_CHUNK = 10
_BEST = 0.2
SUM, FISHER, ERROR, BITS, TRUE = "sum", "fisher", "weight_error", "mean_bits", "true"
SECOND_ORDER, WITH_PAIRS = "gauss_newton", "gauss_newton_pairs"


@dataclass(frozen=True)
class WidthRow:
    """What one predictor says of one configuration.

    Attributes:
        config: its number.
        widths: bits of every layer, with dashes between.
        weight_bytes: of its parameters.
        loss, metric: measured on test examples.
        damage: measured loss minus the dense network's.
        predictor, seed: who predicts, and the seed of the plans that it learned from.
        predicted: higher is worse; nats for `sum` and those that learn.
        label_cost_forward_macs: what its labels cost.
    """

    config: int
    widths: str
    weight_bytes: int
    loss: float
    metric: float
    damage: float
    predictor: str
    seed: int
    predicted: float
    label_cost_forward_macs: int


@dataclass(frozen=True)
class AllocationRow:
    """A configuration that was chosen under a budget.

    Attributes:
        bits: the budget, in bits per weight on average.
        labels, seed: whose damages were added; `true` learned from the judged configurations themselves.
        widths, weight_bytes, loss, metric: of what was chosen, on test examples.
        dense_metric: of the dense network on them.
    """

    bits: float
    labels: str
    seed: int
    widths: str
    weight_bytes: int
    loss: float
    metric: float
    dense_metric: float


@dataclass(frozen=True)
class WidthStudy:
    """What is measured.

    Args:
        configs: random configurations that are judged, on test examples.
        learned: numbers of jointly measured configurations to learn from.
        seeds: of these.
        budgets: bits per weight on average, for the allocations.
    """

    configs: int = 500
    learned: tuple[int, ...] = (25, 50, 100)
    seeds: tuple[int, ...] = (0, 1, 2)
    budgets: tuple[float, ...] = (3.0, 4.0, 5.0)

    def run(
        self, structure: Structure, task: Task, quantizer: Quantizer, bits: Sequence[int], label: Sequence[Batch],
        judged: Sequence[Batch], folder: Path, on_config: Callable[[int, int], None] | None = None,
    ) -> tuple[list[WidthRow], list[AllocationRow]]:  # fmt: skip
        """All rows. What is measured already lies in `folder` and is kept.

        Args:
            label, judged: batches; labels come from the first only.
        """
        bench = WidthBench(structure, task, quantizer, bits)
        costs = unit_costs(structure)
        most = max(self.learned)
        total = self.configs + len(self.seeds) * most
        key = _key(structure, bench, quantizer, label, judged)
        table = measure(structure, None, task, label, LayerChoiceOracle(bits, quantizer),
                        rows_file=folder / f"layer_rows_{key[:12]}.jsonl")  # fmt: skip
        files = _Files(folder, key, on_config, total)
        # Seeds of drawing: the judged configurations are none of those that are learned from.
        drawn = {seed: bench.draw(most, 1000 + seed) for seed in self.seeds}
        joint = {seed: files.measure(bench, f"label_{seed}", drawn[seed], label) for seed in self.seeds}
        judged_widths = bench.draw(self.configs, 0)
        truth = files.measure(bench, "judged", judged_widths, judged)
        dense = {part: bench.evaluate([FLOAT_BITS] * len(bench.layers), batches)
                 for part, batches in (("label", label), ("judged", judged))}  # fmt: skip
        alone = table.damage[np.array(structure.units.positions(bench.layers))].reshape(-1)
        n_label = sum(len(task.inputs(batch)[0]) for batch in label)
        full = n_label * costs.dense_macs
        fisher = bench.storing_error(bench.fisher(label))
        taken = bench.taken(judged_widths)
        harmful = np.maximum(alone, 0)
        noise = _noise(bench, drawn[self.seeds[0]][:_CHUNK], label)
        bases = {"joint": (harmful, table.forward_macs), "fisher_joint": (fisher, 3 * full)}
        known = {seed: (bench.taken(drawn[seed]), joint[seed][:, 1] - dense["label"][1]) for seed in self.seeds}
        fits = {
            (f"{base}_{n}", seed): (
                JointDamage.fit(damage, known[seed][0][:n], known[seed][1][:n], noise=noise, seed=seed), macs + n * full
            )
            for base, (damage, macs) in bases.items() for n in self.learned for seed in self.seeds
        }  # fmt: skip
        pairs = second_order_pairs(bench, label)
        pair_macs = (bench.n_choices + 1) * full
        learned = {
            (f"pairs_joint_{n}", seed): (
                LearnedPairs.fit(fits[f"joint_{n}", seed][0], known[seed][0][:n], known[seed][1][:n],
                                 len(bench.layers), noise).predict(taken), fits[f"joint_{n}", seed][1]
            )
            for n in self.learned for seed in self.seeds
        }  # fmt: skip
        predicted = {
            (BITS, 0): (-judged_widths.mean(1), 0.0),
            (ERROR, 0): (taken @ bench.storing_error(), 0.0),
            (FISHER, 0): (taken @ fisher, 3 * full),
            (SUM, 0): (taken @ harmful, table.forward_macs),
            (SECOND_ORDER, 0): (taken @ np.diag(pairs), pair_macs),
            (WITH_PAIRS, 0): (np.einsum("pi,ij,pj->p", taken, pairs, taken), pair_macs),
            **{key: (fit.predict(taken), macs) for key, (fit, macs) in fits.items()},
            **learned,
        }
        names = ["-".join(map(str, widths)) for widths in judged_widths]
        sizes = [weight_bytes(structure, costs, dict(zip(bench.layers, w, strict=True))) for w in judged_widths]
        rows = [
            WidthRow(i, names[i], sizes[i], loss, metric, loss - dense["judged"][1], name, seed, float(values[i]),
                     round(cost))
            for (name, seed), (values, cost) in predicted.items() for i, (metric, loss) in enumerate(truth)
        ]  # fmt: skip
        damages = {(FISHER, 0): fisher, (SUM, 0): harmful, **{key: fit.corrected for key, (fit, _) in fits.items()}}
        ideal = JointDamage.fit(harmful, taken, truth[:, 1] - dense["judged"][1])
        damages[TRUE, 0] = ideal.corrected
        return rows, self._allocations(structure, costs, bench, damages, judged, dense["judged"][0])

    def _allocations(
        self, structure: Structure, costs: CostTable, bench: WidthBench, damages: Mapping[tuple[str, int], np.ndarray],
        judged: Sequence[Batch], dense_metric: float,
    ) -> list[AllocationRow]:  # fmt: skip
        rows, known = [], {}
        for bits in self.budgets:
            bound = weight_bytes(structure, costs, dict.fromkeys(bench.layers, bits))
            for (name, seed), damage in damages.items():
                widths = choose_widths(structure, costs, bench, damage, bound)
                if tuple(widths) not in known:
                    known[tuple(widths)] = bench.evaluate(widths, judged)
                metric, loss = known[tuple(widths)]
                size = weight_bytes(structure, costs, dict(zip(bench.layers, widths, strict=True)))
                text = "-".join(map(str, widths))
                rows.append(AllocationRow(bits, name, seed, text, size, loss, metric, dense_metric))
        return rows


def weight_bytes(structure: Structure, costs: CostTable, widths: Mapping[str, float]) -> int:
    """Bytes of all parameters with layers in these widths; a width may be a fraction of a bit."""
    nothing = np.zeros(len(costs.unit_ids), dtype=bool)
    bits = np.array([widths.get(costs.unit_ids[unit], 0) if unit >= 0 else 0 for unit in costs.layer_unit], float)
    return round(costs.total(nothing, bits)[1])


def choose_widths(
    structure: Structure, costs: CostTable, bench: WidthBench, damage: np.ndarray, bound: int
) -> list[int]:
    """The widths whose added damages are least within this many bytes.

    Args:
        damage: `(n_choices,)` in the order of the bench.

    Raises:
        BudgetError: if no widths are that small.
    """
    units = structure.units
    values = np.full((len(units), len(bench.bits)), np.nan)
    values[units.positions(bench.layers)] = damage.reshape(len(bench.layers), -1)
    scores = Scores(units.ids, tuple(f"{bits}bit" for bits in bench.bits), values, "nats")
    plan = allocate(units, scores, costs, Budget(weight_bytes=int(bound)), allocator=KnapsackAllocator(),
                    constraints=Constraints())  # fmt: skip
    formats = plan.layer_formats
    return [formats[name].bits if name in formats else FLOAT_BITS for name in bench.layers]


def summarize_widths(rows: Sequence[WidthRow]) -> list[dict[str, Any]]:
    """One line for each predictor, mean over seeds, best first: Spearman over all and within the best fifth, and the
    part of configurations predicted within a factor 1.5 where nats are predicted."""
    lines = []
    for name in dict.fromkeys(row.predictor for row in rows):
        own = [[row for row in rows if row.predictor == name and row.seed == seed]
               for seed in sorted({row.seed for row in rows if row.predictor == name})]  # fmt: skip
        found = np.array([_quality(group) for group in own])
        mean = found.mean(0).tolist()
        spread = (found.std(0, ddof=1) if len(found) > 1 else np.zeros(3)).tolist()
        lines.append({
            "predictor": name, "seeds": len(found), "spearman": mean[0], "spearman_std": spread[0],
            "spearman_best_fifth": mean[1], "best_fifth_std": spread[1],
            "within_1.5": mean[2] if _in_nats(name) else None,
            "label_cost_forward_macs": own[0][0].label_cost_forward_macs,
        })  # fmt: skip
    return sorted(lines, key=lambda line: -line["spearman"])


def _in_nats(predictor: str) -> bool:
    return predictor in (SUM, SECOND_ORDER, WITH_PAIRS) or "joint" in predictor


def _quality(rows: Sequence[WidthRow]) -> tuple[float, float, float]:
    loss, predicted = np.array([row.loss for row in rows]), np.array([row.predicted for row in rows])
    best = loss <= np.quantile(loss, _BEST)
    damage = np.array([row.damage for row in rows])
    ratio = np.log(np.maximum(predicted, 1e-12) / np.maximum(damage, 1e-12))
    within = float((np.abs(ratio) <= np.log(1.5)).mean())
    return _spearman(predicted, loss), _spearman(predicted[best], loss[best]), within


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(spearmanr(a, b).statistic) if len(a) > 2 and np.ptp(a) > 0 and np.ptp(b) > 0 else 0.0


def _noise(bench: WidthBench, widths: np.ndarray, batches: Sequence[Batch]) -> float:
    """Standard error of a measured damage, the median over these configurations."""
    dense, errors = bench.losses([FLOAT_BITS] * len(bench.layers), batches), []
    for config in widths:
        moments = Moments()
        moments.add(bench.losses(config, batches) - dense)
        errors.append(moments.std_err)
    return float(np.median(errors)) if len(dense) > 1 else 0.0


def _key(
    structure: Structure, bench: WidthBench, quantizer: Quantizer, label: Sequence[Batch], judged: Sequence[Batch]
) -> str:
    """Of the network, the widths and their scales, and the examples (through the losses)."""
    told = [structure.traced.fingerprint, bench.layers, bench.bits, quantizer.name, sorted(vars(quantizer).items())]
    digest = hashlib.sha256(json.dumps(told, default=str).encode())
    digest.update(bench.storing_error().round(9).tobytes())
    for batches in (label, judged):
        digest.update(bench.losses([FLOAT_BITS] * len(bench.layers), batches).round(5).tobytes())
    return digest.hexdigest()


class _Files:
    """Measured configurations in chunks, so that a killed run goes on."""

    def __init__(self, folder: Path, key: str, on_config: Callable[[int, int], None] | None, total: int) -> None:
        self.folder, self.key, self.on_config, self.total, self.done = folder, key, on_config, total, 0

    def measure(self, bench: WidthBench, part: str, widths: np.ndarray, batches: Sequence[Batch]) -> np.ndarray:
        """`(n_configs, 2)` metric and loss."""
        found: list[tuple[float, float]] = []
        for start in range(0, len(widths), _CHUNK):
            path, chunk = self.folder / "measured" / f"{part}_{start:04d}.json", widths[start : start + _CHUNK]
            known = read_json(path) if path.exists() else {}
            if known.get("key") != self.key or known.get("widths") != chunk.tolist():
                rows = [bench.evaluate(config, batches) for config in chunk]
                write_json(path, {"key": self.key, "widths": chunk.tolist(), "rows": rows})
                known = {"rows": rows}
            found += [tuple(row) for row in known["rows"]]
            self.done += len(chunk)
            if self.on_config is not None:
                self.on_config(self.done, self.total)
        return np.array(found)
