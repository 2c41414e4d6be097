"""Weight formats: what the numbers of a stored weight are."""

from compress.weight_formats.affine import AffineFormat
from compress.weight_formats.bfloat16 import Bfloat16Format
from compress.weight_formats.binary import BinaryFormat
from compress.weight_formats.codebook import CodebookFormat
from compress.weight_formats.float16 import Float16Format
from compress.weight_formats.float32 import Float32Format
from compress.weight_formats.power_of_two import PowerOfTwoFormat
from compress.weight_formats.symmetric import SymmetricFormat
from compress.weight_formats.ternary import TernaryFormat

__all__ = [
    "AffineFormat",
    "Bfloat16Format",
    "BinaryFormat",
    "CodebookFormat",
    "Float16Format",
    "Float32Format",
    "PowerOfTwoFormat",
    "SymmetricFormat",
    "TernaryFormat",
]
