"""Measures the labels of every network of a zoo: one file for each, then one bank."""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autolabel.extraction import extract_features
from autolabel.label_bank import LabelBank, merge_banks
from autolabel.measuring import measure
from autolabel.oracle import Oracle
from autolabel.oracles import ContextOracle, RemovalOracle, RepairedOracle
from autolabel.plan_summary import FEATURES_VERSION
from autolabel.tables import FeatureTable
from compress.allocator import Constraints
from compress.criteria import RandomCriterion, ReconstructionCriterion, ZipLMCriterion
from compress.errors import ArtifactError, CompressError
from compress.files import write_json
from compress.hashing import hash_values
from compress.statistics import collect_statistics
from compress.task import evaluate
from experiments.bank_card import CARD_FILE, data_card
from experiments.bank_choices import choice_tables
from experiments.bank_plans import (
    TooFewPlansError,
    draw_plans,
    group_table,
    measure_plans,
    plan_columns,
    plan_names,
)
from experiments.data.splits import TRAIN_PARTS, DataSplits
from experiments.manifest import describe_code, library_versions
from experiments.seeding import derive_seed
from experiments.subject import PARTS, RepairSettings, Subject
from experiments.worker_pool import run_pieces
from experiments.zoo import load_network, read_rows

log = logging.getLogger(__name__)
# Settings of labels that are quickly measured anew; plans are not.
_UNITS = {"context_masks", "repaired_masks", "trained_masks", "trained_steps"}
_CHOICES = {"bits", "densities", "configs", "repaired_choices"}
_UNIT_LABELS = ("damage_", "std_err_", "macs_")
# Criteria that are no features of units, to be judged beside those that are.
_OTHER_CRITERIA = {"reconstruction": ReconstructionCriterion(), "ziplm": ZipLMCriterion()}
_OTHER_COLUMNS = {f"score_{name}" for name in (*_OTHER_CRITERIA, "random")}
_OTHER_NEEDS = frozenset().union(*(criterion.needs for criterion in _OTHER_CRITERIA.values()))


@dataclass(frozen=True)
class BankSettings:
    """What is measured on each network; the same for all.

    Attributes:
        plans: random plans of each network, all of one size.
        fractions: sizes that a network's plans may have, as parts of the dense one; drawn by the network's name.
        floor: part of every group that stays at least.
        images: examples of the calibration part for statistics and repair, and of the label part for unit labels.
        steps, batch_size, finetune: optimizer steps of the fine-tuning after the repair, and its other settings.
        brief_steps: of the brief one.
        context_masks, repaired_masks, trained_masks: of the unit labels in company, see `ContextOracle` and
            `RepairedOracle`; 0 for none of these labels.
        trained_steps: optimizer steps after each refit of `trained_masks`.
        bits, densities, configs, repaired_choices: of the layer labels, see `choice_tables`.
        plan_bits: numbers of bits that plans store layers in; none leaves all weights floats.
        seed: of the plans, the repair and the training.
    """

    plans: int = 30
    fractions: tuple[float, ...] = (0.5, 0.35, 0.25, 0.15)
    floor: float = 0.05
    images: int = 256
    steps: int = 128
    brief_steps: int = 20
    batch_size: int = 64
    context_masks: int = 128
    repaired_masks: int = 32
    trained_masks: int = 32
    trained_steps: int = 16
    bits: tuple[int, ...] = (2, 3, 4, 6, 8)
    densities: tuple[float, ...] = (0.5, 0.25, 0.1)
    configs: int = 40
    repaired_choices: bool = True
    plan_bits: tuple[int, ...] = ()
    finetune: dict[str, Any] = field(default_factory=lambda: {"optimizer": "adamw", "lr": 2e-3})
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.bits and not any(density < 1 for density in self.densities):
            raise CompressError("The bank needs a number of bits or a density below 1 to store layers in. Got none.")
        if self.configs < 1 or len(set(self.bits)) < len(self.bits):
            raise CompressError(f"The bank needs configs >= 1 and different bits. Got {self.configs}, {self.bits}.")


