"""Atoms: the smallest slices of parameters, joined when they can only go together."""

import numpy as np


class Atoms:
    """A union-find over integers, with a reason for every set that cannot be removed.

    An atom stands for one index along one dimension of a parameter (or of padding that the graph adds). Joining atoms
    says that removing one means removing the other; blocking one says that it must stay.
    """

    def __init__(self) -> None:
        self._parent = np.zeros(0, dtype=np.int64)
        self._free = np.zeros(0, dtype=bool)
        self._size = 0
        self._reasons: dict[int, str] = {}
        self.attention: set[int] = set()

    def __len__(self) -> int:
        return self._size

    def new(self, n: int, free: bool = False) -> np.ndarray:
        """`(n,)` fresh atoms. Free ones stand for repeated or made-up values, until they meet a parameter."""
        first = self._size
        self._size += n
        if self._size > len(self._parent):
            grown = np.arange(max(2 * len(self._parent), self._size, 1024), dtype=np.int64)
            grown[:first] = self._parent[:first]
            self._parent = grown
            self._free = np.concatenate([self._free[:first], np.zeros(len(grown) - first, dtype=bool)])
        self._free[first : self._size] = free
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
        """Join `left[i]` with `right[i]` for every i; the smallest representative wins."""
        a, b = self.roots(left).ravel(), self.roots(right).ravel()
        different = a != b
        if not different.any():
            return
        a, b = a[different], b[different]
        touched = np.unique(np.concatenate([a, b]))
        while len(a):
            # Every larger root is hung below one smaller root; pairs that are still apart go round again.
            np.minimum.at(self._parent, np.maximum(a, b), np.minimum(a, b))
            a, b = self.roots(a), self.roots(b)
            a, b = a[a != b], b[a != b]
        final = self.roots(touched)
        np.logical_and.at(self._free, final, self._free[touched])
        if self._reasons:
            for old, new in zip(touched.tolist(), final.tolist(), strict=True):
                if old != new and old in self._reasons:
                    self._reasons.setdefault(new, self._reasons.pop(old))

    def free(self, atoms: np.ndarray) -> bool:
        """Whether none of these atoms has met a parameter."""
        return bool(self._free[self.roots(atoms)].all())

    def attends(self, atoms: np.ndarray) -> bool:
        """Whether attention runs over these atoms: whether they are heads."""
        heads = np.array(sorted(self.attention), dtype=np.int64)
        return bool(np.isin(self.roots(atoms), self.roots(heads)).all())

    def block(self, atoms: np.ndarray, reason: str) -> None:
        """These atoms must stay, because of `reason` (the first reason given is kept)."""
        for root in np.unique(self.roots(atoms)).tolist():
            self._reasons.setdefault(root, reason)

    def reason(self, atom: int) -> str | None:
        """Why this atom must stay, or None if it may go."""
        return self._reasons.get(int(self.roots(np.array([atom]))[0]))
