"""What the libraries warn of while a stage works, for the report."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PACKAGES = ("compress", "autolabel", "experiments")


class _Collector(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        add_once(self.messages, record.getMessage())


def add_once(messages: list[str], message: str) -> None:
    """Append a message that is not there yet."""
    if message not in messages:
        messages.append(message)


@contextmanager
def collected_warnings(messages: list[str]) -> Iterator[None]:
    """Within it, `messages` takes what this project's packages log as warnings or warn of, each text once.

    They are shown as usual too.
    """
    collector = _Collector(messages)
    loggers = [logging.getLogger(name) for name in PACKAGES]
    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
        # Our own come without a category of Python or of another library; theirs are not the user's to mend.
        if category is UserWarning or category.__module__.split(".")[0] in PACKAGES:
            add_once(messages, str(message))
        shown(message, category, filename, *rest)

    for logger in loggers:
        logger.addHandler(collector)
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = shown
        for logger in loggers:
            logger.removeHandler(collector)
