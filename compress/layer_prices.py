"""What every layer costs in every choice, as a function of what stays of its inputs and outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from compress.costs import FLOAT_BYTES, CostTable
from compress.errors import CompressError
from compress.layer_choice import LayerChoice
from compress.quantizer import FLOAT_BITS

# Activations of a layer with few-bit weights are taken to have 8 bits where operations are counted by bits.
_ACTIVATION_BITS = 8


@dataclass(frozen=True, eq=False)
class LayerPrices:
    """Costs `product kept_in kept_out + inward kept_in + outward kept_out + fixed`, each `(n_layers, n_choices)`.

    A layer of one weight costs by the product; its scales (or codebooks, ...) and biases by the outputs; the factors of
    a layer of low rank by the inputs and by the outputs, the scales between the two by neither. Scales of groups go
    with the weights, those of whole tensors stay. The bytes of packed weights are rounded up, layer by layer.

    Attributes:
        choices: the columns; the first is the layer as it is, in float32.
        product, inward, outward, fixed: name of the cost -> array.
    """

    choices: tuple[LayerChoice, ...]
    product: Mapping[str, np.ndarray]
    inward: Mapping[str, np.ndarray]
    outward: Mapping[str, np.ndarray]
    fixed: Mapping[str, np.ndarray]

    def cost(
        self, name: str, layer: np.ndarray, kept_in: np.ndarray, kept_out: np.ndarray, choice: np.ndarray
    ) -> np.ndarray:
        """The cost `name` of some layers, in any order and with repeats; all arrays have one entry for each.

        Args:
            layer, choice: row and column.
            kept_in, kept_out: fractions that stay.
        """
        own = layer, choice
        weights = self.product[name][own] * kept_in * kept_out
        if name == "weight_bytes":
            weights = np.ceil(weights - 1e-6)
        sides = self.inward[name][own] * kept_in + self.outward[name][own] * kept_out
        return weights + sides + self.fixed[name][own]

    def total(self, name: str, costs: CostTable, removed: np.ndarray, choice: np.ndarray) -> float:
        """The exact cost `name` of a plan.

        Args:
            removed: `(n_units,)` bool, in the order of `costs`.
            choice: `(n_layers,)` column of each layer.
        """
        kept_in, kept_out = costs.kept_shares(removed)
        return float(self.cost(name, np.arange(len(choice)), kept_in, kept_out, choice).sum())


def price_layers(costs: CostTable, choices: Sequence[LayerChoice]) -> LayerPrices:
    """Prices of all costs that the table knows; the choice float32 is put first.

    `coded_bytes` counts bits per weight as `costs.coded_bits` says of a layer and choice, and nominal ones
    (`LayerChoice.bits_per_weight`) where it says nothing; both kinds of bytes, parameters of `costs.number_format`.

    Raises:
        CompressError: for a latency table that lacks a choice.
    """
    plain = LayerChoice()
    choices = (plain, *(choice for choice in choices if choice != plain))
    n_layers = len(costs.layer_names)
    names = tuple(costs.dense)
    shape = n_layers, len(choices)
    prices = LayerPrices(choices, *({name: np.zeros(shape) for name in names} for _ in range(4)))
    for column, choice in enumerate(choices):
        _price(prices, costs, column, choice)
    return prices


def _price(prices: LayerPrices, costs: CostTable, column: int, choice: LayerChoice) -> None:
    weights, macs = costs.layer_weights, costs.layer_macs
    formatted = weights > 0
    ranks = np.zeros(len(weights)) if choice.rank is None else ranks_of(costs, choice)
    # Layers that are decoded to floats before they run have float activations beside them.
    integers = choice.bits <= _ACTIVATION_BITS and costs.number_format.of(choice).on_integers
    activation_bits = _ACTIVATION_BITS if integers else FLOAT_BITS
    stored_bits, row_bytes = costs.number_format.stored(choice)
    bits = costs.number_format.of(choice).bits_of(choice.bits)
    nominal = replace(choice, bits=bits, scheme=None).bits_per_weight
    per_weight = {
        "macs": np.where(formatted, macs / np.maximum(weights, 1), 0.0),
        # Without coding a zero takes as many bits as any other weight.
        "weight_bytes": np.full(len(weights), stored_bits / 8),
        "coded_bytes": costs.coded_bits.get(choice.name, np.full(len(weights), nominal)) / 8,
    }
    bits_of_a_mac = {"macs": 1, "bit_operations": bits * activation_bits}
    per_weight["bit_operations"] = per_weight["macs"] * bits_of_a_mac["bit_operations"]
    rows = _parameter_rows(costs, choice, ranks)
    for name in prices.product:
        if name == "latency_ms":
            prices.product[name][:, column] = _latency(costs, choice)
            continue
        if choice.rank is None:
            prices.product[name][:, column] = per_weight[name] * weights
        else:
            factors = costs.low_rank[choice.rank_scheme]
            if name in ("macs", "bit_operations"):
                sides = ranks[:, None] * factors.macs * bits_of_a_mac[name]
            else:
                sides = (ranks * per_weight[name])[:, None] * factors.weights
            prices.inward[name][:, column], prices.outward[name][:, column] = sides.T
        # What has no weight to coarsen: products of attention, mixing of tokens.
        if name in ("macs", "bit_operations"):
            rest = np.where(formatted, 0.0, macs) * (1 if name == "macs" else FLOAT_BITS**2)
            prices.product[name][:, column] += rest
        else:
            prices.outward[name][:, column] += FLOAT_BYTES * costs.layer_params
            for side, count in zip((prices.product, prices.inward, prices.outward, prices.fixed), rows, strict=True):
                side[name][:, column] += row_bytes * count


def _parameter_rows(
    costs: CostTable, choice: LayerChoice, ranks: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """How many rows of parameters each layer has, `(product, inward, outward, fixed)` by what they shrink with."""
    how, weights, outputs = costs.number_format, costs.layer_weights, costs.layer_outputs
    none = np.zeros(len(weights))
    if how.granularity == "tensor":
        return none, none, none, np.where(weights > 0, 1.0 if choice.rank is None else 2.0, 0.0)
    if how.granularity == "channel":
        return none, none, outputs, ranks
    if choice.rank is None:
        return outputs * np.ceil(weights / np.maximum(outputs, 1) / how.group_size), none, none, none
    first, second = costs.low_rank[choice.rank_scheme].weights.T
    of_outputs = outputs * np.ceil(ranks * second / np.maximum(outputs, 1) / how.group_size)
    return none, ranks * np.ceil(first / how.group_size), of_outputs, none


def ranks_of(costs: CostTable, choice: LayerChoice) -> np.ndarray:
    """`(n_layers,)` the rank of each layer in a choice with a rank; 0 where the layer can only be one.

    Raises:
        CompressError: if the table does not know what ranks of this scheme cost.
    """
    if choice.rank_scheme not in costs.low_rank:
        raise CompressError(
            f"The cost table does not know what ranks of the scheme {choice.rank_scheme!r} cost. Make it by unit_costs."
        )
    useful = costs.low_rank[choice.rank_scheme].useful_rank
    return np.array([choice.rank_of(int(most)) if most else 0 for most in useful])


def _latency(costs: CostTable, choice: LayerChoice) -> np.ndarray:
    if choice.name not in costs.latency_ms:
        raise CompressError(
            f"The latency table knows nothing of the choice {choice.name!r}. Measure it, or do not bound 'latency_ms'."
        )
    return np.asarray(costs.latency_ms[choice.name], dtype=np.float64)
