"""Parameters and buffers of a traced module, by qualified name."""

import copy
import warnings
from typing import TypeVar

from torch import Tensor, fx, nn

from compress.graph import is_parameter

_Traced = TypeVar("_Traced", fx.GraphModule, fx.Graph)


def copy_traced(traced: _Traced) -> _Traced:
    """A deep copy of a traced module or its graph; ties between parameters stay."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own pytree specs warn when they are copied
        return copy.deepcopy(traced)


def only_user(node: fx.Node) -> fx.Node | None:
    """The one node that reads `node`, or None if there are more or none."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def value_of(module: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of this qualified name."""
    owner, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)


def sibling(module: nn.Module, name: str, leaf: str) -> str:
    """A free qualified name `leaf` beside `name`."""
    owner = name.rpartition(".")[0]
    while getattr(module.get_submodule(owner), leaf, None) is not None:
        leaf = leaf + "_"
    return f"{owner}.{leaf}" if owner else leaf


def set_parameter(module: nn.Module, name: str, value: Tensor, requires_grad: bool) -> None:
    """Make a new parameter of this name (a tied name keeps the old one)."""
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=requires_grad))


def set_buffer(module: nn.Module, name: str, value: Tensor, persistent: bool = True) -> None:
    """Make a new buffer of this name."""
    owner, _, leaf = name.rpartition(".")
    module.get_submodule(owner).register_buffer(leaf, value, persistent=persistent)


def parameter_uses(module: fx.GraphModule) -> dict[int, int]:
    """`id(tensor)` -> how many calls read it; tied names count together."""
    uses: dict[int, int] = {}
    for node in module.graph.nodes:
        if is_parameter(node):
            key = id(value_of(module, node.target))
            uses[key] = uses.get(key, 0) + len(node.users)
    return uses


def remove_unused(module: fx.GraphModule) -> None:
    """Drop attribute reads that nobody uses, and the parameters and buffers that only they read."""
    graph = module.graph
    for node in reversed(list(graph.nodes)):
        if node.op != "get_attr" or node.users:
            continue
        graph.erase_node(node)
        if node.target == "training" or any(n.op == "get_attr" and n.target == node.target for n in graph.nodes):
            continue
        owner, _, leaf = node.target.rpartition(".")
        delattr(module.get_submodule(owner), leaf)
    graph.lint()
    module.recompile()
