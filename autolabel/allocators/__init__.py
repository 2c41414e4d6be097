"""Allocators that learn, one file each; those that only add are in `compress.allocators`."""

from autolabel.allocators.learned_search import LearnedSearchAllocator

__all__ = ["LearnedSearchAllocator"]
