"""Dynamic program: site by site, the least harm at every size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from modicum.allocate._family import Judge, fill
from modicum.core.errors import SettingError
from modicum.core.plan import Limits, Picks, Table

LEVELS = 4000
# Sums of points made at once.
_AT_ONCE = 2_000_000

Part = tuple["str | Curve", int]
Parts = Callable[[int], list[Part]]


@dataclass(frozen=True)
class Curve:
    """What some sites can spend and harm: the best selections met, one for each level of what they spend.

    ``spent`` and ``harm`` (points,), the first rising and the second falling; ``least`` is what can be spent at least. ``parts`` names what a
    point is made of: a site's choice, or points of other curves.
    """

    spent: np.ndarray
    harm: np.ndarray
    least: float
    parts: Parts


_NOTHING = Curve(np.zeros(1), np.zeros(1), 0.0, lambda _: [])


def dynamic_program(
    table: Table, limits: Limits, judge: Judge | None = None, *, seed: int = 0, seconds: float = 0.0, levels: int = LEVELS
) -> Picks:  # fmt: skip
    """Minimise the summed predicted harm within one limit, one site after the other.

    With f_k(b) the least harm of the first k sites that spend b,

        f_k(b) = min over choices c of f_{k−1}(b − spends(c)) + harm(c).

    The room between the least that can be spent and the limit is divided into ``levels``. Of the selections that end in one level one goes on,
    with what it really spends, so that the limit holds to the byte: the one of least harm + price·spent, where the price is the harm that a
    little more room would save. (By harm alone the largest of each level would go on, and every site would lose part of a level.) Where sites
    depend on others, the curves of the dependent ones are added under each of the options. What the levels leave is filled. Returns the
    selection that spends least where none fits.

    *Needs and cost:* the table; sites × choices × levels steps of an array: for hundreds of sites under a second. *Reduces to:* trying all
    selections where levels are finer than any difference between two of them. *Raises:* ``SettingError`` with several limits.

    *Differences from the paper:* options of any kind take the place of pruning ratios, and predicted KL that of the output's distortion. Levels
    and the price are needed because stored bytes have no common unit.
    """
    if len(limits) > 1:
        raise SettingError(f"dynamic_program: must have one limit, came {', '.join(limits)}. Use --allocator integer_program.")
    ((resource, most),) = limits.items() or (("bytes", np.inf),)
    least = table.cheapest(limits)
    if not table.fits(least, limits):
        return least
    whole = table.best(lambda _, choice: (choice.harm,))
    if table.fits(whole, limits):
        return whole
    price = _marginal(table, resource, most)
    curve = _Curves(table, resource, most - table.cost(least, resource), levels, price).whole()
    for point in reversed(range(len(curve.spent))):
        if table.fits(picks := _traced(table, curve, point), limits):
            return fill(table, picks, limits)
    return fill(table, least, limits)


def _traced(table: Table, curve: Curve, point: int) -> Picks:
    """The choices that a point is made of."""
    found: Picks = {}
    stack: list[Part] = [(curve, point)]
    while stack:
        part, index = stack.pop()
        if isinstance(part, str):
            found[part] = index
        else:
            stack.extend(part.parts(index))
    return {site: found[site] for site in table.choices}


class _Curves:
    """Curves of a table's sites; points that cannot fit, whatever the other sites take, are left out."""

    def __init__(self, table: Table, resource: str, slack: float, levels: int, price: float):
        self.table, self.resource, self.slack, self.price = table, resource, slack, price
        self.unit = slack / levels or 1.0
        self.known: dict[tuple[str, tuple[int, ...]], Curve] = {}

    def whole(self) -> Curve:
        """The curve of all sites."""
        roots = [site for site in self.table.choices if site not in self.table.parents]
        return self.joined(_NOTHING, {site: tuple(range(len(self.table.choices[site]))) for site in roots})

    def joined(self, curve: Curve, standing: dict[str, tuple[int, ...]]) -> Curve:
        """A curve and those of further sites, each with the choices that stand."""
        for site, indices in standing.items():
            if (site, indices) not in self.known:
                self.known[site, indices] = self.of(site, indices)
            curve = self.plus(curve, self.known[site, indices])
        return curve

    def of(self, site: str, indices: tuple[int, ...]) -> Curve:
        """A site, with some of its choices, and all that depend on it."""
        below = self.below(_NOTHING, site, list(indices), self.table.children.get(site, []))
        found = {index: self.table.choices[site][index] for index in indices}
        spent = [below[index].spent + choice.spends(self.resource) for index, choice in found.items()]
        harm = [below[index].harm + choice.harm for index, choice in found.items()]
        least = min(below[index].least + choice.spends(self.resource) for index, choice in found.items())
        first = np.cumsum([0, *(len(points) for points in spent)])

        def parts(point: int) -> list[Part]:
            which = int(np.searchsorted(first, point, side="right")) - 1
            return [(site, indices[which]), (below[indices[which]], point - int(first[which]))]

        return self.thinned(np.concatenate(spent), np.concatenate(harm), least, parts)

    def below(self, curve: Curve, site: str, indices: list[int], children: list[str]) -> dict[int, Curve]:
        """A curve and those of a site's children under each of its choices.

        A child that all choices treat alike is added once; for the others the choices are halved. Where each choice touches few children,
        that is the logarithm of their number as many additions instead of their number as many.
        """
        standing = {
            child: [tuple(self.table.under(child, self.table.choices[site][index].option)) for index in indices] for child in children
        }
        alike = {child: found[0] for child, found in standing.items() if len(set(found)) == 1}
        curve, rest = self.joined(curve, alike), [child for child in children if child not in alike]
        if not rest:
            return dict.fromkeys(indices, curve)
        half = len(indices) // 2
        return self.below(curve, site, indices[:half], rest) | self.below(curve, site, indices[half:], rest)

    def plus(self, one: Curve, other: Curve) -> Curve:
        """All sums of a point of each."""
        width, least = len(other.spent), one.least + other.least
        rows = max(1, _AT_ONCE // width)
        found = []
        for start in range(0, len(one.spent), rows):
            spent = np.add.outer(one.spent[start : start + rows], other.spent).ravel()
            harm = np.add.outer(one.harm[start : start + rows], other.harm).ravel()
            kept = self.kept(spent, harm, least)
            found.append((spent[kept], harm[kept], kept + start * width))
        spent, harm, origin = (np.concatenate(arrays) for arrays in zip(*found))
        return self.thinned(spent, harm, least, lambda point: [(one, int(origin[point]) // width), (other, int(origin[point]) % width)])

    def thinned(self, spent: np.ndarray, harm: np.ndarray, least: float, parts: Parts) -> Curve:
        """The best of each level, and of those the ones that none which spends less beats."""
        kept = self.kept(spent, harm, least)
        kept = kept[np.r_[True, harm[kept][1:] < np.minimum.accumulate(harm[kept])[:-1]][: len(kept)]]
        return Curve(spent[kept], harm[kept], least, lambda point: parts(int(kept[point])))

    def kept(self, spent: np.ndarray, harm: np.ndarray, least: float) -> np.ndarray:
        """Of each level above ``least`` the point of the least price, ties to the one that spends least; levels rising."""
        fitting = np.flatnonzero(spent <= least + self.slack)
        level = ((spent[fitting] - least) / self.unit).astype(np.int64)
        price = harm[fitting] + self.price * spent[fitting]
        best = np.full(level.max(initial=0) + 1, np.inf)
        np.minimum.at(best, level, price)
        tied = np.flatnonzero(price == best[level])
        tied = tied[np.lexsort((spent[fitting[tied]], level[tied]))]
        return fitting[tied[np.unique(level[tied], return_index=True)[1]]]


def _marginal(table: Table, resource: str, most: float) -> float:
    """The harm that a little more of the resource would save: the least price at which the selection of least harm and price fits."""
    harms, amounts = zip(*((abs(choice.harm), choice.spends(resource)) for found in table.choices.values() for choice in found))
    low, high = np.log((sum(harms) + 1e-300) / (sum(amounts) + 1e-300)) + np.array([-30.0, 30.0])
    for _ in range(30):
        middle = (low + high) / 2
        rate = float(np.exp(middle))
        picks = table.best(lambda _, choice, rate=rate: (choice.harm + rate * choice.spends(resource),))
        low, high = (low, middle) if table.cost(picks, resource) <= most else (middle, high)
    return float(np.exp(high))