def build_bank(
    folder: str | Path,
    zoo: str | Path,
    settings: BankSettings,
    workers: int = 2,
    chosen: slice = slice(None),
    on_network: Callable[[int, int], None] | None = None,
) -> LabelBank:
    """Label the `chosen` networks of the zoo in `zoo` and write `label_bank.npz` and its data card into `folder`.

    Networks that are labelled already are not labelled again; labels of other weights or settings are refused. Where
    only features, the masks of unit labels or the choices of layers are others, these are made anew, and all other
    labels stay. Networks of too few plans are left out, with a warning.

    Raises:
        ArtifactError: if the zoo is empty or damaged, or the folder holds labels of other weights or settings.
        CompressError: naming the networks that could not be labelled, after all others are stored.
    """
    folder = Path(folder)
    there = read_rows(zoo)
    if not there:
        raise ArtifactError(f"{zoo} holds no networks. Build them first: python -m experiments.run experiment=zoo")
    rows = there[chosen]
    if not rows:
        raise ArtifactError(f"{zoo} holds {len(there)} networks, none of them from {chosen.start} to {chosen.stop}.")
    names = [row["name"] for row in rows]
    files = [folder / "networks" / f"{name}.npz" for name in names]
    missing = [i for i, file in enumerate(files) if not file.exists() or _is_behind(file, settings)]
    done = len(names) - len(missing)
    if done:
        log.info("%d of %d networks are labelled already.", done, len(names))
    pieces = [(str(zoo), names[i], str(files[i]), settings) for i in missing]
    failures, left_out = [], {}
    for number, result in run_pieces(_try_network, pieces, workers):
        name = pieces[number][1]
        if isinstance(result, str):
            failures.append(f"{name}: {result}")
            log.error("Network %s", failures[-1])
            continue
        done += 1
        if isinstance(result, TooFewPlansError):
            left_out[name] = str(result)
            log.warning("%s is left out: %s", name, result)
        else:
            log.info("%s: labelled in %.1f s (%d of %d)", name, result, done, len(names))
        if on_network is not None:
            on_network(done, len(names))
    if failures:
        raise CompressError(
            f"{len(failures)} of {len(names)} networks could not be labelled, the others are stored. "
            f"{' '.join(failures[:5])}"
        )
    kept = [i for i, name in enumerate(names) if name not in left_out]
    if not kept:
        raise CompressError(f"No network of {zoo} has enough plans of one size. {next(iter(left_out.values()))}")
    banks = [LabelBank.load(files[i]) for i in kept]
    for i, bank in zip(kept, banks, strict=True):
        file, row = files[i], rows[i]
        if json.loads(str(bank.networks["recipe"][0])) != row:
            raise ArtifactError(
                f"{file} was measured on another network of this name. Delete it or take another folder."
            )
        if bank.about["settings"] != _plain(settings):
            raise ArtifactError(f"{file} was measured with other settings. Delete it or take another folder.")
    about = {**banks[0].about, "networks": len(banks), "plans": sum(len(bank.plans["network"]) for bank in banks),
             "left_out": left_out}  # fmt: skip
    whole = merge_banks(banks, about)
    whole.save(folder / "label_bank.npz")
    write_json(folder / CARD_FILE, data_card(whole, folder / "label_bank.npz"))
    return whole


def _is_behind(file: Path, settings: BankSettings) -> bool:
    """Whether a file holds other features, or labels that differ by what is quickly made anew and by nothing else."""
    bank = LabelBank.load(file)
    differs = _differences(bank.about["settings"], settings)
    old = bank.about.get("features_version") != FEATURES_VERSION or bool(_OTHER_COLUMNS - set(bank.units))
    return differs <= _UNITS | _CHOICES and bool(differs or old)


def _differences(found: Mapping[str, Any], settings: BankSettings) -> set[str]:
    """Names of the settings that are others."""
    wanted = _plain(settings)
    return {name for name in wanted if found.get(name) != wanted[name]} | (set(found) - set(wanted))


def _try_network(zoo: str, name: str, file: str, settings: BankSettings) -> float | str | TooFewPlansError:
    """The seconds it took, why the network is left out, or what is wrong with it: one must not stop the others."""
    try:
        return label_network(zoo, name, file, settings)
    except TooFewPlansError as error:
        return error
    except CompressError as error:
        return str(error)


def label_network(zoo: str, name: str, file: str, settings: BankSettings) -> float:
    """Write the labels of one network into `file`; return the seconds it took."""
    start = time.monotonic()
    torch.use_deterministic_algorithms(True, warn_only=True)
    known = LabelBank.load(file) if Path(file).exists() else None
    model, data, row = load_network(zoo, name)
    repair = RepairSettings(
        settings.images, settings.steps, settings.brief_steps, settings.batch_size, finetune=settings.finetune,
        constraints=Constraints(floor=settings.floor),
    )  # fmt: skip
    subject = Subject(model, data, repair, derive_seed(name, settings.seed) % 2**31)
    drawn = draw_plans(subject, name, settings.fractions, settings.plans, settings.plan_bits, settings.seed)
    features = extract_features(subject.structure, statistics=subject.statistics)
    if known is not None and json.loads(str(known.networks["recipe"][0])) != row:
        raise ArtifactError(f"{file} was measured on another network of this name. Delete it or take another folder.")
    labels = measure_plans(subject, drawn) if known is None else _labels_of(known)
    if known is not None and known.networks["data_sha256"][0] != _hash_splits(data):
        raise ArtifactError(f"{file} was measured on other examples. Delete it or take another folder.")
    if any(labels[column].tolist() != own.tolist() for column, own in plan_names(subject, drawn).items()):
        raise ArtifactError(f"{file} holds labels of other plans than are drawn now. Delete it to measure them.")
    made = {"code": describe_code(), "libraries": library_versions()} if known is None else known.about
    anew = _UNITS | _CHOICES if known is None else _differences(known.about["settings"], settings)
    choices, configs = (
        choice_tables(subject, settings.bits, settings.densities, settings.configs, settings.repaired_choices)
        if known is None or anew & _CHOICES
        else (known.choices, known.configs)
    )
    damages = (
        _unit_damages(subject, features.unit_ids, drawn.fraction, settings)
        if known is None or anew & _UNITS
        else {name: known.units[name] for name in known.units if name.startswith(_UNIT_LABELS)}
    )
    bank = LabelBank(
        networks=_network_table(row, subject, data, made),
        plans={**labels, **plan_columns(drawn.summary)},
        groups=group_table(drawn.summary),
        units={**_unit_features(features), **_unit_scores(subject), **damages},
        choices=choices,
        configs=configs,
        about={
            "settings": _plain(settings),
            "features_version": FEATURES_VERSION,
            "group_columns": list(drawn.summary.names),
            "plan_columns": list(drawn.summary.plan_names),
            "unit_columns": list(features.names),
            "code": made["code"],
            "libraries": made["libraries"],
        },
    )
    bank.save(file)
    return time.monotonic() - start


