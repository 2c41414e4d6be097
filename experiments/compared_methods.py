"""What a comparison compares: whose scores, and how the budget is spent on them."""

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autolabel.tables import LabelTable
from compress.costs import BIT_CHOICES
from compress.layer_choice import choice_of
from compress.quantizer import FLOAT_BITS
from experiments.config import ConfigError
from experiments.settings import CompareSettings, Config

if TYPE_CHECKING:
    from experiments.components import Components

log = logging.getLogger(__name__)
LABELER = "labeler"
CRITERION = "criterion"
# Who judges whole plans: a labeler, and the formula that came closest to it.
PLANS, REFIT_LOSS = "plans", "refit_loss"
CHANCE = "random"
SEARCH, RACE = "search", "race"
SEARCHES = (SEARCH, RACE)
WIDTHS, MASKS, UNMASKED = "widths", "masks", "unmasked"
# Of a weight in few bits.
MOST_BITS = 8
ALLOCATORS = {"mac": "greedy", "uniform": "uniform", "threshold": "threshold", "knapsack": "knapsack",
              UNMASKED: "knapsack", SEARCH: SEARCH, RACE: RACE}  # fmt: skip
# Formats alone, every unit stays: all that are offered in one solve, widths of whole layers, masks in the widest of
# them; and the same for every layer.
FORMATS_ALONE = {"bits": "knapsack", WIDTHS: "knapsack", MASKS: "knapsack", "uniform_bits": "uniform"}
# Allocators that sum damages over what is chosen.
ADDING = ("greedy", "knapsack")
_SEARCH_NEEDS = (
    "constraints.round_to=1, and budget.macs; or budget.weight_bytes alone where it chooses no formats, or, but for "
    "races, bits of symmetric integers alone (no densities, ranks, schemes, pinned, max_bits_only or search_plans); "
    "and no other bound with either there"
)
STAGES = ("pruned", "recovered", "fine_tuned", "tried")
# The default methods, and those of an earlier version, whose folders hold them.
_DEFAULT = CompareSettings().methods
_DEFAULTS = (_DEFAULT, [name for name in _DEFAULT if name != f"{REFIT_LOSS}/{SEARCH}"])
# What `searches` means by whose favourites: folders that were begun by another meaning compare anew.
SEARCHES_VERSION = 2


@dataclass(frozen=True)
class Method:
    """Whose scores, and how the budget is spent on them.

    `"taylor"` removes below one threshold; `"taylor/mac"` spends by score per cost; `"taylor/uniform"` keeps the same
    fraction of every group; `"labeler/knapsack"` solves for everything together; `"labeler/knapsack@0.1"` too, with a
    tenth of all damages of formats; `"labeler/unmasked"` leaves no single weight out; `"criterion/bits"` removes
    nothing, `"criterion/widths"` neither, and leaves no single weight out, `"criterion/masks"` leaves weights out and
    keeps the others at the most of the few bits offered, and `"criterion/uniform_bits"` stores all layers alike;
    `"plans/search"` asks a labeler of whole plans about thousands of them, `"refit_loss/search"` a formula, and
    `"plans/race"` lets favourites of both and plans of criteria compete in brief trainings.
    """

    name: str

    @property
    def source(self) -> str:
        """`"labeler"`, `"criterion"` (the configured one), the name of a baseline, or who judges whole plans."""
        return self.name.partition("@")[0].partition("/")[0]

    @property
    def healing(self) -> float:
        """What damages of formats are multiplied by, for what is left of them after training.

        Raises:
            ConfigError: if it is not above 0.
        """
        text = self.name.partition("@")[2] or "1"
        try:
            factor = float(text)
        except ValueError:
            factor = 0.0
        if not 0 < factor < math.inf:
            raise ConfigError(f"compare.methods: {self.name!r} must end in @ and a number above 0, or in nothing.")
        return factor

    @property
    def spending(self) -> str:
        """How the budget is spent: what stands behind the slash, `"threshold"` where nothing does."""
        return self.name.partition("@")[0].partition("/")[2] or "threshold"

    @property
    def allocator(self) -> str:
        """Name of the allocator.

        Raises:
            ConfigError: if there is none of that name.
        """
        known = ALLOCATORS | FORMATS_ALONE
        if self.spending not in known:
            raise ConfigError(f"compare.methods: {self.name!r} must end in one of {list(known)}, or in nothing.")
        return known[self.spending]

    @property
    def learned(self) -> bool:
        """Whether its plan comes from the labeler: scores decide nothing where all layers are stored alike."""
        return self.source == LABELER and not (self.keeps_units and not self.solves_formats)

    @property
    def kind(self) -> str:
        """In words."""
        if self.searches:
            whose = "a" if self.source == PLANS else "a formula-led"
            return f"{whose} {self.spending} of whole plans"
        if self.source == CHANCE:
            return "chance"
        return "the labeler" if self.learned else "a formula"

    @property
    def searches(self) -> bool:
        """Whether it judges whole plans, instead of adding what their units are worth."""
        return self.source in (PLANS, REFIT_LOSS)

    @property
    def solves_formats(self) -> bool:
        """Whether it chooses formats alone, in one solve over their measured damages."""
        return self.keeps_units and self.allocator == "knapsack"

    @property
    def keeps_units(self) -> bool:
        """Whether it removes nothing."""
        return self.spending in FORMATS_ALONE

    def chooses_formats(self, settings: CompareSettings) -> bool:
        """Whether formats and ranks of layers are on its menu, where there are any."""
        return not settings.formats_for or self.spending in settings.formats_for

    def menu(self, formats: LabelTable | None, settings: CompareSettings) -> LabelTable | None:
        """What it may choose of the formats that are offered, None where it may choose none."""
        if formats is None or not self.chooses_formats(settings):
            return None
        if self.spending not in (WIDTHS, MASKS, UNMASKED):
            return formats
        choices = [choice_of(name) for name in formats.choices]
        most = max((choice.bits for choice in choices if choice.bits <= MOST_BITS), default=FLOAT_BITS)
        kept = {
            UNMASKED: [c.density == 1 for c in choices],
            WIDTHS: [c.density == 1 and c.rank is None for c in choices],
            MASKS: [c.bits == most and c.rank is None for c in choices],
        }
        return formats.of_choices(kept[self.spending])


