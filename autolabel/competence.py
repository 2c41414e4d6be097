"""Whether a network is like those that a plan labeler learned from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autolabel.plan_board import PlanBoard, network_vector
from autolabel.plan_summary import PlanSummary
from compress.errors import ArtifactError, CompressError
from compress.files import read_json, write_json

COMPETENCE_FILE = "competence.json"


@dataclass(frozen=True)
class Verdict:
    """How far a network lies from those that were learned from.

    Attributes:
        distance: to the nearest of them, in standard deviations per number.
        limit: what 95 % of them keep from one another.
        nearest: name of the nearest network.
    """

    distance: float
    limit: float
    nearest: str

    @property
    def inside(self) -> bool:
        """Whether the labeler knows networks like this one."""
        return self.distance <= self.limit

    def record(self) -> dict[str, Any]:
        """What a searched plan's provenance says under `competence`."""
        return {"inside": self.inside, "told": str(self)}

    def __str__(self) -> str:
        where = "within" if self.inside else "outside"
        return (
            f"{where} the labeler's competence: {self.distance:.2f} standard deviations from the nearest network that "
            f"it learned from ({self.nearest}); 95 % of those lie within {self.limit:.2f} of another"
        )


@dataclass(frozen=True, eq=False)
class Competence:
    """The networks that a labeler learned from, in numbers that no plan changes.

    Attributes:
        networks: names.
        vectors: `(n_networks, n_numbers)`, see `network_vector`.
    """

    networks: tuple[str, ...]
    vectors: np.ndarray

    @classmethod
    def of(cls, boards: Sequence[PlanBoard]) -> "Competence":
        """Of the boards that a labeler is fitted on. Raises CompressError for fewer than two."""
        if len(boards) < 2:
            raise CompressError(f"Competence is judged from at least two networks. Got {len(boards)}.")
        return cls(tuple(b.network for b in boards), np.stack([network_vector(b.summary) for b in boards]))

    def judge(self, summary: PlanSummary) -> Verdict:
        """Where the network of these plans lies.

        Raises:
            CompressError: if its numbers are others than those that were learned from.
        """
        vector = network_vector(summary)
        if len(vector) != self.vectors.shape[1]:
            raise CompressError(
                "This plan labeler was fitted on other columns. Summarise plans with the same criteria."
            )
        deviation = self.vectors.std(axis=0)
        scale = np.where(deviation > 1e-9, deviation, 1.0)
        known, own = self.vectors / scale, vector / scale
        among = np.sqrt(((known[:, None] - known[None]) ** 2).mean(axis=2))
        np.fill_diagonal(among, np.inf)
        distances = np.sqrt(((known - own) ** 2).mean(axis=1))
        nearest = int(distances.argmin())
        limit = float(np.quantile(among.min(axis=1), 0.95))
        return Verdict(float(distances[nearest]), limit, self.networks[nearest])

    def save(self, folder: str | Path) -> None:
        """Write it beside the labeler."""
        vectors = [[float(f"{value:.6g}") for value in row] for row in self.vectors]
        write_json(Path(folder) / COMPETENCE_FILE, {"networks": list(self.networks), "vectors": vectors})

    @classmethod
    def load(cls, folder: str | Path) -> "Competence":
        """Read what `save` wrote. Raises ArtifactError if it is missing or damaged."""
        path = Path(folder) / COMPETENCE_FILE
        found = read_json(path)
        try:
            networks, vectors = tuple(map(str, found["networks"])), np.array(found["vectors"], dtype=np.float64)
            if (
                vectors.ndim != 2
                or len(vectors) != len(networks)
                or len(networks) < 2
                or not np.isfinite(vectors).all()
            ):
                raise ValueError("vectors do not fit the networks")
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path} is damaged ({error}). Fit and save the labeler again.") from None
        return cls(networks, vectors)
