"""Penalties on weights in number formats: the price of bits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compress import ClassificationTask, CompressError, CompressionPlan, LayerFormat, analyze, prepare_quantized
from compress.finetuning import finetune_
from compress.formatted_weight import formatted_weights
from compress.penalties import CodedBytesPenalty
from compress.penalties.coded_bytes import coded_size, symbol_bits
from compress.quantizers import MinMaxQuantizer

TASK = ClassificationTask()


def make(weight, bits=3):
    """A linear layer with this weight in a trained symmetric format over the whole tensor, its scale set to 1."""
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        model.weight.copy_(weight)
    plan = CompressionPlan(layer_formats={"weight": LayerFormat(bits, granularity="tensor")})
    module = analyze(model, torch.zeros(2, weight.shape[1])).traced.module
    prepared = prepare_quantized(module, plan, [], MinMaxQuantizer(), trained_ranges=True)
    with torch.no_grad():
        formatted_weights(prepared)[0].module.scale.fill_(1.0)
    return prepared


def test_the_price_of_a_weight_between_two_symbols_lies_on_the_line_between_their_bits():
    prepared = make(torch.tensor([[0.25, 0.0, 0.0, 0.0], [0.0, 0.0, -1.0, 2.0]]))
    penalty = CodedBytesPenalty(target_bytes=100, price=2.0)
    penalty.prepare(prepared)
    zero, one, two, _ = symbol_bits(torch.tensor([6, 1, 1, 0])).tolist()
    expected = 2.0 * (5 * zero + one + two + 0.75 * zero + 0.25 * one)
    value = penalty.penalty(prepared)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    value.backward()
    weight = formatted_weights(prepared)[0]
    gradient = prepared.get_parameter(weight.parameter).grad
    assert gradient[0, 0].item() == pytest.approx(2.0 * (one - zero), rel=1e-5)
    assert gradient[1, 2].item() == pytest.approx(-2.0 * (two - one), rel=1e-5)
    assert weight.module.scale.grad is None  # the loss alone moves a scale
    penalty.release(prepared)
    assert not any("price" in name for name, _ in prepared.named_buffers())


def test_bits_are_those_of_a_share_of_zeros_and_a_geometric_tail():
    # 64 zeros, then 16, 8, 4: a ratio of 1 - 28.5 / 45 = .367 with half a symbol more of each.
    bits = symbol_bits(torch.tensor([64, 16, 8, 4]))
    total, others, ratio = 94.0, 29.5, 1 - 29.5 / (16.5 + 2 * 8.5 + 3 * 4.5)
    assert bits[0].item() == pytest.approx(math.log2(total / 64.5))
    # A sign, then how far out: each half as likely or so as the one before.
    assert bits[1].item() == pytest.approx(math.log2(total / others) + 1 - math.log2(1 - ratio))
    assert (bits[2:] - bits[1:-1]).tolist() == pytest.approx([-math.log2(ratio)] * 2)


@given(counts=st.lists(st.integers(0, 1000), min_size=2, max_size=128))
def test_bits_rise_with_magnitude_however_often_symbols_occur(counts):
    bits = symbol_bits(torch.tensor(counts))
    assert (bits[1:] > bits[:-1]).all()


def test_the_bytes_asked_for_fall_by_one_factor_a_step():
    prepared = make(torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0]] * 32))  # 32 bytes
    penalty = CodedBytesPenalty(target_bytes=2, ramp=0.5)
    penalty.prepare(prepared)
    penalty.attach(prepared, 0, 80)
    assert [penalty.bytes_at(prepared, step) for step in (0, 10, 20, 30, 40, 70)] == pytest.approx([32, 16, 8, 4, 2, 2])
    # The price looks a twentieth of the training ahead, where less is asked for than there is.
    before = penalty.penalty(prepared).item()
    with torch.no_grad():
        penalty.after_step(prepared, 0)
    assert penalty.penalty(prepared).item() == pytest.approx(before * 32 / penalty.bytes_at(prepared, 4))
    assert 1 < 32 / penalty.bytes_at(prepared, 4) < 1.35


def test_a_scale_carries_its_weights():
    prepared = make(torch.tensor([[3.0, -1.25, 0.5, 0.0]]))
    penalty = CodedBytesPenalty(target_bytes=100)
    penalty.prepare(prepared)
    penalty.attach(prepared, 0, 10)
    entry = formatted_weights(prepared)[0]
    weight, scale = prepared.get_parameter(entry.parameter), entry.module.scale
    # The gradient at symbols that stay: each symbol (3, -1, 0, 0 of the half), divided as that of LSQ.
    prepared(torch.tensor([[1.0, 10.0, 1.0, 1.0]])).sum().backward()
    assert scale.grad.item() == pytest.approx((3 * 1 - 1 * 10) / math.sqrt(4 * 3))
    assert weight.grad.tolist() == [[1.0, 10.0, 1.0, 1.0]]
    with torch.no_grad():
        scale.fill_(0.5)
        penalty.after_step(prepared, 1)
    assert weight[0].tolist() == [1.5, -0.625, 0.25, 0.0]
    with torch.no_grad():
        weight[0, 0] = 7.0
        penalty.after_step(prepared, 2)
    assert weight[0].tolist() == [1.5, -0.625, 0.25, 0.0]  # the outer symbol is 3
    penalty.release(prepared)
    assert not entry.module.format.carries


def test_size_is_the_entropy_of_the_symbols():
    # Four symbols of each of two kinds: one bit each.
    assert coded_size(make(torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0]]))) == pytest.approx(1.0)


@pytest.mark.parametrize(("price", "ramp"), [(2e-3, 0.5), (2e-3, 0.0)])
def test_a_training_comes_to_its_bytes(price, ramp):
    torch.manual_seed(0)
    teacher = nn.Linear(40, 4)
    x = torch.randn(256, 40)
    batches = [(part, teacher(part).argmax(1)) for part in x.split(32)]
    prepared = make(torch.randn(4, 40))
    before = coded_size(prepared)
    hook = CodedBytesPenalty(target_bytes=20, price=price, until=1.0, ramp=ramp)
    finetune_(prepared, TASK, batches, epochs=150, lr=0.003, optimizer="adamw", range_rate=1.0, hooks=[hook])
    assert before > 40
    assert coded_size(prepared) == pytest.approx(20, rel=0.25)


def test_refuses_a_model_without_such_weights_and_bad_settings():
    with pytest.raises(CompressError, match="symmetric stored formats"):
        CodedBytesPenalty().prepare(nn.Linear(2, 2))
    with pytest.raises(CompressError, match="'until' parameter"):
        CodedBytesPenalty(until=0)
