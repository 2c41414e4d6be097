"""Numbers as people read them, with their units."""

from pathlib import PurePath

STAGES = ("pruned", "recovered", "fine_tuned", "tried", "quantized", "exported")
STAGE_WORDS = {
    "pruned": "after pruning",
    "recovered": "after recovery",
    "fine_tuned": "after fine-tuning",
    "tried": "after a short training in its formats",
    "quantized": "after quantization",
    "exported": "exported file",
}
_COSTS = ("macs", "params", "weight_bytes", "file_bytes")
_BOUNDS = ("macs", "weight_bytes", "coded_bytes", "bit_operations", "latency_ms")
# Dotted names of the numbers in `report.json`; a run that left a stage out lacks those of it.
REPORTED = (
    *(f"{model}.{name}" for model in ("compressed", "dense") for name in ("metric.value", "loss", *_COSTS)),
    *(f"stages.{stage}" for stage in STAGES),
    "predicted_damage", "realised_damage",
    *(f"realised_damage_by_stage.{stage}" for stage in ("pruned", "recovered", "final")),
    *(f"predicted_recovered_damage.{name}" for name in
      ("nats", "low", "high", "coverage", "measured", "forward_macs")),
    *(f"solve.{name}" for name in ("damage", "lower_bound", "gap")),
    *(f"labeler.{name}" for name in
      ("held_out_spearman", "ahead_of_best_formula", "best_formula.spearman", "n_measured", "n_units", "seconds",
       "forward_macs", "naive_macs", "coverage")),
    *(f"budget.{side}.{name}" for side in ("met", "asked") for name in _BOUNDS),
    "schema_version", "seed",
)  # fmt: skip
NOTHING = "–"  # noqa: RUF001 - the dash of an empty cell


def stage_words(stage: str) -> str:
    """`after fine-tuning` for `fine_tuned`; `at the end` for `final`; others as they are."""
    return "at the end" if stage == "final" else STAGE_WORDS.get(stage, stage)


def metric_words(name: str | None) -> str:
    """`accuracy (%)` for `accuracy_percent`; other names with spaces."""
    if not name:
        return "metric"
    stem = name.removesuffix("_percent")
    return stem.replace("_", " ") + (" (%)" if stem != name else "")


def metric_unit(name: str | None) -> str:
    """What a difference of this metric is counted in: `points` for percentages, else nothing."""
    return " points" if (name or "").endswith("_percent") else ""


def format_metric(value: float | None, signed: bool = False) -> str:
    """Two decimals from 1 on (`91.73`), four below (`0.8203`); a small difference keeps two digits (`+0.083`)."""
    if value is None:
        return NOTHING
    if signed:
        return f"{value:+.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:+.2g}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.4f}"


def format_spread(mean: float | None, std: float | None, n: int) -> str:
    """`90.61 ± 0.12 (n=3)`; without a spread where there is one value."""
    if mean is None:
        return NOTHING
    if std is None:
        return f"{format_metric(mean)} (n={n})"
    return f"{format_metric(mean)} ± {std:.2f} (n={n})" if abs(mean) >= 1 else f"{mean:.4f} ± {std:.4f} (n={n})"


def format_loss(value: float | None) -> str:
    """Three decimals, or three significant digits of what is smaller than 0.01."""
    return NOTHING if value is None else f"{value:.3f}" if abs(value) >= 0.01 else f"{value:.3g}"


def format_damage(value: float | None) -> str:
    """Three significant digits."""
    return NOTHING if value is None else f"{value:.3g}"


def format_count(value: float | None) -> str:
    """`40.6 M`, `512`."""
    if value is None:
        return NOTHING
    for size, suffix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= size:
            return f"{_three(value / (1e3 if size == 1e4 else size))}{suffix}"
    return f"{value:,.0f}"


def format_bytes(value: float | None) -> str:
    """Decimal units: `1.09 MB`, `284 kB`."""
    if value is None:
        return NOTHING
    for size, suffix in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= size:
            return f"{_three(value / size)} {suffix}"
    return f"{value:.0f} B"


def format_ms(value: float | None) -> str:
    """Milliseconds, three significant digits."""
    return NOTHING if value is None else f"{_three(value)} ms"


def format_seconds(value: float | None) -> str:
    """`12.3 s`, `4.1 min`, `2.2 h`."""
    if value is None:
        return NOTHING
    if value < 120:
        return f"{value:.3g} s"
    return f"{value / 60:.3g} min" if value < 7200 else f"{value / 3600:.3g} h"


def format_ratio(value: float | None) -> str:
    """`1.92x`, `12.4x`."""
    return NOTHING if value is None else f"{_three(value)}x"


def format_percent(value: float | None) -> str:
    """A fraction as `50.0 %`."""
    return NOTHING if value is None else f"{100 * value:.1f} %"


def ratio(above: float | None, below: float | None) -> float | None:
    """`above / below`, None where it has no meaning."""
    return None if above is None or not below else above / below


def file_name(path: str | None) -> str:
    """A path inside the run as it stands, of an absolute one the last part."""
    if not path:
        return NOTHING
    return PurePath(path).name if PurePath(path).is_absolute() else path


def shorten(name: str, length: int = 34) -> str:
    """`name` with its middle left out if it is longer than `length`."""
    if len(name) <= length:
        return name
    head = (length - 1) // 3
    return f"{name[:head]}…{name[len(name) - (length - 1 - head) :]}"


def _three(value: float) -> str:
    """Three significant digits, zeros kept: `20.0`, `1.37`, `431`; all digits of what is larger."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")
