"""Plain JSON through a learning bit model: few bytes for the headers of small files.

A value is told by its kind, then by what it is: a whole number by its sign and its bits, text by its place in a list of
words or by its bytes, a list or an object by its length and its parts. Kinds, lengths and words are each coded in the
context of the key that they stand under.
"""

import json
from collections.abc import Sequence
from typing import Any

from compress.bit_model import BitModel
from compress.errors import ArtifactError

_NULL, _FALSE, _TRUE, _WHOLE, _NUMBER, _WORD, _TEXT, _LIST, _OBJECT = range(9)
_PLAIN = {_NULL: None, _FALSE: False, _TRUE: True}
_MOST_TEXT = 2**17
# Room for twice the words that there are: files hold their places.
_WORD_BITS = 7
_MOST_VALUES = 2**18
_DEEPEST = 20


def code_json(model: BitModel, value: Any, words: Sequence[str]) -> Any:
    """The value, in both directions as functions of `compress.context_coding` are.

    Args:
        value: plain JSON; when decoding it says nothing.
        words: texts that take a number instead of their bytes, 128 at most, the same when decoding.

    Raises:
        ArtifactError: if what is read is no JSON. TypeError, ValueError: for what JSON cannot hold.
    """
    return _Coder(model, words).code(value, "", 0)


class _Coder:
    def __init__(self, model: BitModel, words: Sequence[str]) -> None:
        self.model, self.words = model, list(words)
        self.places = {word: place for place, word in enumerate(self.words)}
        self.left, self.left_text = _MOST_VALUES, _MOST_TEXT

    def code(self, value: Any, key: str, depth: int) -> Any:
        if depth > _DEEPEST:
            raise ArtifactError("The header is nested too deeply: the file is damaged. Save the artifact again.")
        kind = self.model.tree(self._kind(value), 4, ["json", ("json", key)])
        if kind in _PLAIN:
            return _PLAIN[kind]
        if kind == _WHOLE:
            return self._whole(value if isinstance(value, int) else 0, key)
        if kind == _NUMBER:
            return float(self._text(json.dumps(value, allow_nan=False) if isinstance(value, float) else ""))
        if kind == _WORD:
            return self._word(value if isinstance(value, str) else "", key)
        if kind == _TEXT:
            return self._text(value if isinstance(value, str) else "")
        if kind == _LIST:
            parts = list(value) if isinstance(value, (list, tuple)) else []
            return [self.code(part, key, depth + 1) for part in self._parts(parts, key)]
        if kind == _OBJECT:
            entries = list(value.items()) if isinstance(value, dict) else []
            return dict(self._entry(entry, key, depth) for entry in self._parts(entries, key))
        raise ArtifactError("The header is no JSON: the file is damaged. Save the artifact again.")

    def _kind(self, value: Any) -> int:
        if value is None or isinstance(value, bool):
            return {None: _NULL, False: _FALSE, True: _TRUE}[value]
        if isinstance(value, str):
            return _WORD if value in self.places else _TEXT
        for kinds, kind in ((int, _WHOLE), (float, _NUMBER), ((list, tuple), _LIST), (dict, _OBJECT)):
            if isinstance(value, kinds):
                return kind
        raise TypeError(f"JSON cannot hold {type(value).__name__}.")

    def _parts(self, parts: list[Any], key: str) -> list[Any]:
        """As many parts as there are; when decoding, so many of nothing."""
        length = self.model.number(len(parts), ("json length", key))
        self.left -= length
        if self.left < 0:
            raise ArtifactError("The header is too long: the file is damaged. Save the artifact again.")
        return parts or [None] * length

    def _entry(self, entry: tuple[str, Any] | None, key: str, depth: int) -> tuple[str, Any]:
        name, value = ("", None) if entry is None else entry
        known = self.model.chain(int(name in self.places), ["json key"])
        name = self._word(name, ("key of", key)) if known else self._text(name)
        return name, self.code(value, name, depth + 1)

    def _whole(self, value: int, key: str) -> int:
        negative = self.model.chain(int(value < 0), ["json sign"])
        size = self.model.number(abs(value) - negative, ("json whole", key))
        return -size - 1 if negative else size

    def _word(self, word: str, context: Any) -> str:
        place = self.model.tree(self.places.get(word, 0), _WORD_BITS, [("json word", context)])
        if place >= len(self.words):
            raise ArtifactError("The header names no word: the file is damaged. Save the artifact again.")
        return self.words[place]

    def _text(self, text: str) -> str:
        data = text.encode()
        length = self.model.number(len(data), "json text length")
        self.left_text -= length
        if self.left_text < 0:
            raise ArtifactError("The header is too long: the file is damaged. Save the artifact again.")
        found = bytearray()
        for byte in data.ljust(length, b"\0"):
            before = (bytes(found[-order:]) for order in (1, 2, 3) if len(found) >= order)
            contexts = ["json text", *(("json text", text) for text in before)]
            found.append(self.model.tree(byte, 8, contexts))
        try:
            return found.decode()
        except UnicodeDecodeError:
            raise ArtifactError("The header is no text: the file is damaged. Save the artifact again.") from None
