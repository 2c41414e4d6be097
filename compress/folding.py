"""Batch norms taken into the convs and linears before them."""

from collections.abc import Container
from typing import Any

import torch
from torch import fx

from compress.attributes import copy_traced, only_user, parameter_uses, remove_unused, set_parameter, sibling, value_of
from compress.graph import ATEN, Layer, as_inputs, layers_of, record_shapes
from compress.task import running_on


def fold_batch_norm(
    module: fx.GraphModule, example_inputs: Any = None, keep: Container[str] = frozenset()
) -> fx.GraphModule:
    """A copy whose convs and linears have taken in the batch norms behind them; it computes the same in `eval()`.

    The folded weights and biases are parameters and train on (without batch statistics). A batch norm stays where its
    conv's weight or output is also used elsewhere, or where it comes before the conv.

    Args:
        module: a traced module; it stays as it is.
        example_inputs: inputs of the forward. Without them norms behind linears stay: a linear may be applied to
            sequences, and only shapes tell.
        keep: norms whose running mean has one of these names stay.
    """
    with running_on(example_inputs):
        shapes = {} if example_inputs is None else record_shapes(module, *as_inputs(example_inputs))
    module = copy_traced(module)
    uses = parameter_uses(module)
    for layer in list(layers_of(module)):
        follower = only_user(layer.node)
        if follower is None or follower.target is not ATEN.batch_norm.default or follower.args[3] is None:
            continue
        linear_of_rank_2 = layer.kind == "linear" and len(shapes.get(layer.node.name, ())) == 2
        if follower.args[3].target in keep or not (layer.kind in ("conv", "conv_transpose") or linear_of_rank_2):
            continue
        if uses[id(value_of(module, layer.weight))] > 1 or (
            layer.bias is not None and uses[id(value_of(module, layer.bias))] > 1
        ):
            continue
        _fold(module, layer, follower)
    remove_unused(module)
    return module


def _fold(module: fx.GraphModule, layer: Layer, norm: fx.Node) -> None:
    gamma, beta, mean, variance = (
        None if argument is None else value_of(module, argument.target).detach().double() for argument in norm.args[1:5]
    )
    factor = torch.rsqrt(variance + norm.args[7])
    factor = factor if gamma is None else factor * gamma
    shift = -mean * factor if beta is None else beta - mean * factor
    weight = value_of(module, layer.weight)
    groups = layer.node.args[6] if layer.kind == "conv_transpose" and len(layer.node.args) > 6 else 1
    axis = output_axis(layer)
    if axis == 0:
        folded = weight.detach().double() * factor.reshape(-1, *[1] * (weight.dim() - 1))
    else:  # (in, out / groups, ...): input channels of group g feed the outputs of group g
        per_group = factor.reshape(groups, 1, -1).expand(groups, weight.shape[0] // groups, -1)
        folded = weight.detach().double() * per_group.reshape(*weight.shape[:2], *[1] * (weight.dim() - 2))
    set_parameter(module, layer.weight, folded.to(weight.dtype), weight.requires_grad)
    if layer.bias is not None:
        shift = shift + value_of(module, layer.bias).detach().double() * factor
    name = layer.bias or sibling(module, layer.weight, "bias")
    set_parameter(module, name, shift.to(weight.dtype), weight.requires_grad)
    if layer.bias is None:
        with module.graph.inserting_before(layer.node):
            layer.node.args = (*layer.node.args[:2], module.graph.get_attr(name), *layer.node.args[3:])
    norm.replace_all_uses_with(layer.node)
    module.graph.erase_node(norm)


def output_axis(layer: Layer) -> int:
    """The dimension of the weight that has one scale per index.

    Outputs: 0 for conv and linear, 1 for conv_transpose, whose groups share the scales, and for embedding (the
    features, which is what a channel of an embedding is).
    """
    return 1 if layer.kind in ("conv_transpose", "embedding") else 0
