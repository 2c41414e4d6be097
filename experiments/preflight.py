"""Settings that would fail or do nothing hours later are refused in the first second."""

import math
from collections.abc import Collection, Sequence
from typing import Any

from autolabel.active_sampling import ACTIVE
from autolabel.sampling import STRATEGIES
from compress.budget import Budget
from compress.errors import CompressError
from compress.masking import SCOPES
from compress.menu import check_constraints
from compress.normalization import NORMALIZATIONS
from compress.number_format import NumberFormat
from compress.plan import ACTIVATION_RANGES, GRANULARITIES, SCHEME_BITS
from compress.quantizer import INTEGER_BITS
from compress.recovery import STEPS
from compress.refit import LAYER_CHOICES
from compress.rewinding import REWINDS
from compress.second_order_pruning import METHODS
from compress.tensor_coding import CODERS
from compress.training_settings import check_settings as check_training
from experiments.compared_methods import methods_of
from experiments.components import Components, acts_in
from experiments.config import ConfigError
from experiments.placement import is_available
from experiments.settings import DENSITY, Config, QuantizeSettings, SparsifySettings

FORMATS = ("onnx",)
# Name in the group -> what it measures.
ORACLES = {"removal": "removable", "layer_choice": "layer"}
TRAININGS = ("train", "finetune", "quantize")


