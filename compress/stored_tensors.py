"""What of a module is stored: its parameters and persistent buffers, and what the module itself tells of each."""

from collections.abc import Container
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress.attributes import value_of
from compress.fake_quantization import QuantizedWeight, quantized_weights
from compress.formatted_weight import formatted_weights
from compress.graph import ATEN
from compress.stored_weight import describe_weight


def given_tensors(module: nn.Module, tied: Container[str]) -> dict[str, dict[str, Any]]:
    """Name -> what the manifest says of the tensor, for all that a module of this structure stores,
    its float weights in float32."""
    entries = quantized_weights(module) if isinstance(module, fx.GraphModule) else []
    packed = {id(value_of(module, entry.parameter)): entry for entry in entries}
    formatted = formatted_weights(module)
    masks = {f"{entry.holder}.kept" for entry in formatted}
    stores = {id(value_of(module, entry.parameter)): entry for entry in formatted}
    found: dict[str, dict[str, Any]] = {}
    for name, value in named_values(module).items():
        if name not in tied and name not in masks:
            dtype = torch.float32 if value.dtype.is_floating_point else value.dtype
            found[name] = {"shape": list(value.shape), "dtype": str(dtype).removeprefix("torch.")}
            if id(value) in packed:
                found[name] |= integer_entry(packed[id(value)])
            elif id(value) in stores:
                found[name] |= describe_weight(stores[id(value)])
    return found


def integer_entry(entry: QuantizedWeight) -> dict[str, Any]:
    """What the manifest says of a quantised weight beside its shape: its bits, and axis and name of its scales."""
    bits = entry.largest.bit_length() + 1  # 7 for 8 bits of reduced range
    return {"bits": bits, "axis": entry.axis, "scale": entry.scale}


def norm_names(module: nn.Module) -> list[str]:
    """Names of the running means of its batch norms."""
    if isinstance(module, fx.GraphModule):
        norms = (node for node in module.graph.nodes if node.target is ATEN.batch_norm.default)
        return [node.args[3].target for node in norms if node.args[3] is not None]
    return [name for name in named_values(module) if name.rpartition(".")[2] == "running_mean"]


def named_values(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, tied names included."""
    persistent = module.state_dict().keys()
    values = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    return {name: value for name, value in values.items() if name in persistent}
