"""Training elsewhere: what is moved, and that it comes back. `meta` stands for a device that is always there."""

import pytest
import torch
from torch import nn

from compress import ClassificationTask, analyze, finetune_
from experiments.data import ShuffledBatches, load_digits
from experiments.placement import PlacedBatches, is_available, move, placed

META = torch.device("meta")


class Positions(nn.Module):
    """Makes a tensor of its own."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(8, 3)

    def forward(self, x):
        return x + self.table(torch.arange(x.shape[1], device=x.device))


def test_known_devices():
    assert is_available("cpu")
    assert not is_available("cuba")
    assert is_available("cuda") == torch.cuda.is_available()


def test_a_traced_model_goes_and_comes_back_with_the_tensors_it_makes():
    x = torch.randn(2, 5, 3)
    model = analyze(Positions(), x).traced.module
    expected = model(x)
    with placed([model, nn.Linear(2, 2)], torch.device("cpu")):
        pass
    assert torch.equal(model(x), expected)
    move(model, META)
    assert model(x.to(META)).device == META
    model.to_empty(device="cpu")  # nothing comes back from a device without memory
    move(model, torch.device("cpu"))
    assert model(x).device.type == "cpu"


def test_batches_are_moved_when_their_turn_comes_and_keep_their_epochs():
    data = load_digits()
    plain, moved = ShuffledBatches(data.train, 32, seed=1), PlacedBatches(ShuffledBatches(data.train, 32, seed=1), META)
    assert len(plain) == len(moved)
    assert all(leaf.device == META for batch in moved for leaf in batch)
    here = PlacedBatches(ShuffledBatches(data.train, 32, seed=1), torch.device("cpu"))
    for batches in (plain, here):
        batches.set_epoch(3)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(plain, here, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_training_on_a_gpu():
    data, model = load_digits(), nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    device = torch.device("cuda")
    with placed([model], device):
        finetune_(model, ClassificationTask(), PlacedBatches(ShuffledBatches(data.train, 32), device), epochs=5)
    assert next(model.parameters()).device.type == "cpu"