def check_settings(config: Config, parts: Components) -> None:
    """Refuse what no stage could do.

    Raises:
        ConfigError: naming the key, what it must be, and what it is.
    """
    methods_of(config, parts)
    try:
        check_constraints(parts.constraints)
    except CompressError as error:
        raise ConfigError(str(error)) from None
    measure, recovery, quantize, export = config.measure, config.recovery, config.quantize, config.export
    _require("device", is_available(config.device), "a torch device that is here, such as 'cpu'", config.device)
    missing = [name for name in ORACLES if name not in parts.oracles]
    _require("oracles", not missing, f"a group that holds {missing}", sorted(parts.oracles))
    for name, kind in ORACLES.items():
        found: Any = parts.oracles[name]
        _require(f"oracles.{name}", found.kind == kind, f"an oracle that measures units of kind {kind!r}", found.name)
    _one_of("measure.sampling", [measure.sampling], (*STRATEGIES, ACTIVE))
    for name in ("images", "batch_size"):
        _at_least(f"measure.{name}", getattr(measure, name), 1)
    for oracle in parts.oracles.values():
        _require("measure.images", math.ceil(measure.images / measure.batch_size) >= oracle.least_batches,
                 f"above measure.batch_size={measure.batch_size} with {oracle.name!r}, which needs "
                 f"{oracle.least_batches} batches", measure.images)  # fmt: skip
    _at_least("measure.sample", measure.sample, 0)
    _require("measure.sampling", measure.removals or measure.sampling != ACTIVE,
             "'uniform' or 'stratified' with measure.sample=0", measure.sampling)  # fmt: skip
    _require(
        "front",
        measure.removals or not config.front,
        "empty with measure.sample=0: it adds labels of units",
        config.front,
    )
    _at_least("measure.plans", measure.plans, 0)
    joint, widths = quantize.joint_plans, set(getattr(parts.oracles["layer_choice"], "bits", quantize.bits))
    _require("quantize.joint_plans", joint == 0 or (joint >= 10 and quantize.enabled and len(widths) > 1),
             "0, or at least 10 where quantize.enabled is true and there are several widths", joint)  # fmt: skip
    _require("quantize.joint_plans", joint == 0 or parts.oracles["layer_choice"].name == "layer_choice",
             "0 with labels after a repair: plans of widths are measured at once", joint)  # fmt: skip
    measured = getattr(parts.oracles["layer_choice"], "number_format", None)
    stored = NumberFormat(quantize.scheme, quantize.granularity, quantize.group_size)
    _require("oracles.layer_choice", not quantize.enabled or measured == stored, f"in the run's {stored}", measured)
    _one_of("recovery.steps", recovery.steps, STEPS)
    _one_of("recovery.layers", [recovery.layers], LAYER_CHOICES)
    _at_least("recovery.images", recovery.images, 1)
    _at_least("recovery.max_rows", recovery.max_rows, 1)
    _at_least("recovery.ridge", recovery.ridge, 0)
    if recovery.data_free:
        _require("recovery.augment", not recovery.augment, "false with recovery.data_free, which takes no images",
                 recovery.augment)  # fmt: skip
        _require("measure.batch_size", measure.batch_size >= 2, "at least 2 with recovery.data_free, which takes "
                 "statistics of batches", measure.batch_size)  # fmt: skip
    _at_least("compare.finetune_epochs", config.compare.finetune_epochs, 0)
    _at_least("compare.trial_steps", config.compare.trial_steps, 0)
    _at_least("quantize.epochs", quantize.epochs, 0)
    for name in ("bits", "densities"):
        given = getattr(quantize, name)
        _require(f"quantize.{name}", bool(given), "a list of one number at least", given)
    one = 1 in SCHEME_BITS.get(quantize.scheme, ()) and not stored.on_integers
    _require("quantize.bits", one or 1 not in quantize.bits, "2 to 8, or 32: of one bit no engine makes an integer. "
             "quantize.scheme=affine, codebook, or symmetric per quantize.granularity=tensor or group have one, and "
             "quantize.scheme=binary stores all layers of few bits in it", quantize.bits)  # fmt: skip
    _one_of("quantize.bits", quantize.bits, (*INTEGER_BITS, 1, 32))
    _one_of("quantize.activation_bits", [quantize.activation_bits], (None, 8))
    _one_of("quantize.activation_ranges", [quantize.activation_ranges], ACTIVATION_RANGES)
    on_integers = (quantize.scheme, quantize.granularity) == ("symmetric", "channel") and not quantize.trained_ranges
    _require("quantize.activation_ranges",
             quantize.activation_ranges == "static" or (quantize.activation_bits == 8 and on_integers),
             "'static' where activations stay float: with activation_bits null, trained_ranges, or a scheme or "
             "granularity other than 'symmetric' per 'channel'", quantize.activation_ranges)  # fmt: skip
    _at_least("export.tolerance", export.tolerance, 0)
    _one_of("export.formats", export.formats, FORMATS)
    _one_of("export.coder", [export.coder], CODERS)
    _one_of("export.float_bits", [export.float_bits], (*range(8, 17), 32))
    _one_of("quantize.scheme", [quantize.scheme], SCHEME_BITS)
    _one_of("quantize.granularity", [quantize.granularity], GRANULARITIES)
    _one_of("finetune.select", [config.finetune.select], ("best", "last"))
    _require("front", all(0 < factor < math.inf for factor in config.front), "numbers above 0", config.front)
    bounded = parts.budget != Budget()
    _require("front", bounded or not config.front, "empty without a bound in budget to solve around", config.front)
    _one_of("penalized", config.penalized, TRAININGS)
    _check_penalty(config, parts)
    _check_format(quantize)
    _check_rounding(quantize, parts)
    sparsify = config.sparsify
    _check_masks(sparsify, parts)
    _check_early(config)
    _one_of("sparsify.scope", [sparsify.scope], SCOPES)
    _one_of("sparsify.by", [sparsify.by], ("score", "labeler", "criterion"))
    _one_of("sparsify.update", [sparsify.update], (None, *METHODS))
    _one_of("sparsify.rewind", [sparsify.rewind], (None, *REWINDS))
    if sparsify.update is not None:
        _check_update(sparsify, quantize, parts)
    if config.student is not None:
        _require(
            "finetune.epochs", config.finetune.epochs >= 1, "at least 1 to train a student", config.finetune.epochs
        )
        _require("sparsify.by", sparsify.by == "score", "'score' for a student, which knows nothing yet", sparsify.by)
        _one_of("sparsify.update", [sparsify.update], (None,))
        for name in ("bit_operations", "latency_ms"):
            bound = getattr(config.budget, name)
            _require(f"budget.{name}", bound is None, "null for a student: macs and bytes are counted", bound)
    plain = set(quantize.densities) == {1.0} and not quantize.ranks and not quantize.schemes
    _require("quantize.joint_plans", plain or not joint, "0 where densities, ranks or schemes are offered", joint)
    factorizer, scheme = parts.factorizer, getattr(parts.oracles["layer_choice"], "rank_scheme", "channel")
    ranked = bool(quantize.enabled and quantize.ranks)
    name = factorizer.name if factorizer else "channel"
    _require("factorizer", factorizer is None or ranked, "null without quantize.enabled and quantize.ranks", name)
    _require("oracles.layer_choice.factorizer", not ranked or scheme == name, f"the run's, {name!r}", scheme)
    for batch in export.latency_batches:
        _at_least("export.latency_batches", batch, 1)
    _at_least("export.latency_repeats", export.latency_repeats, 1)
    train, finetune = config.train, config.finetune
    _at_least("train.batch_size", train.batch_size, 1)
    _at_least("finetune.batch_size", finetune.batch_size, 1)
    _at_least("finetune.views", finetune.views, 1)
    _training("train", epochs=train.epochs, lr=train.lr, optimizer=train.optimizer, weight_decay=train.weight_decay)
    _training(
        "finetune", epochs=finetune.epochs, lr=finetune.lr, optimizer=finetune.optimizer, patience=finetune.patience,
        weight_decay=finetune.weight_decay, alpha=finetune.alpha, temperature=finetune.temperature,
        precision=finetune.precision,
    )  # fmt: skip
    _training("quantize", lr=quantize.lr, range_rate=quantize.range_rate)


