"""One traced graph serves everything that touches structure: units, gates, slicing, measuring, exporting."""

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx._pytree import tree_flatten_spec
from torch.utils import _pytree as pytree

from compress.capture import capture, fixed_batch
from compress.errors import CompressError, DataError
from compress.normal_form import ATEN, normalize_graph
from compress.size_limits import SizeLimit, refuse_other_sizes, tried_limits

log = logging.getLogger(__name__)
RECURRENT = (ATEN.gru.input, ATEN.lstm.input, ATEN.rnn_tanh.input, ATEN.rnn_relu.input)
_TRAINING_ARGUMENT = {ATEN.batch_norm.default: 5, ATEN.instance_norm.default: 5, ATEN.dropout.default: 2,
                      ATEN.feature_dropout.default: 2, ATEN.alpha_dropout.default: 2, ATEN.rrelu.default: 3,
                      **dict.fromkeys(RECURRENT, 6)}  # fmt: skip
# Without running statistics these normalise with those of the batch in either mode.
_NEEDS_STATISTICS = (ATEN.batch_norm.default, ATEN.instance_norm.default)
LAYER_OPS = {
    ATEN.conv1d.default: "conv", ATEN.conv2d.default: "conv", ATEN.conv3d.default: "conv",
    ATEN.conv1d.padding: "conv", ATEN.conv2d.padding: "conv", ATEN.conv3d.padding: "conv",
    ATEN.conv_transpose1d.default: "conv_transpose", ATEN.conv_transpose2d.input: "conv_transpose",
    ATEN.conv_transpose3d.input: "conv_transpose", ATEN.linear.default: "linear", ATEN.embedding.default: "embedding",
}  # fmt: skip

_PRODUCTS = (ATEN.matmul.default, ATEN.mm.default, ATEN.bmm.default, ATEN.addmm.default, ATEN.baddbmm.default)


@dataclass(frozen=True)
class Layer:
    """One use of a weight: a conv, linear or embedding node of the graph.

    Attributes:
        name: qualified name of the module, or of the parameter where it belongs to none (`layer1.0.conv1`).
        kind: `"conv"`, `"conv_transpose"`, `"linear"` or `"embedding"`.
        node: the call in the graph.
        weight, bias: qualified parameter names; `bias` is None without one.
    """

    name: str
    kind: str
    node: fx.Node
    weight: str
    bias: str | None


@dataclass(frozen=True, eq=False)
class TracedGraph:
    """A model as one graph of ATen operations.

    Attributes:
        module: runs like the model (same inputs, outputs, parameter names), shares its parameters and buffers, and
            follows `train()` and `eval()`.
        inputs: flat example inputs, each a tensor (batch first) or a constant.
        shapes: node name -> shape of its value on the example inputs (a tuple of shapes for several outputs).
        fingerprint: hash of the sorted (parameter name, shape) pairs.
        fixed_batch: the only batch that the module takes, where the forward makes a number of it; None: any.
    """

    module: fx.GraphModule
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shapes: dict[str, Any]
    fingerprint: str
    fixed_batch: int | None = None

    @property
    def graph(self) -> fx.Graph:
        return self.module.graph

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the output (the first, of several) on the example inputs."""
        (node,) = (node for node in self.graph.nodes if node.op == "output")
        return self.shapes[node.all_input_nodes[0].name]

    def layers(self) -> list[Layer]:
        """Every conv, linear and embedding whose weight is a parameter, in execution order."""
        return list(layers_of(self.module))


def layers_of(module: fx.GraphModule) -> Iterator[Layer]:
    """The layers of a traced module, see `TracedGraph.layers`."""
    for node in module.graph.nodes:
        kind = LAYER_OPS.get(node.target) if node.op == "call_function" else None
        if kind is None:
            continue
        weight = node.args[0] if kind == "embedding" else node.args[1]
        if not is_parameter(weight):
            continue
        bias = None if kind == "embedding" or len(node.args) < 3 or node.args[2] is None else node.args[2]
        bias_name = bias.target if is_parameter(bias) else None
        yield Layer(weight.target.removesuffix(".weight"), kind, node, weight.target, bias_name)


def loose_weights(module: fx.GraphModule) -> list[str]:
    """Parameters that multiply without being the weight of a layer (`x @ w`), in execution order."""
    named = dict(module.named_parameters(remove_duplicate=False))
    found = [str(read.target) for node in module.graph.nodes if node.target in _PRODUCTS
             for read in node.args if is_parameter(read) and read.target in named]  # fmt: skip
    return [name for name in dict.fromkeys(found) if named[name].dim() > 1]


def is_parameter(node: Any) -> bool:
    """Whether `node` reads a parameter or buffer of the module."""
    return isinstance(node, fx.Node) and node.op == "get_attr" and node.target != "training"


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def fingerprint(module: nn.Module) -> str:
    """sha256 of the sorted (parameter name, shape) pairs: equal for another seed, not for another architecture."""
    pairs = sorted((name, tuple(p.shape)) for name, p in module.named_parameters(remove_duplicate=False))
    return hashlib.sha256(repr(pairs).encode()).hexdigest()


def as_inputs(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`(args, kwargs)` of a model's forward, from a tensor, or a tuple (args) or dict (kwargs) of its inputs.

    Raises:
        DataError: if there is no tensor, an empty one, or one that is not finite.
    """
    if isinstance(example_inputs, dict):
        args, kwargs = (), dict(example_inputs)
    elif isinstance(example_inputs, (tuple, list)):
        args, kwargs = tuple(example_inputs), {}
    else:
        args, kwargs = (example_inputs,), {}
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not tensors:
        raise DataError(
            "The 'example_inputs' parameter must hold at least one tensor: a tensor, or a tuple or dict of inputs."
        )
    for tensor in tensors:
        if tensor.numel() == 0:
            raise DataError(f"The 'example_inputs' parameter holds an empty tensor of shape {tuple(tensor.shape)}.")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise DataError("The 'example_inputs' parameter holds NaN or infinite values. Pass a clean batch.")
    return args, kwargs


