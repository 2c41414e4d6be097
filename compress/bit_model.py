"""Probabilities of bits, learned while coding from the bits before, in whole numbers only.

Two ways to use contexts, both from counts of the zeros and ones seen in each:

- `chain`: contexts from the broadest to the narrowest; each blends its counts with the probability of the one before,
  as if that had been seen half a time. Good where a narrow context is nearly certain, as in text.
- `mix`: the first context stands for the whole; each other one adds by how much its own log odds differ from that,
  times a weight that is learned as well (logistic mixing: Mahoney 2005, "Adaptive weighing of context models for
  lossless data compression"). Good where several contexts each tell a part, as the row and the column of a sparse
  matrix.

Log odds are in units of 1/256 nat, probabilities of 1/65536. The two tables come from `math`, but no entry lies near
the middle between two integers, so that they are the same on every machine.
"""

import math
from collections.abc import Hashable, Mapping, Sequence

from compress.arithmetic_coding import BitDecoder, BitEncoder
from compress.errors import ArtifactError

HALF = 32768
_NAT = 256
_MOST_ODDS = 2815  # 11 nats, one in 60,000
ODDS = tuple(round(_NAT * math.log((i + 0.5) / (4095.5 - i))) for i in range(4096))
SQUASHED = tuple(round(65536 / (1 + math.exp(-x / _NAT))) for x in range(-_MOST_ODDS, _MOST_ODDS + 1))
# How often the whole counts as seen in each of the other contexts, and the weight that these begin with, of 65536.
_PRIOR, _FIRST_WEIGHT = 8, 20000
_RATE = 15  # a weight moves by log odds times error / 2^15
_MOST_SEEN_CHAIN, _MOST_SEEN_MIX = 255, 1023
_MOST_NUMBER_BITS = 40


class BitModel:
    """Codes bits through `coder` and learns from each: the same calls in the same order decode what was encoded.

    Attributes:
        coder: where the bits go to or come from.
        counts: context -> how many zeros and ones were seen in it.
        weights: name of a set -> its mixing weights.
    """

    def __init__(self, coder: BitEncoder | BitDecoder) -> None:
        self.coder = coder
        self.weights: dict[Hashable, list[int]] = {}
        self.counts: dict[Hashable, list[int]] = {}

    def learn(self, counts: Mapping[Hashable, Sequence[int]]) -> None:
        """Take over what another model has seen in these contexts."""
        self.counts.update((context, list(count)) for context, count in counts.items())

    def chain(self, bit: int, contexts: Sequence[Hashable]) -> int:
        """The bit, coded in a chain of contexts, the broadest first."""
        probability, seen = HALF, []
        for context in contexts:
            count = self._count(context)
            probability = (count[1] * 131072 + probability) // (2 * (count[0] + count[1]) + 1)
            seen.append(count)
        bit = self.coder.code(bit, min(max(probability, 16), 65520))
        for count in seen:
            _see(count, bit, _MOST_SEEN_CHAIN)
        return bit

    def mix(self, bit: int, contexts: Sequence[Hashable], weights_name: Hashable) -> int:
        """The bit, coded with what each context tells beyond the first; as many contexts for each set of weights."""
        seen = [self._count(context) for context in contexts]
        zeros, ones = seen[0]
        whole = (ones * 131072 + 65536) // (2 * (zeros + ones) + 2)
        base = ODDS[whole >> 4]
        weights = self.weights.get(weights_name)
        if weights is None:
            weights = self.weights[weights_name] = [65536] + [_FIRST_WEIGHT] * (len(contexts) - 1)
        inputs = [base]
        for zeros, ones in seen[1:]:
            total = zeros + ones
            inputs.append(ODDS[((ones << 16) + _PRIOR * whole) // (total + _PRIOR) >> 4] - base if total else 0)
        odds = sum(map(int.__mul__, weights, inputs)) >> 16
        probability = SQUASHED[min(max(odds, -_MOST_ODDS), _MOST_ODDS) + _MOST_ODDS]
        bit = self.coder.code(bit, probability)
        error = (bit << 16) - probability
        for i, value in enumerate(inputs):
            if value:
                weights[i] += value * error >> _RATE
            _see(seen[i], bit, _MOST_SEEN_MIX)
        return bit

    def plain(self, value: int, bits: int) -> int:
        """A number of so many bits, coded as it is."""
        found = 0
        for shift in range(bits - 1, -1, -1):
            found = found << 1 | self.coder.code(value >> shift & 1, HALF)
        return found

    def tree(self, value: int, bits: int, contexts: Sequence[Hashable]) -> int:
        """A number of so many bits, the highest first, each in a chain of `contexts` and of what came before it."""
        node = 1
        for shift in range(bits - 1, -1, -1):
            node = node << 1 | self.chain(value >> shift & 1, [(context, node) for context in contexts])
        return node - (1 << bits)

    def number(self, value: int, context: Hashable) -> int:
        """A non-negative number: how many bits it has, then these. Raises ArtifactError for more than 40 bits."""
        length = 0
        while self.chain(int(value + 1 >> length + 1 > 0), [(context, length)]):
            length += 1
            if length > _MOST_NUMBER_BITS:
                raise ArtifactError("A number is too large: the file is damaged. Save the artifact again.")
        return (1 << length) + self.plain(value + 1 & (1 << length) - 1, length) - 1

    def _count(self, context: Hashable) -> list[int]:
        count = self.counts.get(context)
        if count is None:
            count = self.counts[context] = [0, 0]
        return count


def _see(count: list[int], bit: int, most: int) -> None:
    count[bit] += 1
    if count[bit] > most:
        count[0], count[1] = count[0] >> 1, count[1] >> 1