def _check_format(quantize: QuantizeSettings) -> None:
    size = quantize.group_size
    _require("quantize.group_size", size is None or quantize.granularity == "group",
             "null without quantize.granularity=group", size)  # fmt: skip
    _at_least("quantize.group_size", size, 1)


def _check_penalty(config: Config, parts: Components) -> None:
    """A penalty needs a training that it acts in, and one on bytes the weights that it prices."""
    penalty, quantize = parts.penalty, config.quantize
    if penalty is None:
        return
    epochs = {"train": config.train.epochs, "finetune": config.finetune.epochs,
              "quantize": quantize.epochs if quantize.enabled else 0}  # fmt: skip
    able = [stage for stage in TRAININGS if acts_in(penalty, stage)]
    trained = [stage for stage in able if epochs[stage]]
    _require("penalty", bool(trained), f"null where none of the trainings it acts in, {able}, is done: give one epochs",
             penalty.name)  # fmt: skip
    _require("penalized", any(stage in config.penalized for stage in trained),
             f"a list with one of {trained}, where penalty {penalty.name!r} acts", config.penalized)  # fmt: skip
    if penalty.name == "coded_bytes":
        _require("quantize.scheme", quantize.scheme == "symmetric", "'symmetric' with penalty=coded_bytes, for whose "
                 "symbols it has a price", quantize.scheme)  # fmt: skip
        _require("quantize.trained_ranges", quantize.trained_ranges or quantize.granularity != "channel",
                 "true with penalty=coded_bytes, unless quantize.granularity is tensor or group",
                 quantize.trained_ranges)  # fmt: skip
        _require("quantize.bits", 1 not in quantize.bits, "2 or more with penalty=coded_bytes, whose symbols have a "
                 "sign", quantize.bits)  # fmt: skip


def _check_rounding(quantize: QuantizeSettings, parts: Components) -> None:
    """A rounding moves weights to integers that engines compute on, which other formats do not have."""
    if parts.rounding is None:
        return
    name, format_ = parts.rounding.name, f"{quantize.scheme!r} per {quantize.granularity!r}"
    low = quantize.enabled and min(quantize.bits, default=32) <= max(INTEGER_BITS)
    _require("rounding", low, "null where quantize.enabled is false or quantize.bits are all above 8", name)
    _require("rounding", (quantize.scheme, quantize.granularity) == ("symmetric", "channel"),
             f"null with quantize.scheme and quantize.granularity {format_}: set rounding=null, or "
             f"quantize.scheme=symmetric quantize.granularity=channel quantize.group_size=null", name)  # fmt: skip


