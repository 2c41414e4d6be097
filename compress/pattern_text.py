"""Patterns by the text that plans write."""

import re

from compress.errors import CompressError
from compress.pattern import SparsityPattern
from compress.patterns import BlockPattern, ChannelPattern, NOfMPattern, UnstructuredPattern


def pattern_of(text: str) -> SparsityPattern:
    """The pattern that `"unstructured"`, `"channel"`, `"2:4"` (any N:M) or `"block4x4"` (rows x columns) stands for.

    Raises:
        CompressError: for any other text, or numbers that make no pattern.
    """
    for plain in (UnstructuredPattern(), ChannelPattern()):
        if text == plain.text:
            return plain
    for form, kind in ((r"(\d+):(\d+)", NOfMPattern), (r"block(\d+)x(\d+)", BlockPattern)):
        found = re.fullmatch(form, text) if isinstance(text, str) else None
        if found:
            return kind(*(int(number) for number in found.groups()))
    raise CompressError(
        f"A pattern must be 'unstructured', 'channel', 'N:M' such as '2:4', or 'blockRxC' such as 'block4x4'. "
        f"Got {text!r}."
    )
