"""The job that measures the label bank: what removals and whole plans do to every network of a zoo."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.bank_building import BankSettings, build_bank
from experiments.config import ConfigError
from experiments.progress import progress
from experiments.run_dir import RunDir
from experiments.settings import Config
from experiments.tracker import Tracker


class BankJob:
    """Writes `label_bank.npz` into the run folder; a killed run goes on with the networks that are left.

    Args:
        zoo: folder of a zoo that `experiment=zoo` built.
        workers: processes.
        first, limit: label only the networks from this one on, counted from 0, and up to that one; None for all.
        plans, fractions, images, steps, context_masks, repaired_masks, trained_masks, trained_steps, bits, densities,
            configs, repaired_choices, plan_bits, seed: see `BankSettings`.
    """

    name = "bank"
    reports = ("bank.*",)

    def __init__(
        self,
        zoo: str,
        workers: int = 2,
        limit: int | None = None,
        first: int = 0,
        plans: int = 30,
        fractions: tuple[float, ...] = (0.5, 0.35, 0.25, 0.15),
        images: int = 256,
        steps: int = 128,
        context_masks: int = 128,
        repaired_masks: int = 32,
        trained_masks: int = 32,
        trained_steps: int = 16,
        bits: tuple[int, ...] = (2, 3, 4, 6, 8),
        densities: tuple[float, ...] = (0.5, 0.25, 0.1),
        configs: int = 40,
        repaired_choices: bool = True,
        plan_bits: tuple[int, ...] = (),
        seed: int = 0,
    ) -> None:
        self.zoo, self.workers, self.first, self.limit = zoo, workers, first, limit
        self.settings = BankSettings(
            plans=plans, fractions=tuple(fractions), images=images, steps=steps, context_masks=context_masks,
            repaired_masks=repaired_masks, trained_masks=trained_masks, trained_steps=trained_steps, bits=tuple(bits),
            densities=tuple(densities), configs=configs, repaired_choices=repaired_choices,
            plan_bits=tuple(plan_bits), seed=seed,
        )  # fmt: skip

    def check(self, config: Config) -> None:
        """The zoo must be there."""
        if not (Path(self.zoo) / "networks").is_dir():
            raise ConfigError(f"job.zoo: {self.zoo} is no zoo. Build it first: experiment=zoo")

    def run(self, config: Config, run_dir: RunDir, tracker: Tracker) -> dict[str, Any]:
        """Label what is not labelled yet."""
        with progress("labelling networks") as on_network:
            chosen = slice(self.first, self.limit)
            bank = build_bank(run_dir.path, self.zoo, self.settings, self.workers, chosen, on_network)
        run_dir.add_output(run_dir.file("label_bank.npz"))
        plans = bank.plans
        return {
            "bank": {
                "networks": len(bank.networks["name"]),
                "plans": len(plans["network"]),
                "units": len(bank.units["network"]),
                "file_bytes": run_dir.file("label_bank.npz").stat().st_size,
                "training_macs": float(np.nansum(plans["macs_finetuned"])),
            }
        }
