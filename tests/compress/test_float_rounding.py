"""Rounded floats: float16's where it reaches, never zero, and quantised weights stay."""

import pytest
import torch
from torch import nn

from compress.context_coding import mantissa_bits
from compress.errors import CompressError
from compress.fake_quantization import quantized_weights
from compress.float_rounding import round_floats_
from compress.graph import trace
from compress.plan import CompressionPlan, LayerFormat
from compress.quantization import prepare_quantized
from compress.quantizers.minmax import MinMaxQuantizer


def _linear(values):
    module = nn.Linear(len(values), 1, bias=False)
    module.weight.data = torch.tensor([values])
    return module


def test_known_values():
    # 1 + 2^-11 lies in the middle between two float16 and goes to the even one; 1 + 3 * 2^-11 too.
    module = round_floats_(_linear([1 + 2**-11, 1 + 3 * 2**-11, -0.3, 0.0, 1e-7, float("inf")]))
    expected = [1.0, 1 + 2**-9, float(torch.tensor(-0.3).half()), 0.0]
    assert module.weight[0, :4].tolist() == expected
    assert module.weight[0, 4].item() == pytest.approx(1e-7, rel=2**-11)
    assert module.weight[0, 5].item() == float("inf")
    # 8 bits: two behind the point.
    assert round_floats_(_linear([1.1, 1.13, 5.9]), 8).weight[0].tolist() == [1.0, 1.25, 6.0]


def test_float16_where_float16_is_precise():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    module = round_floats_(_linear(values.tolist()))
    assert torch.equal(module.weight[0], values.half().float())
    assert mantissa_bits(module.weight.detach().numpy()) == 10
    again = module.weight.detach().clone()
    assert torch.equal(round_floats_(module).weight, again)


def test_thirty_two_leaves_all_and_others_are_refused():
    module = _linear([0.1])
    assert round_floats_(module, 32).weight.item() == torch.tensor(0.1).item()
    for bits in (7, 17, 12.0, True):
        with pytest.raises(CompressError, match="'bits' parameter"):
            round_floats_(module, bits)


def test_quantised_weights_and_counters_stay():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    plan = CompressionPlan(layer_formats={"2": LayerFormat(4)})
    module = prepare_quantized(trace(net, x).module, plan, [], MinMaxQuantizer())
    (entry,) = quantized_weights(module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    round_floats_(module, 10)
    after = module.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert entry.parameter not in changed
    assert {entry.scale, "0.weight", "0.bias", "2.bias"} <= changed
    assert all(mantissa_bits(after[name].numpy()) <= 4 for name in changed)
