"""Masks: which weights stay, chosen from scores, laid on a model and read back from its exact zeros."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.errors import CompressError, DataError, PlanError
from compress.pattern import SparsityPattern
from compress.pattern_text import pattern_of
from compress.prunable_weights import PrunableWeight, matching_layers, prunable_weights

SCOPES = ("layer", "global")


@dataclass(frozen=True)
class Density:
    """How many weights of a model are not zero.

    Attributes:
        layers: layer name -> fraction of its weights.
        total: fraction of all of them.
        kept: how many; weights: of how many.
    """

    layers: Mapping[str, float]
    total: float
    kept: int
    weights: int


def choose_masks(
    module: nn.Module,
    scores: Mapping[str, Tensor],
    density: float | None = None,
    *,
    scope: str = "layer",
    pattern: str | SparsityPattern = "unstructured",
    threshold: float | None = None,
    overrides: Mapping[str, float] | None = None,
    skip: Iterable[str] = (),
    floor: float = 0.0,
    within: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Layer name -> bool mask of the weight's shape, True where a weight stays; ties go to the first weight.

    A cell of the pattern (a weight, block, channel) is worth the mean score of its weights. The best cells stay until
    the number of weights is as close to the density as whole cells allow; for single weights it is exact. The best
    cell of every layer always stays.

    Args:
        module: whose weights are masked; it stays as it is.
        scores: layer name -> importance of each weight, of the weight's shape, higher stays.
        density: fraction of the weights that stay, in (0, 1]. None for the pattern's own (0.5 of `"2:4"`).
        scope: `"layer"`: the density holds in every layer. `"global"`: over all layers together, so the scores of
            different layers must be comparable.
        pattern: which weights go together, or the text of it.
        threshold: instead of a density, a finite number: cells with a score of at least this stay, whatever the scope.
        overrides: layer name (with wildcards) -> density of its own, apart from all others.
        skip: layers to leave as they are, with wildcards; they get no mask.
        floor: fraction of the weights of every layer that stays at least, in [0, 1].
        within: earlier masks: what is gone in them stays gone, and is counted as gone.

    Raises:
        CompressError: for a setting out of range. PlanError: for an unknown layer, or one without scores.
        DataError: for scores that are NaN or of the wrong shape.
    """
    pattern = pattern_of(pattern) if isinstance(pattern, str) else pattern
    check_selection(density, scope, pattern, threshold, overrides or {}, floor)
    weights = prunable_weights(module, skip)
    _check_scores(prunable_weights(module), weights, scores)
    alone: dict[str, float] = {}
    for text, own in (overrides or {}).items():
        alone.update(dict.fromkeys(matching_layers(weights, text), own))
    parts = {name: _Part.of(weight, scores[name], pattern, floor, (within or {}).get(name))
             for name, weight in weights.items()}  # fmt: skip
    usual = pattern.least_density if density is None else density
    rest = [name for name in weights if name not in alone]
    together = [rest] if scope == "global" else [[name] for name in rest]
    pools = [([name], own, None) for name, own in alone.items()]
    pools += [(names, usual, threshold) for names in together if names]
    masks = {}
    for names, wanted, limit in pools:
        kept = _select([parts[name] for name in names], wanted, limit)
        masks.update({name: parts[name].mask(cells, weights[name]) for name, cells in zip(names, kept, strict=True)})
    return {name: masks[name] for name in weights}


def check_selection(
    density: float | None, scope: str, pattern: SparsityPattern, threshold: float | None,
    overrides: Mapping[str, float], floor: float,
) -> None:  # fmt: skip
    """Raises CompressError for settings of `choose_masks` that are out of range or do not fit the pattern."""
    if scope not in SCOPES:
        raise CompressError(f"The 'scope' parameter of choose_masks must be one of {SCOPES}. Got {scope!r}.")
    if density is None and threshold is None and not pattern.least_density:
        raise CompressError(f"The pattern {pattern.text!r} has no density of its own. Set 'density' or 'threshold'.")
    if density is not None and threshold is not None:
        raise CompressError("choose_masks takes a 'density' or a 'threshold', not both.")
    if threshold is not None and not math.isfinite(threshold):
        raise CompressError(f"The 'threshold' parameter of choose_masks must be a finite number. Got {threshold!r}.")
    for name, value in {"density": density, **overrides}.items():
        if value is not None and not (0 < value <= 1 and value >= pattern.least_density):
            least = f"[{pattern.least_density:g}, 1] for {pattern.text!r}" if pattern.least_density else "(0, 1]"
            raise CompressError(f"The density {name!r} of choose_masks must be in {least}. Got {value!r}.")
    if not 0 <= floor <= 1:
        raise CompressError(f"The 'floor' parameter of choose_masks must be in [0, 1]. Got {floor!r}.")


