"""One way to store a layer: bits of a weight, in which scheme, how many weights, how many ranks; its name in tables."""

import math
import re
from dataclasses import dataclass

from compress.errors import CompressError
from compress.plan import SCHEME_BITS
from compress.quantizer import FLOAT_BITS

_SCHEMES = tuple(scheme for scheme, bits in SCHEME_BITS.items() if min(bits) <= 8)
_NAME = re.compile(rf"([1-9]\d*)bit(?:_({'|'.join(_SCHEMES)}))?(?:_d(0\.\d+))?(?:_([rs])(0\.\d+))?")
# Letter of a rank in names -> scheme, see `compress.factorizers`.
_LETTERS = {"r": "channel", "s": "spatial"}


@dataclass(frozen=True)
class LayerChoice:
    """What a layer may become.

    Attributes:
        bits: of each weight that is kept, 1 to 8, 16, or 32 for float32.
        density: fraction of the weights that is kept, in (0, 1]; of each factor where there is a rank.
        rank: of the two factors that replace the weight, a fraction in (0, 1) of the layer's useful rank (see
            `compress.costs.RankCosts`), or None.
        rank_scheme: where the kernel of a convolution goes, `"channel"` or `"spatial"`; see `compress.factorizers`.
        scheme: of 8 bits or less, the scheme of `LayerFormat`; None for the one that all layers have in common, see
            `compress.number_format`.
    """

    bits: int = FLOAT_BITS
    density: float = 1.0
    rank: float | None = None
    rank_scheme: str = "channel"
    scheme: str | None = None

    def __post_init__(self) -> None:
        known = tuple(_LETTERS.values()) if self.rank is not None else ("channel",)
        if self.rank_scheme not in known:
            raise CompressError(
                f"The 'rank_scheme' parameter of LayerChoice must be one of {known}"
                f"{'' if self.rank is not None else ' without a rank'}. Got {self.rank_scheme!r}."
            )
        if self.scheme is not None and (self.bits > 8 or self.scheme not in _SCHEMES):
            raise CompressError(
                f"The 'scheme' parameter of LayerChoice must be None, or one of {_SCHEMES} in 8 bits or less. Got "
                f"{self.scheme!r} in {self.bits} bits."
            )

    @property
    def name(self) -> str:
        """Such as `"4bit"`, `"4bit_codebook"`, `"3bit_d0.25"` (a quarter of the weights is kept), `"32bit_r0.5"` (two
        factors of half the useful rank) or `"32bit_s0.5"` (two that share the kernel)."""
        scheme = "" if self.scheme is None else f"_{self.scheme}"
        density = "" if self.density == 1 else f"_d{self.density:g}"
        letter = next(letter for letter, scheme in _LETTERS.items() if scheme == self.rank_scheme)
        return f"{self.bits}bit{scheme}{density}" + ("" if self.rank is None else f"_{letter}{self.rank:g}")

    @property
    def bits_per_weight(self) -> float:
        """Nominal: of the kept weights, and of a mask without context at this density."""
        d = self.density
        mask = -d * math.log2(d) - (1 - d) * math.log2(1 - d) if d < 1 else 0.0
        return self.bits * d + mask

    @property
    def bits_per_dense_weight(self) -> float:
        """Nominal, for each weight of the layer as it was: a rank leaves about its own fraction of them."""
        return self.bits_per_weight * (self.rank or 1.0)

    def rank_of(self, useful_rank: int) -> int | None:
        """The rank in a layer of this useful rank, at least 1; None without one."""
        return None if self.rank is None else max(1, math.floor(self.rank * useful_rank + 1e-9))


def choice_of(name: str) -> LayerChoice:
    """The choice of this name. Raises CompressError if it is none."""
    match = _NAME.fullmatch(name)
    if not match or int(match[1]) not in (*range(1, 9), 16, FLOAT_BITS):
        raise CompressError(
            f"A choice of a layer is called like '4bit' (1 to 8, 16 or 32 bits), '4bit_d0.25' (with a density), "
            f"'4bit_r0.5' (with a rank), '4bit_s0.5' (with one in the scheme 'spatial'), '4bit_d0.25_r0.5' (with "
            f"both) or '4bit_codebook' (in a scheme of its own). Got {name!r}."
        )
    rank, rank_scheme = (float(match[5]), _LETTERS[match[4]]) if match[4] else (None, "channel")
    return LayerChoice(int(match[1]), float(match[3] or 1), rank, rank_scheme, match[2])
