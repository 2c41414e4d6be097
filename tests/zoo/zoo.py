"""Every architecture of the surgery suite, by name."""

import attention
import awkward
import convolutional
import huggingface
from architecture import Architecture, build

ZOO: dict[str, Architecture] = {**convolutional.ZOO, **attention.ZOO, **awkward.ZOO, **huggingface.ZOO}

__all__ = ["ZOO", "Architecture", "build"]
