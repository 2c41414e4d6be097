"""STS-B: pairs of sentences with the similarity that people gave them, from its publisher's three files."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.errors import DataError
from experiments.data.root import data_root, require_files
from experiments.data.splits import DataSplits, carve

TRAIN_FILE = "sts-train.csv"
TEST_FILE = "sts-test.csv"
# The fifth, sixth and seventh of the tab-separated fields: score 0 to 5, and the two sentences.
_SCORE, _FIRST, _SECOND = 4, 5, 6


@dataclass(frozen=True, eq=False)
class SentencePairPart:
    """Tokenised pairs; a batch of `k` pairs has `2 k` rows, the two sentences of a pair one after the other.

    A batch is `(input_ids, attention_mask, gold, pair, target)`, each with `2 k` rows: tokens padded to the longest
    sentence of the batch, the gold score of the row's pair, the number of the pair in the publisher's file, and the
    target embedding, of width 0 until `EmbeddingTask.attach_targets` fills it.

    Attributes:
        tokens: int64, `(n, 2, sequence)`, padded with `pad_id`.
        lengths: int64, `(n, 2)`.
        gold: float64, `(n,)`.
    """

    tokens: Tensor
    lengths: Tensor
    gold: Tensor
    indices: Tensor
    source: str

    def __len__(self) -> int:
        return len(self.gold)

    def batch(self, positions: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        lengths = self.lengths[positions].flatten()
        longest = int(lengths.max())
        tokens = self.tokens[positions].flatten(0, 1)[:, :longest]
        mask = (torch.arange(longest) < lengths[:, None]).long()
        gold = self.gold[positions].repeat_interleave(2)
        pair = self.indices[positions].repeat_interleave(2)
        return tokens, mask, gold, pair, torch.zeros(len(tokens), 0)

    def ordered(self) -> Tensor:
        # Pairs of like length together: a batch is padded to its longest sentence.
        return self.lengths.max(dim=1).values.argsort(stable=True)

    def take(self, n: int) -> "SentencePairPart":
        return self.select(torch.arange(min(n, len(self))))

    def select(self, positions: Tensor) -> "SentencePairPart":
        """The part that holds only the pairs at these positions."""
        return replace(
            self,
            tokens=self.tokens[positions],
            lengths=self.lengths[positions],
            gold=self.gold[positions],
            indices=self.indices[positions],
        )


def load_stsb(
    root: str | Path | None = None,
    seed: int = 0,
    calibration: int = 256,
    label: int = 256,
    validation: int = 500,
    max_length: int = 128,
    tokenizer: str | Path | None = None,
) -> DataSplits:
    """STS-B as token ids for sentence encoders, from `<data root>/stsbenchmark`.

    Calibration, label and validation pairs come from the publisher's training file, the test pairs from its test file.

    Args:
        root: the data root, see `experiments.data.data_root`.
        seed: chooses calibration, label and validation pairs.
        calibration, label, validation: number of pairs of each part.
        max_length: longer sentences are cut to this many tokens.
        tokenizer: a `tokenizer.json`; the one of all-MiniLM-L6-v2 if None.

    Raises:
        DataError: if a file or the tokenizer is missing or damaged, with what to put where.
    """
    paths = require_files(data_root(root) / "stsbenchmark", (TRAIN_FILE, TEST_FILE), "stsb")
    encoder = _load_tokenizer(tokenizer, max_length)
    train, test = (
        _tokenise(*read_pairs(path), encoder, source) for path, source in zip(paths, ("train", "test"), strict=True)
    )
    sizes = {"calibration": calibration, "label": label, "validation": validation}
    # Equal shares of each whole score, so that every part spans all degrees of likeness.
    bins = train.gold.numpy().round().astype(np.int64)
    parts = {part: train.select(torch.from_numpy(chosen)) for part, chosen in carve(bins, sizes, seed).items()}
    return DataSplits(name="stsb", **parts, test=test, input_shape=(max_length,), layout="tokens")


def read_pairs(path: Path) -> tuple[list[tuple[str, str]], list[float]]:
    """The sentence pairs and their scores. Raises DataError naming the line that is not one."""
    pairs, scores = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fields = line.split("\t")
        try:
            score = float(fields[_SCORE])
            pairs.append((fields[_FIRST].strip(), fields[_SECOND].strip()))
        except (IndexError, ValueError) as error:
            raise DataError(f"{path}, line {number}: must have a score and two sentences. Fetch it again.") from error
        if not (math.isfinite(score) and 0 <= score <= 5):
            raise DataError(f"{path}, line {number}: the score must be in [0, 5]. Got {fields[_SCORE]}.")
        scores.append(score)
    if not pairs:
        raise DataError(f"{path} is empty. Delete it and fetch it again.")
    return pairs, scores


def _load_tokenizer(path: str | Path | None, max_length: int) -> Any:
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise DataError(
            "Data set 'stsb' needs the package 'tokenizers'. Install the optional extra: "
            "pip install 'autolabel-compress[sts]'."
        ) from error
    if path is None:
        from experiments.models.minilm import minilm_folder

        path = minilm_folder() / "tokenizer.json"
    if not Path(path).is_file():
        raise DataError(f"The tokenizer file {path} does not exist. Pass the 'tokenizer.json' of your encoder.")
    encoder = Tokenizer.from_file(str(path))
    encoder.no_padding()
    encoder.enable_truncation(max_length)
    return encoder


def _tokenise(pairs: list[tuple[str, str]], scores: list[float], encoder: Any, source: str) -> SentencePairPart:
    encoded = encoder.encode_batch([sentence for pair in pairs for sentence in pair])
    lengths = torch.tensor([len(sentence.ids) for sentence in encoded])
    tokens = torch.zeros(len(encoded), int(lengths.max()), dtype=torch.int64)
    for row, sentence in enumerate(encoded):
        tokens[row, : len(sentence.ids)] = torch.tensor(sentence.ids)
    return SentencePairPart(
        tokens=tokens.view(len(pairs), 2, -1),
        lengths=lengths.view(len(pairs), 2),
        gold=torch.tensor(scores, dtype=torch.float64),
        indices=torch.arange(len(pairs)),
        source=source,
    )
