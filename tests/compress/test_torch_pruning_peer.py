"""Where Torch-Pruning handles a model as well, both say the same about what can only go together."""

import warnings

import numpy as np
import pytest
from architecture import image
from torch import nn
from zoo import ZOO, build

import compress

tp = pytest.importorskip("torch_pruning")

Slices = dict[tuple[str, str], tuple[int, ...]]


def theirs(graph: object, model: nn.Module, module: nn.Module, index: int) -> Slices:
    """(module, side) -> indices that Torch-Pruning takes with output `index` of `module`."""
    prune = tp.prune_linear_out_channels if isinstance(module, nn.Linear) else tp.prune_conv_out_channels
    names = {child: name for name, child in model.named_modules()}
    found: dict[tuple[str, str], set[int]] = {}
    for dependency, indices in graph.get_pruning_group(module, prune, idxs=[index]):
        target = dependency.target.module
        if target not in names:
            continue
        depthwise = isinstance(target, nn.Conv2d) and target.groups == target.out_channels > 1
        side = "out" if depthwise or graph.is_out_channel_pruning_fn(dependency.handler) else "in"
        # What acts on each channel by itself has one side only.
        side = "out" if isinstance(target, nn.BatchNorm2d) else side
        if isinstance(target, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
            found.setdefault((names[target], side), set()).update(map(int, indices))
    return {place: tuple(sorted(indices)) for place, indices in found.items()}


def ours(structure: compress.Structure, row: int) -> Slices:
    """(module, side) -> indices of its weight that belong to this unit."""
    found: Slices = {}
    for name, dims in structure.parameters.items():
        module, _, leaf = name.rpartition(".")
        if leaf != "weight":
            continue
        for side, rows in zip(("out", "in"), dims, strict=False):
            indices = tuple(np.flatnonzero(rows == row).tolist())
            if indices:
                found[module, side] = indices
    return found


def concatenating() -> nn.Module:
    """The dense net up to its transition. Torch-Pruning breaks the concat behind it (and the zoo's Inception)."""
    return nn.Sequential(*build(ZOO["dense_concat"])[:5], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)).eval()


IMAGES = image(3, 8, 8)(2)
MODELS = {"concat": (concatenating, IMAGES)} | {
    name: (lambda name=name: build(ZOO[name]), ZOO[name].inputs(2))
    for name in ("plain_conv_bn", "residual_projection", "mobilenet_v2", "squeeze_excite", "efficientnet", "LeNet5",
                 "SharedConv", "Upsampling", "DeepSupervision", "InPlace", "SoftmaxChannels")
}  # fmt: skip


@pytest.mark.parametrize("name", list(MODELS))
def test_coupled_groups_agree(name: str) -> None:
    make, inputs = MODELS[name]
    model = make()
    structure = compress.analyze(model, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = tp.DependencyGraph().build_dependency(model, example_inputs=inputs)
    units = structure.units
    for group in units.groups:
        module = model.get_submodule(group.partition(":")[0])
        for row in np.flatnonzero(units.group == group)[[0, -1]]:
            assert ours(structure, row) == theirs(graph, model, module, int(units.index[row])), units.ids[row]
