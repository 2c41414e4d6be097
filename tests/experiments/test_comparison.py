"""Which examples each seed of a comparison plans with."""

from types import SimpleNamespace

import pytest

from experiments.comparison import _Seed

PARTS = {"calibration": range(100, 300), "label": range(300, 370)}


def dealt(seed: int, images: int = 512, batch_size: int = 256) -> tuple[list[int], list[int]]:
    def batches(part, size, noise):
        examples = list(PARTS[part])
        return [examples[i : i + size] for i in range(0, len(examples), size)]

    config = SimpleNamespace(seed=0, measure=SimpleNamespace(images=images, batch_size=batch_size))
    workbench = SimpleNamespace(config=config, data=SimpleNamespace(**PARTS), batches=batches)
    found = _Seed(SimpleNamespace(experiment=workbench, labels=None), seed)._pool()
    return tuple([example for batch in part for example in batch] for part in found)


def test_the_runs_own_seed_keeps_its_parts():
    calibration, label = dealt(0)
    assert set(calibration) <= set(PARTS["calibration"])
    assert set(label) <= set(PARTS["label"])
    assert len(label) == 64


@pytest.mark.parametrize("seed", [1, 2])
def test_another_seed_deals_both_parts_anew_even_if_there_are_fewer_label_examples_than_asked_for(seed):
    calibration, label = dealt(seed)
    assert label
    assert calibration
    assert not set(calibration) & set(label)
    assert set(label) - set(PARTS["label"])
    assert dealt(seed) == (calibration, label)


def test_fewer_label_examples_are_taken_where_fewer_are_asked_for():
    assert len(dealt(0, images=20, batch_size=20)[1]) == 20
    assert len(dealt(1, images=20, batch_size=20)[1]) == 20
