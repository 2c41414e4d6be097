"""Milliseconds of every layer in every choice, measured on an engine: what `CostTable.latency_ms` is made of."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from compress.attributes import value_of
from compress.errors import ArtifactError, CompressError
from compress.exporters.onnx import export_onnx
from compress.factor_formats import factorize_plan
from compress.files import read_json, write_json
from compress.graph import Layer, trace
from compress.layer_choice import LayerChoice
from compress.number_format import SYMMETRIC, NumberFormat
from compress.plan import CompressionPlan, LayerFormat
from compress.product_counting import example_count
from compress.quantization import prepare_quantized
from compress.quantizers.minmax import MinMaxQuantizer
from compress.runtimes.onnxruntime import OnnxRuntime, measure_latency
from compress.splitting import find_splits
from compress.structure import Structure

SCHEMA_VERSION = 1
_LEAST_MS = 1e-6  # of a layer that takes no more than the call itself


@dataclass(frozen=True)
class LatencyTable:
    """Measured time of layers, each in a file of its own.

    Attributes:
        median_ms: name of a `LayerChoice` -> layer name -> milliseconds of a batch, the fastest pass.
        spread_ms: the same of the slowest pass over the fastest: how far not to trust it.
        about: `batch`, `threads`, `repeats`, `passes`, `runtime`, `cpu`, `vnni`.
    """

    median_ms: Mapping[str, Mapping[str, float]]
    spread_ms: Mapping[str, Mapping[str, float]]
    about: Mapping[str, Any]

    def for_layers(self, layer_names: Sequence[str]) -> dict[str, np.ndarray]:
        """`CostTable.latency_ms` of a cost table with these layers; 0 for what is no layer (norms, embeddings).

        Raises:
            CompressError: if the table is of other layers.
        """
        known = self.median_ms["32bit"]
        strange = sorted(known.keys() - set(layer_names))
        if strange:
            raise CompressError(f"The latency table is of another model: it has a layer {strange[0]!r}. Measure again.")
        return {choice: np.array([times.get(name, 0.0) for name in layer_names])
                for choice, times in self.median_ms.items()}  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write the table as JSON, atomically."""
        write_json(path, {"schema_version": SCHEMA_VERSION, **asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> "LatencyTable":
        """Read what `save` wrote. Raises ArtifactError if it is missing, damaged, or of another schema version."""
        data = read_json(path)
        if not isinstance(data, dict) or data.pop("schema_version", None) != SCHEMA_VERSION:
            raise ArtifactError(f"{path} is not a latency table of schema version {SCHEMA_VERSION}.")
        try:
            tables = [{choice: {name: _time(value) for name, value in times.items()} for choice, times in part.items()}
                      for part in (data["median_ms"], data["spread_ms"])]  # fmt: skip
            if not tables[0]["32bit"].keys() == set().union(*tables[0].values()):
                raise ValueError("not every choice has every layer")
            return cls(*tables, dict(data["about"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"{path} is not a valid latency table: {error}. Measure again.") from error


def measure_latencies(
    structure: Structure,
    choices: Sequence[LayerChoice] = (),
    *,
    batch: int = 1,
    threads: int = 1,
    repeats: int = 200,
    passes: int = 3,
    runtime: OnnxRuntime | None = None,
    number_format: NumberFormat = SYMMETRIC,
) -> LatencyTable:
    """The time of every conv and linear layer in float32, 8 bits and each choice, once for each shape.

    Each layer runs in a file of its own on inputs of its own shape, and the time of a call that does nothing is taken
    off. The engine multiplies integers of up to 8 bits as 8-bit integers, whatever their bits and zeros, so choices
    that differ in nothing else share a time; formats that are decoded to floats have the time of float32; ranks are
    measured as two layers.

    What it does not know: in a network integers pass from layer to layer, here each quantises its input and gives
    floats; activations and norms may be fused or not; data may lie in the cache. And a machine is not as fast at all
    times: passes over all layers, one after another, show by how much. So sums of this table order plans and are no
    promise: time the exported file. (Tables of layer times: Wu et al. 2019, "FBNet", arXiv:1812.03443.)

    Args:
        structure: the analysed model.
        choices: as the scores name them; float32 and 8 bits are always measured, since allocators price both.
        batch: examples per run.
        threads, repeats, runtime: as in `measure_latency`.
        passes: over all layers, 1 or more; of each layer the fastest counts.
        number_format: of choices in 8 bits or less that have no scheme of their own.

    Raises:
        CompressError: for counts below 1, or a model without such a layer. ArtifactError: if the engine fails.
    """
    if isinstance(passes, bool) or not isinstance(passes, int) or passes < 1:
        raise CompressError(
            f"The 'passes' parameter of measure_latencies must be an int of at least 1. Got {passes!r}."
        )
    choices = tuple(dict.fromkeys((LayerChoice(), *choices, LayerChoice(8))))
    layers = [layer for layer in structure.traced.layers() if layer.kind != "embedding"]
    if not layers:
        raise CompressError("The 'structure' parameter of measure_latencies must have a conv or linear. It has none.")
    keys: list[str] = []
    benches: dict[str, _Bench] = {}
    with tempfile.TemporaryDirectory() as folder:
        for layer in layers:
            alone, x = _alone(structure, layer, batch)
            keys.append(repr((layer.kind, x.shape, alone.layer.weight.shape, alone.rest, alone.bias is None)))
            if keys[-1] not in benches:
                benches[keys[-1]] = _Bench(alone, x, batch, choices, number_format, Path(folder) / str(len(benches)))
        for _ in range(passes):
            for bench in benches.values():
                bench.measure(threads, repeats, runtime)
    median: dict[str, dict[str, float]] = {choice.name: {} for choice in choices}
    spread: dict[str, dict[str, float]] = {choice.name: {} for choice in choices}
    for layer, key in zip(layers, keys, strict=True):
        for choice in choices:
            times = benches[key].times(choice)
            # A layer that is used twice takes twice the time.
            median[choice.name][layer.name] = median[choice.name].get(layer.name, 0.0) + min(times)
            spread[choice.name][layer.name] = max(times) - min(times)
    return LatencyTable(median, spread, benches[keys[0]].about | {"passes": passes})


class _Alone(nn.Module):
    """One call of a layer."""

    def __init__(self, node: fx.Node, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.layer = nn.Module()
        self.layer.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.op, self.rest, self.named = node.target, node.args[3:], dict(node.kwargs)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x, self.layer.weight, self.bias, *self.rest, **self.named)


class _Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :1]


def _alone(structure: Structure, layer: Layer, batch: int) -> tuple[_Alone, Tensor]:
    """The layer as a model, and random inputs in the shape of its own."""
    module, node = structure.traced.module, layer.node
    weight = value_of(module, layer.weight).detach().cpu().clone()
    bias = value_of(module, layer.bias).detach().cpu().clone() if layer.bias else None
    first, *others = structure.traced.shapes[node.args[0].name]
    # Windows or positions of an example may lie in the first dimension too.
    rows = max(1, first * batch // example_count(structure, node.args[0]))
    x = torch.randn(rows, *others, generator=torch.Generator().manual_seed(0), dtype=weight.dtype)
    return _Alone(node, weight, bias).eval(), x


class _Bench:
    """Files of one layer in every choice, and their times."""

    def __init__(
        self, alone: _Alone, x: Tensor, batch: int, choices: Sequence[LayerChoice], number_format: NumberFormat,
        folder: Path,
    ) -> None:  # fmt: skip
        module = trace(alone, x).module
        self._x, self._batch = x, batch
        self._passes: list[list[float]] = []
        self.about: dict[str, Any] = {}
        folder.mkdir()
        self._paths = [folder / "nothing.onnx"]
        export_onnx(trace(_Nothing(), x).module, x, self._paths[0])
        self._place: dict[LayerChoice, int] = {}
        known: dict[str, int] = {}
        for choice in choices:
            plan = _plan(module, choice, number_format)
            if repr(plan) not in known:
                known[repr(plan)] = len(self._paths)
                self._paths.append(folder / f"{len(self._paths)}.onnx")
                export_onnx(_stored(module, plan, x), x, self._paths[-1])
            self._place[choice] = known[repr(plan)]

    def measure(self, threads: int, repeats: int, runtime: OnnxRuntime | None) -> None:
        """Time every file once more, the files taking turns."""
        found = measure_latency(self._paths, self._x, threads, len(self._x), repeats, runtime)
        self._passes.append([latency.median_ms for latency in found])
        told = asdict(found[0]) | {"batch": self._batch}
        self.about = {name: value for name, value in told.items() if not name.endswith("_ms")}

    def times(self, choice: LayerChoice) -> list[float]:
        """Milliseconds in each pass, without those of the call."""
        return [max(times[self._place[choice]] - times[0], _LEAST_MS) for times in self._passes]


def _plan(module: fx.GraphModule, choice: LayerChoice, number_format: NumberFormat) -> CompressionPlan:
    """What the engine is given for a choice."""
    splits, _ = find_splits(module, choice.rank_scheme)
    rank = choice.rank_of(splits["layer"].useful_rank) if "layer" in splits else None
    factors = {"rank": rank, "rank_scheme": choice.rank_scheme if rank else "channel"}
    if choice.bits > 8 or not number_format.of(choice).on_integers:
        formats = {"layer": LayerFormat(32, scheme="float32", **factors)} if rank else {}
        return CompressionPlan(layer_formats=formats)
    return CompressionPlan(layer_formats={"layer": LayerFormat(8, **factors)}, activation_bits=8)


def _stored(module: fx.GraphModule, plan: CompressionPlan, x: Tensor) -> fx.GraphModule:
    low = factorize_plan(module, plan)
    return prepare_quantized(low, plan, [(x,)], MinMaxQuantizer()) if plan.activation_bits else low


def _time(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{value!r} is no time")
    return float(value)
