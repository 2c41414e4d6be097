"""What storing the layers of one network otherwise costs, alone and together: two tables of the label bank."""

from collections.abc import Sequence

import numpy as np

from autolabel.choice_bench import DENSE, ChoiceBench
from autolabel.measuring import measure
from autolabel.oracle import Moments, Oracle
from autolabel.oracles import LayerChoiceOracle, RepairedLayerChoiceOracle
from compress.layer_choice import LayerChoice
from experiments.seeding import derive_seed
from experiments.subject import Subject

Table = dict[str, np.ndarray]


def choice_tables(
    subject: Subject, bits: Sequence[int], densities: Sequence[float], configs: int, repaired: bool = True
) -> tuple[Table, Table]:
    """`(choices, configs)` of one network.

    A choice is a number of bits or a density; damages are measured on the label examples, those of configurations on
    test examples too, which judge and teach nothing.

    Args:
        bits: widths that keep all weights; 32 bits go with each of the densities below 1.
        densities: parts of the weights that stay.
        configs: random configurations, a choice drawn for every layer.
        repaired: measure each choice also after the weights made up for it, see `RepairedLayerChoiceOracle`.
    """
    structure, task = subject.structure, subject.task
    offers = [LayerChoiceOracle(bits), LayerChoiceOracle((32,), densities=densities)]
    oracles = [oracle for oracle in offers if oracle.choices]
    offered = [choice for oracle in oracles for choice in oracle.layer_choices]
    bench = ChoiceBench(structure, task, oracles[0].quantizer, offered)
    n_layers, n_offered = len(bench.layers), len(offered)
    choices = {
        "network": np.zeros(n_layers * n_offered, dtype=np.int64),
        "layer": np.repeat(np.array(bench.layers, dtype=str), n_offered),
        "choice": np.tile(np.array([choice.name for choice in offered], dtype=str), n_layers),
        "bits": np.tile(np.array([choice.bits for choice in offered]), n_layers),
        "density": np.tile(np.array([choice.density for choice in offered]), n_layers),
        "weights": np.repeat(np.array(bench.sizes), n_offered),
        "weight_error": bench.storing_error(),
        "fisher_error": bench.storing_error(bench.fisher(subject.scored)),
        **_damages(subject, bench.layers, oracles),
    }
    if repaired:
        again = [RepairedLayerChoiceOracle(o.bits, densities=o.densities, seed=subject.seed) for o in oracles]
        choices |= {f"{name}_repaired": value for name, value in _damages(subject, bench.layers, again).items()}
    return choices, _configs(subject, bench, offered, configs)


def _damages(subject: Subject, layers: Sequence[str], oracles: Sequence[Oracle]) -> Table:
    """`(n_layers * n_choices,)` damage, standard error and mean cost of each choice alone."""
    rows = subject.structure.units.positions(layers)
    tables = [measure(subject.structure, None, subject.task, subject.label, oracle) for oracle in oracles]
    spent = [np.full(len(table.choices), table.forward_macs / (len(rows) * len(table.choices))) for table in tables]
    return {
        **{name: np.concatenate([getattr(table, name)[rows] for table in tables], axis=1).reshape(-1)
           for name in ("damage", "std_err")},
        "macs": np.tile(np.concatenate(spent), len(rows)),
    }  # fmt: skip


def _configs(subject: Subject, bench: ChoiceBench, offered: Sequence[LayerChoice], count: int) -> Table:
    picks = bench.draw(count, derive_seed("configs", subject.seed))
    dense = [DENSE] * len(bench.layers)
    parts = {"label": subject.label, "test": subject.bench.judged["test"]}
    known = {part: bench.losses(dense, batches) for part, batches in parts.items()}
    table: dict[str, list[object]] = {name: [] for name in ("choices", "damage_label", "std_err_label",
                                                            "damage_test")}  # fmt: skip
    for plan in picks:
        table["choices"].append(" ".join(offered[pick].name for pick in plan))
        for part, batches in parts.items():
            moments = Moments()
            moments.add(bench.losses(plan, batches) - known[part])
            table[f"damage_{part}"].append(moments.mean)
            if part == "label":
                table["std_err_label"].append(moments.std_err)
    macs = float(subject.costs.dense_macs * len(known["label"]))
    return {
        "network": np.zeros(count, dtype=np.int64),
        "choices": np.array(table.pop("choices"), dtype=str),
        **{name: np.array(values, dtype=np.float64) for name, values in table.items()},
        "macs": np.full(count, macs),
    }
