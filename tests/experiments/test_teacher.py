"""The remembering teacher: asked once about each batch, and the same training as with the dense model."""

import torch
from torch import nn

from compress import ClassificationTask, finetune_
from experiments import teacher as module
from experiments.teacher import RememberingTeacher


def make_net(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def batches():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(5, 4, generator=generator), torch.randint(0, 3, (5,), generator=generator)) for _ in range(3)]


def test_training_is_the_same_and_each_batch_is_computed_once():
    dense, first, second = make_net(0), make_net(1), make_net(1)
    remembering = RememberingTeacher(dense)
    finetune_(first, ClassificationTask(), batches(), teacher=dense, epochs=2)
    finetune_(second, ClassificationTask(), batches(), teacher=remembering, epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert (remembering.asked, remembering.computed) == (6, 3)


def test_another_precision_shape_or_number_is_another_batch():
    remembering, x = RememberingTeacher(make_net(0)), torch.zeros(2, 4)
    with torch.no_grad():
        full = remembering(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert remembering(x).dtype == torch.bfloat16
        assert remembering(x.reshape(1, 2, 4)).shape == (1, 2, 3)
        remembering(x + 1e-7)
        assert remembering.computed == 4
        assert remembering(x) is full


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "_MOST_BYTES", 2 * 3 * 4)
    remembering = RememberingTeacher(make_net(0))
    with torch.no_grad():
        for number in (0, 1, 0, 1):
            remembering(torch.full((2, 4), float(number)))
    assert remembering.computed == 3
