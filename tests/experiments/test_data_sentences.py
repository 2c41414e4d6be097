"""Sentence pairs and the task on them, with closed-form answers."""

import pytest
import torch
from torch import nn

from compress import evaluate
from compress.errors import DataError
from compress.task import Task
from experiments.data import make_batches
from experiments.data.stsb import SentencePairPart
from experiments.embedding_task import EmbeddingTask


def pairs(n: int = 4) -> SentencePairPart:
    """Pair `i` has sentences of `n - i` tokens, all equal to `i + 1` and `i + 2`."""
    tokens = torch.zeros(n, 2, n, dtype=torch.int64)
    lengths = torch.zeros(n, 2, dtype=torch.int64)
    for i in range(n):
        tokens[i, 0, : n - i], tokens[i, 1, : n - i] = i + 1, i + 2
        lengths[i] = n - i
    return SentencePairPart(tokens, lengths, torch.arange(n).double(), torch.arange(n), "train")


class Angles(nn.Module):
    """Token id -> a point on the unit circle: the angle within a pair grows with the pair's number."""

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.05 * sign))

    def forward(self, input_ids, attention_mask):
        mean = (input_ids.float() * attention_mask).sum(1) / attention_mask.sum(1)
        angle = self.rate * mean**2
        return torch.stack([angle.cos(), angle.sin()], dim=1)


def test_a_batch_pads_to_its_longest_sentence_and_keeps_pairs_together():
    first, second = make_batches(pairs(4), 2)
    # Short pairs come first, so that little is padded.
    tokens, mask, gold, pair, target = first
    assert tokens.tolist() == [[4, 0], [5, 0], [3, 3], [4, 4]]
    assert mask.tolist() == [[1, 0], [1, 0], [1, 1], [1, 1]]
    assert gold.tolist() == [3.0, 3.0, 2.0, 2.0]
    assert pair.tolist() == [3, 3, 2, 2]
    assert target.shape == (4, 0)
    assert second[0].shape == (4, 4)
    assert {len(column) for column in first} == {4}


def test_the_task_follows_the_seam():
    assert isinstance(EmbeddingTask(), Task)


def test_spearman_is_perfect_inverted_or_flat_by_construction():
    task = EmbeddingTask()
    batches = make_batches(pairs(4), 3)
    # The angle of pair i is rate (2 i + 3): the cosine falls as the gold score rises.
    outputs = torch.cat([Angles()(*task.inputs(batch)) for batch in batches])
    assert task.score(outputs, batches) == pytest.approx(-100.0)
    flipped = [(batch[0], batch[1], -batch[2], *batch[3:]) for batch in batches]
    assert task.score(outputs, flipped) == pytest.approx(100.0)
    assert task.score(torch.ones(8, 2), batches) == 0.0


def test_half_a_pair_cannot_be_scored():
    task = EmbeddingTask()
    (batch,) = make_batches(pairs(4), 4)
    half = tuple(column[:3] for column in batch)
    with pytest.raises(DataError, match="both sentences of every pair"):
        task.score(torch.zeros(3, 2), [half])


def test_the_loss_is_the_squared_distance_to_the_dense_embedding():
    task, dense = EmbeddingTask(), Angles()
    batches = task.attach_targets(dense, make_batches(pairs(4), 4))
    assert evaluate(dense, task, batches)[1] == 0.0
    opposite = torch.stack([-batches[0][4][:, 0], -batches[0][4][:, 1]], dim=1)
    assert torch.allclose(task.loss(opposite, batches[0]), torch.full((8,), 4.0))


def test_the_loss_without_targets_says_what_to_do():
    task = EmbeddingTask()
    (batch,) = make_batches(pairs(4), 4)
    with pytest.raises(DataError, match="attach_targets"):
        task.loss(torch.zeros(8, 2), batch)


def test_noise_has_the_length_asked_for_and_gives_gradients():
    task, dense = EmbeddingTask(), Angles()
    exact = task.attach_targets(dense, make_batches(pairs(4), 4))
    noisy = task.attach_targets(dense, make_batches(pairs(4), 4), noise=0.1, seed=1)
    assert torch.allclose((noisy[0][4] - exact[0][4]).norm(dim=1), torch.full((8,), 0.1))
    gradients = []
    for batches in (exact, noisy):
        outputs = dense(*task.inputs(batches[0]))
        gradients.append(torch.autograd.grad(task.loss(outputs, batches[0]).sum(), dense.rate)[0].item())
    assert gradients[0] == 0.0
    assert gradients[1] != 0.0
    with pytest.raises(DataError, match="'noise' parameter"):
        task.attach_targets(dense, exact, noise=-1.0)


def test_attaching_targets_leaves_the_mode_alone():
    dense = Angles().train()
    EmbeddingTask().attach_targets(dense, make_batches(pairs(4), 4))
    assert dense.training
