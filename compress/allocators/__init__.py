"""Allocators: spend a budget over scores and costs."""

from compress.allocators.greedy import GreedyAllocator
from compress.allocators.knapsack import KnapsackAllocator
from compress.allocators.threshold import ThresholdAllocator
from compress.allocators.uniform import UniformAllocator

__all__ = ["GreedyAllocator", "KnapsackAllocator", "ThresholdAllocator", "UniformAllocator"]
