"""The data card of a label bank."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from autolabel.label_bank import TABLES, LabelBank
from experiments.manifest import hash_file

log = logging.getLogger(__name__)
CARD_FILE = "card.json"
# More is too much to be published beside a package.
_LARGEST_BYTES = 50_000_000


def data_card(bank: LabelBank, file: Path) -> dict[str, Any]:
    """What a bank holds, as plain JSON; warns above 50 MB, the size that is to be published.

    Returns:
        `file`, `file_bytes`, `sha256`; `rows` and `columns` of each table; how many `networks` of each family on each
        task, their dense `metric_test`, `forward_macs` spent on each kind of label, and what all labels share:
        settings, commit and versions.
    """
    size = file.stat().st_size
    if size > _LARGEST_BYTES:
        log.warning("%s has %.0f MB; above %.0f MB it is hard to publish: label fewer networks or plans (job.limit, "
                    "job.plans).", file, size / 1e6, _LARGEST_BYTES / 1e6)  # fmt: skip
    tables = {name: getattr(bank, name) for name in TABLES}
    kinds = [f"{f}/{t}" for f, t in zip(bank.networks["family"], bank.networks["task"], strict=True)]
    low, median, high = np.quantile(bank.networks["metric_test"].astype(np.float64), [0, 0.5, 1]).tolist()
    spent = {
        f"{name}/{column}": float(np.nansum(tables[name][column]))
        for name, start in (("plans", "macs_"), ("units", "macs_"), ("choices", "macs"), ("configs", "macs"))
        for column in tables[name]
        if column.startswith(start)
    }
    return {
        "file": file.name, "file_bytes": size, "sha256": hash_file(file), "documentation": "docs/label_bank.md",
        "rows": {name: len(next(iter(table.values()))) for name, table in tables.items()},
        "columns": {name: sorted(table) for name, table in tables.items()},
        "networks": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "metric_test": {"lowest": low, "median": median, "highest": high},
        "forward_macs": spent, "learned_from": "columns that end in _validation, and unit labels",
        "judged_on": "columns that end in _test: nothing learns from them", "about": dict(bank.about),
    }  # fmt: skip
