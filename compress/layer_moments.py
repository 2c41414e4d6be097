"""Second moments of what each conv and linear layer multiplies its weight with, on calibration data."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from compress.attributes import parameter_uses, value_of
from compress.errors import DataError
from compress.fake_quantization import QuantizedWeight, quantized_weights
from compress.formatted_weight import weight_masks
from compress.graph import as_inputs, flat_inputs, is_parameter
from compress.least_squares import cross_product
from compress.lockstep import Walk
from compress.patches import LinearMap, linear_map

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class WeightReader:
    """The one call that multiplies a weight with its inputs.

    Attributes:
        layer: its name.
        parameter: qualified name of the weight.
        node: the call in the graph.
        map: how it multiplies the weight.
        quantized: where the weight is fake-quantised, or None.
        mask: the call that holds the weight's zeros, or None.
    """

    layer: str
    parameter: str
    node: fx.Node
    map: LinearMap
    quantized: QuantizedWeight | None
    mask: fx.Node | None

    @property
    def calls(self) -> list[fx.Node]:
        """All that is computed from the weight, in execution order: mask, fake-quantiser, and `node`."""
        rounded = None if self.quantized is None else self.quantized.node
        return [call for call in (self.mask, rounded, self.node) if call is not None]

    def weight(self, module: fx.GraphModule) -> Tensor:
        """The weight in float, detached; what its mask removes is zero."""
        weight = value_of(module, self.parameter).detach()
        return weight if self.mask is None else module.get_submodule(self.mask.target)(weight)

    def rows(self, weight: Tensor) -> Tensor:
        """`(groups, out_ch / groups, in_ch / groups * kernel)`: a tensor of the weight's shape as a matrix."""
        return self.map.matrix(weight).transpose(1, 2)


def weight_readers(module: fx.GraphModule) -> list[WeightReader]:
    """Every conv and linear whose weight is used by it alone, fake-quantised, masked or not, in execution order."""
    uses, masks = parameter_uses(module), weight_masks(module)
    quantized = {entry.node: entry for entry in quantized_weights(module)}
    found = []
    for node in module.graph.nodes:
        if node.op != "call_function" or len(node.args) < 2 or not isinstance(node.args[1], fx.Node):
            continue
        entry = quantized.get(node.args[1])
        seen = entry.node.args[0] if entry else node.args[1]
        mask = seen if seen in masks else None
        read = seen if mask is None else mask.args[0]
        if not is_parameter(read):
            continue
        weight = value_of(module, read.target)
        how = linear_map(node, weight)
        if how is None:
            continue
        # Behind a mask several may read what reads the weight once.
        if max(uses[id(weight)], len(seen.users)) > 1:
            _log.info("%s is used more than once: its weight is not updated.", read.target)
            continue
        found.append(WeightReader(read.target.removesuffix(".weight"), read.target, node, how, entry, mask))
    return found


def collect_layer_moments(
    module: fx.GraphModule, batches: Sequence[Any], *, max_rows: int = 50_000, seed: int = 0
) -> dict[str, Tensor]:
    """Name of each weight -> `(groups, n_inputs, n_inputs)` float64 E[x x^T] of the rows it is multiplied with.

    Convs are multiplied with patches: `n_inputs` counts channels of a group times kernel positions. Weights that are
    used more than once, transposed convs and embeddings have none.

    Args:
        module: a traced module, in float or prepared; it is run in evaluation mode.
        batches: tuples or dicts of the forward's inputs, as the module was traced.
        max_rows: rows (examples x positions) of each layer; positions are drawn at random above it.
        seed: of that drawing.

    Raises:
        DataError: without batches, or for a value that is not finite.
    """
    visits = visit_readers(module, batches, weight_readers(module), max_rows=max_rows, seed=seed)
    return {reader.parameter: moment for reader, moment in visits}


def visit_readers(
    module: fx.GraphModule,
    batches: Sequence[Any],
    readers: Sequence[WeightReader],
    *,
    max_rows: int = 50_000,
    seed: int = 0,
    changing: bool = False,
) -> Iterator[tuple[WeightReader, Tensor]]:
    """Each reader with the second moment of its inputs, in execution order, in one run over all batches together.

    Args:
        module, batches, max_rows, seed: see `collect_layer_moments`.
        readers: of this module.
        changing: the weight may be changed between two visits; later ones then see what the changed layer gives.
    """
    flat = [tuple(flat_inputs(module, *as_inputs(batch))) for batch in batches]
    if not flat:
        raise DataError("The 'batches' parameter must hold at least one calibration batch. Got none.")
    generator = torch.Generator().manual_seed(seed)
    of = {reader.node: reader for reader in readers}
    with _evaluating(module), torch.no_grad():
        walk = Walk(module, flat)
        for node in walk.nodes():
            if node not in of:
                continue
            yield of[node], _moment(walk, of[node], max_rows, generator)
            for call in of[node].calls if changing else ():
                walk.run(call)
                walk.forget(call)


def _moment(walk: Walk, reader: WeightReader, max_rows: int, generator: torch.Generator) -> Tensor:
    """`(groups, n, n)` of the values that are there now."""
    pairs = [(values[reader.node.args[0].name], values[reader.node.name].shape) for values in walk.values]
    wanted = max(1, max_rows // sum(shape[0] for _, shape in pairs))
    total, count = 0.0, 0
    for x, shape in pairs:
        n = reader.map.positions(shape)
        chosen = torch.randperm(n, generator=generator)[:wanted].to(x.device) if wanted < n else None
        rows = reader.map.input_rows(x, shape, chosen)
        total, count = total + cross_product(rows, rows), count + rows.shape[1]
    if not torch.isfinite(total).all():
        raise DataError(f"The inputs of layer {reader.layer!r} are NaN or infinite on the calibration data.")
    return total / count


@contextmanager
def _evaluating(module: fx.GraphModule) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
