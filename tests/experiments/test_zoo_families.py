"""Every family on every task that it suits: it builds, traces, loses half of its channels, and still gives numbers."""

import dataclasses

import pytest
import torch
from torch import nn

import compress
from compress.counting import count_macs
from experiments.zoo import FAMILIES, PAIRS, build_network, draw_recipes, input_spec, network_size
from experiments.zoo.drawing import RANGES
from experiments.zoo.layers import make_norm
from experiments.zoo.recipe import Recipe


def tiny_recipe(family, task, norm=None, **changes):
    ranges, kind = RANGES[family], input_spec(task).kind
    recipe = Recipe(
        name=f"{family}-{task}-000", family=family, task=task, seed=3, width=8, depth=2, activation="silu",
        norm=norm or ranges.norm[0], optimizer="sgd", lr=0.05, weight_decay=0.0, epochs=1, batch_size=64,
        train_fraction=0.25, kernel=ranges.kernel[kind][0], heads=2 if family == "attention" else 1, expansion=1.5,
        pooling=ranges.pooling[kind][0],
    )  # fmt: skip
    return dataclasses.replace(recipe, **changes)


def n_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def half_of_each_group(units):
    rows = {group: [] for group in units.groups}
    for unit, group, removable in zip(units.ids, units.group.tolist(), units.removable, strict=True):
        if removable:
            rows[group].append(unit)
    return [unit for ids in rows.values() for unit in ids[: len(ids) // 2]]


# Images of two sizes make the same units.
@pytest.mark.parametrize(("family", "task"), [pair for pair in PAIRS if pair[1] != "small_mnist"])
def test_half_of_every_group_can_go(family, task):
    recipe = tiny_recipe(family, task)
    network, example = build_network(recipe).eval(), input_spec(task).example()
    structure = compress.analyze(network, (example,))
    assert len(structure.units.groups) >= 2
    layers = {name.rpartition(".")[0] or name for name, _ in structure.units.blocked}
    assert layers <= {"classifier", "gru", "embedding", *([""] if family == "recurrent" else [])}
    plan = compress.CompressionPlan.removing(structure.units, half_of_each_group(structure.units))
    small = compress.apply_plan(structure, plan)
    outputs = small(input_spec(task).example(5))
    assert outputs.shape == (5, input_spec(task).classes)
    assert torch.isfinite(outputs).all()
    assert n_parameters(small) < n_parameters(network)


@pytest.mark.parametrize("norm", ["layer", "group", "none"])
def test_every_norm_of_convolutions_can_be_pruned(norm):
    recipe = tiny_recipe("residual", "mnist1d", norm)
    network, example = build_network(recipe).eval(), input_spec("mnist1d").example()
    structure = compress.analyze(network, (example,))
    plan = compress.CompressionPlan.removing(structure.units, half_of_each_group(structure.units))
    assert torch.isfinite(compress.apply_plan(structure, plan)(example)).all()


def test_weights_follow_from_the_recipe_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (build_network(tiny_recipe("mlp", "digits", seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    weights = [network.classifier.weight for network in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("family", ["mlp", "conv2d", "attention"])
def test_sizes_without_weights_are_those_of_the_network(family):
    recipe = next(recipe for recipe in draw_recipes(8) if recipe.family == family)
    network = build_network(recipe)
    example = input_spec(recipe.task).example()
    assert network_size(recipe) == (n_parameters(network), count_macs(network, (example,)))


def test_a_gru_is_counted_by_hand():
    # 4 steps of 16 pixels: 3 x 8 x (16 + 8) each; then 8 x 12, 12 x 12 and 12 x 10.
    _, macs = network_size(tiny_recipe("recurrent", "digits", kernel=2))
    assert macs == 4 * 3 * 8 * (16 + 8) + 8 * 12 + 12 * 12 + 12 * 10


def test_a_family_that_does_not_suit_the_task_is_refused():
    with pytest.raises(compress.CompressError, match=r"'conv2d'.*does not suit the task 'mnist1d'"):
        build_network(dataclasses.replace(tiny_recipe("conv2d", "digits"), task="mnist1d"))
    with pytest.raises(compress.CompressError, match="does not suit"):
        build_network(dataclasses.replace(tiny_recipe("mlp", "digits"), family="nothing"))


@pytest.mark.parametrize(
    ("name", "dims", "kind"),
    [("batch", 2, nn.BatchNorm2d), ("layer", 0, nn.LayerNorm), ("layer", 1, nn.GroupNorm), ("rms", 0, nn.RMSNorm)],
)
def test_norms_by_name(name, dims, kind):
    assert isinstance(make_norm(name, 8, dims), kind)


def test_every_family_is_one_class():
    assert len({family.network for family in FAMILIES.values()}) == len(FAMILIES)
