"""How much of what a network computes still reaches its outputs, if each layer passes on only a part of it."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import fx

from compress.structure import Structure

_ATEN = torch.ops.aten
# What comes out of these is the sum, or the collection, of what goes in; of all others it is a product, so that what is
# lost on one way in is lost.
_SUMS = {_ATEN.add.Tensor, _ATEN.add_.Tensor, _ATEN.sub.Tensor, _ATEN.cat.default, _ATEN.stack.default}


class SignalPaths:
    """The part of the variance of each value that layers leave explained, followed through the graph.

    A layer multiplies it by one minus its own error; where values are added or put together it is their mean, weighted
    by their variances, so that a shortcut carries past a branch what the branch loses. Errors of one layer after
    another do not add up to more than all there is, which sums of errors do.

    Args:
        structure: of the model.
        variances: name of a node -> variance of its output over examples, summed over elements; of those whose sum or
            collection another node is.
    """

    def __init__(self, structure: Structure, variances: Mapping[str, float]) -> None:
        places: dict[fx.Node, int] = {}
        # Of each value: the call, and where it comes from with which weight; none of a product.
        self._steps: list[tuple[str, list[int], np.ndarray | None]] = []
        self._outputs: list[int] = []
        for node in structure.traced.module.graph.nodes:
            sources = [places[source] for source in node.all_input_nodes if source in places]
            if node.op == "output":
                self._outputs = sources[:1]
            if node.op != "placeholder" and (not sources or node.op == "output"):
                continue
            weights = None
            if node.target in _SUMS and len(sources) > 1:
                named = [variances.get(source.name, 0.0) for source in node.all_input_nodes if source in places]
                weights = np.maximum(named, 1e-12) / np.maximum(named, 1e-12).sum()
            places[node] = len(self._steps)
            self._steps.append((node.name, sources, weights))

    def lost(self, errors: Mapping[str, np.ndarray], n_plans: int) -> np.ndarray:
        """`(n_plans,)` part in [0, 1] of the outputs that is not explained any more.

        Args:
            errors: call of a layer -> `(n_plans,)` part in [0, 1] of its output that it loses of itself.
        """
        kept: list[np.ndarray] = []
        for name, sources, weights in self._steps:
            value = np.ones(n_plans)
            if weights is not None:
                value = sum(
                    (weight * kept[source] for weight, source in zip(weights, sources, strict=True)), np.zeros(n_plans)
                )
            else:
                for source in sources:
                    value = value * kept[source]
            if name in errors:
                value = value * (1.0 - np.clip(errors[name], 0.0, 1.0))
            kept.append(value)
        return 1.0 - kept[self._outputs[0]] if self._outputs else np.zeros(n_plans)