def require_traced(module: Any, function: str) -> None:
    """Raises CompressError, naming the function that was called, for a module that is not one traced graph."""
    if not isinstance(module, fx.GraphModule):
        raise CompressError(
            f"{function} works on a traced module, as apply_plan returns it (with an empty plan nothing is removed). "
            f"Got {type(module).__name__}."
        )


def check_finite(model: nn.Module) -> None:
    """Raises DataError naming the first parameter with NaN or infinite values, or buffer with NaN.

    A buffer may be infinite: that is how attention masks are written.
    """
    for name, value in model.named_parameters():
        if isinstance(value, nn.parameter.UninitializedTensorMixin) or value.is_meta:
            raise DataError(f"Parameter {name!r} has no values yet (lazy or on the meta device). Load them first.")
        if value.is_inference():
            raise DataError(
                f"Parameter {name!r} was made under torch.inference_mode, and no gradient can be taken of it. Build "
                f"the model outside of it, or pass a deepcopy that was made outside."
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise DataError(f"Parameter {name!r} has NaN or infinite values. Load a sound checkpoint.")
    for name, value in model.named_buffers():
        if value.is_floating_point() and torch.isnan(value).any():
            raise DataError(f"Buffer {name!r} has NaN values. Load a sound checkpoint.")


def uncompiled(model: nn.Module) -> nn.Module:
    """What `torch.compile` was called with, whose names are not prefixed and whose forward can be traced."""
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else model


def trace(model: nn.Module, example_inputs: Any) -> TracedGraph:
    """The model as one graph that shares its parameters. The model, its mode and its gradients stay as they are.

    The batch dimension (dim 0 of every tensor) may take any size afterwards, and so may dim 1 of integer inputs
    (tokens); a model whose forward makes a number of its batch is traced with that size, which is said, and refuses
    others. So are sizes refused for which the forward takes another branch, or which it makes a number of.

    Args:
        model: any module that `torch.export` can trace. A traced module is taken as it is.
        example_inputs: a tensor, or a tuple or dict of the forward's inputs, batch first.

    Raises:
        TraceError: if the model cannot be traced, with the place in its source.
        DataError: for empty or non-finite inputs or non-finite parameters.
    """
    if not isinstance(model, nn.Module):
        raise CompressError(f"The 'model' parameter must be a torch.nn.Module. Got {type(model).__name__}.")
    model = uncompiled(model)
    args, kwargs = as_inputs(example_inputs)
    check_finite(model)
    with _left_as_found(model):
        for part in model.modules():
            part.training = False  # not by eval(), which modules that were exported before refuse
        module, args, kwargs, limits = capture(model, args, kwargs)
        normalize_graph(module)
        batch = fixed_batch(module)
        if batch is not None:
            log.warning(
                "The forward of %s fixes the first dimension of its input at %d, that of the example inputs: no other "
                "is taken. Let it work on any (no loop over examples, no int() of a size), or pass batches of %d.",
                type(model).__name__, batch, batch,
            )  # fmt: skip
        _share_parameters(module, model)
        _follow_mode(module)
        shapes = record_shapes(module, args, kwargs)
        if batch is not None:
            values = [node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder"]
            first = next(i for i, value in enumerate(values) if isinstance(value, Tensor) and value.dim())
            limits = [SizeLimit(first, 0, batch, batch), *limits]
        limits += tried_limits(model, module.eval(), args, kwargs, flat_inputs(module, args, kwargs), batch)
        if limits:
            refuse_other_sizes(module, limits)
            module.recompile()
            shapes = record_shapes(module, args, kwargs)
    module.train(model.training)
    return TracedGraph(module, args, kwargs, shapes, fingerprint(model), batch)


@contextlib.contextmanager
def _left_as_found(model: nn.Module) -> Iterator[None]:
    """Afterwards modes, buffers, flags of gradients and the generators of random numbers are what they were."""
    modes = [(module, module.training) for module in model.modules()]
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, mode in modes:
            module.training = mode
        for parameter in frozen:
            parameter.requires_grad_(False)
        for buffer, value in buffers:
            if not torch.equal(buffer, value):
                buffer.copy_(value)


def _share_parameters(module: fx.GraphModule, model: nn.Module) -> None:
    """Put the model's own parameters and buffers into the graph's module, so that tied weights stay tied.

    A tied weight is read by the first of its names.
    """
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    first: dict[int, str] = {}
    own = {name: first.setdefault(id(value), name) for name, value in named}
    for name, value in named:
        owner, _, leaf = name.rpartition(".")
        persistent = leaf not in model.get_submodule(owner)._non_persistent_buffers_set
        place(module, name, value, persistent)
    for node in module.graph.nodes:
        if node.op == "get_attr" and node.target in own:
            node.target = own[node.target]


def place(module: nn.Module, name: str, value: Tensor, persistent: bool = True) -> None:
    """Make `value` the parameter or buffer of this qualified name, in place; modules on the way are made."""
    owner, _, leaf = name.rpartition(".")
    holder = module
    for part in owner.split(".") if owner else ():
        if part not in holder._modules:
            holder.add_module(part, nn.Module())
        holder = holder._modules[part]
    for registry in (holder._parameters, holder._buffers, holder.__dict__):
        registry.pop(leaf, None)
    if isinstance(value, nn.Parameter):
        holder.register_parameter(leaf, value)
    else:
        holder.register_buffer(leaf, value, persistent=persistent)


def _follow_mode(module: fx.GraphModule) -> None:
    """Wire the mode arguments of batch norm and dropout to `module.training`."""
    graph = module.graph
    mode = None
    for node in list(graph.nodes):
        position = _TRAINING_ARGUMENT.get(node.target) if node.op == "call_function" else None
        if position is None or (node.target in _NEEDS_STATISTICS and node.args[3] is None):
            continue
        if mode is None:
            with graph.inserting_before(next(iter(graph.nodes))):
                mode = graph.create_node("get_attr", "training", name="training")
        if len(node.args) > position:
            node.update_arg(position, mode)
        else:
            node.kwargs = {**node.kwargs, node.target._schema.arguments[position].name: mode}
    dead = [n for n in graph.nodes if n.op == "get_attr" and not n.users]
    for node in dead:
        graph.erase_node(node)
    # Export forbids train() and eval() and checks input shapes in hooks: a traced module behaves like any other.
    for name in ("train", "eval"):
        module.__dict__.pop(name, None)
    module._forward_pre_hooks.clear()
    module._forward_pre_hooks_with_kwargs.clear()
    module.recompile()


class _ShapeRecorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, Any] = {}

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        self.shapes[node.name] = pytree.tree_map(
            lambda leaf: tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf, value
        )
        return value


def flat_inputs(module: fx.GraphModule, args: tuple, kwargs: dict) -> list[Any]:
    """The inputs in the order of the graph's placeholders, also those by position of a module traced with names."""
    in_spec = module.graph._codegen.pytree_info.in_spec
    if args and not kwargs and in_spec.child(1).context:
        return pytree.tree_leaves(args)
    named = {name: kwargs[name] for name in in_spec.child(1).context}
    return list(tree_flatten_spec((tuple(args), named), in_spec))


def record_shapes(module: fx.GraphModule, args: tuple, kwargs: dict) -> dict[str, Any]:
    """Node name -> shape (or tuple of shapes) of its value on these inputs, in evaluation mode."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            recorder = _ShapeRecorder(module)
            recorder.run(*flat_inputs(module, args, kwargs), enable_io_processing=False)
    finally:
        module.train(was_training)
    return recorder.shapes
