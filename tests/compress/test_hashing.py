"""Hashes of tensors and settings."""

import numpy as np
import pytest
import torch
from torch import nn

from compress.hashing import hash_state, hash_values

SAME = [torch.tensor([1.0, 2.0]), {"a": 1, "b": (None, True, "x")}, np.arange(3)]


@pytest.mark.parametrize(
    "other",
    [
        [torch.tensor([1.0, 2.5]), *SAME[1:]],
        [torch.tensor([1.0, 2.0], dtype=torch.float64), *SAME[1:]],
        [torch.tensor([[1.0, 2.0]]), *SAME[1:]],
        [SAME[0], {"a": 1, "b": (None, True, "y")}, SAME[2]],
        [SAME[0], SAME[1], np.arange(3) + 1],
        [SAME[0], {"c": 1, "b": (None, True, "x")}, SAME[2]],
        [SAME[0], {"a": 1, "b": (None, (True, "x"))}, SAME[2]],
    ],
)
def test_any_difference_counts(other):
    assert hash_values(SAME) != hash_values(other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.bool, torch.int64, torch.float32])
def test_equal_values_hash_alike(dtype):
    value = torch.tensor([[0, 1], [1, 1]]).to(dtype)
    assert hash_values(value) == hash_values(value.t().contiguous().t())
    assert hash_values(value[0, 0]) == hash_values(value[0, 0].clone())


def test_names_of_weights_count():
    a, b = nn.Sequential(nn.Linear(2, 2)), nn.ModuleDict({"x": nn.Linear(2, 2)})
    b["x"].load_state_dict(a[0].state_dict())
    assert hash_state(a) != hash_state(b)
    assert hash_state(a) == hash_state(nn.Sequential(a[0]))
