"""The number format that layers in few bits have in common, and what it takes beside their symbols."""

from dataclasses import dataclass, replace
from functools import cache

import torch

from compress.errors import CompressError
from compress.formatted_weight import make_format
from compress.layer_choice import LayerChoice
from compress.plan import SCHEME_BITS, LayerFormat
from compress.quantizer import FLOAT_BITS
from compress.quantizers.minmax import MinMaxQuantizer

GROUP_SIZE = 64
_MOST_BITS = 8
_SCALE_BYTES = 4


@dataclass(frozen=True)
class NumberFormat:
    """Scheme and granularity, whatever the bits; see `LayerFormat`, which refuses what does not go together.

    A group of which no size is said is of `GROUP_SIZE` weights.

    Raises:
        CompressError: for an unknown scheme.
    """

    scheme: str = "symmetric"
    granularity: str = "channel"
    group_size: int | None = None

    def __post_init__(self) -> None:
        if self.scheme not in SCHEME_BITS:
            raise CompressError(
                f"The 'scheme' parameter of NumberFormat must be one of {tuple(SCHEME_BITS)}. Got {self.scheme!r}."
            )
        if self.granularity == "group" and self.group_size is None:
            object.__setattr__(self, "group_size", GROUP_SIZE)

    def of(self, choice: LayerChoice) -> "NumberFormat":
        """This one, in the scheme of a choice that has its own."""
        return self if choice.scheme is None else replace(self, scheme=choice.scheme)

    @property
    def on_integers(self) -> bool:
        """Whether engines compute on it, in 8 bits or less."""
        return (self.scheme, self.granularity) == ("symmetric", "channel")

    def bits_of(self, bits: int) -> int:
        """Bits of each weight where this many are asked for: the closest that the scheme has; above 8, as asked."""
        return bits if bits > _MOST_BITS else min(SCHEME_BITS[self.scheme], key=lambda b: (abs(b - bits), b))

    def distinct(self, bits: tuple[int, ...]) -> tuple[int, ...]:
        """Of those among `bits` that are stored alike, the closest to what is stored, in the order given."""
        best: dict[int, int] = {}
        for asked in bits:
            stored = self.bits_of(asked)
            best[stored] = min(best.get(stored, asked), asked, key=lambda b, stored=stored: abs(b - stored))
        return tuple(dict.fromkeys(asked for asked in bits if best[self.bits_of(asked)] == asked))

    def applied(self, layer_format: LayerFormat) -> LayerFormat:
        """A layer's format in this one, at the closest bits that it has.

        Of more than 8 bits, or in another scheme than the symmetric one already, it is as it is.
        """
        if layer_format.bits > _MOST_BITS or layer_format.scheme != "symmetric":
            return layer_format
        return replace(layer_format, bits=self.bits_of(layer_format.bits), scheme=self.scheme,
                       granularity=self.granularity, group_size=self.group_size)  # fmt: skip

    def stored(self, choice: LayerChoice) -> tuple[int, int]:
        """`(bits of each symbol, bytes of each row's parameters)` of weights in this choice, without coding.

        Halves are given a scale for each row, as integers have: they take no more than that.
        """
        if choice.bits > _MOST_BITS:
            return choice.bits, _SCALE_BYTES if choice.bits < FLOAT_BITS else 0
        own = self.of(choice)
        return _stored(own.scheme, own.bits_of(choice.bits), choice.density < 1)


# Integers times a scale of each output, which engines compute on.
SYMMETRIC = NumberFormat()


@cache
def _stored(scheme: str, bits: int, masked: bool) -> tuple[int, int]:
    found = make_format(scheme, bits, masked)
    row = torch.ones(1, 2)
    fitted = found.fit(row, row > 0, MinMaxQuantizer()).values()
    return found.stored_bits, sum(value.numel() * value.element_size() for value in fitted)
