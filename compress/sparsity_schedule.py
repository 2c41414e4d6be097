"""The seam of sparsity schedules: how much of a model is gone after how many training steps."""

from typing import Any, Protocol, runtime_checkable

from compress.errors import CompressError


@runtime_checkable
class SparsitySchedule(Protocol):
    """A staircase over the steps of a training that never falls; weights are removed where it rises.

    Attributes:
        name: file name, config name and tag.
    """

    name: str

    def sparsity(self, step: int, total_steps: int, final: float) -> float:
        """Fraction of the weights that is gone after `step` of `total_steps` steps, in [0, final].

        Args:
            step: 0 is before training.
            total_steps: of the training.
            final: what is gone in the end, in [0, 1).
        """


def step_of(moment: float, total_steps: int) -> int:
    """The step that a moment of a training means: a float is a fraction of it, an int is that step."""
    return round(moment * total_steps) if isinstance(moment, float) else moment


def check_moment(owner: str, name: str, value: float) -> None:
    """Raises CompressError unless `value` is a moment: an int from 0 on, or a float in [0, 1]."""
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not whole and not (isinstance(value, float) and 0 <= value <= 1):
        raise CompressError(
            f"The '{name}' parameter of {owner} must be a fraction of the training as a float in [0, 1], or a step as "
            f"an int of at least 0. Got {value!r}."
        )


def check_moments(owner: str, begin: float, end: float) -> None:
    """Raises CompressError unless both are moments, and in order where they can be compared."""
    check_moment(owner, "begin", begin)
    check_moment(owner, "end", end)
    if isinstance(begin, type(end)) and begin > end:
        raise CompressError(f"The 'end' parameter of {owner} must not lie before 'begin'. Got {begin!r} to {end!r}.")


def check_count(owner: str, name: str, value: Any) -> None:
    """Raises CompressError unless `value` is an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CompressError(f"The '{name}' parameter of {owner} must be an int of at least 1. Got {value!r}.")


def check_initial(owner: str, initial: float) -> None:
    """Raises CompressError unless `initial` is a sparsity to begin with."""
    if not 0 <= initial < 1:
        raise CompressError(f"The 'initial_sparsity' parameter of {owner} must be in [0, 1). Got {initial!r}.")


def decayed(initial: float, final: float, progress: float, power: float) -> float:
    """`final + (initial - final) (1 - progress)^power`: fast at first, slow at the end (Zhu and Gupta 2017).

    An initial sparsity above the final one is taken for the final one.
    """
    return final + (min(initial, final) - final) * (1.0 - progress) ** power
