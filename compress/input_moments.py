"""Second moments of what the layers of a model multiply their weights with."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from compress.attributes import value_of
from compress.errors import DataError
from compress.graph import layers_of
from compress.least_squares import cross_product
from compress.patches import LinearMap, linear_map
from compress.task import outputs_of

# Beyond this many inputs of one output a second moment is not worth its memory.
MOST_INPUTS = 4096


def collect_input_moments(
    module: fx.GraphModule,
    batches: Sequence[tuple[Any, ...]],
    layers: Collection[str] | None = None,
    max_rows: int = 20_000,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Layer name -> `(n, n)` float64 mean of z z^T over examples and positions.

    z are the `n = in_ch * kernel` inputs of one output, in the order of the weight, padding included. Convs with
    groups, transposed convs, embeddings and layers with more than 4096 inputs are left out. One forward pass in
    evaluation mode; module, gradients and RNG stay as they are.

    Args:
        module: a traced module.
        batches: flat inputs of the forward, for each batch.
        layers: names of the layers to look at; None for all.
        max_rows: examples times positions of each layer; positions are drawn at random above it.
        seed: of that drawing.

    Raises:
        DataError: without a batch, or for moments that are not finite.
    """
    if not batches:
        raise DataError("The 'batches' parameter of collect_input_moments must hold at least one batch. Got none.")
    probe = _InputProbe(module, layers, max(1, max_rows // len(batches)), seed)
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            for batch in batches:
                outputs_of(probe.run, batch)
    finally:
        module.train(was_training)
    moments = {name: total / probe.counts[name] for name, total in probe.sums.items()}
    for name, moment in moments.items():
        if not torch.isfinite(moment).all():
            raise DataError(f"The inputs of layer {name!r} are NaN or infinite on the calibration data. Clean it.")
    return moments


class _InputProbe(fx.Interpreter):
    """Adds up z z^T of every layer it comes by."""

    def __init__(self, module: fx.GraphModule, layers: Collection[str] | None, rows_per_batch: int, seed: int) -> None:
        super().__init__(module)
        self._maps: dict[fx.Node, tuple[str, LinearMap]] = {}
        for layer in layers_of(module):
            weight = value_of(module, layer.weight)
            how = linear_map(layer.node, weight)
            fits = how is not None and how.groups == 1 and weight[0].numel() <= MOST_INPUTS
            if fits and (layers is None or layer.name in layers):
                self._maps[layer.node] = layer.name, how
        self._rows, self._seed = rows_per_batch, seed
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def run_node(self, node: fx.Node) -> Any:
        out = super().run_node(node)
        if node in self._maps:
            name, how = self._maps[node]
            x = self.env[node.args[0]]
            if x.dim() >= how.dims + 2:
                self._add(name, how, x, out.shape)
        return out

    def _add(self, name: str, how: LinearMap, x: Tensor, shape: torch.Size) -> None:
        n, wanted = how.positions(shape), max(1, self._rows // shape[0])
        seen = self.counts.get(name, 0)
        # Another seed for each batch, and none that depends on which other layers are looked at.
        generator = torch.Generator().manual_seed(self._seed + seen)
        chosen = torch.randperm(n, generator=generator)[:wanted].to(x.device) if wanted < n else None
        rows = how.input_rows(x, shape, chosen).double()
        self.sums[name] = self.sums.get(name, 0.0) + cross_product(rows, rows)[0]
        self.counts[name] = seen + rows.shape[1]