def searches_bits(config: Config) -> bool:
    """Whether a search of plans that may choose formats finds what goes and the bits of layers together: the budget
    bounds nothing but bytes, and bits are all that layers may choose."""
    quantize = config.quantize
    plain = (quantize.scheme, quantize.granularity, list(quantize.densities)) == ("symmetric", "channel", [1.0])
    only_bits = plain and not quantize.ranks and not quantize.schemes and set(quantize.bits) <= set(BIT_CHOICES)
    limits = config.constraints
    free = not limits.max_bits_only and not limits.pinned and not config.compare.search_plans
    return _bounds(config) == ["weight_bytes"] and only_bits and bool(quantize.bits) and free


def _bounds(config: Config) -> list[str]:
    return [name for name, value in vars(config.budget).items() if value is not None]


def _suits_search(config: Config, formats: bool, races: bool) -> bool:
    """Plans of one size are compared, which removes units; formats are chosen around what goes, or with it."""
    bounds = _bounds(config)
    if not formats:
        fits = bounds in (["macs"], ["weight_bytes"])
    else:
        fits = "macs" in bounds or (searches_bits(config) and not races)
    return fits and config.constraints.round_to == 1


def _named(config: Config) -> list[Method]:
    """Methods by their names; of the default ones, those that suit the budget."""
    compare = config.compare
    names = list(dict.fromkeys(compare.methods))
    if names in _DEFAULTS:
        formats = config.quantize.enabled and all(Method(name).chooses_formats(compare) for name in names
                                                  if Method(name).searches)  # fmt: skip
        kept = [name for name in names if not Method(name).searches
                or _suits_search(config, formats, Method(name).spending == RACE)]  # fmt: skip
        if kept != names:
            log.info("No plans are searched: that needs %s.", _SEARCH_NEEDS)
        names = [name for name in kept if config.measure.removals or Method(name).source != LABELER]
    return [Method(name) for name in names]


