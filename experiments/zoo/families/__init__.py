"""Families of networks, one file each, every one built from a recipe and what the task takes and gives."""

from experiments.zoo.families.attention import AttentionNet, SelfAttention
from experiments.zoo.families.concat import ConcatNet
from experiments.zoo.families.conv1d import Conv1dNet
from experiments.zoo.families.conv2d import Conv2dNet
from experiments.zoo.families.depthwise import DepthwiseNet
from experiments.zoo.families.mlp import MLPNet
from experiments.zoo.families.recurrent import RecurrentNet
from experiments.zoo.families.residual import ResidualNet

__all__ = [
    "AttentionNet",
    "ConcatNet",
    "Conv1dNet",
    "Conv2dNet",
    "DepthwiseNet",
    "MLPNet",
    "RecurrentNet",
    "ResidualNet",
    "SelfAttention",
]
