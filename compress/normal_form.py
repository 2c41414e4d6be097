"""The normal form of a traced graph: no sections, no assertions, no operations in place."""

import operator
from typing import Any

import torch
from torch import Tensor, fx

from compress.functional_form import make_functional

ATEN = torch.ops.aten
_ASSERTIONS = (ATEN._assert_tensor_metadata.default, ATEN._assert_async.msg, ATEN._assert_async.default,
               ATEN._assert_scalar.default, ATEN.sym_constrain_range.default,
               ATEN.sym_constrain_range_for_size.default)  # fmt: skip
_CREATIONS = {ATEN.zeros.default: ATEN.new_zeros.default, ATEN.ones.default: ATEN.new_ones.default,
              ATEN.full.default: ATEN.new_full.default}  # fmt: skip
_GRAD_SECTION = torch.ops.higher_order.wrap_with_set_grad_enabled
_AUTOCAST_SECTION = torch.ops.higher_order.wrap_with_autocast


def normalize_graph(module: fx.GraphModule) -> None:
    """Bring a traced module into normal form, in place; it computes the same.

    Sections under `torch.no_grad` become part of the graph, with their results detached; assertions about dtypes and
    sizes go and constants follow the parameters, so that the module may be cast; operations in place become their
    out-of-place forms, so that every value stays what it was when it was made; some operations are written with plainer
    ones, whose dimensions can be followed.
    """
    while _inline_sections(module):
        pass
    _erase_assertions(module.graph)
    _follow_parameters(module.graph)
    _name_operands(module.graph)
    make_functional(module.graph)
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in _PLAINER:
            _PLAINER[node.target](module.graph, node)


# -- sections --------------------------------------------------------------------------------------------------------


def _inline_sections(module: fx.GraphModule) -> bool:
    """Inline the calls of submodules under a gradient mode or a disabled autocast; whether there were any."""
    found = False
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is _GRAD_SECTION:
            _inline(module, node, node.args[1], node.args[2:], detach=not node.args[0])
            found = True
        elif node.target is _AUTOCAST_SECTION and not node.args[2]:
            _inline(module, node, node.args[4], node.args[5:], detach=False)
            found = True
    return found


def _inline(module: fx.GraphModule, call: fx.Node, section: fx.Node, inputs: tuple, detach: bool) -> None:
    inner = getattr(module, section.target)
    values: dict[fx.Node, Any] = {}
    remaining = iter(inputs)
    outputs: Any = ()
    with module.graph.inserting_before(call):
        for node in inner.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(remaining)
            elif node.op == "output":
                outputs = node.args[0]
            else:
                copied = module.graph.node_copy(node, values.__getitem__)
                if node.op == "get_attr":
                    copied.target = f"{section.target}.{node.target}"
                values[node] = copied
        outputs = [values[item] if isinstance(item, fx.Node) else item for item in outputs]
        if detach:
            outputs = [_detached(module.graph, item) for item in outputs]
    for user in list(call.users):
        user.replace_all_uses_with(outputs[user.args[1]])
        module.graph.erase_node(user)
    module.graph.erase_node(call)
    if not section.users:
        module.graph.erase_node(section)
        if not any(node.op == "get_attr" for node in inner.graph.nodes):
            delattr(module, section.target)


def _detached(graph: fx.Graph, item: Any) -> Any:
    if not isinstance(item, fx.Node) or not isinstance(item.meta.get("val"), Tensor):
        return item
    copied = graph.call_function(ATEN.detach.default, (item,))
    copied.meta = dict(item.meta)
    return copied


# -- assertions ------------------------------------------------------------------------------------------------------


def _erase_assertions(graph: fx.Graph) -> None:
    """Erase checks of dtypes and sizes, and the arithmetic that only they used."""
    for node in reversed(list(graph.nodes)):
        if node.op != "call_function" or node.users:
            continue
        arithmetic = getattr(node.target, "__module__", "") in (operator.__name__, "_operator", "math")
        if node.target in _ASSERTIONS or arithmetic or node.target is ATEN.sym_size.int:
            graph.erase_node(node)


# -- constants -------------------------------------------------------------------------------------------------------


