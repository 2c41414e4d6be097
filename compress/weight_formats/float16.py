"""Half precision."""

import torch

from compress.half_format import HalfFormat


class Float16Format(HalfFormat):
    """IEEE 754 binary16: 11 significant bits, up to 65504; what lies beyond is clipped. It has no parameters.

    (Of networks: Micikevicius et al. 2018, "Mixed Precision Training", ICLR, arXiv:1710.03740.)
    """

    name = "float16"
    dtype = torch.float16
