"""What a layer loses when channels that it reads are removed: silenced, averaged, or made up for by least squares."""

from functools import cached_property

import numpy as np
import torch

from compress.elimination import Reading
from compress.output_sensitivity import OutputSensitivity

# Plans whose covariances are in memory together.
_ELEMENTS = 2**24
# Readers of more columns (flattened maps) are looked at plan by plan: most of their matrices is not needed.
_WIDE = 96
# Ranks of still wider readers are computed for this many sizes, and read off between them.
_VERY_WIDE, _GRID = 512, 16
# What is done about the units that go: they are silenced, replaced by their mean, or made up for by least squares.
REMEDIES = ("silenced", "averaged", "refitted")
# Where the error is looked at: in the reading layer, in the network's outputs, in its loss.
ERRORS = ("error", "output", "loss")


class ReaderErrors:
    """One layer that reads units, and what it loses under plans.

    Errors are parts of the variance of the layer's outputs (`error`), of that of the network's outputs (`output`), or
    nats (`loss`).
    """

    NAMES = (*(f"{remedy}_{what}" for what in ERRORS for remedy in REMEDIES), "effective_rank",
             "rank_kept")  # fmt: skip

    def __init__(self, reading: Reading, sensitivity: OutputSensitivity, n_units: int, ridge: float) -> None:
        self.rows = reading.rows
        self.own = (self.rows >= 0) & (self.rows < n_units)
        self.units = np.unique(self.rows[self.own])
        self.covariance, weight = torch.from_numpy(reading.covariance), torch.from_numpy(reading.weight)
        self.second = self.covariance + torch.outer(*[torch.from_numpy(reading.mean)] * 2)
        self.variance = max(float(self.covariance.diagonal().mean()), 1e-12)
        self.strength = max(ridge * self.variance, 1e-12)
        self.dense_rank = effective_rank(self.covariance[None])
        energy = max(float(((self.covariance @ weight) * weight).sum()), 1e-300)
        # An error with covariance R between columns costs trace(R M): all that the outputs are is in M.
        self.metrics = {
            "error": weight @ weight.T / energy,
            "output": _metric(weight, reading, sensitivity.outputs.get(reading.call)) / sensitivity.output_energy,
            "loss": _metric(weight, reading, sensitivity.loss.get(reading.call)) / 2,
        }
        self._known: dict[bytes, tuple[float, ...]] = {}
        self._orders: list[NestedErrors] = []
        # What stays -> place in `_orders`, and how many columns stay.
        self._prefixes: dict[bytes, tuple[int, int]] = {}

    def whole(self, what: str) -> float:
        """What `"averaged"` would be in this kind of error if all columns went."""
        return max(float((self.covariance * self.metrics[what]).sum()), 1e-300)

    def expect(self, scores: np.ndarray) -> None:
        """Be quick about plans that keep the highest of these `(n_units,)` scores, whatever their number."""
        if len(self.rows) <= _WIDE:
            return
        best = self.units[np.lexsort((self.units, -scores[self.units]))]
        stays = ~self.own
        columns, counts = [np.flatnonzero(stays)], [int(stays.sum())]
        keys = [_keys(stays[None])[0]]
        for unit in best:
            own = np.flatnonzero(self.own & (self.rows == unit))
            stays[own] = True
            columns.append(own)
            counts.append(counts[-1] + len(own))
            keys.append(_keys(stays[None])[0])
        if self._prefixes.keys() >= set(keys):
            return
        for key, count in zip(keys, counts, strict=True):
            self._prefixes.setdefault(key, (len(self._orders), count))
        self._orders.append(NestedErrors(self, torch.from_numpy(np.concatenate(columns))))

    def errors(self, kept: np.ndarray) -> dict[str, np.ndarray]:
        """Name -> `(n_plans,)` under `(n_plans, n_units)` bool. What was asked before is not computed again."""
        stays = np.ones((len(kept), len(self.rows)), dtype=bool)
        stays[:, self.own] = kept[:, self.rows[self.own]]
        keys = _keys(stays)
        new = list({key: i for i, key in enumerate(keys) if key not in self._known}.values())
        step = max(_ELEMENTS // len(self.rows) ** 2, 1)
        for start in range(0, len(new), step):
            rows = new[start : start + step]
            if len(self.rows) > _WIDE:
                columns = [self._errors_of(keys[i], torch.from_numpy(stays[i])) for i in rows]
            else:
                found = self._errors(torch.from_numpy(stays[rows]).double())
                columns = torch.stack([found[name] for name in self.NAMES], dim=1).tolist()
            self._known.update({keys[i]: tuple(values) for i, values in zip(rows, columns, strict=True)})
        table = np.array([self._known[key] for key in keys]).reshape(len(keys), len(self.NAMES))
        return dict(zip(self.NAMES, table.T, strict=True))

    def _errors(self, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        gone = 1 - mask
        both = gone[:, :, None] * gone[:, None, :]
        inner = mask[:, :, None] * self.covariance * mask[:, None, :]
        rank = effective_rank(inner)
        inner = inner + torch.diag_embed(self.strength * mask + gone * self.variance)
        known = mask[:, :, None] * self.covariance * gone[:, None, :]
        # What the units that stay explain of those that go.
        explained = known.transpose(1, 2) @ torch.cholesky_solve(known, torch.linalg.cholesky(inner))
        silenced, averaged = both * self.second, both * self.covariance
        found = {}
        for name, metric in self.metrics.items():
            found[f"silenced_{name}"] = (silenced * metric).sum((1, 2))
            found[f"averaged_{name}"] = (averaged * metric).sum((1, 2))
            found[f"refitted_{name}"] = ((averaged - explained) * metric).sum((1, 2)).clamp_min(0.0)
        found["effective_rank"] = rank / mask.sum(1).clamp_min(1.0)
        found["rank_kept"] = rank / self.dense_rank
        return found

    def _errors_of(self, key: bytes, stays: torch.Tensor) -> list[float]:
        """The same of one plan, in the order of `NAMES`, from the parts of the matrices that it is about."""
        if key in self._prefixes:
            order, count = self._prefixes[key]
            return self._orders[order].at(count)
        kept, gone = torch.nonzero(stays).flatten(), torch.nonzero(~stays).flatten()
        inner, known = self.covariance[kept][:, kept], self.covariance[kept][:, gone]
        rank = effective_rank(inner[None])[0]
        ridged = inner + self.strength * torch.eye(len(kept), dtype=inner.dtype)
        explained = known.T @ torch.cholesky_solve(known, torch.linalg.cholesky(ridged))
        silenced, averaged = self.second[gone][:, gone], self.covariance[gone][:, gone]
        found = {"effective_rank": rank / max(len(kept), 1), "rank_kept": rank / self.dense_rank[0]}
        for name, metric in self.metrics.items():
            own = metric[gone][:, gone]
            found[f"silenced_{name}"] = (silenced * own).sum()
            found[f"averaged_{name}"] = (averaged * own).sum()
            found[f"refitted_{name}"] = ((averaged - explained) * own).sum().clamp_min(0.0)
        return [float(found[name]) for name in self.NAMES]


class NestedErrors:
    """The same of all plans that keep the first columns of one order, for the price of a few plans.

    With what stays in front, the last block of a Cholesky factor L of the covariance is what the columns that stay
    leave unexplained of those that go, so that every error is a sum over the last columns of L.

    Args:
        reader: whose plans they are.
        order: `(n_columns,)` its columns, those that stay longest first.
    """

    def __init__(self, reader: ReaderErrors, order: torch.Tensor) -> None:
        self.reader, self.order = reader, order
        self._ranks: dict[int, float] = {}

    def at(self, count: int) -> list[float]:
        """Errors where the first `count` columns stay, in the order of `ReaderErrors.NAMES`."""
        rank = self._rank(count)
        found = {name: float(values[count]) for name, values in self._sums.items()}
        found |= {"effective_rank": rank / max(count, 1), "rank_kept": rank / float(self.reader.dense_rank[0])}
        return [found[name] for name in self.reader.NAMES]

    @cached_property
    def _sums(self) -> dict[str, torch.Tensor]:
        """Name -> `(n_columns + 1,)` errors by how many columns stay."""
        reader, order = self.reader, self.order
        covariance, second = reader.covariance[order][:, order], reader.second[order][:, order]
        ridge = reader.strength * torch.eye(len(order), dtype=covariance.dtype)
        factor = torch.linalg.cholesky(covariance + ridge)
        found = {}
        for name, whole in reader.metrics.items():
            metric = whole[order][:, order]
            left = _from_the_end((factor * (metric @ factor)).sum(0))
            # The factor is of the covariance with the ridge; what goes has none.
            found[f"refitted_{name}"] = (left - reader.strength * _from_the_end(metric.diagonal())).clamp_min(0.0)
            for remedy, matrix in (("silenced", second), ("averaged", covariance)):
                both = matrix * metric
                found[f"{remedy}_{name}"] = _from_the_end(2 * both.tril(-1).sum(0) + both.diagonal())
        return found

    def _rank(self, count: int) -> float:
        n = len(self.order)
        if n <= _VERY_WIDE:
            return self._exact_rank(count)
        step = -(-n // _GRID)
        low = count // step * step
        high = min(low + step, n)
        part = (count - low) / max(high - low, 1)
        return (1 - part) * self._exact_rank(low) + part * self._exact_rank(high)

    def _exact_rank(self, count: int) -> float:
        if count not in self._ranks:
            kept = self.order[:count]
            self._ranks[count] = float(effective_rank(self.reader.covariance[kept][:, kept][None])[0])
        return self._ranks[count]


def _from_the_end(values: torch.Tensor) -> torch.Tensor:
    """`(n + 1,)` sums of the values from each place on."""
    return torch.cat([values.flip(0).cumsum(0).flip(0), values.new_zeros(1)])


def _keys(stays: np.ndarray) -> list[bytes]:
    """What stands for each row of a `(n_plans, n_columns)` bool mask."""
    return [row.tobytes() for row in np.packbits(stays, axis=1)]


def _metric(weight: torch.Tensor, reading: Reading, matrix: torch.Tensor | None) -> torch.Tensor:
    """`(n_columns, n_columns)` W S W^T, S being a matrix over output channels, or its diagonal; zero without one."""
    if matrix is None:
        return torch.zeros(len(weight), len(weight), dtype=weight.dtype)
    split = weight.reshape(len(weight), reading.n_outputs, -1)
    seen = split * matrix[:, None] if matrix.dim() == 1 else torch.einsum("nok,op->npk", split, matrix)
    return seen.reshape(weight.shape) @ weight.T


def effective_rank(matrices: torch.Tensor) -> torch.Tensor:
    """`(n,)` exponential of the entropy of the eigenvalues of each `(m, m)` covariance."""
    values = torch.linalg.eigvalsh(matrices).clamp_min(0.0)
    share = values / values.sum(1, keepdim=True).clamp_min(1e-300)
    return torch.exp(-(share * share.clamp_min(1e-300).log()).sum(1)).clamp_min(1.0)