def _follow_parameters(graph: fx.Graph) -> None:
    """Let constants made in forward take the dtype and device of a parameter that has the same ones."""
    known: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        if node.op == "get_attr":
            known.setdefault((value.dtype, value.device), node)
        like = known.get((value.dtype, value.device))
        if node.op == "call_function" and node.target in _CREATIONS and like is not None:
            node.target, node.args, node.kwargs = _CREATIONS[node.target], (like, *node.args), {}


def _name_operands(graph: fx.Graph) -> None:
    """Give every computed operand of an einsum a node of its own, at which its channels can be silenced."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is ATEN.einsum.default:
            with graph.inserting_before(node):
                operands = [_alias(graph, operand) if operand.op != "get_attr" else operand for operand in node.args[1]]
            node.update_arg(1, operands)


def _alias(graph: fx.Graph, operand: fx.Node) -> fx.Node:
    copied = graph.call_function(ATEN.alias.default, (operand,))
    copied.meta = dict(operand.meta)
    return copied


# -- operations with a plainer form ----------------------------------------------------------------------------------


def _expand_repeated(graph: fx.Graph, node: fx.Node) -> None:
    """What is repeated along dimensions of size one is the same as their expansion."""
    x, times = node.args[0], list(node.args[1])
    single = [True] * (len(times) - len(_singles(x))) + _singles(x)
    if all(n == 1 or one for n, one in zip(times, single, strict=True)):
        node.target = ATEN.expand.default
        node.args = (x, [n if one else -1 for n, one in zip(times, single, strict=True)])


def _expand_copies(graph: fx.Graph, node: fx.Node) -> None:
    """Copies of one value behind each other, of size one there, are its expansion."""
    parts, dim = list(node.args[0]), node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if len(parts) < 2 or any(part is not parts[0] for part in parts) or not _singles(parts[0])[dim]:
        return
    sizes = [-1] * len(_singles(parts[0]))
    sizes[dim] = len(parts)
    node.target, node.args, node.kwargs = ATEN.expand.default, (parts[0], sizes), {}


def _values_alone(graph: fx.Graph, node: fx.Node) -> None:
    """A maximum whose places nobody reads is `amax`."""
    if any(user.target is not operator.getitem or user.args[1] != 0 for user in node.users):
        return
    target = ATEN.amax.default if node.target is ATEN.max.dim else ATEN.amin.default
    keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    with graph.inserting_before(node):
        made = graph.call_function(target, (node.args[0], [node.args[1]], keep))
    made.meta = {**node.meta, "val": node.meta["val"][0]}
    for user in list(node.users):
        user.replace_all_uses_with(made)
        graph.erase_node(user)
    graph.erase_node(node)


def _cosine_written_out(graph: fx.Graph, node: fx.Node) -> None:
    """The dot product over both lengths, each of which is at least `eps`."""
    names = ("x1", "x2", "dim", "eps")
    given = {"dim": 1, "eps": 1e-8, **dict(zip(names, node.args, strict=False)), **node.kwargs}
    a, b, dim, eps = (given[name] for name in names)
    with graph.inserting_before(node):
        dot = graph.call_function(ATEN.sum.dim_IntList, (graph.call_function(ATEN.mul.Tensor, (a, b)), [dim]))
        lengths = [graph.call_function(ATEN.linalg_vector_norm.default, (x, 2, [dim])) for x in (a, b)]
        lengths = [graph.call_function(ATEN.clamp_min.default, (length, eps)) for length in lengths]
        made = graph.call_function(ATEN.div.Tensor, (dot, graph.call_function(ATEN.mul.Tensor, tuple(lengths))))
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made)
    graph.erase_node(node)


def _singles(node: fx.Node) -> list[bool]:
    """For each dimension whether its size is one; a free size is read as text, so that it stays free."""
    return [str(size) == "1" for size in node.meta["val"].shape]


_PLAINER = {
    ATEN.repeat.default: _expand_repeated, ATEN.tile.default: _expand_repeated, ATEN.cat.default: _expand_copies,
    ATEN.max.dim: _values_alone, ATEN.min.dim: _values_alone, ATEN.cosine_similarity.default: _cosine_written_out,
}  # fmt: skip
