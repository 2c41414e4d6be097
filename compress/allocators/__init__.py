from compress.allocators.greedy import GreedyAllocator
from compress.allocators.knapsack import KnapsackAllocator
from compress.allocators.uniform import UniformAllocator

__all__ = ["GreedyAllocator", "KnapsackAllocator", "UniformAllocator"]
