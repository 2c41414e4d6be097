"""What labels of units are worth: plans from labels of a few units, drawn in several ways, against labels of all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from autolabel.active_sampling import ACTIVE, ActiveSampling
from autolabel.label_bank import LabelBank, Table
from autolabel.labeler import Labeler
from autolabel.labelers import GBDTLabeler
from autolabel.sampling import STRATEGIES, sample_units
from autolabel.tables import FeatureTable, LabelTable, merge_labels
from compress.units import UnitTable
from experiments.worker_pool import run_in_order

COLUMNS = ("family", "task", "network", "sampling", "part", "seed", "excess")
PARTS = (0.1, 0.2, 0.4)
SAMPLINGS = (*STRATEGIES, ACTIVE)
# Plans give away this part of what all removals together would save.
_SAVED = 0.5
_FEWEST = 60


@dataclass(frozen=True)
class UnitEconomyRow:
    """One network, and so many of its units labelled.

    Attributes:
        sampling: how the units were drawn.
        part: of the removable units.
        excess: summed damage at once of what the plan removes, 0 for the plan of all labels and 1 for chance.
    """

    family: str
    task: str
    network: str
    sampling: str
    part: float
    seed: int
    excess: float


def judge_samplings(
    bank: LabelBank, seeds: Sequence[int] = (0, 1, 2), parts: Sequence[float] = PARTS,
    make: Callable[[], Labeler] = GBDTLabeler, on_network: Callable[[int, int], None] | None = None, workers: int = 1,
) -> list[UnitEconomyRow]:  # fmt: skip
    """Rows of every network with at least 60 removable units, from damages that the bank holds of all of them.

    Args:
        make: how to make a labeler; a function at the top level of a module for several workers.
        workers: processes.
    """
    pieces = []
    for number, name in enumerate(bank.networks["name"].tolist()):
        units = bank.rows("units", number)
        if len(units["unit"]) >= _FEWEST:
            told = str(bank.networks["family"][number]), str(bank.networks["task"][number]), name
            pieces.append((units, told, tuple(seeds), tuple(parts), make))
    return [row for rows in run_in_order(judge_network, pieces, workers, on_network) for row in rows]


def judge_network(
    units: Table, told: tuple[str, str, str], seeds: Sequence[int], parts: Sequence[float], make: Callable[[], Labeler]
) -> list[UnitEconomyRow]:
    """Rows of one network, `told` being its family, task and name."""
    board = _Units(units, make)
    return [
        UnitEconomyRow(*told, sampling, part, seed, board.excess(sampling, part, seed))
        for part in parts for sampling in SAMPLINGS for seed in seeds
    ]  # fmt: skip


class _Units:
    """The units of one network, what each saves, and the damage that measuring it finds."""

    def __init__(self, units: Table, make: Callable[[], Labeler]) -> None:
        self.make, n = make, len(units["unit"])
        columns = [name for name in units if name.startswith("feature_")]
        ids = tuple(units["unit"].tolist())
        self.features = FeatureTable(
            np.stack([units[name] for name in columns], axis=1).astype(np.float32),
            tuple(name.removeprefix("feature_") for name in columns), ids, units["group"], np.full(n, "n"),
        )  # fmt: skip
        self.table = UnitTable(ids, units["group"], np.arange(n), np.full(n, "channel"))
        self.saved = units["feature_macs_saved_share"].astype(np.float64)
        self.damage, self.std_err = units["damage_at_once"], units["std_err_at_once"]
        self.best = self._sum(self._cheapest(self.damage))
        chance = [np.random.default_rng(seed).permutation(n).astype(np.float64) * self.saved for seed in range(20)]
        self.chance = float(np.mean([self._sum(self._cheapest(damage)) for damage in chance]))

    def excess(self, sampling: str, part: float, seed: int) -> float:
        """See `UnitEconomyRow`."""
        n = max(round(part * len(self.damage)), 4)
        active = ActiveSampling(lambda labels: self._cheapest(labels.damage[:, 0]), self.saved)
        chosen = sampling == ACTIVE
        drawn = sample_units(self.table, max(int(active.first * n), 1) if chosen else n, seed,
                             "stratified" if chosen else sampling)  # fmt: skip
        ids = [self.table.ids[row] for row in drawn]
        for left in range(active.rounds if chosen else 0, 0, -1):
            ids += active.choose(self._labels(ids), -(-(n - len(ids)) // left))
        total = self._sum(self._cheapest(self._labels(ids).damage[:, 0]))
        return (total - self.best) / max(self.chance - self.best, 1e-12)

    def _labels(self, ids: Sequence[str]) -> LabelTable:
        """Measured where known, else predicted."""
        rows = self.table.positions(ids)
        known = np.full((len(self.damage), 1), np.nan)
        error, source = known.copy(), np.full(len(known), "measured")
        known[rows, 0], error[rows, 0] = self.damage[rows], self.std_err[rows]
        own = LabelTable(self.table.ids, ("removed",), known, error, known - error, known + error, source)
        return merge_labels(own, self.make().fit(self.features, own).predict(self.features))

    def _cheapest(self, damage: np.ndarray) -> np.ndarray:
        """`(n,)` bool: the units of least damage for what they save, until enough is saved."""
        order = np.argsort(damage / np.maximum(self.saved, 1e-12 * self.saved.max()), kind="stable")
        count = int(np.searchsorted(self.saved[order].cumsum(), _SAVED * self.saved.sum())) + 1
        removed = np.zeros(len(damage), dtype=bool)
        removed[order[:count]] = True
        return removed

    def _sum(self, removed: np.ndarray) -> float:
        return float(self.damage[removed].sum())


def summarize_samplings(rows: Sequence[UnitEconomyRow]) -> list[dict[str, float | str]]:
    """One line for each sampling and part: median over networks of the mean over seeds, with a spread."""
    found = []
    for key in dict.fromkeys((row.sampling, row.part) for row in rows):
        own = [row for row in rows if (row.sampling, row.part) == key]
        means = np.array([np.mean([r.excess for r in own if r.network == n]) for n in {r.network for r in own}])
        low, median, high = np.quantile(means, [0.25, 0.5, 0.75])
        found.append({"sampling": key[0], "part": key[1], "networks": len(means), "low": float(low),
                      "median": float(median), "high": float(high)})  # fmt: skip
    return found
