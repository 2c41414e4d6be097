"""What the compressed model may cost at most."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from compress.errors import BudgetError


def cost_words(value: float) -> str:
    """A cost as people read it: whole from 100 on (`1,821,952`), four digits below (`0.1234`, as of milliseconds)."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"


@dataclass(frozen=True)
class Budget:
    """Upper bounds; `None` leaves a cost free.

    Args:
        macs: multiply-accumulates of one example. A float in (0, 1] is a fraction of the dense model,
            an int above 1 is absolute.
        weight_bytes: bytes of all parameters in their formats; fraction or absolute as above.
        coded_bytes: bytes after entropy coding, a fraction of the dense model's float32 bytes or absolute.
        bit_operations: MACs times bits of the weight times bits of the activation (8 beside integers, else 32); as in
            Baskin et al. 2018, "UNIQ", arXiv:1804.10969, without the additions, and van Baalen et al. 2020, "Bayesian
            Bits", arXiv:2005.07093.
        latency_ms: by the latency table of the costs; a fraction of dense, or any number of milliseconds above 1.

    Raises:
        BudgetError: for a bound outside these ranges.
    """

    macs: float | int | None = None
    weight_bytes: float | int | None = None
    coded_bytes: float | int | None = None
    bit_operations: float | int | None = None
    latency_ms: float | int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is None:
                continue
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            # Milliseconds alone come in parts.
            whole = isinstance(value, int) or name == "latency_ms"
            if number and (0 < value <= 1 or (whole and 1 < value < math.inf)):
                continue
            kind = "a number" if name == "latency_ms" else "an int"
            raise BudgetError(
                f"The '{name}' parameter of Budget must be a float in (0, 1] (fraction of dense), {kind} above 1 "
                f"(absolute) or None. Got {value!r}."
            )

    def absolute(self, dense: Mapping[str, float]) -> dict[str, float]:
        """The bounds in absolute units by name, without those that are free.

        Args:
            dense: name -> cost of the dense model, see `CostTable.dense`.

        Raises:
            BudgetError: for a bound on a cost that `dense` does not know.
        """
        bounds = {name: value for name, value in asdict(self).items() if value is not None}
        unknown = sorted(bounds.keys() - dense.keys())
        if unknown:
            raise BudgetError(
                f"The {unknown[0]!r} parameter of Budget bounds a cost that the cost table does not hold. Give the "
                f"table a latency table, or leave it free."
            )
        # Most costs are whole numbers but for rounding on the way, which must not decide whether a bound is met.
        shares = {name: value * dense[name] for name, value in bounds.items() if value <= 1}
        return {n: max(shares[n], round(shares[n], 6)) if n in shares else float(bound) for n, bound in bounds.items()}
