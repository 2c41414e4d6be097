"""Which activations of a traced graph are quantised."""

import operator
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import fx

from compress.attributes import only_user
from compress.graph import ATEN, layers_of
from compress.plan import LayerFormat

# An activation function that fits into the range of the quantiser behind it: nothing is quantised before it.
FUSED = {ATEN.relu.default, ATEN.relu_.default, ATEN.hardtanh.default, ATEN.hardtanh_.default, ATEN.clamp.default,
          ATEN.clamp_.default, ATEN.relu6.default, ATEN.clamp_min.default}  # fmt: skip
# Moves or picks values without changing them: a quantised input gives a quantised output.
_MOVES = {ATEN.view.default, ATEN.reshape.default, ATEN.flatten.using_ints, ATEN.permute.default, ATEN.transpose.int,
          ATEN.squeeze.dim, ATEN.squeeze.default, ATEN.unsqueeze.default, ATEN.contiguous.default, ATEN.clone.default,
          ATEN.slice.Tensor, ATEN.select.int, ATEN.expand.default, ATEN.pixel_shuffle.default, ATEN.max_pool2d.default,
          ATEN.max_pool1d.default, ATEN.dropout.default, ATEN.dropout_.default, ATEN.feature_dropout.default,
          }  # fmt: skip
# The same, several at once.
_SPLITS = {ATEN.chunk.default, ATEN.split.Tensor, ATEN.split_with_sizes.default}
# Engines compute these on integers when inputs and outputs are quantised.
_INTEGER_OPS = {ATEN.add.Tensor, ATEN.add_.Tensor, ATEN.mul.Tensor, ATEN.cat.default, ATEN.avg_pool2d.default,
                ATEN.adaptive_avg_pool2d.default, ATEN.mean.dim}  # fmt: skip
_BINARY = {ATEN.add.Tensor, ATEN.add_.Tensor, ATEN.mul.Tensor}


def moves_values(node: fx.Node) -> bool:
    """Whether the values of a node are those of its first input, moved, picked, or padded with zeros."""
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return node.args[0].target in _SPLITS
    if node.target is ATEN.pad.default:
        mode, value = (*node.args[2:], "constant", None)[:2] if len(node.args) > 2 else ("constant", None)
        return mode == "constant" and not value
    return node.target in _MOVES or node.target in _SPLITS


def activation_edges(module: fx.GraphModule, formats: Mapping[str, LayerFormat]) -> list[tuple[fx.Node, list[fx.Node]]]:
    """`(node, users)`: the values to quantise, in execution order, and the users that read them quantised.

    These are the inputs of quantised convs and linears, the outputs of quantised convs (after a fused activation: an
    engine runs a conv on integers only if its output is quantised too), and everything between convs that engines
    compute on integers, as long as all readers do. A residual stream that goes into a float operation stays float.
    A layer of float weights never reads quantised values: engines would take that as leave to quantise its weights.
    """
    layers = {layer.node: layer for layer in layers_of(module)}
    quantized = {node for node, layer in layers.items() if layer.name in formats and layer.kind in ("conv", "linear")}
    convs = {node for node in quantized if layers[node].kind == "conv"}
    wants = _wanting(module.graph, quantized, _behind(module.graph, convs))
    forced = {_fused_end(node) for node in convs if not _reaches(_fused_end(node), layers.keys() - quantized)}
    edges = []
    for node in module.graph.nodes:
        # A split has no one value to quantise: its parts are quantised, or all of it before.
        if node.op not in ("placeholder", "call_function") or node.target in _SPLITS or _carries(node, wants):
            continue
        users = list(node.users) if node in forced else [user for user in node.users if _reads(user, node, wants)]
        if users:
            edges.append((node, users))
    return edges


def _carries(node: fx.Node, wants: Mapping[fx.Node, bool]) -> bool:
    """Whether the values of a node were quantised before it."""
    source = node.args[0] if node.target is operator.getitem else node
    return moves_values(node) and wants.get(node, False) and wants.get(source, False)


def _behind(graph: fx.Graph, convs: Collection[fx.Node]) -> set[fx.Node]:
    """Convs and what follows them through operations that engines compute on integers: there it pays to do so."""
    behind: set[fx.Node] = set()
    for node in graph.nodes:
        passes = moves_values(node) or node.target in FUSED or node.target in _INTEGER_OPS
        if node in convs or (passes and any(source in behind for source in node.all_input_nodes)):
            behind.add(node)
    return behind


def _wanting(graph: fx.Graph, quantized: Collection[fx.Node], behind: Collection[fx.Node]) -> dict[fx.Node, bool]:
    """Which nodes want their data quantised."""
    wants: dict[fx.Node, bool] = {}
    for node in reversed(graph.nodes):
        if node in quantized:
            wants[node] = True
        elif moves_values(node):
            wants[node] = bool(node.users) and all(wants.get(user, False) for user in node.users)
        elif node in behind and node.target in _INTEGER_OPS:
            end = _fused_end(node)
            all_readers = bool(end.users) and all(wants.get(user, False) for user in end.users)
            wants[node] = all_readers and not (set(node.kwargs) - {"dtype"}) and all(map(_is_value, _data(node)))
    return wants


def _data(node: fx.Node) -> Sequence[Any]:
    """The arguments of an integer operation that hold data."""
    if node.target is ATEN.cat.default:
        return node.args[0]
    return node.args[:2] if node.target in _BINARY else node.args[:1]


def _is_value(argument: Any) -> bool:
    return isinstance(argument, fx.Node) and argument.op != "get_attr"


def _fused_end(node: fx.Node) -> fx.Node:
    """The activation function behind a node that fits into its quantiser, or the node itself."""
    follower = only_user(node)
    return follower if follower is not None and follower.target in FUSED else node


def _reaches(node: fx.Node, layers: Collection[fx.Node]) -> bool:
    """Whether the values of a node get to one of these layers unchanged."""
    return any(user in layers or (moves_values(user) and _reaches(user, layers)) for user in node.users)


def _reads(user: fx.Node, node: fx.Node, wants: Mapping[fx.Node, bool]) -> bool:
    """Whether `user` wants `node` quantised; of a layer or a move only the first input counts."""
    if not wants.get(user, False):
        return False
    return user.target in _INTEGER_OPS or user.args[0] is node