def _check_update(sparsify: SparsifySettings, quantize: QuantizeSettings, parts: Components) -> None:
    """Pruning with an update chooses the weights of each layer by itself, all before the training."""
    pattern, score, schedule = parts.pattern, parts.weight_score, parts.sparsity_schedule
    kind, fixed = pattern.name if pattern else None, bool(pattern and pattern.least_density)
    _require("pattern", kind in (None, "unstructured", "n_of_m"),
             "null, unstructured or n_of_m with sparsify.update, which removes single weights", kind)  # fmt: skip
    densities = quantize.enabled and min(quantize.densities, default=1.0) < 1
    _require("pattern", not (fixed and densities),
             "null or unstructured with sparsify.update where quantize.densities are below 1", kind)  # fmt: skip
    density, least = sparsify.density, pattern.least_density if fixed else None
    _require("sparsify.density", not fixed or density in (None, least),
             f"null or {least} with sparsify.update and the pattern, which it makes whole", density)  # fmt: skip
    score_name = score.name if score else None
    _require("weight_score", score is None, "null with sparsify.update, which scores by second moments", score_name)
    _require("sparsify.by", sparsify.by == "score", "'score' with sparsify.update", sparsify.by)
    _require("sparsify.normalize", sparsify.normalize is None, "null with sparsify.update", sparsify.normalize)
    at_once = schedule is None or schedule.sparsity(0, 10**6, 0.5) == 0.5
    _require("sparsity_schedule", at_once, "null with sparsify.update, which removes all before the training",
             schedule.name if schedule else None)  # fmt: skip
    _require("sparsify.rewind", sparsify.rewind is None, "null with sparsify.update, which leaves its rounds nothing",
             sparsify.rewind)  # fmt: skip
    kept = DENSITY if density is None else density
    _require("sparsify.floor", fixed or sparsify.floor <= kept,
             f"at most {kept:g} with sparsify.update: that is the density of every layer", sparsify.floor)  # fmt: skip


def _check_masks(sparsify: SparsifySettings, parts: Components) -> None:
    density, least = sparsify.density, parts.pattern.least_density if parts.pattern else 0.0
    span = f"in [{least:g}, 1] for the pattern {parts.pattern.text!r}" if parts.pattern and least else "in (0, 1]"
    _require("sparsify.density", density is None or (0 < density <= 1 and density >= least), span, density)
    _require("sparsify.floor", 0 <= sparsify.floor <= 1, "in [0, 1]", sparsify.floor)
    _one_of("sparsify.normalize", [sparsify.normalize], NORMALIZATIONS)
    _at_least("sparsify.rounds", sparsify.rounds, 1)
    if sparsify.by != "score":
        score = parts.weight_score.name if parts.weight_score else None
        _require("weight_score", score is None, f"null with sparsify.by={sparsify.by}, which scores by itself", score)
        _require("sparsify.normalize", sparsify.normalize is None, f"null with sparsify.by={sparsify.by}, whose "
                 "scores are compared as they are", sparsify.normalize)  # fmt: skip
    if sparsify.threshold is None:
        return
    _require("sparsify.threshold", math.isfinite(sparsify.threshold), "a finite number", sparsify.threshold)
    _require("sparsify.density", density is None, "null where sparsify.threshold says what stays", density)
    for name in ("update", "rewind"):
        value = getattr(sparsify, name)
        _require(f"sparsify.{name}", value is None, "null with sparsify.threshold: it is told by a density", value)
    schedule = parts.sparsity_schedule.name if parts.sparsity_schedule else None
    _require("sparsity_schedule", schedule in (None, "one_shot"),
             "null or one_shot with sparsify.threshold: others are told by a density", schedule)  # fmt: skip


def _check_early(config: Config) -> None:
    early, finetune = config.sparsify.early, config.finetune
    _require("sparsify.early", 0 <= early <= 1, "a part of the fine-tuning in [0, 1]", early)
    _require("sparsify.early", early == SparsifySettings.early or config.sparsify.rewind == "weights",
             f"{SparsifySettings.early} where sparsify.rewind is not weights", early)  # fmt: skip
    if config.sparsify.rewind == "weights" and finetune.patience is not None:
        # So many epochs are trained whatever validation says.
        sure = finetune.patience / max(finetune.epochs, 1)
        _require("sparsify.early", early <= sure, f"at most {sure:g} with finetune.patience, which may end the "
                 f"fine-tuning before", early)  # fmt: skip


def _training(section: str, **settings: Any) -> None:
    try:
        check_training(**settings)
    except CompressError as error:
        raise ConfigError(f"{section}: {error}") from None


def _require(key: str, met: bool, rule: str, value: Any) -> None:
    if not met:
        raise ConfigError(f"{key} must be {rule}. Got {value!r}.")


def _at_least(key: str, value: float | None, least: int) -> None:
    _require(key, value is None or value >= least, f"at least {least}", value)


def _one_of(key: str, values: Sequence[Any], known: Collection[Any]) -> None:
    for value in values:
        _require(key, value in known, f"out of {tuple(known)}", value)
