"""The main job: one trained network and a budget go in, a smaller network that runs comes out."""

from typing import Any

from experiments.components import build_components
from experiments.preflight import check_settings
from experiments.quantities import REPORTED
from experiments.run_dir import RunDir
from experiments.settings import Config
from experiments.tracker import Tracker


class CompressJob:
    """Labels, decides, repairs, fine-tunes, quantises, exports and reports, stage by stage."""

    name = "compress"
    reports = REPORTED

    def check(self, config: Config) -> None:
        """Build every component and check every setting."""
        check_settings(config, build_components(config))

    def run(self, config: Config, run_dir: RunDir, tracker: Tracker) -> dict[str, Any]:
        """See `experiments.stages.run_experiment`."""
        # Here, so that a wrong configuration is refused before torch's exporters are loaded.
        from experiments.stages import run_experiment

        return run_experiment(config, run_dir, tracker)