def apply_masks_(module: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the weights that the masks remove to zero, in place.

    Raises:
        PlanError: if a mask is for an unknown layer or of another shape; nothing is then changed.
    """
    weights = prunable_weights(module)
    for name, mask in masks.items():
        if name not in weights:
            raise PlanError(f"There is a mask for {name!r}, which is no layer with a weight of this model.")
        if mask.shape != weights[name].tensor.shape:
            raise PlanError(f"The mask of {name!r} has shape {tuple(mask.shape)}, its weight "
                            f"{tuple(weights[name].tensor.shape)}.")  # fmt: skip
    with torch.no_grad():
        for name, mask in masks.items():
            weights[name].tensor.masked_fill_(~mask.to(weights[name].tensor.device), 0.0)


def masks_of(module: nn.Module, skip: Iterable[str] = ()) -> dict[str, Tensor]:
    """Layer name -> bool mask of the weight's shape, True where the weight is not exactly zero."""
    return {name: weight.tensor.detach() != 0 for name, weight in prunable_weights(module, skip).items()}


def density_of(module: nn.Module, skip: Iterable[str] = ()) -> Density:
    """The part of the weights that is not exactly zero, of each layer and of all."""
    masks = masks_of(module, skip)
    kept, weights = sum(int(mask.sum()) for mask in masks.values()), sum(mask.numel() for mask in masks.values())
    layers = {name: int(mask.sum()) / mask.numel() for name, mask in masks.items()}
    return Density(layers, kept / max(weights, 1), kept, weights)


@dataclass(frozen=True, eq=False)
class _Part:
    """One weight in cells.

    Attributes:
        cells: int64 `(out_ch, in_ch, *kernel)`, the cell of every weight.
        alive: bool of that shape, weights that are not gone already.
        values: `(n_cells,)` float64, mean score of the living weights; minus infinity without any.
        sizes: `(n_cells,)` how many weights live in each.
        held: `(n_cells,)` bool, cells that stay.
    """

    cells: Tensor
    alive: Tensor
    values: Tensor
    sizes: Tensor
    held: Tensor

    @classmethod
    def of(
        cls, weight: PrunableWeight, scores: Tensor, pattern: SparsityPattern, floor: float, within: Tensor | None
    ) -> "_Part":
        scores = weight.outputs_first(scores.detach().cpu().double())
        alive = torch.ones(scores.shape, dtype=torch.bool)
        if within is not None:
            alive = weight.outputs_first(within.cpu())
        scores = scores.masked_fill(~alive, -torch.inf)
        cells = pattern.cells(scores)
        n_cells = int(cells.max()) + 1
        sizes = torch.bincount(cells[alive], minlength=n_cells)
        sums = torch.bincount(cells[alive], weights=scores[alive], minlength=n_cells)
        values = torch.where(sizes > 0, sums / sizes.clamp_min(1), -torch.inf)
        held = torch.zeros(n_cells, dtype=torch.bool)
        held[cells[pattern.held(scores) & alive]] = True
        order = values.argsort(descending=True, stable=True)
        before = sizes[order].cumsum(0) - sizes[order]
        # The best cells, until there are as many weights as the floor asks for; one at least.
        held[order[before < max(1.0, floor * scores.numel())]] = True
        return cls(cells, alive, values, sizes, held & (sizes > 0))

    def mask(self, kept: Tensor, weight: PrunableWeight) -> Tensor:
        """The kept cells as a mask of the weight's own shape."""
        return weight.outputs_first(kept[self.cells] & self.alive).contiguous().to(weight.tensor.device)


def _select(parts: list[_Part], density: float, threshold: float | None) -> list[Tensor]:
    """Per part `(n_cells,)` bool, the cells that stay when all parts compete."""
    values, sizes, held = (torch.cat([getattr(part, name) for part in parts]) for name in ("values", "sizes", "held"))
    counts = [len(part.values) for part in parts]
    if threshold is not None:
        return list(((values >= threshold) | held).split(counts))
    order = values.argsort(descending=True, stable=True)
    order = torch.cat([order[held[order]], order[~held[order]]])
    n_kept = torch.cat([torch.zeros(1, dtype=torch.int64), sizes[order].cumsum(0)])
    target = density * sum(part.cells.numel() for part in parts)
    closest = int((n_kept.double() - target).abs().argmin())
    kept = held.clone()
    kept[order[:closest]] = True
    return list(kept.split(counts))


def _check_scores(
    known: Mapping[str, PrunableWeight], weights: Mapping[str, PrunableWeight], scores: Mapping[str, Tensor]
) -> None:
    unknown = [name for name in scores if name not in known]
    if unknown:
        raise PlanError(f"There are scores of {unknown[0]!r}, which is no layer with a weight of this model.")
    for name, weight in weights.items():
        if name not in scores:
            raise PlanError(f"There are no scores of layer {name!r}. Name it in 'skip', or score it too.")
        if scores[name].shape != weight.tensor.shape:
            raise DataError(f"The scores of {name!r} have shape {tuple(scores[name].shape)}, its weight "
                            f"{tuple(weight.tensor.shape)}.")  # fmt: skip
        if torch.isnan(scores[name]).any():
            raise DataError(f"The scores of {name!r} are NaN. Check weights and data.")
