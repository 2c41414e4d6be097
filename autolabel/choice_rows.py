"""Tables to regression rows: which label belongs to which features, and one row for each unit and choice."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autolabel.tables import FeatureTable, LabelTable
from compress.errors import CompressError, DataError

BITS = "bits"
_BIT_CHOICE = re.compile(r"(\d+)bit")
_BIT_FEATURE = re.compile(r"(?<!\d)(\d+)(?=_?bit)")


def bits_of(choice: str) -> int | None:
    """Bits of a choice such as `"4bit"`, or None for any other choice."""
    match = _BIT_CHOICE.fullmatch(choice)
    return int(match.group(1)) if match else None


def is_layer(features: FeatureTable) -> np.ndarray:
    """`(n_units,)` bool: whole layers, whose group is themselves."""
    return np.asarray(features.group).astype(str) == np.array(features.unit_ids, dtype=str)


def match_rows(features: FeatureTable, labels: LabelTable) -> np.ndarray:
    """`(n_label_rows,)` int64 row in `features` of each row of `labels`; -1 where there is neither features nor damage.

    Raises:
        DataError: for a measured unit without features, or ids that repeat (several networks) in another order.
    """
    if labels.unit_ids == features.unit_ids:
        return np.arange(len(labels.unit_ids))
    position = {unit: i for i, unit in enumerate(features.unit_ids)}
    if len(position) != len(features.unit_ids) or len(set(labels.unit_ids)) != len(labels.unit_ids):
        raise DataError(
            "Unit ids repeat (several networks?): labels and features must then list the same units in the same order."
        )
    rows = np.array([position.get(unit, -1) for unit in labels.unit_ids], dtype=np.int64)
    lost = np.flatnonzero((rows < 0) & np.isfinite(labels.damage).any(axis=1))
    if lost.size:
        raise DataError(
            f"Unit {labels.unit_ids[lost[0]]!r} has a label but no features. Extract the features of every "
            "labelled unit."
        )
    return rows


@dataclass(frozen=True)
class Problem:
    """One regression: a choice on its own, or all bit-widths together with the width as a feature (few layers suffice).

    Attributes:
        name: the choice, or `"bits"`.
        choices: the columns of the label table it predicts.
        columns: names of the columns of its rows.
    """

    name: str
    choices: tuple[str, ...]
    columns: tuple[str, ...]

    def rows(self, values: np.ndarray, names: Sequence[str], choice: str) -> np.ndarray:
        """`(n_units, n_columns)` float64 regression rows of units with these features, for one choice."""
        values = np.asarray(values, dtype=np.float64)
        bits = bits_of(choice)
        if bits is None:
            return values
        own = [values[:, columns[bits]] for columns in _bit_features(names, self.choices).values()]
        return np.column_stack([values, np.full(len(values), float(bits)), *own])


def problems(choices: Sequence[str], names: Sequence[str]) -> tuple[Problem, ...]:
    """The regressions that cover these choices, given the feature names."""
    bit_choices = tuple(choice for choice in choices if bits_of(choice) is not None)
    found = [Problem(choice, (choice,), tuple(names)) for choice in choices if bits_of(choice) is None]
    if bit_choices:
        extra = (BITS, *_bit_features(names, bit_choices))
        clash = sorted(set(extra) & set(names))
        if clash:
            raise CompressError(f"A feature must not be named {clash[0]!r}: that name is taken by the labeler.")
        found.append(Problem(BITS, bit_choices, (*names, *extra)))
    return tuple(found)


def _bit_features(names: Sequence[str], choices: Sequence[str]) -> dict[str, dict[int, int]]:
    """Families of features that exist once per bit-width (`error_8bit`, `error_4bit`, ...): name -> bits -> column.

    A row about 4 bits then has the 4-bit error in the same column in which a row about 8 bits has the 8-bit error.
    """
    families: dict[str, dict[int, int]] = {}
    for column, name in enumerate(names):
        match = _BIT_FEATURE.search(name)
        if match:
            family = name[: match.start()] + "own" + name[match.end() :]
            families.setdefault(family, {})[int(match.group(1))] = column
    needed = {bits_of(choice) for choice in choices}
    return {family: columns for family, columns in families.items() if needed <= set(columns)}
