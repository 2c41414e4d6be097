"""Half as many bits, with the range of float32."""

import torch

from compress.half_format import HalfFormat


class Bfloat16Format(HalfFormat):
    """bfloat16: 8 significant bits, the range of float32. It has no parameters.

    (Kalamkar et al. 2019, "A Study of BFLOAT16 for Deep Learning Training", arXiv:1905.12322.)
    """

    name = "bfloat16"
    dtype = torch.bfloat16
