"""Penalties on weights in number formats: the price of bits."""

import math

import pytest
import torch
from torch import nn

from compress import ClassificationTask, CompressError, CompressionPlan, LayerFormat, analyze, prepare_quantized
from compress.finetuning import finetune_
from compress.formatted_weight import formatted_weights
from compress.penalties import CodedBytesPenalty
from compress.penalties.coded_bytes import coded_size
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
    prepared = make(torch.tensor([[0.25, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]))
    penalty = CodedBytesPenalty(target_bytes=100, price=2.0)
    penalty.prepare(prepared)
    # Each of the seven symbols counts half a time more than it occurs: 6.5 zeros, 2.5 ones, 11.5 in all.
    zero, one = math.log2(11.5 / 6.5), math.log2(11.5 / 2.5)
    expected = 2.0 * (5 * zero + 2 * one + 0.75 * zero + 0.25 * one)
    value = penalty.penalty(prepared)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    value.backward()
    weight = formatted_weights(prepared)[0]
    gradient = prepared.get_parameter(weight.parameter).grad
    assert gradient[0, 0].item() == pytest.approx(2.0 * (one - zero), rel=1e-5)
    # A larger scale draws the weight towards zero, and so costs less: d place / d scale is -.25. The two ones are at
    # the same place, their line leads from one to the seldom two. Divided as that of the loss: by sqrt(8 x 3).
    two = math.log2(11.5 / 0.5)
    slope = 2.0 * (-0.25 * (one - zero) - 2 * (two - one))
    assert weight.module.scale.grad.item() == pytest.approx(slope / math.sqrt(8 * 3), rel=1e-5)
    penalty.release(prepared)
    assert not any("price" in name for name, _ in prepared.named_buffers())


def test_the_bytes_asked_for_fall_by_one_factor_a_step():
    prepared = make(torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0]] * 32))  # 32 bytes
    penalty = CodedBytesPenalty(target_bytes=2, ramp=0.5)
    penalty.prepare(prepared)
    penalty.attach(prepared, 0, 80)
    assert [penalty.bytes_at(prepared, step) for step in (0, 10, 20, 30, 40, 70)] == pytest.approx([32, 16, 8, 4, 2, 2])
    # Now as large as is asked for: the price stays. Before the ramp's end it does not rise for the last target.
    before = penalty.penalty(prepared).item()
    with torch.no_grad():
        penalty.after_step(prepared, 0)
    assert penalty.penalty(prepared).item() == pytest.approx(before)


def test_a_scale_keeps_its_weights_in_range():
    prepared = make(torch.tensor([[7.0, -5.0, 2.5, 0.0]]))
    penalty = CodedBytesPenalty(target_bytes=100)
    penalty.prepare(prepared)
    with torch.no_grad():
        penalty.after_step(prepared, 1)
    weight = prepared.get_parameter(formatted_weights(prepared)[0].parameter)
    scale = 2 * math.sqrt((49 + 25 + 6.25) / 4) / 3
    assert formatted_weights(prepared)[0].module.scale.item() == pytest.approx(scale)
    assert weight.tolist() == [[7.0, -5.0, 2.5, 0.0]]
    with torch.no_grad():
        weight.copy_(torch.tensor([[7.0, 1.0, 0.0, 0.0]]))
        formatted_weights(prepared)[0].module.scale.fill_(0.5)
        penalty.after_step(prepared, 1)
    scale = 2 * math.sqrt(50 / 4) / 3
    assert weight[0].tolist() == pytest.approx([min(7.0, 3 * scale), 1.0, 0.0, 0.0])
    prepared(torch.ones(1, 4)).sum().backward()
    assert weight.grad.tolist() == [[1.0, 1.0, 1.0, 1.0]]


def test_size_is_the_entropy_of_the_symbols():
    # Four symbols of each of two kinds: one bit each.
    assert coded_size(make(torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0]]))) == pytest.approx(1.0)


def test_a_training_comes_to_its_bytes():
    torch.manual_seed(0)
    teacher = nn.Linear(40, 4)
    x = torch.randn(256, 40)
    batches = [(part, teacher(part).argmax(1)) for part in x.split(32)]
    prepared = make(torch.randn(4, 40))
    before = coded_size(prepared)
    hook = CodedBytesPenalty(target_bytes=20, price=1e-3, until=1.0, ramp=0.5)
    finetune_(prepared, TASK, batches, epochs=150, lr=0.01, optimizer="adamw", range_rate=1.0, hooks=[hook])
    assert before > 40
    assert coded_size(prepared) == pytest.approx(20, rel=0.15)


def test_refuses_a_model_without_such_weights_and_bad_settings():
    with pytest.raises(CompressError, match="symmetric stored formats"):
        CodedBytesPenalty().prepare(nn.Linear(2, 2))
    with pytest.raises(CompressError, match="'until' parameter"):
        CodedBytesPenalty(until=0)
