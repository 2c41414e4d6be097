"""A trained net on real digits: divided, repaired, saved, exported."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from compress.counting import count_macs
from compress.exporters.onnx import export_onnx
from compress.finetuning import finetune_
from compress.input_moments import collect_input_moments
from compress.low_rank import Factorization, factorize
from compress.runtimes.onnxruntime import check_export
from compress.splitting import find_splits
from compress.structure import analyze
from compress.task import ClassificationTask

TASK = ClassificationTask()
CALIBRATION = 160


@pytest.fixture(name="digits", scope="module")
def scikit_learns_digits():
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)[order], torch.tensor(labels)[order]
    return (x[:1200], y[:1200]), (x[1200:], y[1200:])


@pytest.fixture(name="trained", scope="module")
def a_trained_net(digits):
    x, y = digits[0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))  # fmt: skip
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        for _ in range(8):
            for start in range(0, len(x), 64):
                optimizer.zero_grad()
                F.cross_entropy(model(x[start : start + 64]), y[start : start + 64]).backward()
                optimizer.step()
    return model.eval()


def score(module, batch):
    with torch.no_grad():
        outputs = module(batch[0])
    return float(F.cross_entropy(outputs, batch[1])), float((outputs.argmax(1) == batch[1]).double().mean())


@pytest.mark.parametrize("scheme", ["channel", "spatial"])
def test_from_a_net_to_a_file(digits, trained, scheme, tmp_path):
    train, test = digits
    x = train[0][:CALIBRATION]
    structure = analyze(trained, x[:2])
    module = structure.traced.module
    second = collect_input_moments(module, [(x,)])
    splits, _ = find_splits(module, scheme)
    # The first conv and the classifier are too narrow to give up half of their directions.
    ranks = {name: Factorization(int(0.35 * split.n_weights / sum(split.per_rank)), scheme)
             for name, split in splits.items() if name in ("3", "7", "12")}  # fmt: skip
    assert len(ranks) == 3
    plain, low = factorize(module, ranks), factorize(module, ranks, second)
    assert count_macs(low, x) < 0.5 * count_macs(structure)
    dense, without, aware = (score(m, test) for m in (trained, plain, low))
    assert dense[1] > 0.97
    assert aware[0] < 0.7 * without[0], "outputs matter, not weights"
    assert aware[1] > 0.9
    batches = [(train[0][start : start + 60], train[1][start : start + 60]) for start in range(0, 1200, 60)]
    finetune_(low, TASK, batches, teacher=trained, epochs=1, seed=0)
    tuned = score(low.eval(), test)
    assert tuned[1] > max(aware[1], dense[1] - 0.03)
    shapes_alone = factorize(module, ranks)
    shapes_alone.load_state_dict(low.state_dict())
    assert torch.equal(shapes_alone.eval()(test[0]), low.eval()(test[0]))
    file = export_onnx(low, x[:1], tmp_path / "low.onnx")
    assert check_export(file.path, low, test[0][:50]).rms_relative < 1e-5
