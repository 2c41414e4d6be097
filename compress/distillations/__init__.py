"""Distillations: what a student learns from its teacher, each with its paper."""

from compress.distillations.attention import AttentionDistillation
from compress.distillations.hints import HintDistillation
from compress.distillations.logits import LogitDistillation
from compress.distillations.relation import RelationDistillation

__all__ = ["AttentionDistillation", "HintDistillation", "LogitDistillation", "RelationDistillation"]
