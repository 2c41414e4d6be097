"""The job that compares predictors of the loss of mixed-precision configurations with what is measured."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from compress.files import write_json
from experiments.config import ConfigError
from experiments.mixed_precision import AllocationRow, WidthRow, WidthStudy, summarize_widths
from experiments.progress import progress
from experiments.raw_table import write_raw
from experiments.run_dir import RunDir
from experiments.settings import Config
from experiments.tracker import Tracker

log = logging.getLogger(__name__)


class MixedPrecisionJob:
    """Writes `mixed_precision.csv`, `allocations.csv` and `summary.json`; a killed run goes on.

    Args:
        configs, learned, seeds, budgets: see `WidthStudy`.
        label_images, judged_images: examples of the label part that labels are measured on, and of the test part that
            judges.
    """

    name = "mixed_precision"
    reports = ("mixed_precision.*",)

    def __init__(
        self, configs: int = 500, learned: Sequence[int] = (25, 50, 100), seeds: Sequence[int] = (0, 1, 2),
        budgets: Sequence[float] = (3.0, 4.0, 5.0), label_images: int = 512, judged_images: int = 2000,
    ) -> None:  # fmt: skip
        self.study = WidthStudy(configs, tuple(learned), tuple(seeds), tuple(budgets))
        self.label_images, self.judged_images = label_images, judged_images

    def check(self, config: Config) -> None:
        """Numbers must make sense, and a network must be given."""
        study = self.study
        for key, values, least in (
            ("configs", [study.configs], 10), ("learned", study.learned, 10), ("seeds", [len(study.seeds)], 1),
            ("label_images", [self.label_images], 1), ("judged_images", [self.judged_images], 1),
        ):  # fmt: skip
            if not values or min(values) < least:
                raise ConfigError(f"job.{key} must be at least {least}. Got {list(values)}.")
        widest, narrowest = max(config.quantize.bits), min(config.quantize.bits)
        if not all(narrowest < bits <= widest for bits in study.budgets):
            raise ConfigError(
                f"job.budgets must lie between the widths {narrowest} and {widest} of quantize.bits. "
                f"Got {list(study.budgets)}."
            )
        for key in ("model", "data"):
            if getattr(config, key) is None:
                raise ConfigError(f"{key} must be chosen for this job, for instance {key}={_EXAMPLE[key]}.")

    def run(self, config: Config, run_dir: RunDir, tracker: Tracker) -> dict[str, Any]:
        """Measure what is not measured yet."""
        # Here, so that a wrong configuration is refused before the network is loaded.
        from experiments.workbench import Workbench

        bench = Workbench(config, run_dir, tracker)
        size = config.measure.batch_size
        label, judged = (bench.batches(part, size, limit=images) for part, images in
                         (("label", self.label_images), ("test", self.judged_images)))  # fmt: skip
        with progress("measuring configurations") as on_config:
            rows, chosen = self.study.run(
                bench.structure, bench.task, bench.parts.quantizer, config.quantize.bits, label, judged, run_dir.path,
                on_config,
            )  # fmt: skip
        _write(run_dir, "mixed_precision.csv", WidthRow, rows)
        _write(run_dir, "allocations.csv", AllocationRow, chosen)
        lines = summarize_widths(rows)
        write_json(run_dir.file("summary.json"), lines)
        for line in lines:
            log.info("%s: Spearman %.3f, within the best fifth %.3f", line["predictor"], line["spearman"],
                     line["spearman_best_fifth"])  # fmt: skip
        return {"mixed_precision": {str(line["predictor"]): line["spearman"] for line in lines}}


_EXAMPLE = {"model": "resnet_cifar", "data": "cifar10"}


def _write(run_dir: RunDir, name: str, kind: type, rows: Sequence[Any]) -> None:
    write_raw(run_dir, name, [field.name for field in fields(kind)], map(asdict, rows))
