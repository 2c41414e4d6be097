"""Calibration data made of nothing but a model: inputs whose batch-norm statistics are those of its training data."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from compress.attributes import value_of
from compress.errors import CompressError, DataError
from compress.graph import ATEN, as_inputs, flat_inputs, is_parameter

# Where a channel hardly ever varied, its spread is compared on the scale of this part of the layer's usual spread.
_LEAST_SPREAD = 1e-3


def synthesize_batches(
    module: fx.GraphModule,
    example_inputs: Any,
    *,
    n_batches: int = 4,
    batch_size: int = 64,
    steps: int = 200,
    lr: float = 0.1,
    seed: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
) -> list[tuple[Tensor, ...]]:
    """Batches of inputs under which every batch norm sees the mean and variance that it has stored.

    Noise is changed by gradient descent until it does (Cai et al. 2020, "ZeroQ", arXiv:2001.00281; Yin et al. 2020,
    "DeepInversion", arXiv:1912.08795, without labels and priors on images). Such inputs look like no data, but what is
    behind a batch norm has ranges near those of real data. The inputs themselves have not: no batch norm has seen them.
    The model, its mode, gradients and the global random state stay as they are.

    Args:
        module: a traced module, before batch norms are folded.
        example_inputs: a tensor, or a tuple or dict of the forward's inputs, of which shapes and types are taken only.
        n_batches: number of batches; each one is made by itself.
        batch_size: examples of each. Statistics of few positions need many examples.
        steps: gradient steps for each batch.
        lr: of Adam, in units of the noise's standard deviation, 1.
        seed: of the noise.
        progress: called after every step with the steps done, all steps, and `statistics_distance` before the step.

    Returns:
        Tuples of the forward's inputs in the order of the graph, usable wherever calibration batches are.

    Raises:
        CompressError: if the model has no batch norm with stored statistics, or for a setting out of range.
        DataError: for inputs that are no float tensors.
    """
    for name, value, least in (("n_batches", n_batches, 1), ("batch_size", batch_size, 2), ("steps", steps, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise CompressError(
                f"The '{name}' parameter of synthesize_batches must be an int of at least {least}. Got {value!r}."
            )
    leaves = check_inputs_can_be_made(module, example_inputs)
    generator = torch.Generator().manual_seed(seed)
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        found = []
        for number in range(n_batches):
            noise = [torch.randn(batch_size, *leaf.shape[1:], generator=generator).to(leaf) for leaf in leaves]

            def done(step: int, loss: float, before: int = number * steps) -> None:
                if progress is not None:
                    progress(before + step, n_batches * steps, loss)

            found.append(_descend(module, noise, steps, lr, done))
        return found
    finally:
        for part, training in modes:
            part.training = training


def check_inputs_can_be_made(module: fx.GraphModule, example_inputs: Any) -> list[Tensor]:
    """The forward's inputs in the order of the graph, all of a kind that `synthesize_batches` makes. Computes nothing.

    Raises:
        CompressError: if the model has no batch norm with stored statistics. DataError: for inputs that are no float
            tensors.
    """
    _check_norms(module)
    leaves = flat_inputs(module, *as_inputs(example_inputs))
    if not all(isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() for leaf in leaves):
        raise DataError("Inputs can be made for models only whose inputs are all float tensors. Tokens cannot.")
    return leaves


def statistics_distance(module: fx.GraphModule, batch: Any) -> float:
    """How far the statistics of a batch are from those stored: 0 if every batch norm sees what it has stored.

    The mean over batch norms of the channels' mean of `((mean - stored) / spread)^2 + (std / stored std - 1)^2`, in
    evaluation mode.

    Raises:
        CompressError: if the model has no batch norm with stored statistics.
    """
    _check_norms(module)
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            return float(_distance(module, flat_inputs(module, *as_inputs(batch))))
    finally:
        for part, training in modes:
            part.training = training


def _check_norms(module: fx.GraphModule) -> None:
    if not any(_has_statistics(node) for node in module.graph.nodes):
        raise CompressError(
            "The model has no batch norm with stored statistics, which tell what its data looked like. Use real "
            "calibration data, or pass the module as it was before its batch norms were folded."
        )


def _has_statistics(node: fx.Node) -> bool:
    return node.target is ATEN.batch_norm.default and is_parameter(node.args[3]) and is_parameter(node.args[4])


def _descend(
    module: fx.GraphModule, noise: list[Tensor], steps: int, lr: float, done: Callable[[int, float], None]
) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        inputs = [value.requires_grad_() for value in noise]
        optimizer = torch.optim.Adam(inputs, lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(1, steps + 1):
            # A forward may write over its inputs, which leaves do not allow.
            loss = _distance(module, [value.clone() for value in inputs])
            if not torch.isfinite(loss):
                raise DataError("The batch statistics of the inputs made are not finite. Lower the 'lr' parameter.")
            for value, gradient in zip(inputs, torch.autograd.grad(loss, inputs, allow_unused=True), strict=True):
                value.grad = gradient
            optimizer.step()
            schedule.step()
            done(step, float(loss.detach()))
    return tuple(value.detach() for value in inputs)


class _Listener(fx.Interpreter):
    """Runs the graph and adds up how far the inputs of each batch norm are from what it has stored."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.distances: list[Tensor] = []

    def run_node(self, node: fx.Node) -> Any:
        if _has_statistics(node):
            # At once: what comes later may write over these values.
            x = self.env[node.args[0]].transpose(0, 1).flatten(1)
            mean, variance = (value_of(self.module, node.args[i].target).detach() for i in (3, 4))
            spread = (variance + node.args[7]).sqrt()
            floor = _LEAST_SPREAD * spread.mean()
            spread = spread.clamp_min(floor)
            std = (x.var(1, correction=0) + node.args[7]).sqrt()
            self.distances.append((((x.mean(1) - mean) / spread).square() + (std / spread - 1).square()).mean())
        return super().run_node(node)


def _distance(module: fx.GraphModule, inputs: list[Any]) -> Tensor:
    listener = _Listener(module)
    listener.run(*inputs, enable_io_processing=False)
    return torch.stack(listener.distances).mean()
