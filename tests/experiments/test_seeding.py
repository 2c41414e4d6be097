"""Randomness derived by name."""

import random

import numpy as np
import pytest
import torch

from compress.errors import CompressError
from experiments.seeding import derive_seed, generator, numpy_generator, seed_run, seeded, set_threads


def test_seeds_differ_by_name_and_seed_and_stay_the_same():
    seeds = {derive_seed(name, seed) for name in ("finetune", "train", "1/finetune") for seed in range(20)}
    assert len(seeds) == 60
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed("finetune", 0) == derive_seed("finetune", 0)


def test_generators_repeat_and_leave_global_state_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    a = torch.rand(4, generator=generator("finetune", 1))
    assert torch.equal(a, torch.rand(4, generator=generator("finetune", 1)))
    assert not torch.equal(a, torch.rand(4, generator=generator("finetune", 2)))
    b = numpy_generator("sampling", 1).random(4)
    assert np.array_equal(b, numpy_generator("sampling", 1).random(4))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert before[2] == random.getstate()


def test_seeded_makes_initialisation_repeatable_and_restores_state():
    before = torch.get_rng_state(), random.getstate()
    weights = []
    for _ in range(2):
        with seeded("model", 0):
            weights.append(torch.nn.Linear(3, 3).weight.detach())
            random.random()
    assert torch.equal(*weights)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


def test_seed_run_seeds_the_global_sources():
    with torch.random.fork_rng():
        seed_run(7)
        first = torch.rand(2), random.random()
        seed_run(7)
        assert torch.equal(first[0], torch.rand(2))
        assert first[1] == random.random()


def test_threads_are_set_and_checked():
    before = torch.get_num_threads()
    try:
        assert set_threads(1) == 1
        with pytest.raises(CompressError, match="'threads'"):
            set_threads(0)
    finally:
        torch.set_num_threads(before)
