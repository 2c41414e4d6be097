"""Values inside a model, by the names of its layers: of any module, and of a traced one, which calls no submodules."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from compress.errors import CompressError
from compress.graph import ATEN, layers_of

_CHANNELS_LAST = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.MultiheadAttention)
_CHANNELS_SECOND = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
_LAYER_TARGETS = {ATEN.linear, ATEN.conv1d, ATEN.conv2d, ATEN.conv3d, ATEN.conv_transpose1d, ATEN.conv_transpose2d,
                  ATEN.conv_transpose3d}  # fmt: skip
_CHANNEL_TARGETS = {
    **dict.fromkeys((ATEN.linear, ATEN.embedding, ATEN.layer_norm, ATEN.rms_norm), -1),
    **dict.fromkeys(_LAYER_TARGETS - {ATEN.linear} | {ATEN.batch_norm, ATEN.group_norm, ATEN.instance_norm}, 1),
}


@dataclass(frozen=True)
class ValuePoint:
    """A place whose value can be read.

    Attributes:
        shape: of the value on the example inputs, batch first.
        channel_dim: the dimension that counts channels: 1 behind a convolution, the last one behind a linear layer.
        is_layer: whether it is a conv or linear layer itself.
        is_output: whether the value is what the model returns.
    """

    shape: tuple[int, ...]
    channel_dim: int
    is_layer: bool
    is_output: bool

    @property
    def channels(self) -> int:
        return self.shape[self.channel_dim]

    @property
    def positions(self) -> tuple[int, ...]:
        """Sizes of space or of the sequence: all but batch and channels."""
        last = self.channel_dim % len(self.shape)
        return tuple(size for dim, size in enumerate(self.shape) if dim not in (0, last))


@dataclass(frozen=True)
class _Sighting:
    value: Any
    channel_dim: int | None
    is_layer: bool


class LayerValues:
    """A model that gives its outputs together with the values of named layers.

    Of a layer that runs more than once the last value counts. A plain module runs as it is, with hooks for the time of
    the call; a traced module is interpreted, which gives the same values.

    Args:
        model: any module.
        channel_dims: name -> the dimension of its value that counts channels; empty just runs the model.
    """

    def __init__(self, model: nn.Module, channel_dims: Mapping[str, int]) -> None:
        self.model = model
        self._channel_dims = dict(channel_dims)

    def __call__(self, *inputs: Any) -> tuple[Any, dict[str, Tensor]]:
        """The outputs, and name -> value of shape `(batch, channels, *positions)`.

        Raises:
            CompressError: if a layer did not run, or gave no tensor.
        """
        if not self._channel_dims:
            return self.model(*inputs), {}
        outputs, sightings = _watch(self.model, inputs, self._channel_dims)
        found = {}
        for name, dim in self._channel_dims.items():
            value = sightings[name].value if name in sightings else None
            if not isinstance(value, Tensor):
                raise CompressError(f"Layer {name!r} of {type(self.model).__name__} gave no tensor in this call.")
            found[name] = value.movedim(dim, 1)
        return outputs, found


def value_points(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, ValuePoint]:
    """Every layer and submodule whose value is a float tensor, batch first, in execution order.

    The model runs once on `inputs`, in evaluation mode and without gradients; its modes stay as they were.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            outputs, sightings = _watch(model, inputs, None)
    finally:
        for module, training in modes:
            module.training = training
    batch = next(len(leaf) for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))
    returned = {id(leaf) for leaf in pytree.tree_leaves(outputs)}
    points: dict[str, ValuePoint] = {}
    known: dict[int, int] = {}
    for name, seen in sightings.items():
        value = seen.value
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() < 2 or len(value) != batch:
            continue
        # What has no weights (an activation, a pooling, a block) has its channels where the value before it had them.
        channel_dim = seen.channel_dim if seen.channel_dim is not None else known.get(value.dim(), 1)
        known[value.dim()] = channel_dim
        points[name] = ValuePoint(tuple(value.shape), channel_dim, seen.is_layer, id(value) in returned)
    return points


def _watch(model: nn.Module, inputs: tuple, names: Iterable[str] | None) -> tuple[Any, dict[str, _Sighting]]:
    """Outputs, and what was seen at these names (None: all), in order of their last sighting."""
    sightings: dict[str, _Sighting] = {}
    if isinstance(model, fx.GraphModule):
        return _Watcher(model, None if names is None else set(names), sightings).run(*inputs), sightings
    with _hooked(model, names, sightings):
        return model(*inputs), sightings


@contextlib.contextmanager
def _hooked(model: nn.Module, names: Iterable[str] | None, sightings: dict[str, _Sighting]) -> Iterator[None]:
    modules = dict(model.named_modules())
    wanted = [name for name in (modules if names is None else names) if name in modules and modules[name] is not model]

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any, value: Any) -> None:
            sightings.pop(name, None)
            # A copy, because the next module may work in place.
            kept = value.clone() if names is not None and isinstance(value, Tensor) else value
            sightings[name] = _Sighting(kept, _channel_dim(module), isinstance(module, _LAYERS))

        return hook

    handles = [modules[name].register_forward_hook(note(name)) for name in wanted]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _channel_dim(module: nn.Module) -> int | None:
    if isinstance(module, _CHANNELS_LAST):
        return -1
    return 1 if isinstance(module, _CHANNELS_SECOND) else None


class _Watcher(fx.Interpreter):
    """Runs a graph and notes the values of nodes."""

    def __init__(self, module: fx.GraphModule, names: set[str] | None, sightings: dict[str, _Sighting]) -> None:
        super().__init__(module)
        self._sightings = sightings
        self._names = _names_of_nodes(module)
        if names is not None:
            self._names = {node: [n for n in found if n in names] for node, found in self._names.items()}

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        packet = getattr(node.target, "overloadpacket", None)
        for position, name in enumerate(self._names.get(node, ())):
            is_layer = position == 0 and packet in _LAYER_TARGETS
            self._sightings[name] = _Sighting(value, _CHANNEL_TARGETS.get(packet), is_layer)
        return value


def _names_of_nodes(module: fx.GraphModule) -> dict[fx.Node, list[str]]:
    """Node -> the names whose value it gives: a submodule's is that of its last operation, wherever it was inlined."""
    last: dict[str, fx.Node] = {}
    for node in module.graph.nodes:
        if node.op == "call_function":
            for path, _ in (node.meta.get("nn_module_stack") or {}).values():
                # A second call of the same module is marked by `@1`.
                last[path.partition("@")[0]] = node
    # What is called through `torch.nn.functional` has the name of its weight; a tied weight's own module comes first.
    last = {layer.name: layer.node for layer in layers_of(module)} | last
    nodes: dict[fx.Node, list[str]] = {}
    for name, node in last.items():
        if name:
            nodes.setdefault(node, []).append(name)
    # Inner modules end before those that hold them.
    return {node: sorted(names, key=lambda name: -name.count(".")) for node, names in nodes.items()}
