"""Hard-concrete gates: each weight, or each output channel, is multiplied by a number that learns to be exactly 0 or 1.

Louizos, Welling, Kingma 2018, "Learning Sparse Neural Networks through L0 Regularization" (ICLR, arXiv:1712.01312).
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from compress.errors import CompressError
from compress.layer_weights import LayerWeight, layer_weights

# Temperature of the concrete distribution, and the ends that it is stretched to before it is cut to [0, 1].
BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
PER = ("weight", "channel")
_TINY = 1e-6


class HardConcreteGate(nn.Module):
    """Multiplies a weight by gates in [0, 1]: drawn anew at each use while training, fixed in evaluation mode.

    The gate is `clip(s (zeta - gamma) + gamma, 0, 1)` with `s = sigmoid((log u - log(1 - u) + log_alpha) / beta)` and u
    uniform; in evaluation mode `s = sigmoid(log_alpha)`. The draws come from torch's global generator, as those of
    dropout do.

    Args:
        weight: the gated weight; gives shape, dtype and device.
        axis: the dimension with one gate per index; None for one gate per weight.
        initial: sigmoid(log_alpha) at the start, in (0, 1).
    """

    def __init__(self, weight: Tensor, axis: int | None, initial: float) -> None:
        super().__init__()
        self._shape = [n if axis in (None, dim) else 1 for dim, n in enumerate(weight.shape)]
        self.weights_per_gate = weight.numel() // math.prod(self._shape)
        # Flat, so that weight decay, which is for weights, leaves it alone.
        start = torch.full((math.prod(self._shape),), math.log(initial / (1 - initial)))
        self.log_alpha = nn.Parameter(start.to(weight))
        self.order: tuple[str, ...] = ()

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.gates().reshape(self._shape)

    def gates(self) -> Tensor:
        """`(n_gates,)` in [0, 1]."""
        if not self.training:
            opened = torch.sigmoid(self.log_alpha)
        else:
            u = torch.rand_like(self.log_alpha).clamp(_TINY, 1 - _TINY)
            opened = torch.sigmoid((u.log() - (1 - u).log() + self.log_alpha) / BETA)
        return (opened * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def expected_count(self) -> Tensor:
        """Expected number of weights whose gate is not 0: `sum of sigmoid(log_alpha - beta log(-gamma / zeta))`."""
        open_ = torch.sigmoid(self.log_alpha - BETA * math.log(-GAMMA / ZETA))
        return self.weights_per_gate * open_.sum(dtype=torch.float64)


def add_gates_(
    model: nn.Module, *, per: str = "weight", layers: Sequence[str] | None = None, initial: float = 0.95
) -> list[str]:
    """Gate the weights of conv and linear layers, in place; the names of the gated layers.

    In evaluation mode a model with `initial` of at least 11/12 computes what it did before.

    Args:
        per: `"weight"`, or `"channel"`: one gate for all weights of an output channel.
        layers: names of the layers; None for all.
        initial: sigmoid(log_alpha) at the start, in (0, 1).

    Raises:
        CompressError: for a setting out of range, an unknown layer, one that has gates already, or a weight that
            several modules of an untraced model share.
    """
    check_gates(per, initial)
    weights = layer_weights(model, layers)
    for weight in weights:
        _check_free(model, weight)
    for weight in weights:
        owner, leaf = _place(model, weight.parameter)
        value = getattr(owner, leaf)
        gate = HardConcreteGate(value.detach(), None if per == "weight" else weight.axis, initial)
        gate.order = tuple(owner._parameters)
        # Unsafe skips a trial call, which would draw random numbers.
        parametrize.register_parametrization(owner, leaf, gate.train(owner.training), unsafe=True)
    return [weight.layer for weight in weights]


def check_gates(per: str, initial: float) -> None:
    """Raises CompressError for settings of gates that are out of range."""
    if per not in PER:
        raise CompressError(f"The 'per' parameter of gates must be one of {PER}. Got {per!r}.")
    if not 0 < initial < 1:
        raise CompressError(f"The 'initial' parameter of gates must be in (0, 1). Got {initial!r}.")


def gates_of(model: nn.Module) -> Iterator[HardConcreteGate]:
    """All gates of a model."""
    return (module for module in model.modules() if isinstance(module, HardConcreteGate))


def bake_gates_(model: nn.Module) -> None:
    """Multiply the weights by their gates of evaluation mode and take the gates away, in place.

    The parameters stay the same objects under the same names; closed gates leave exact zeros. Without gates nothing
    happens.
    """
    for owner in list(model.modules()):
        if not parametrize.is_parametrized(owner):
            continue
        for leaf in reversed(list(owner.parametrizations.keys())):
            gates = [gate for gate in owner.parametrizations[leaf] if isinstance(gate, HardConcreteGate)]
            if gates:
                _bake(owner, leaf, gates[0])


def _bake(owner: nn.Module, leaf: str, gate: HardConcreteGate) -> None:
    weight = owner.parametrizations[leaf].original
    gate.eval()
    with torch.no_grad():
        baked = gate(weight)
    parametrize.remove_parametrizations(owner, leaf, leave_parametrized=False)
    with torch.no_grad():
        weight.copy_(baked)
    # It came back as the last of the module's parameters, whose order an optimizer's state counts on.
    parameters = owner._parameters
    for name in [*gate.order, *(name for name in list(parameters) if name not in gate.order)]:
        if name in parameters:
            parameters[name] = parameters.pop(name)


def _check_free(model: nn.Module, weight: LayerWeight) -> None:
    owner, leaf = _place(model, weight.parameter)
    if parametrize.is_parametrized(owner, leaf):
        raise CompressError(f"The weight of layer {weight.layer!r} is parametrized already. Call bake_gates_ first.")
    if isinstance(model, fx.GraphModule):
        return
    value = getattr(owner, leaf)
    sharing = [name for name, other in model.named_parameters(remove_duplicate=False) if other is value]
    if len(sharing) > 1:
        raise CompressError(
            f"Modules share the weight {' and '.join(sharing)}, so that one gate cannot serve all. Trace the model "
            f"first (compress.graph.trace), or choose other 'layers'."
        )


def _place(model: nn.Module, parameter: str) -> tuple[nn.Module, str]:
    owner, _, leaf = parameter.rpartition(".")
    return model.get_submodule(owner), leaf
