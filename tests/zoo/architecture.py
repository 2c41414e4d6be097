"""What an entry of the zoo is: a small model, its inputs, and what is expected of its units."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Architecture:
    """One small but real model.

    Attributes:
        name: key of the zoo.
        make: builds the model.
        inputs: batch size -> example inputs (a tensor, a tuple or a dict).
        groups: every coupled group and its number of units, written down by hand; None where it is not spelt out.
        heads: names of the groups whose units are heads.
        blocked: qualified name -> part of the reason, for what must be blocked.
        trained: whether the sliced model has parameters with a gradient for every output.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    groups: Mapping[str, int] | None = None
    heads: tuple[str, ...] = ()
    blocked: Mapping[str, str] = field(default_factory=dict)
    trained: bool = True


class Zoo(dict[str, Architecture]):
    """Name -> architecture."""

    def add(self, inputs: Callable[[int], Any], name: str | None = None, **expected: Any) -> Callable:
        """Register a model class (or a function that makes one) with its inputs and expectations."""

        def register(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
            key = name or make.__name__
            self[key] = Architecture(key, make, inputs, **expected)
            return make

        return register


def image(channels: int, size: int, *more: int) -> Callable[[int], torch.Tensor]:
    """Batches of images (or volumes, or signals) from a fixed seed."""
    return lambda batch: torch.randn(batch, channels, size, *more, generator=torch.Generator().manual_seed(batch))


def tokens(length: int, vocabulary: int) -> Callable[[int], torch.Tensor]:
    """Batches of token numbers from a fixed seed."""
    return lambda batch: torch.randint(
        0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(batch), dtype=torch.long
    )


def sequence(length: int, width: int) -> Callable[[int], torch.Tensor]:
    """Batches of sequences of vectors from a fixed seed."""
    return image(length, width)


def build(architecture: Architecture, seed: int = 0) -> nn.Module:
    """The model with weights of this seed, and with norms and statistics that are not trivial; in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = architecture.make()
        for module in model.modules():
            norm = isinstance(module, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm))
            if not norm:
                continue
            for name, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                if value.is_floating_point():
                    low, high = (0.5, 1.5) if name in ("weight", "running_var") else (-0.5, 0.5)
                    with torch.no_grad():
                        value.uniform_(low, high)
    return model.eval()
