"""Every method of making a network smaller, by the override that asks for it and the words of the code that does it."""

import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

from omegaconf import OmegaConf

from compress.formatted_weight import make_format
from compress.plan import SCHEME_BITS

MASKS, FORMATS, RANKS, DISTILLATION, SURGEON = (
    "Masks", "Number formats", "Low rank and densities by layer", "Distillation", "Second-order pruning",
)  # fmt: skip
SECTIONS = (MASKS, FORMATS, RANKS, DISTILLATION, SURGEON)
# Group of `conf/` whose files are methods each -> section.
GROUPS = {
    "pattern": MASKS, "weight_score": MASKS, "sparsity_schedule": MASKS, "penalty": MASKS,
    "quantizer": FORMATS, "rounding": FORMATS, "factorizer": RANKS, "distillation": DISTILLATION,
}  # fmt: skip
# Acts on what is quantised, not on masks.
_FORMAT_PENALTIES = {"penalty=quantization", "penalty=coded_bytes"}
# What a method needs besides.
_BESIDES = {
    "penalty=coded_bytes": ("quantize.trained_ranges=true",),
    # A fine-tuning of some hundred steps is brief: weaker ones would hardly show.
    "penalty=l1": ("penalty.strength=1e-3",),
    "penalty=group_lasso": ("penalty.strength=1e-2",),
    # Gates that start fully open, as they do by default, do not close in so few steps at the usual rate.
    "penalty=l0": ("penalty.strength=1e-3", "penalty.initial=0.5", "finetune.lr=1e-2"),
    # Weaker ones leave no trace in a training this brief.
    "penalty=quantization": ("penalty.alpha=100",),
    **{f"factorizer={name}": ("quantize.ranks=[0.25,0.5,0.75]", "budget.macs=0.25") for name in ("channel", "spatial")},
    # Training in the formats would make up for any rounding.
    **{f"rounding={name}": ("quantize.epochs=0",) for name in ("nearest", "adaround", "gptq")},
}
# Settings that the plan is made with.
_OF_PLANS = ("budget.", "compare.", "quantize.bits=", "quantize.activation_bits=", "quantize.activation_ranges=")
# What is done without an override.
DEFAULTS = ("distillation=logits", "quantizer=mse", "quantize.scheme=symmetric")
_NAME = r"(?:van )?[A-Z][a-z][\w-]*"
_CITED = re.compile(rf"({_NAME}(?:, {_NAME})*(?:,? and {_NAME})?(?: et al\.)?) ((?:19|20)\d\d)\b")


@dataclass(frozen=True)
class CataloguedMethod:
    """A method.

    Attributes:
        section: one of `SECTIONS`.
        overrides: what asks for it; the first says what it is, others make room for it.
        what: it is, in a line.
        source: the class or function that does it, whose docstring names the paper.
    """

    section: str
    overrides: tuple[str, ...]
    what: str
    source: Any

    @property
    def name(self) -> str:
        """The overrides, as on a command line."""
        return " ".join(self.overrides)

    @property
    def decides(self) -> bool:
        """Whether the plan depends on it, beside what is done with the plan."""
        return any(override.startswith(_OF_PLANS) for override in self.overrides)

    @property
    def default(self) -> bool:
        """Whether it is what is done without any override."""
        return self.name in DEFAULTS

    @property
    def papers(self) -> tuple[str, ...]:
        """What the source cites, as `"Han et al. 2015, arXiv:1506.02626"`."""
        return cited(inspect.getdoc(self.source) or "")


# What every method is compared with.
BASE = CataloguedMethod(FORMATS, (), "The run without any override.", None)


def catalogue() -> tuple[CataloguedMethod, ...]:
    """All methods, section by section: those of files in `conf/`, all number formats, and the settings."""
    found = [*_of_groups(), *_of_schemes(), *_of_settings()]
    return tuple(sorted(found, key=lambda method: SECTIONS.index(method.section)))


def cited(text: str) -> tuple[str, ...]:
    """The papers that a docstring cites with an arXiv number or a title: authors, year, and where."""
    text = " ".join(text.split())
    matches = list(_CITED.finditer(text))
    ends = [*(match.start() for match in matches), len(text)][1:]
    found = []
    for match, end in zip(matches, ends, strict=True):
        said = text[match.end() : end]
        number = re.search(r"arXiv:\d{4}\.\d{4,5}", said)
        venue = re.match(r'[^(]*\(([A-Z][\w. ]+)\)|, "([^"]+)"', said)
        if number or venue:
            where = number[0] if number else venue[1] or venue[2]
            found.append(f"{_authors(match[1])} {match[2]}, {where}")
    return tuple(dict.fromkeys(found))


def _authors(names: str) -> str:
    first, *others = re.split(r",? and |, ", names)
    return names if len(others) < 2 else f"{first} et al."


def _of_groups() -> Iterator[CataloguedMethod]:
    for group, section in GROUPS.items():
        for path in sorted((resources.files("conf") / group).iterdir(), key=lambda path: path.name):
            if not path.name.endswith(".yaml"):
                continue
            override = f"{group}={path.name.removesuffix('.yaml')}"
            module, _, name = str(OmegaConf.create(path.read_text())["_target_"]).rpartition(".")
            source = getattr(importlib.import_module(module), name)
            kind = FORMATS if override in _FORMAT_PENALTIES else section
            yield CataloguedMethod(kind, (override, *_BESIDES.get(override, ())), _line_of(source), source)


def _of_schemes() -> Iterator[CataloguedMethod]:
    for scheme, bits in SCHEME_BITS.items():
        if scheme != "float32":  # of layers that only have a mask or a rank
            source = type(make_format(scheme, max(bits), False))
            yield CataloguedMethod(FORMATS, (f"quantize.scheme={scheme}",), _line_of(source), source)


