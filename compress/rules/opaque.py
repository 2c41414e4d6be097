"""Operations whose channels must stay: recurrent layers, sizes."""

from typing import Any

from torch import fx

from compress.graph import ATEN, RECURRENT
from compress.propagation import Propagation, rule


@rule(*RECURRENT)
def recurrent(p: Propagation, node: fx.Node) -> Any:
    """Recurrent layers keep all of their channels."""
    return p.unknown_operation(node, "it belongs to a recurrent layer")


@rule(ATEN.sym_size.int, ATEN.sym_numel.default)
def size(p: Propagation, node: fx.Node) -> None:
    """A number, not a tensor."""
