"""The seam of labelers: predict damage from features, with an interval."""

from pathlib import Path
from typing import Protocol, runtime_checkable

from autolabel.tables import FeatureTable, LabelTable


@runtime_checkable
class Labeler(Protocol):
    """Learns damage from features. Every file in `labelers/` holds one, named like its file."""

    name: str

    def fit(self, features: FeatureTable, labels: LabelTable) -> "Labeler":
        """Learn from the rows of `labels` whose damage is known; returns itself.

        Rows are matched by unit id (and order for several models). Intervals are calibrated on out-of-group
        predictions.
        """

    def predict(self, features: FeatureTable) -> LabelTable:
        """Labels of every row of `features`, `source="predicted"`, with `lower` and `upper`."""

    def save(self, path: str | Path) -> None:
        """Write the fitted labeler as text or safetensors into the folder `path`, atomically."""

    def load(self, path: str | Path) -> "Labeler":
        """Read what `save` wrote. Raises ArtifactError if it is missing or damaged."""
