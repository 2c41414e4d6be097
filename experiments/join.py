"""Helps a run that is comparing methods, from a process of its own: takes the rows that nobody is at.

    python -m experiments.join RUN

Any number of processes of the same code, libraries and machine may help. Every row is what the run alone would have
measured. Exit status: 0 when all rows are there, 1 if the run cannot be helped.
"""

import argparse
import sys
from pathlib import Path

import torch

from compress.errors import ArtifactError, CompressError
from experiments.config import config_of
from experiments.manifest import describe_code, describe_machine, library_versions
from experiments.run_dir import RunDir, read_manifest
from experiments.seeding import seed_run, set_threads
from experiments.stages import Experiment
from experiments.tracker import RunInfo
from experiments.trackers.null import NullTracker


def join_run(folder: str | Path) -> None:
    """Measure the rows of the run's comparison that no other process is at, and wait for the others.

    Raises:
        ArtifactError: if the folder is no run, has not begun to compare yet, or runs with other code or libraries.
        CompressError: if its configuration or data cannot be read.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    own = {"code": describe_code(), "libraries": library_versions(), "machine": describe_machine()}
    other = [name for name, value in own.items() if manifest[name] != value]
    if other:
        raise ArtifactError(f"{folder} runs with other {other[0]} ({manifest[other[0]]}) than here ({own[other[0]]}).")
    config = config_of(folder)
    torch.use_deterministic_algorithms(True, warn_only=True)
    set_threads(config.threads)
    seed_run(config.seed, config.device)
    info = RunInfo(name=folder.name, folder=folder, config={}, group=config.name, job_type="join", tags=())
    run_dir = RunDir(folder)
    # The folder's lock stays with the run: a helper writes nothing but rows, each under a lock of its own.
    experiment = Experiment(config, run_dir, NullTracker(info))
    if not run_dir.is_at("compare", experiment.compare_settings()):
        raise ArtifactError(f"{folder} has not begun to compare with these settings. Help when its log says so.")
    experiment.load_dense()
    experiment.comparison().measure_rows()


def main() -> None:
    """Help the run folder on the command line and exit."""
    parser = argparse.ArgumentParser(description="Help a run that is comparing methods.")
    parser.add_argument("run", type=Path, help="folder of the running experiment")
    try:
        join_run(parser.parse_args().run)
    except CompressError as error:
        sys.stderr.write(f"Error: {error}\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
