"""The label bank: what was measured on many networks, unit by unit and plan by plan, in one pickle-free file.

    bank = LabelBank.load("label_bank.npz")
    plans = bank.plans                       # column name -> array, one entry for each plan
    plans["loss_finetuned_test"][plans["network"] == 3]

Tables are columns of equal length. `networks`: one row for each network (name, family, task, recipe as JSON, dense
quality, hash of its weights). `plans`: one row for each plan, `network` being a row of `networks`: what it removes and
costs, where it came from, and its loss and metric on every data part at every moment. `groups`: one row for each group
of each plan, `plan` being a row of `plans`: the numbers of `autolabel.plan_summary`. `units`: one row for each channel
and head of each network: its features (`autolabel.describe_features`) and its measured labels. `choices`: one row for
each way to store each layer of each network (bits, density), with its damage alone. `configs`: one row for each random
configuration of each network, all layers stored otherwise at once, with its damage.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autolabel.plan_summary import PlanSummary
from compress.errors import ArtifactError, CompressError
from compress.files import load_arrays, save_arrays

SCHEMA_VERSION = 2
TABLES = ("networks", "plans", "groups", "units", "choices", "configs")
# Which table a row belongs to a row of, by the column that says so.
_PARENTS = {"plans": "network", "groups": "plan", "units": "network", "choices": "network", "configs": "network"}
Table = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class LabelBank:
    """Labels of many networks.

    Attributes:
        networks, plans, groups, units, choices, configs: tables, column name -> array; see the module.
        about: what all rows share: settings, versions, commit, data splits; plain JSON.
    """

    networks: Table
    plans: Table
    groups: Table
    units: Table
    choices: Table
    configs: Table
    about: Mapping[str, Any]

    def __post_init__(self) -> None:
        for name in TABLES:
            lengths = {len(column) for column in getattr(self, name).values()}
            if len(lengths) != 1:
                raise CompressError(f"The columns of table {name!r} must have one length. Got {sorted(lengths)}.")
        for child, parent in _PARENTS.items():
            table, limit = getattr(self, child), len(next(iter(getattr(self, f"{parent}s").values())))
            found = table.get(parent)
            if found is None or (len(found) and not 0 <= found.min() <= found.max() < limit):
                raise CompressError(f"Column {parent!r} of table {child!r} must hold rows of table '{parent}s'.")

    def rows(self, table: str, network: int) -> Table:
        """The rows of a table other than `networks` and `groups` that belong to one network."""
        found = getattr(self, table)
        mine = found["network"] == network
        return {name: column[mine] for name, column in found.items()}

    def summary(self, network: int) -> PlanSummary:
        """The summaries of all plans of one network."""
        plans = np.flatnonzero(self.plans["network"] == network)
        mine = np.isin(self.groups["plan"], plans)
        names = tuple(self.about["group_columns"])
        plan_names = tuple(self.about["plan_columns"])
        rows = np.stack([self.groups[name][mine] for name in names], axis=1)
        n_groups = len(rows) // max(len(plans), 1)
        values = rows.reshape(len(plans), n_groups, len(names))
        own = tuple(self.groups["group"][mine][:n_groups].tolist())
        whole = np.stack([self.plans[name][plans] for name in plan_names], axis=1)
        return PlanSummary(own, names, values, plan_names, whole)

    def save(self, path: str | Path) -> None:
        """Write the bank, atomically."""
        arrays = {f"{table}/{name}": column for table in TABLES for name, column in getattr(self, table).items()}
        about = json.dumps({"schema_version": SCHEMA_VERSION, **self.about}, sort_keys=True)
        save_arrays(path, about=np.array(about), columns=np.array(list(arrays), dtype=str), **arrays)

    @classmethod
    def load(cls, path: str | Path) -> "LabelBank":
        """Read a bank. Raises ArtifactError if it is missing, damaged, or of another schema version."""
        head = load_arrays(path, ("about", "columns"))
        try:
            about = json.loads(str(head["about"]))
            columns = head["columns"].tolist()
        except (ValueError, TypeError) as error:
            raise ArtifactError(f"{path} is not a label bank: {error}") from None
        if not isinstance(about, dict) or about.pop("schema_version", None) != SCHEMA_VERSION:
            raise ArtifactError(
                f"{path} is not a label bank of schema version {SCHEMA_VERSION}. Measure it anew, into another folder: "
                "experiment=bank"
            )
        tables: dict[str, dict[str, np.ndarray]] = {name: {} for name in TABLES}
        for column, values in load_arrays(path, columns).items():
            table, _, name = column.partition("/")
            if table not in tables:
                raise ArtifactError(f"{path} is not a label bank: it holds a table {table!r}.")
            tables[table][name] = values
        try:
            return cls(**tables, about=about)
        except (CompressError, StopIteration) as error:
            raise ArtifactError(f"{path} is not a valid label bank: {error}") from None


def merge_banks(banks: Sequence[LabelBank], about: Mapping[str, Any]) -> LabelBank:
    """One bank of all networks, in the order given.

    Raises:
        CompressError: if the banks have different columns, which settings that differ make.
    """
    if not banks:
        raise CompressError("The 'banks' parameter of merge_banks must hold at least one bank. Got none.")
    tables: dict[str, dict[str, np.ndarray]] = {}
    sizes = {name: np.cumsum([0, *(len(next(iter(getattr(b, name).values()))) for b in banks)]) for name in TABLES}
    for table in TABLES:
        names = [tuple(getattr(bank, table)) for bank in banks]
        if len(set(names)) != 1:
            raise CompressError(f"Table {table!r} has other columns in some banks. Measure them with one code.")
        columns = {}
        for name in names[0]:
            parts = [getattr(bank, table)[name] for bank in banks]
            if name == _PARENTS.get(table):
                parts = [part + start for part, start in zip(parts, sizes[f"{name}s"], strict=False)]
            columns[name] = np.concatenate(parts)
        tables[table] = columns
    return LabelBank(**tables, about=about)