def _line_of(source: Any) -> str:
    """The first line of its module."""
    return (inspect.getdoc(inspect.getmodule(source)) or "").partition("\n")[0]


def _of_settings() -> Iterator[CataloguedMethod]:
    for section, overrides, what, place in _SETTINGS:
        module, _, name = place.rpartition(".")
        source = getattr(importlib.import_module(module), name)
        yield CataloguedMethod(section, tuple(overrides.split()), what, source)


# Section, overrides, what it is, and who does it.
_SETTINGS = (
    (MASKS, "penalty=group_lasso penalty.per=unit penalty.strength=1e-2",
     "Group lasso over all that makes a removable unit, in every coupled layer.",
     "compress.penalties.GroupLassoPenalty"),
    (MASKS, "pattern=unstructured sparsify.scope=layer", "The same density in every layer.",
     "compress.patterns.UnstructuredPattern"),
    (MASKS, "sparsify.threshold=0.07", "All weights below a threshold at once, however many they are.",
     "compress.sparsifier.Sparsifier"),
    (MASKS, "sparsify.by=labeler", "Damage measured on cells of alike weights, and learned from there.",
     "autolabel.weight_cells.label_weights"),
    (MASKS, "sparsify.by=criterion", "Scores of channels, of any criterion, dealt out among their weights.",
     "compress.channel_shares.share_scores"),
    (MASKS, "sparsify.rewind=weights", "Lottery tickets: train, prune, go back to early weights, again.",
     "compress.rewinding.rewind_"),
    (MASKS, "sparsify.rewind=learning_rate", "Rounds of pruning, each trained with the whole schedule.",
     "compress.rewinding.rewind_"),
    (FORMATS, "quantize.granularity=tensor", "One scale for each tensor.", "compress.plan.LayerFormat"),
    (FORMATS, "quantize.granularity=group quantize.group_size=16", "One scale for each 16 weights.",
     "compress.plan.LayerFormat"),
    (FORMATS, "quantize.scheme=codebook quantize.granularity=tensor", "One codebook for each tensor.",
     "compress.weight_formats.CodebookFormat"),
    (FORMATS, "quantize.scheme=codebook quantize.granularity=tensor quantize.bits=[2]",
     "Four values for each tensor, by k-means, for comparison with the next.",
     "compress.weight_formats.CodebookFormat"),
    (FORMATS, "quantize.scheme=codebook quantize.granularity=tensor quantize.bits=[2] quantize.trained_ranges=true",
     "Deep Compression: the four centroids of a tensor are trained with the weights that share them.",
     "compress.weight_formats.CodebookFormat"),
    (FORMATS, "quantize.scheme=affine quantize.bits=[1]", "One bit for each weight, low or high.",
     "compress.weight_formats.AffineFormat"),
    (FORMATS, "quantize.trained_ranges=true", "Scales, offsets and centroids are trained with the weights.",
     "compress.weight_formats.SymmetricFormat"),
    (FORMATS, "quantize.epochs=0", "No training through the rounding (straight-through), which all others have.",
     "compress.quantization.prepare_quantized"),
    (FORMATS, "quantize.activation_bits=null", "Activations stay float; else they are calibrated to 8 bits.",
     "compress.quantization.prepare_quantized"),
    (FORMATS, "quantize.activation_ranges=dynamic", "Activations have the range of each tensor, without calibration.",
     "compress.dynamic_ranges.dynamic_parameters"),
    (FORMATS, "recovery.data_free=true", "Calibration data from the statistics of batch norms alone.",
     "compress.data_free.synthesize_batches"),
    (RANKS, "budget.macs=0.25", "Channels and bits alone, for comparison with the two of low rank.",
     "compress.allocators.KnapsackAllocator"),
    (RANKS, "budget.coded_bytes=0.015", "Channels and bits alone, for comparison with what follows.",
     "compress.allocators.KnapsackAllocator"),
    (RANKS, "quantize.densities=[1.0,0.5,0.25] budget.coded_bytes=0.015",
     "A layer may keep a part of its weights, decided together with its bits.", "autolabel.oracles.LayerChoiceOracle"),
    (RANKS, "quantize.schemes=[power_of_two,codebook] budget.coded_bytes=0.015",
     "Each layer has the number format that loses least for its bytes.", "autolabel.oracles.LayerChoiceOracle"),
    (RANKS, "budget.bit_operations=0.01",
     "Products of the bits of weights and activations are bounded too, beside MACs and bytes.",
     "compress.budget.Budget"),
    (DISTILLATION, "distillation=attention model@student=digits_cnn student.widths=[8,16,16]",
     "A narrower network of the same architecture, which learns where the dense one looks too.",
     "compress.distillations.AttentionDistillation"),
    (DISTILLATION, "model@student=digits_mlp", "A given network of another architecture learns from the dense one.",
     "experiments.teaching.Teaching"),
    (SURGEON, "sparsify.update=sweep", "Column by column, those that follow taking over the error.",
     "compress.second_order_update.sweep_columns"),
    (SURGEON, "sparsify.update=solve", "The mask of the sweep, all weights that stay solved for once more.",
     "compress.optimal_brain_surgeon.solve_for_mask"),
    (SURGEON, "sparsify.update=exact", "Weight after weight, the one that costs least first.",
     "compress.optimal_brain_surgeon.remove_weights"),
    (SURGEON, "criterion=reconstruction compare.methods=[criterion/mac]",
     "Channels in the order in which the others make up for them.", "compress.criteria.ReconstructionCriterion"),
    (SURGEON, "criterion=ziplm compare.methods=[criterion/mac]",
     "The same with all kernel offsets of a channel together.", "compress.criteria.ZipLMCriterion"),
)  # fmt: skip
