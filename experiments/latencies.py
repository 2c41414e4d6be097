"""Milliseconds of every layer on the configured runtime, kept in the run folder."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from compress.errors import ArtifactError
from compress.latency_table import LatencyTable, measure_latencies
from compress.structure import Structure
from experiments.components import Components
from experiments.settings import Config
from experiments.tracker import to_json

LATENCIES = "latencies.json"
_MEASURED_FOR = "measured_for"


def layer_latencies(path: Path, config: Config, parts: Components, structure: Structure) -> LatencyTable:
    """The table in the file, where it was measured for this network, choices and runtime; else it is measured anew."""
    oracle: Any = parts.oracles["layer_choice"]
    runtime: Any = parts.runtime
    choices = tuple(oracle.layer_choices)
    traced = structure.traced
    measured_for = to_json({
        "model": config.model, "runtime": config.runtime, "choices": [choice.name for choice in choices],
        "inputs": {layer.name: traced.shapes[layer.node.args[0].name][1:] for layer in traced.layers()},
        "number_format": asdict(oracle.number_format),
    })  # fmt: skip
    try:
        table = LatencyTable.load(path)
        if table.about.get(_MEASURED_FOR) == measured_for:
            return table
    except ArtifactError:
        pass  # none yet, or damaged
    table = measure_latencies(
        structure, choices, threads=runtime.threads, runtime=runtime, number_format=oracle.number_format
    )
    table = LatencyTable(table.median_ms, table.spread_ms, {**table.about, _MEASURED_FOR: measured_for})
    table.save(path)
    return table
