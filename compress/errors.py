"""What can go wrong, by name: every error a user can act on is a `CompressError`."""

import difflib
from collections.abc import Iterable


class CompressError(ValueError):
    """Something a user can mend. The message names the thing and the next step."""


class TraceError(CompressError):
    """The model could not be traced into one graph."""


class PlanError(CompressError):
    """A plan that does not fit this model, or that would empty a group."""


class BudgetError(CompressError):
    """A budget that is malformed, or that no plan can meet."""


class DataError(CompressError):
    """Data that is missing, empty, of the wrong shape, or not finite."""


class ArtifactError(CompressError):
    """A file that is missing, truncated, altered, or of another version."""


class ExportError(CompressError):
    """A model that the file format cannot express."""


def first_line(error: BaseException | None) -> str:
    """The first line of an error of another library, as one sentence; its name where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{lines[0].rstrip('.') if lines else type(error).__name__}."


def suggestion(name: str, known: Iterable[str]) -> str:
    """One sentence for the end of a message: the known name that is most like `name`, or what known names look like."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else f"Known names look like {known[:5]}."
