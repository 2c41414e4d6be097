"""A binary arithmetic coder: bits in, each with the probability that it is one, and few bytes out.

The interval [low, high] of 32 bits is split in proportion to the probability of each bit, and its leading bytes leave
as soon as both ends share them (Witten, Neal, Cleary 1987, "Arithmetic coding for data compression"). All numbers are
integers: whoever decodes computes the same on every machine.
"""

PROBABILITY_ONE = 1 << 16
_TOP, _MASK = 24, 0xFFFFFFFF


class BitEncoder:
    """Turns bits into bytes."""

    def __init__(self) -> None:
        self._low, self._high = 0, _MASK
        self._out = bytearray()

    def code(self, bit: int, probability: int) -> int:
        """The bit, after it was written; `probability` in [1, 65535] is 65536 times that of a one."""
        low, high = self._low, self._high
        middle = low + ((high - low) * probability >> 16)
        if bit:
            high = middle
        else:
            low = middle + 1
        while not (low ^ high) >> _TOP:
            self._out.append(high >> _TOP)
            low, high = low << 8 & _MASK, high << 8 & _MASK | 0xFF
        self._low, self._high = low, high
        return bit

    def place(self) -> int:
        """How many bytes have left."""
        return len(self._out)

    def state(self) -> tuple[int, int, int]:
        """What `rewind` needs to come back here."""
        return self._low, self._high, len(self._out)

    def rewind(self, state: tuple[int, int, int]) -> None:
        """Forget all bits since `state` was taken."""
        self._low, self._high, length = state
        del self._out[length:]

    def finish(self) -> bytes:
        """All bytes. A decoder reads zeros behind them, so that zeros at the end are left out."""
        for shift in (32, 24, 16, 8, 0):
            value = -(-self._low >> shift) << shift
            if value <= self._high:
                break
        return bytes(self._out + value.to_bytes(4, "big")).rstrip(b"\0")


class BitDecoder:
    """Gives back the bits of a `BitEncoder` to whoever names the same probabilities; of other bytes, any bits."""

    def __init__(self, data: bytes) -> None:
        self._low, self._high = 0, _MASK
        self._data, self._place = data, 4
        self._value = int.from_bytes(data[:4].ljust(4, b"\0"), "big")

    def code(self, bit: int, probability: int) -> int:
        """The next bit, written with this probability; the argument `bit` says nothing here."""
        low, high = self._low, self._high
        middle = low + ((high - low) * probability >> 16)
        bit = int(self._value <= middle)
        if bit:
            high = middle
        else:
            low = middle + 1
        while not (low ^ high) >> _TOP:
            low, high = low << 8 & _MASK, high << 8 & _MASK | 0xFF
            byte = self._data[self._place] if self._place < len(self._data) else 0
            self._value = self._value << 8 & _MASK | byte
            self._place += 1
        self._low, self._high = low, high
        return bit

    def place(self) -> int:
        """How many bytes had left the encoder when it was here."""
        return self._place - 4
