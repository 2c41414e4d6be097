"""Which activations of a traced graph are quantised."""

import operator
from collections.abc import Mapping

from torch import fx

from compress.attributes import only_user
from compress.graph import ATEN, is_parameter, layers_of
from compress.plan import LayerFormat

# An activation function that fits into the range of the quantiser behind it: nothing is quantised before it.
FUSED = {ATEN.relu.default, ATEN.relu_.default, ATEN.hardtanh.default, ATEN.hardtanh_.default, ATEN.clamp.default,
          ATEN.clamp_.default, ATEN.relu6.default, ATEN.clamp_min.default}  # fmt: skip
# Moves or picks values without changing them: a quantised input gives a quantised output.
_MOVES = {ATEN.view.default, ATEN.reshape.default, ATEN.flatten.using_ints, ATEN.permute.default, ATEN.transpose.int,
          ATEN.squeeze.dim, ATEN.squeeze.default, ATEN.unsqueeze.default, ATEN.contiguous.default, ATEN.clone.default,
          ATEN.slice.Tensor, ATEN.select.int, ATEN.expand.default, ATEN.chunk.default, ATEN.split.Tensor,
          ATEN.split_with_sizes.default, ATEN.pixel_shuffle.default, ATEN.max_pool2d.default, ATEN.max_pool1d.default,
          ATEN.dropout.default, ATEN.dropout_.default, ATEN.feature_dropout.default, operator.getitem}  # fmt: skip
# Engines compute these on integers when inputs and outputs are quantised.
_INTEGER_OPS = {ATEN.add.Tensor, ATEN.add_.Tensor, ATEN.mul.Tensor, ATEN.cat.default, ATEN.avg_pool2d.default,
                ATEN.adaptive_avg_pool2d.default, ATEN.mean.dim}  # fmt: skip


def moves_values(node: fx.Node) -> bool:
    """Whether the values of a node are those of its first input, moved, picked, or padded with zeros."""
    if node.op != "call_function":
        return False
    if node.target is ATEN.pad.default:
        mode, value = (*node.args[2:], "constant", None)[:2] if len(node.args) > 2 else ("constant", None)
        return mode == "constant" and not value
    return node.target in _MOVES


def activation_edges(module: fx.GraphModule, formats: Mapping[str, LayerFormat]) -> list[tuple[fx.Node, list[fx.Node]]]:
    """`(node, users)`: the values to quantise, in execution order, and the users that read them quantised.

    These are the inputs of quantised convs and linears, the outputs of quantised convs (after a fused activation: an
    engine runs a conv on integers only if its output is quantised too), and everything between convs that engines
    compute on integers, as long as all readers do. A residual stream that goes into a float operation stays float.
    """
    layers = {layer.node: layer for layer in layers_of(module)}
    wanting = {node for node, layer in layers.items() if layer.name in formats and layer.kind in ("conv", "linear")}
    wants: dict[fx.Node, bool] = {}
    behind_conv: set[fx.Node] = set()
    for node in module.graph.nodes:
        passes = moves_values(node) or node.target in FUSED or node.target in _INTEGER_OPS
        is_conv = node in wanting and layers[node].kind == "conv"
        if is_conv or (passes and any(source in behind_conv for source in node.all_input_nodes)):
            behind_conv.add(node)

    def output_wanted(node: fx.Node) -> bool:
        """Whether everybody who reads this value, after a fused activation, wants it quantised."""
        fused = only_user(node)
        if fused is not None and fused.target in FUSED:
            return output_wanted(fused)
        return bool(node.users) and all(wants.get(user, False) for user in node.users)

    for node in reversed(module.graph.nodes):
        if node in wanting:
            wants[node] = True
        elif moves_values(node):
            wants[node] = any(wants.get(user, False) for user in node.users)
        elif node.op == "call_function" and node.target in _INTEGER_OPS:
            data = node.args[0] if node.target is ATEN.cat.default else node.args[:2]
            data = (
                data
                if node.target in (ATEN.cat.default, ATEN.add.Tensor, ATEN.add_.Tensor, ATEN.mul.Tensor)
                else data[:1]
            )
            plain = all(isinstance(a, fx.Node) and not is_parameter(a) for a in data)
            wants[node] = node in behind_conv and plain and not (set(node.kwargs) - {"dtype"}) and output_wanted(node)
    forced = set()
    for node in wanting:
        if layers[node].kind == "conv":  # an engine runs a conv on integers only if its output is quantised too
            fused = only_user(node)
            forced.add(fused if fused is not None and fused.target in FUSED else node)
    edges = []
    for node in module.graph.nodes:
        if node.op not in ("placeholder", "call_function") or moves_values(node):
            continue
        users = list(node.users) if node in forced else [user for user in node.users if _reads(user, node, wants)]
        if users:
            edges.append((node, users))
    return edges


def _reads(user: fx.Node, node: fx.Node, wants: Mapping[fx.Node, bool]) -> bool:
    """Whether `user` wants `node` quantised; of a layer only the data input counts."""
    if not wants.get(user, False):
        return False
    return user.target in _INTEGER_OPS or user.args[0] is node
