"""Helps a run that is comparing methods, from a process of its own: takes the rows that nobody is at.

    python -m experiments.join RUN

Any number of processes may help, on machines that share the folder too. Every row is what the run alone would have
measured. Exit status: 0 when all rows are there, 1 if the run cannot be helped.
"""

import argparse
import sys
import warnings
from pathlib import Path

import torch

from compress.errors import ArtifactError, CompressError
from experiments.config import config_of
from experiments.manifest import describe_code
from experiments.run_dir import RunDir, read_manifest
from experiments.seeding import seed_run, set_threads
from experiments.stages import Experiment
from experiments.tracker import RunInfo
from experiments.trackers.null import NullTracker

NEEDED = ("dense/model.safetensors", "labels.npz", "layer_labels.npz")


def join_run(folder: str | Path) -> None:
    """Measure the rows of the run's comparison that no other process is at, and wait for the others.

    Raises:
        ArtifactError: if the folder is no run, has no labels yet, or was begun by other code.
        CompressError: if its configuration or data cannot be read.
    """
    folder = Path(folder)
    code = read_manifest(folder)["code"]
    if code != describe_code():
        raise ArtifactError(f"{folder} runs other code ({code}) than this ({describe_code()}). Help with the same.")
    missing = [name for name in NEEDED if not (folder / name).exists()]
    if missing:
        raise ArtifactError(f"{folder} has no {missing[0]} yet. Help when its comparison has begun.")
    config = config_of(folder)
    torch.use_deterministic_algorithms(True, warn_only=True)
    set_threads(config.threads)
    seed_run(config.seed, config.device)
    info = RunInfo(name=folder.name, folder=folder, config={}, group=config.name, job_type="join", tags=())
    # The folder's lock stays with the run: a helper writes nothing but rows, each under a lock of its own.
    experiment = Experiment(config, RunDir(folder), NullTracker(info))
    experiment.load_dense()
    experiment.comparison().measure_rows()


def main() -> None:
    """Help the run folder on the command line and exit."""
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*", category=FutureWarning)
    parser = argparse.ArgumentParser(description="Help a run that is comparing methods.")
    parser.add_argument("run", type=Path, help="folder of the running experiment")
    try:
        join_run(parser.parse_args().run)
    except CompressError as error:
        sys.stderr.write(f"Error: {error}\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