def methods_of(config: Config, parts: "Components") -> list[Method]:
    """The methods that a run compares: those of `compare.methods`, and what else the configuration names.

    The configured criterion joins per MAC unless an equal one is compared already, and the labeler joins with the
    configured allocator unless no method asks for the labeler at all, or one with that allocator.

    Raises:
        ConfigError: for a method that is not known, or a choice after a stage that not every method reaches.
    """
    compare = config.compare
    methods = _named(config)
    if not methods:
        raise ConfigError("compare.methods must name at least one method.")
    ways = [way for way in ALLOCATORS | FORMATS_ALONE if way not in SEARCHES]
    for way in compare.formats_for:
        if way not in ways:
            raise ConfigError(f"compare.formats_for: {way!r} is not one of {ways}.")
    if compare.formats_for and not config.quantize.enabled:
        raise ConfigError("compare.formats_for says who may choose formats: it needs quantize.enabled.")
    known = {LABELER, CRITERION, PLANS, REFIT_LOSS, *parts.baselines}
    for method in methods:
        if method.source not in known:
            raise ConfigError(f"compare.methods: no scores are called {method.source!r}. Known: {sorted(known)}.")
        if method.searches != (method.allocator in SEARCHES) or (method.source, method.spending) == (REFIT_LOSS, RACE):
            raise ConfigError(
                f"compare.methods: plans are searched as '{PLANS}/{SEARCH}', '{REFIT_LOSS}/{SEARCH}' or "
                f"'{PLANS}/{RACE}'. Got {method.name!r}."
            )
        if method.source == LABELER and not config.measure.removals:
            raise ConfigError(
                f"compare.methods: {method.name!r} learns from measured removals, of which measure.sample=0 has none. "
                "Leave it out, such as by compare.methods=[plans/search,refit_loss/search,second_order/mac]."
            )
        formats = config.quantize.enabled and method.chooses_formats(compare)
        if method.searches:
            if not _suits_search(config, formats, method.spending == RACE):
                raise ConfigError(
                    f"compare.methods: a search of plans needs {_SEARCH_NEEDS}. Got {config.constraints.round_to} and "
                    f"{_bounds(config)}."
                )
            if "@" in method.name:
                raise ConfigError(f"compare.methods: a search of plans takes no @. Got {method.name!r}.")
        if method.spending == RACE and not compare.finetune_epochs and not config.finetune.epochs:
            raise ConfigError(f"compare.methods: {method.name!r} needs compare.finetune_epochs or finetune.epochs.")
        if method.keeps_units and not formats:
            raise ConfigError(
                f"compare.methods: {method.name!r} has nothing to choose without quantize.enabled, and where "
                "compare.formats_for leaves it out."
            )
        if method.spending in (MASKS, UNMASKED) and min(config.quantize.densities, default=1.0) == 1:
            raise ConfigError(f"compare.methods: {method.name!r} needs quantize.densities below 1.")
        if method.spending in (WIDTHS, MASKS) and min(config.quantize.bits, default=0) > MOST_BITS:
            raise ConfigError(f"compare.methods: {method.name!r} needs quantize.bits of {MOST_BITS} at most.")
        adds = method.allocator in ADDING and not config.quantize.joint_plans
        if method.healing != 1 and not (formats and adds):
            raise ConfigError(
                f"compare.methods: {method.name!r} needs damages of formats that add up: quantize.enabled, no "
                "quantize.joint_plans, and a method that ends in /mac, /knapsack or /unmasked and may choose formats."
            )
    sources = {method.source for method in methods}
    if compare.search_plans and (compare.search_plans < 2 or not any(method.searches for method in methods)):
        raise ConfigError(
            f"compare.search_plans must be 0, or at least 2 where '{PLANS}/{SEARCH}', '{REFIT_LOSS}/{SEARCH}' or "
            f"'{PLANS}/{RACE}' takes part. Got {compare.search_plans}."
        )
    for short, name in ALLOCATORS.items():
        own = LABELER if short == "threshold" else f"{LABELER}/{short}"
        alike = any(m.source == LABELER and m.allocator == name and not m.keeps_units for m in methods)
        if type(parts.allocator).name == name and LABELER in sources and not alike:
            methods.append(Method(own))
    alike = [name for name in sources & set(parts.baselines) if parts.baselines[name] == parts.criterion]
    if alike:
        log.info("The configured criterion is compared as '%s'. Alone: compare.methods=[criterion/mac].", alike[0])
    elif CRITERION not in sources:
        methods.append(Method(f"{CRITERION}/mac"))
    names = [method.name for method in methods]
    unknown = [name for name in compare.finetune_methods if name not in names]
    if unknown:
        raise ConfigError(f"compare.finetune_methods: {unknown[0]!r} is not compared. Compared are {names}.")
    if compare.choose_after not in STAGES:
        raise ConfigError(f"compare.choose_after must be one of {STAGES}. Got {compare.choose_after!r}.")
    if config.quantize.enabled and not compare.tries and sum(method.keeps_units for method in methods) > 1:
        log.warning("Plans that keep all units differ in their formats alone, which no stage before 'tried' has: set "
                    "compare.choose_after=tried.")  # fmt: skip
    some = bool(compare.finetune_epochs and compare.finetune_methods and set(compare.finetune_methods) != set(names))
    if compare.choose_after == "tried" and some:
        raise ConfigError(
            "compare.choose_after=tried needs all methods fine-tuned before, or none: see finetune_methods."
        )
    if compare.choose_after == "fine_tuned" and (not compare.finetune_epochs or some):
        raise ConfigError(
            "compare.choose_after=fine_tuned needs every method fine-tuned: set compare.finetune_epochs and leave "
            "compare.finetune_methods empty, or choose after 'recovered'."
        )
    return methods
