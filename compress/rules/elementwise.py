"""Operations that treat every element alike, and those that make values out of nothing."""

import operator
from typing import Any

from torch import fx

from compress.dimensions import Value
from compress.graph import ATEN
from compress.propagation import Propagation, rule


@rule("pointwise", ATEN.where.self, ATEN.where.ScalarOther, ATEN.where.ScalarSelf, ATEN.where.Scalar,
      ATEN.masked_fill.Scalar, ATEN.masked_fill.Tensor, ATEN.hardswish.default, ATEN.log_sigmoid.default,
      ATEN.__and__.Tensor, ATEN.__and__.Scalar, ATEN.__or__.Tensor, ATEN.__or__.Scalar, ATEN.true_divide.Scalar,
      ATEN.divide.Tensor, ATEN.divide.Scalar, ATEN.divide.Tensor_mode, ATEN.divide.Scalar_mode, ATEN.multiply.Tensor,
      ATEN.multiply.Scalar, ATEN.subtract.Tensor, ATEN.subtract.Scalar, ATEN.rsub.Tensor, ATEN.fix.default,
      ATEN.absolute.default, ATEN.negative.default, ATEN.arctan2.default, ATEN.special_expit.default,
      ATEN.floor_divide.default, ATEN.floor_divide.Scalar, ATEN.not_equal.Tensor, ATEN.not_equal.Scalar,
      ATEN.greater.Tensor, ATEN.greater.Scalar, ATEN.copy.default, ATEN.fill.Scalar, ATEN.fill.Tensor,
      ATEN.zero.default, ATEN.bernoulli.default, ATEN.bernoulli.p, ATEN.rand_like.default,
      ATEN.randn_like.default)  # fmt: skip
def broadcast(p: Propagation, node: fx.Node) -> Any:
    """Elementwise: dimensions are aligned from the right; equal sizes are joined."""
    shape = p.shape(node)
    if not isinstance(shape, tuple):
        return None
    inputs = [value for value in map(p.value, node.all_input_nodes) if isinstance(value, Value)]
    return p.align(node, inputs, shape)


@rule(ATEN.dropout.default, ATEN.feature_dropout.default, ATEN.alpha_dropout.default, ATEN.contiguous.default,
      ATEN.clone.default, ATEN.alias.default, ATEN.detach.default, ATEN.detach_.default, ATEN.to.dtype,
      ATEN.to.dtype_layout, ATEN.to.device, ATEN.to.other, ATEN._to_copy.default, ATEN.type_as.default,
      ATEN.lift_fresh_copy.default, ATEN.zeros_like.default, ATEN.ones_like.default, ATEN.full_like.default,
      ATEN.empty_like.default)  # fmt: skip
def keep(p: Propagation, node: fx.Node) -> Any:
    """The first input's dimensions."""
    return p.value(node.args[0])


@rule(operator.getitem)
def item(p: Propagation, node: fx.Node) -> Any:
    """One of several outputs."""
    value = p.value(node.args[0])
    return value[node.args[1]] if isinstance(value, (tuple, list)) else None


@rule(ATEN.prelu.default)
def prelu(p: Propagation, node: fx.Node) -> Value:
    """One slope per channel (dim 1), or one for all."""
    x, weight = p.value(node.args[0]), p.value(node.args[1])
    if weight is None or weight.shape[0] == 1:
        return x
    return x.replace(1, x.shape[1], p.join(x.labels[1], weight.labels[0], node), x.batch[1])


@rule(ATEN.zeros.default, ATEN.ones.default, ATEN.full.default, ATEN.empty.memory_format, ATEN.new_zeros.default,
      ATEN.new_ones.default, ATEN.new_full.default)  # fmt: skip
def create(p: Propagation, node: fx.Node) -> Any:
    """Constants take the channels of whatever they meet."""
    shape = p.shape(node)
    value = p.plain(node, shape)
    sizes = node.args[1] if "new" in node.target.__name__ else node.args[0]
    for dim, size in enumerate(sizes):
        if isinstance(size, int) and size > 1 and value.batch[dim] is None:
            value = value.replace(dim, size, p.atoms.new(size, free=True))
    return value
