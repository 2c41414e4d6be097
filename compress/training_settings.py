"""Settings of a training: which values they may take, and the learning rate that follows from them."""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch

from compress.errors import CompressError

_log = logging.getLogger(__name__)
OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "one_cycle", "constant")
PRECISIONS = ("float32", "bfloat16")


def learning_rate(step: int, total: int, peak: float, schedule: str, warmup: float) -> float:
    """The learning rate of step `step` of `total`, from 0."""
    if schedule == "constant":
        return peak
    rise = max(1.0, (0.3 if schedule == "one_cycle" else warmup) * total)
    if step + 1 < rise:
        return peak * (step + 1) / rise
    left = min(1.0, max(0.0, (step + 1 - rise) / max(1.0, total - rise)))
    return peak * 0.5 * (1 + math.cos(math.pi * left))


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "epochs": (lambda v: isinstance(v, int) and v >= 0, "an int of at least 0"),
    "lr": (lambda v: v > 0, "above 0"),
    "momentum": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "weight_decay": (lambda v: v >= 0, "at least 0"),
    "warmup": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "temperature": (lambda v: v > 0, "above 0"),
    "alpha": (lambda v: 0 <= v <= 1, "in [0, 1]"),
    "optimizer": (lambda v: v in OPTIMIZERS, f"one of {OPTIMIZERS}"),
    "precision": (lambda v: v in PRECISIONS, f"one of {PRECISIONS}"),
    "schedule": (lambda v: v in SCHEDULES, f"one of {SCHEDULES}"),
    "range_rate": (lambda v: v > 0, "above 0"),
    "patience": (lambda v: v is None or v >= 1, "at least 1, or None"),
    "clip_norm": (lambda v: v is None or v > 0, "above 0, or None"),
}


def check_settings(**settings: Any) -> None:
    """Refuse settings of `finetune_` that are out of range; those without a rule pass.

    Raises:
        CompressError: naming the setting.
    """
    for name, value in settings.items():
        met, rule = _RULES.get(name, (lambda v: True, ""))
        if not met(value):
            raise CompressError(f"The '{name}' parameter of finetune_ must be {rule}. Got {value!r}.")


def warn_of_slow_precision(precision: str, device: str) -> None:
    """Tell that a processor computes bfloat16 in software: convolutions took 10 to 18 times as long on AVX2 alone."""
    if precision != "bfloat16" or device != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return
    found = torch.cpu.get_capabilities()
    if found.get("architecture") == "x86_64" and not any(found.get(name) for name in ("avx512_f", "amx_bf16")):
        _log.warning(
            "precision='bfloat16' is slow here: the processor (%s) has no AVX-512, and convolutions in bfloat16 take "
            "more than ten times as long as in float32. Set precision='float32' (finetune.precision=float32).",
            found.get("cpu_name", "unknown"),
        )


def warn_of_idle_settings(settings: dict[str, Any]) -> None:
    """Tell of settings that have no effect."""
    if settings["distilled"] and settings["alpha"] == 0:
        _log.warning("The 'alpha' parameter of finetune_ is 0: the teacher has no effect.")
    if settings.get("distillation") is not None and not settings["distilled"]:
        _log.warning("The 'distillation' parameter of finetune_ has no effect without a teacher.")
    if settings["patience"] is not None and not settings["validated"]:
        _log.warning("The 'patience' parameter of finetune_ has no effect without validation batches.")
