"""What judged selections teach of a harm table: a ridge regression of the divergence on the harms of the choices."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from modicum.core.plan import Picks, Table

# Prior standard deviations of a harm's relative error: what all share, what one option's, one kind of site's, one site's share, its own.
SHARED, OPTION, KIND, SITE, OWN = 0.5, 0.3, 0.3, 0.4, 0.2
# Of what two sites harm together, relative to the geometric mean of their harms, over the square root of the number of sites.
PAIR = 0.4
# Least relative error of a judgement; interactions of more than two sites are in it.
NOISE = 0.01
_SMALL = 1e-3
# A corrected harm stays above this share of the predicted one: a harm below nothing would be bought at any price.
_LEAST = 0.1


@dataclass(frozen=True)
class Terms:
    """A table as arrays: all choices in one row, and which errors they have in common.

    ``harms`` (choices,); ``first`` (sites,) where a site's choices begin; ``groups`` (choices, 5) the error terms of each choice, numbered
    through: one of all, of its option, of its kind of site (the name without numbers), of its site, its own.
    """

    table: Table
    harms: np.ndarray
    first: np.ndarray
    groups: np.ndarray

    @classmethod
    def of(cls, table: Table) -> Terms:
        """Read a table."""
        flat = [(site, choice) for site, found in table.choices.items() for choice in found]
        names = [["all"] * len(flat), [choice.option for _, choice in flat], [re.sub(r"\d+", "#", site) for site, _ in flat]]
        columns = [_numbered(texts) for texts in [*names, [site for site, _ in flat], range(len(flat))]]
        starts = np.cumsum([0, *(column.max(initial=-1) + 1 for column in columns)])
        counts = [len(found) for found in table.choices.values()]
        harms = np.array([choice.harm for _, choice in flat], dtype=np.float64)
        ruinous = 1e6 * float(np.abs(harms[np.isfinite(harms)]).sum()) + 1.0
        harms = np.where(np.isfinite(harms), harms, ruinous)
        return cls(table, harms, np.cumsum([0, *counts])[:-1], np.stack(columns, 1) + starts[:-1])

    def rows(self, selections: Iterable[Picks]) -> np.ndarray:
        """Places of the picked choices, (selections, sites)."""
        picked = [[picks[site] for site in self.table.choices] for picks in selections]
        return np.array(picked, dtype=int).reshape(-1, len(self.first)) + self.first

    def with_harms(self, harms: Iterable[float]) -> Table:
        """The table with other harms (choices,)."""
        following = iter(harms)
        choices = {site: [replace(choice, harm=float(next(following))) for choice in found] for site, found in self.table.choices.items()}
        return replace(self.table, choices=choices)


def _numbered(texts: Iterable[object]) -> np.ndarray:
    known: dict[object, int] = {}
    return np.array([known.setdefault(text, len(known)) for text in texts], dtype=int)


@dataclass(frozen=True)
class Learned:
    """Harms after a number of judgements (Bayesian linear regression).

    The divergence of a selection is ``s Σ_i h_i (1 + e_i) + Σ_ij ρ_ij s √(h_i h_j) + noise``: predicted harms h on one scale s, relative
    errors e that are sums of five normal terms which choices share (``Terms``), and interactions ρ of pairs of sites, in part one for all
    options of a pair as the second order has it, in part of the very choices. So one judgement of a whole selection says a little about
    every choice in it, and choices never judged are corrected by those that are like them.

    ``rows`` (judged, sites); ``outcomes`` (judged,) mean KL; ``errors`` (judged,) their standard errors. *Cost:* judged³ + judged² x
    choices.
    """

    terms: Terms
    rows: np.ndarray
    outcomes: np.ndarray
    errors: np.ndarray

    @cached_property
    def harms(self) -> np.ndarray:
        """Predicted harms on the scale of the judgements: the median of their ratios."""
        predicted = self.terms.harms[self.rows].sum(1)
        ratios = (self.outcomes / np.maximum(predicted, 1e-300))[(predicted > 0) & (self.outcomes > 0)]
        return self.terms.harms * (float(np.median(ratios)) if len(ratios) else 1.0)

    @cached_property
    def deviations(self) -> np.ndarray:
        """Prior standard deviation of each error of each choice, in nats (choices, 5)."""
        return self.harms[:, None] * np.array([SHARED, OPTION, KIND, SITE, OWN])

    def features(self, rows: np.ndarray) -> np.ndarray:
        """What each error adds to each selection per prior standard deviation (selections, errors)."""
        found = np.zeros((len(rows), int(self.terms.groups.max(initial=-1)) + 1))
        for group, deviation in zip(self.terms.groups.T, self.deviations.T):
            np.add.at(found, (np.arange(len(rows))[:, None], group[rows]), deviation[rows])
        return found

    def interactions(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Prior covariance of what pairs of sites harm together, (rows, others).

        With g_i = √(h_i h_i') (1 + [same choice]) / 2 the sum over pairs of g_i g_j is ((Σ g_i)² - Σ g_i²) / 2, in matrix products.
        """
        same = lambda values: self._hot(rows, values) @ self._hot(others, values).T
        both = lambda values: values[rows] @ values[others].T
        harms = np.maximum(self.harms, 0)
        total = (both(harms**0.5) + same(harms**0.5)) / 2
        squares = (both(harms) + 3 * same(harms)) / 4
        return PAIR**2 / max(rows.shape[1], 1) * (total**2 - squares) / 2

    def _hot(self, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        found = np.zeros((len(rows), len(self.harms)))
        found[np.arange(len(rows))[:, None], rows] = values[rows]
        return found

    @cached_property
    def _judged(self) -> np.ndarray:
        return self.features(self.rows)

    @cached_property
    def _rest(self) -> np.ndarray:
        """Covariance of what is no harm of a single choice: interactions and noise."""
        # The second keeps what was predicted and did not happen from making the matrix singular.
        noise = np.maximum(NOISE * self.outcomes, _SMALL * np.abs(self.harms[self.rows]).sum(1))
        return self.interactions(self.rows, self.rows) + np.diag(np.maximum(noise, 1e-150) ** 2 + self.errors**2)

    @cached_property
    def _factor(self) -> tuple[np.ndarray, bool]:
        return cho_factor(self._judged @ self._judged.T + self._rest)

    @cached_property
    def _surprise(self) -> np.ndarray:
        return self.outcomes - self.harms[self.rows].sum(1)

    def predict(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Expected divergences of selections (selections,), and their covariance (selections, selections)."""
        features = self.features(rows)
        shared = features @ self._judged.T + self.interactions(rows, self.rows)
        mean = self.harms[rows].sum(1) + shared @ cho_solve(self._factor, self._surprise)
        prior = features @ features.T + self.interactions(rows, rows)
        return mean, prior - shared @ cho_solve(self._factor, shared.T)

    def table(self, chance: np.random.Generator | None = None) -> Table:
        """The table with the harms expected after the judgements, or with ``chance`` one drawn from what is still possible."""
        weights, surprise = np.zeros(self._judged.shape[1]), self._surprise
        if chance is not None:
            weights = chance.normal(size=weights.shape)
            surprise = surprise - self._judged @ weights - np.linalg.cholesky(self._rest) @ chance.normal(size=len(surprise))
        weights = weights + self._judged.T @ cho_solve(self._factor, surprise)
        harms = np.maximum(self.harms + (weights[self.terms.groups] * self.deviations).sum(1), _LEAST * self.harms)
        unit = max(float(harms.max(initial=0.0)), 1e-300)
        # Rounded: what is chosen must not hang on the last bits of a matrix product.
        return self.terms.with_harms(np.round(harms / unit, 12) * unit)