def _network_table(
    row: dict[str, Any], subject: Subject, data: DataSplits, made: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    table = {
        "name": row["name"], "family": row["family"], "task": row["task"], "recipe": json.dumps(row, sort_keys=True),
        "n_units": subject.structure.n_removable, "macs": subject.costs.dense_macs,
        "weight_bytes": subject.costs.dense_weight_bytes,
        "calibration_examples": subject.settings.images, "seed": subject.seed, "data_sha256": _hash_splits(data),
        **{name: json.dumps(made[name], sort_keys=True) for name in ("code", "libraries")},
        "code_refreshed": json.dumps(describe_code(), sort_keys=True),
    }  # fmt: skip
    for part in PARTS:
        batches = subject.bench.judged[part]
        table[f"metric_{part}"], table[f"loss_{part}"] = evaluate(
            subject.structure.traced.module, subject.task, batches
        )
    return {name: np.array([value]) for name, value in table.items()}


def _hash_splits(data: DataSplits) -> str:
    """Of which examples are in which part."""
    parts = [*TRAIN_PARTS, "test"]
    return hash_values(data.name, {part: (getattr(data, part).source, getattr(data, part).indices) for part in parts})


def _labels_of(known: LabelBank) -> dict[str, np.ndarray]:
    """The columns of plans that are no features."""
    return {name: column for name, column in known.plans.items() if name not in known.about["plan_columns"]}


def _unit_features(features: FeatureTable) -> dict[str, np.ndarray]:
    """What every unit is, and what is known of it without measuring."""
    return {
        "network": np.zeros(len(features.unit_ids), dtype=np.int64),
        "unit": np.array(features.unit_ids, dtype=str),
        "group": features.group.astype(str),
        **{f"feature_{name}": features.values[:, i] for i, name in enumerate(features.names)},
    }


def _unit_scores(subject: Subject) -> dict[str, np.ndarray]:
    """Scores of criteria that are no features; names begin with `score_`."""
    statistics = collect_statistics(subject.structure, subject.task, subject.scored, needs=_OTHER_NEEDS)
    criteria = {**_OTHER_CRITERIA, "random": RandomCriterion(seed=subject.seed)}
    rows = slice(subject.structure.n_removable)
    return {f"score_{name}": criterion.score(statistics)[rows] for name, criterion in criteria.items()}


def _unit_damages(
    subject: Subject, unit_ids: Sequence[str], fraction: float, settings: BankSettings
) -> dict[str, np.ndarray]:
    """Damage of every unit in each moment on the label examples; names begin as in `_UNIT_LABELS`."""
    rows = subject.structure.units.positions(unit_ids)
    # MACs fall with the square of the units that stay, bytes too.
    kept = fraction**0.5
    oracles: dict[str, Oracle] = {"at_once": RemovalOracle()}
    if settings.context_masks:
        oracles["in_context"] = ContextOracle(kept, settings.context_masks, subject.seed)
    if settings.repaired_masks:
        oracles["repaired"] = RepairedOracle(kept, settings.repaired_masks, seed=subject.seed)
    if settings.trained_masks:
        oracles["trained"] = RepairedOracle(
            kept, settings.trained_masks, training_steps=settings.trained_steps, lr=settings.finetune["lr"],
            seed=subject.seed,
        )  # fmt: skip
    table = {}
    for moment, oracle in oracles.items():
        labels = measure(subject.structure, None, subject.task, subject.label, oracle)
        table[f"damage_{moment}"], table[f"std_err_{moment}"] = labels.damage[rows, 0], labels.std_err[rows, 0]
        table[f"macs_{moment}"] = np.full(len(rows), labels.forward_macs / len(rows))
    return table


def _plain(settings: BankSettings) -> dict[str, Any]:
    found = json.loads(json.dumps(asdict(settings)))
    # Banks of plans that only remove were measured before others could be.
    return {name: value for name, value in found.items() if name != "plan_bits" or value}
