"""Recipes: the same for the same seed, whatever the size of the zoo; balanced, unique and of sizes in range."""

import collections

import pytest

from compress.errors import CompressError
from experiments.zoo import FAMILIES, PAIRS, TASKS, Recipe, draw_recipes, input_spec, network_size
from experiments.zoo.drawing import MAX_MACS, MAX_PARAMETERS, MIN_PARAMETERS, RANGES
from experiments.zoo.layers import ACTIVATIONS, NORMS


@pytest.fixture(scope="module")
def recipes():
    return draw_recipes(2 * len(PAIRS))


def test_a_longer_zoo_begins_with_the_shorter_one(recipes):
    assert draw_recipes(7) == recipes[:7]


def test_another_seed_gives_other_recipes_of_the_same_pairs(recipes):
    other = draw_recipes(7, seed=1)
    assert [recipe.name for recipe in other] == [recipe.name for recipe in recipes[:7]]
    assert all(a != b for a, b in zip(other, recipes, strict=False))


def test_names_are_unique_and_readable(recipes):
    assert len({recipe.name for recipe in recipes}) == len(recipes)
    assert all(r.name == f"{r.family}-{r.task}-{i:03d}" for i, r in enumerate(recipes))


def test_families_and_tasks_take_turns(recipes):
    counts = collections.Counter((recipe.family, recipe.task) for recipe in recipes)
    assert counts == dict.fromkeys(PAIRS, 2)
    assert {recipe.family for recipe in recipes[: len(FAMILIES)]} == set(FAMILIES)
    assert set(collections.Counter(task for _, task in PAIRS).values()) == {7}


def test_sizes_are_in_range(recipes):
    for recipe in recipes:
        parameters, macs = network_size(recipe)
        assert MIN_PARAMETERS <= parameters <= MAX_PARAMETERS
        assert macs <= MAX_MACS


def test_trainings_span_short_and_long_with_both_optimizers(recipes):
    assert {recipe.optimizer for recipe in recipes} == {"sgd", "adamw"}
    epochs = [recipe.epochs for recipe in recipes if recipe.task == "mnist1d"]
    assert min(epochs) >= 1
    assert max(epochs) > 4 * min(epochs)
    assert {recipe.activation for recipe in recipes} <= set(ACTIVATIONS)
    assert {recipe.norm for recipe in recipes} <= set(NORMS)


def test_every_family_has_ranges_and_every_spec_an_example():
    assert set(RANGES) == set(FAMILIES)
    for task in TASKS:
        spec = input_spec(task)
        assert spec.example(3).shape == (3, *spec.shape)


def test_a_recipe_survives_json_with_other_keys_beside(recipes):
    assert Recipe.from_json({**recipes[0].to_json(), "test_loss": 1.0}) == recipes[0]
    with pytest.raises(CompressError, match="'width'"):
        Recipe.from_json({name: value for name, value in recipes[0].to_json().items() if name != "width"})


def test_wrong_requests_are_refused():
    with pytest.raises(CompressError, match="at least 1"):
        draw_recipes(0)
    with pytest.raises(CompressError, match="'nothing'"):
        input_spec("nothing")
