"""Batch norms taken into the layers before them: the same outputs, and still trainable."""

import pytest
import torch
from torch import nn

from compress.folding import fold_batch_norm
from compress.graph import trace


def _settled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norms with statistics and weights that are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for value in (module.running_var, module.weight, module.running_mean, module.bias):
                if value is not None:
                    value.data = 0.5 + torch.rand(value.shape, generator=generator)
    return model.eval()


class _Flattened(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3, affine=False)
        self.fc, self.fc_norm = nn.Linear(12, 5), nn.BatchNorm1d(5)

    def forward(self, x):
        return self.fc_norm(self.fc(self.norm(self.conv(x)).relu().flatten(1)))


class _Twice(nn.Module):
    """One conv with two norms: neither can be taken in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    def forward(self, x):
        return self.b(self.conv(self.a(self.conv(x))))


CASES = {
    "conv": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()), 1),
    "conv with bias, groups": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4)), 1),
    "transposed, groups": (
        lambda: nn.Sequential(nn.ConvTranspose2d(2, 6, 2, stride=2, groups=2, bias=False), nn.BatchNorm2d(6)), 1),
    "flattened": (_Flattened, 2),
    "norm before conv": (lambda: nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3)), 0),
    "shared conv": (_Twice, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_folding_changes_nothing_and_takes_in_what_it_can(name):
    make, folded_norms = CASES[name]
    x = torch.randn(4, 2, 2, 2) if name == "flattened" else torch.randn(4, 2, 6, 6)
    model = _settled(make())
    module = trace(model, x).module
    before = {key: value.clone() for key, value in module.state_dict().items()}
    folded = fold_batch_norm(module, x)
    assert torch.allclose(folded(x), model(x), atol=1e-5)
    norms = [sum("batch_norm" in node.name for node in m.graph.nodes) for m in (module, folded)]
    assert norms[0] - norms[1] == folded_norms
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    folded.train()(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in folded.parameters())


def test_what_is_to_stay_stays():
    x = torch.randn(4, 2, 6, 6)
    model = _settled(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)))
    folded = fold_batch_norm(trace(model, x).module, x, keep={"1.running_mean"})
    assert "1.running_mean" in folded.state_dict()
    # Without shapes a norm behind a linear stays: it may see sequences.
    flat = _settled(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    module = trace(flat, torch.randn(5, 3)).module
    assert "1.running_mean" in fold_batch_norm(module).state_dict()
    assert "1.running_mean" not in fold_batch_norm(module, torch.randn(5, 3)).state_dict()
