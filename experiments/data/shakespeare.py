"""Tiny Shakespeare: the next character of a play, from the publisher's one text file."""

from pathlib import Path

import numpy as np
import torch

from compress.errors import DataError
from experiments.data.root import data_root, require_files
from experiments.data.splits import DataSplits, carve
from experiments.data.tensor_part import TensorPart, tensor_splits

FILE = "input.txt"
# The windows of the subset are the same for every seed; the last part of the text is for testing.
_SUBSET_SEED = 20260103
_TEST_SHARE = 0.15


def load_shakespeare(
    root: str | Path | None = None,
    seed: int = 0,
    calibration: int = 512,
    label: int = 512,
    validation: int = 1000,
    train: int = 12_000,
    test: int = 3000,
    context: int = 24,
) -> DataSplits:
    """The next character after `(context,)` int64 tokens, 65 classes, from `<data root>/tinyshakespeare`.

    The text is cut into windows of `context + 1` characters one after the other, so that no two examples of any parts
    share a character. Test windows come from the last 15 % of the text, which does not touch the rest.

    Args:
        root: the data root, see `experiments.data.data_root`.
        seed: chooses calibration, label and validation examples; the windows of the subset never change.
        calibration, label, validation, train, test: number of examples of each part.
        context: characters that the network sees.

    Raises:
        DataError: if the file is missing, with what to put where, or too short for what is asked.
    """
    (path,) = require_files(data_root(root) / "tinyshakespeare", (FILE,), "shakespeare")
    tokens, characters = _tokenise(path)
    sizes = {"calibration": calibration, "label": label, "validation": validation}
    border = len(tokens) - int(len(tokens) * _TEST_SHARE)
    # One window lies idle on the border.
    regions = {"train": tokens[: border - context - 1], "test": tokens[border:]}
    wanted = {"train": train + sum(sizes.values()), "test": test}
    parts = [_windows(regions[source], context, wanted[source], source, path) for source in ("train", "test")]
    return tensor_splits("shakespeare", *parts, sizes, seed, "tokens", characters)


def _tokenise(path: Path) -> tuple[np.ndarray, list[str]]:
    """The text as positions in its sorted characters, and these."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is damaged ({error}). Delete it and fetch it again.") from error
    characters, tokens = np.unique(np.array(list(text), dtype="<U1"), return_inverse=True)
    return tokens.astype(np.int64), characters.tolist()


def _windows(tokens: np.ndarray, context: int, size: int, source: str, path: Path) -> TensorPart:
    """`size` windows drawn from a region of the text, in its order."""
    n = len(tokens) // (context + 1)
    if 2 * size > n:
        raise DataError(
            f"{path} has {n} windows of {context + 1} characters for '{source}', and at most half of them are drawn. "
            f"Got {size}: ask for fewer, or fetch the file again if it is not whole."
        )
    windows = tokens[: n * (context + 1)].reshape(n, context + 1)
    chosen = np.sort(carve(windows[:, -1], {"subset": size}, _SUBSET_SEED)["subset"])
    rows = torch.from_numpy(windows[chosen])
    return TensorPart(
        inputs=rows[:, :-1].contiguous(),
        labels=rows[:, -1].contiguous(),
        indices=torch.from_numpy(chosen),
        source=source,
    )
