"""What the compressed model may cost at most."""

from dataclasses import asdict, dataclass

from compress.errors import BudgetError


@dataclass(frozen=True)
class Budget:
    """Upper bounds; `None` leaves a cost free.

    Args:
        macs: multiply-accumulates of one example. A float in (0, 1] is a fraction of the dense model,
            an int above 1 is absolute.
        weight_bytes: bytes of all parameters in their formats; fraction or absolute as above.

    Raises:
        BudgetError: for a bound outside these ranges.
    """

    macs: float | int | None = None
    weight_bytes: float | int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is None:
                continue
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if number and (0 < value <= 1 or (isinstance(value, int) and value > 1)):
                continue
            raise BudgetError(
                f"The '{name}' parameter of Budget must be a float in (0, 1] (fraction of dense), an int above 1 "
                f"(absolute) or None. Got {value!r}."
            )

    def absolute(self, dense_macs: float, dense_weight_bytes: float) -> dict[str, float]:
        """The bounds in absolute units, `{"macs": ..., "weight_bytes": ...}`, without those that are free."""
        dense = {"macs": dense_macs, "weight_bytes": dense_weight_bytes}
        bounds = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: value * dense[name] if value <= 1 else float(value) for name, value in bounds.items()}
