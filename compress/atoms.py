"""Atoms: the smallest slices of parameters, joined when they can only go together."""

import numpy as np


class Atoms:
    """A union-find over integers, with a reason for every set that cannot be removed.

    An atom stands for one index along one dimension of a parameter (or of padding that the graph adds). Joining atoms
    says that removing one means removing the other; blocking one says that it must stay.
    """

    def __init__(self) -> None:
        self._parent = np.zeros(0, dtype=np.int64)
        self._size = 0
        self._reasons: dict[int, str] = {}
        self.attention: set[int] = set()

    def new(self, n: int) -> np.ndarray:
        """`(n,)` fresh atoms."""
        first = self._size
        self._size += n
        if self._size > len(self._parent):
            grown = np.arange(max(2 * len(self._parent), self._size, 1024), dtype=np.int64)
            grown[:first] = self._parent[:first]
            self._parent = grown
        return np.arange(first, self._size, dtype=np.int64)

    def roots(self, atoms: np.ndarray) -> np.ndarray:
        """The representative of each atom, same shape."""
        roots = self._parent[atoms]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[atoms] = roots
        return roots

    def join(self, left: np.ndarray, right: np.ndarray) -> None:
        """Join `left[i]` with `right[i]` for every i; the smaller representative wins."""
        a, b = self.roots(left).ravel(), self.roots(right).ravel()
        different = a != b
        if not different.any():
            return
        for low, high in np.unique(np.stack([a[different], b[different]], axis=1), axis=0):
            self._join_pair(int(low), int(high))

    def _join_pair(self, left: int, right: int) -> None:
        while self._parent[left] != left:
            left = int(self._parent[left])
        while self._parent[right] != right:
            right = int(self._parent[right])
        if left == right:
            return
        low, high = min(left, right), max(left, right)
        self._parent[high] = low
        reason = self._reasons.pop(high, None)
        if reason is not None:
            self._reasons.setdefault(low, reason)

    def block(self, atoms: np.ndarray, reason: str) -> None:
        """These atoms must stay, because of `reason` (the first reason given is kept)."""
        for root in np.unique(self.roots(atoms)).tolist():
            self._reasons.setdefault(root, reason)

    def reason(self, atom: int) -> str | None:
        """Why this atom must stay, or None if it may go."""
        return self._reasons.get(int(self.roots(np.array([atom]))[0]))
