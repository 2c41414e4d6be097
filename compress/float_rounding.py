"""Fewer bits behind the point for what stays float: biases, scales, norms."""

import torch
from torch import Tensor, fx, nn

from compress.errors import CompressError
from compress.fake_quantization import quantized_weights
from compress.formatted_weight import formatted_weights
from compress.stored_tensors import named_values

# A sign and five bits of exponent, as in float16; the exponents of float32 are all allowed, packed files code them.
_OTHER_BITS = 6


def round_floats_(module: nn.Module, bits: int = 16) -> nn.Module:
    """The module, whose float parameters and buffers now have `bits - 6` bits behind the point, as float16 has 10.

    Quantised weights stay. Every value between 6.1e-5 and 65504 is float16-representable after rounding to 16 bits;
    smaller and larger ones keep the same relative precision instead. Round before `save_artifact`: packed files then
    store the values in fewer bytes, without loss.

    Args:
        module: changed in place; it stays in float32.
        bits: 8 to 16, or 32 to leave it as it is.

    Raises:
        CompressError: for other bits.
    """
    if bits == 32:
        return module
    if isinstance(bits, bool) or not isinstance(bits, int) or not 8 <= bits <= 16:
        raise CompressError(f"The 'bits' parameter of round_floats_ must be an int in [8, 16], or 32. Got {bits!r}.")
    entries = quantized_weights(module) if isinstance(module, fx.GraphModule) else []
    names = {entry.parameter for entry in (*entries, *formatted_weights(module))}
    weights = {id(value) for name, value in named_values(module).items() if name in names}
    with torch.no_grad():
        for value in named_values(module).values():
            if value.dtype.is_floating_point and id(value) not in weights:
                value.copy_(_rounded(value, bits - _OTHER_BITS))
    return module


def _rounded(value: Tensor, behind: int) -> Tensor:
    """float64, to the nearest of `behind` bits behind the point, ties to even; NaN and infinity stay."""
    mantissa, exponent = torch.frexp(value.double())
    rounded = torch.ldexp(torch.round(mantissa * 2 ** (behind + 1)), exponent - behind - 1)
    return torch.where(torch.isfinite(value), rounded, value.double())
