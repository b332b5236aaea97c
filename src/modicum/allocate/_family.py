"""What allocators share: the judge, selections to start from, filling what is left, and one step up or down."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np

from modicum.allocate._program import holding, prices_of, solve, worth
from modicum.core.errors import SettingError
from modicum.core.plan import Limits, Picks, Table

# Divides a site's options from one another by what they spend; smaller differences are headers and ragged groups.
_EQUAL = 1e-12
# Of a limit: closer than this, what an upgrade spends is summed again, free of the rounding that taking one after the other leaves.
_CLOSE = 1e-9


_Choose = TypeVar("_Choose", bound=Callable[..., Picks])

JUDGED: set[str] = set()
"""Allocators that cannot do without a judge."""


def judged(choose: _Choose) -> _Choose:
    """Mark an allocator that asks its judge."""
    JUDGED.add(choose.__name__)
    return choose


class Judge(Protocol):
    """Real quality of a selection: KL per token of each of the first ``samples`` validation sequences, (samples,)."""

    samples: int

    def __call__(self, picks: Picks, samples: int) -> np.ndarray:
        """Judge one selection."""
        ...

    def many(self, candidates: Sequence[Picks], samples: int) -> list[np.ndarray]:
        """Judge several, side by side where there are workers; in the order given."""
        ...


def pace(judge: Judge, picks: Picks) -> float:
    """Seconds that a sequence takes: the second one, since with the first come the forms."""
    judge.many([picks], 1)
    began = time.monotonic()
    judge.many([picks], 2)
    return max(time.monotonic() - began, 1e-9)


# Selections to start from


def floor(table: Table, limits: Limits, held: Picks | None = None) -> Picks:
    """A selection that fits if there is one, otherwise the one that spends least; the sites of ``held`` take the choice named there."""
    held = held or {}
    other = lambda site, choice: site in held and choice is not table.choices[site][held[site]]
    spent = (lambda choice: table.load(choice, limits)) if limits else (lambda choice: float(choice.bytes))
    least = table.best(lambda site, choice: (float(other(site, choice)), spent(choice), choice.harm))
    # What spends least of one resource fits if anything does; the least sum of several shares need not.
    if len(limits) < 2 or table.fits(least, limits):
        return least
    return solve(table, limits, prices_of(table, lambda _, choice: spent(choice)), holding(table, held)) or least


def near(table: Table, limits: Limits, held: Picks | None = None) -> Picks:
    """A selection that fits and is near the one of least harm: the best at what the linear program thinks bytes are worth, filled.

    Where none fits it is the one that spends least. The sites of ``held`` take the choice named there.
    """
    least = floor(table, limits, held)
    if not table.fits(least, limits):
        return least
    known, held = fill(table, least, limits), held or {}
    scale = table.harm(known)
    prices = worth(table, limits, scale, held) if 0 < scale < np.inf else None
    if prices is None:
        return known
    other = lambda site, choice: site in held and choice is not table.choices[site][held[site]]
    # Of two choices that are worth the same the one that spends less.
    price = lambda choice: choice.harm + sum(each * (1 + _CLOSE) * choice.spends(resource) for resource, each in prices.items())
    priced = table.best(lambda site, choice: (float(other(site, choice)), price(choice), table.load(choice, limits)))
    found = fill(table, priced, limits) if table.fits(priced, limits) else known
    return min(known, found, key=table.harm)


def skeleton(table: Table, limits: Limits) -> Picks:
    """Choices of the sites that others depend on: those of least summed harm under which something fits.

    For allocators that order weights and have nothing to say about structure: it stays whole unless nothing would fit then.
    """
    own = lambda site, choice: choice.harm if site in table.children else 0.0
    found = table.best(lambda site, choice: (own(site, choice),))
    if not table.fits(floor(table, limits, _above(table, found)), limits):
        prices = prices_of(table, own)
        free = np.ones(len(prices), dtype=bool)
        found = solve(table, limits, prices / max(prices.max(initial=0.0), 1e-300), free) or floor(table, limits)
    return _above(table, found)


def _above(table: Table, picks: Picks) -> Picks:
    return {site: index for site, index in picks.items() if site in table.children}


# Spending what is left


def fill(table: Table, picks: Picks, limits: Limits, order: list[str] | None = None) -> Picks:
    """Spend what is left: while an upgrade that lowers the predicted harm fits, take one.

    In the given site order the next larger option of each site in turn, otherwise always the one with the largest drop of harm for what it
    spends. Sites that others depend on stay as they are. Afterwards no such upgrade fits. *Cost:* a heap of all upgrades; a second for
    thousands of sites.
    """
    spending = Spending(table, picks, limits)
    for site in order or []:
        if site in spending.options and (found := [index for index in spending.upgrades(site) if spending.fits(site, index)]):
            now = spending.picks[site]
            spending.take(site, min(found, key=lambda index: spending.loads[site][index] - spending.loads[site][now]))
    _climb(spending)
    return spending.picks


class Spending:
    """A selection whose sites at the ends of the tree are upgraded one by one, and what it leaves of each limit."""

    def __init__(self, table: Table, picks: Picks, limits: Limits):
        self.table, self.limits, self.picks = table, limits, dict(picks)
        self.left = {resource: most - table.cost(picks, resource) for resource, most in limits.items()}
        self.options = {site: table.allowed(site, picks) for site in table.choices if site not in table.children}
        self.loads = {
            site: {index: table.load(table.choices[site][index], limits) for index in found} for site, found in self.options.items()
        }

    def upgrades(self, site: str) -> list[int]:
        """Choices of a site that harm less than what it has."""
        found = self.table.choices[site]
        return [index for index in self.options[site] if found[self.picks[site]].harm - found[index].harm > 0]

    def extra(self, site: str, index: int, resource: str) -> float:
        """What a choice spends beyond what the site has."""
        found = self.table.choices[site]
        return found[index].spends(resource) - found[self.picks[site]].spends(resource)

    def fits(self, site: str, index: int) -> bool:
        """Whether a choice fits into what is left."""
        close = False
        for resource, left in self.left.items():
            extra, near = self.extra(site, index, resource), _CLOSE * abs(self.limits[resource])
            if extra > left + near:
                return False
            close |= not extra <= 0 <= left and extra >= left - near
        return not close or self.table.fits({**self.picks, site: index}, self.limits)

    def take(self, site: str, index: int) -> bool:
        """Take a choice; returns whether that leaves more than before of any resource."""
        extra = {resource: self.extra(site, index, resource) for resource in self.left}
        self.left = {resource: left - extra[resource] for resource, left in self.left.items()}
        self.picks[site] = index
        return any(spent < 0 for spent in extra.values())


def _climb(spending: Spending) -> None:
    """Take the upgrade with the largest drop of harm for what it spends, ties to the last site name, until none fits."""
    rank = {site: place for place, site in enumerate(sorted(spending.options, reverse=True))}
    taken = dict.fromkeys(spending.options, 0)

    def entries(site: str) -> Iterator[tuple[float, int, int, int, str]]:
        now, found = spending.picks[site], spending.table.choices[site]
        for index in spending.upgrades(site):
            extra = spending.loads[site][index] - spending.loads[site][now]
            yield -(found[now].harm - found[index].harm) / max(extra, _EQUAL), rank[site], index, taken[site], site

    heap = [entry for site in spending.options for entry in entries(site)]
    heapq.heapify(heap)
    waiting = []
    while heap:
        entry = heapq.heappop(heap)
        _, _, index, version, site = entry
        if version != taken[site]:
            continue
        if not spending.fits(site, index):
            waiting.append(entry)
            continue
        # What spends less of something than what it replaces makes room for those that did not fit.
        back = waiting if spending.take(site, index) else []
        taken[site] += 1
        for new in (*entries(site), *back):
            heapq.heappush(heap, new)
        if back:
            waiting = []


# One step up or down


def ladder(table: Table, site: str, picks: Picks, limits: Limits) -> list[int]:
    """Choices of a site that stand under ``picks``, from the one that spends least to the one that spends most."""
    return sorted(
        table.allowed(site, picks), key=lambda index: (table.load(table.choices[site][index], limits), -table.choices[site][index].harm)
    )


def step(table: Table, picks: Picks, site: str, limits: Limits, by: int) -> Picks | None:
    """The selection with one site moved ``by`` rungs of its ladder (up spends more), or None at its end.

    For a site that others depend on, up is towards less harm of its own; those below it follow (``Table.settle``).
    """
    if site in table.children:
        rungs = sorted(table.allowed(site, picks), key=lambda index: -table.choices[site][index].harm)
    else:
        rungs = ladder(table, site, picks, limits)
    place = rungs.index(picks[site]) + by
    if not 0 <= place < len(rungs):
        return None
    return table.settle({**picks, site: rungs[place]})


def free_sites(table: Table, picks: Picks) -> list[str]:
    """Sites with more than one choice under ``picks``."""
    return [site for site in table.choices if len(table.allowed(site, picks)) > 1]


def switched(table: Table, picks: Picks, limits: Limits, chance: np.random.Generator, steps: int = 1) -> Picks | None:
    """A selection near ``picks`` that fits: ``steps`` random sites go up a rung, then random others down until it fits.

    None where no site can go up, or the others cannot make up for it.
    """
    risen: Picks = picks
    raised: set[str] = set()
    for site in chance.permutation(free_sites(table, picks)):
        if len(raised) == steps:
            break
        if (higher := step(table, risen, str(site), limits, +1)) is not None:
            risen, raised = higher, {*raised, str(site)}
    lowerable = [site for site in free_sites(table, risen) if site not in raised]
    while not table.fits(risen, limits):
        if not lowerable:
            return None
        site = lowerable[chance.integers(len(lowerable))]
        lower = step(table, risen, site, limits, -1)
        if lower is None:
            lowerable.remove(site)
            continue
        if site in table.children:
            lowerable = [other for other in free_sites(table, lower) if other not in raised]
        risen = lower
    return risen if risen != picks else None


# Options of one kind on sites of different widths


# They differ by a few per cent: headers, ragged groups.
ALIKE = 1.05


class Rungs:
    """A site's choices by what they spend per weight, so that one rate can be asked of all sites."""

    def __init__(self, table: Table, site: str, picks: Picks, limits: Limits):
        self.indices = np.array(ladder(table, site, picks, limits), dtype=np.int16)
        found = [table.choices[site][index] for index in self.indices]
        self.rates = np.array([table.load(choice, limits) for choice in found]) / max(1, *(choice.values for choice in found))

    def at(self, rates: np.ndarray) -> np.ndarray:
        """The largest choice that spends no more per weight than each of ``rates``, otherwise the smallest."""
        return self.indices[np.maximum(np.searchsorted(self.rates, rates, side="right") - 1, 0)]


# Curvature

_FACTS = {"eigenvalue": "top Hessian eigenvalues", "trace": "Hessian traces", "weights": "numbers of weights"}


def facts(table: Table, sites: Sequence[str], who: str, key: str) -> dict[str, float]:
    """One fact of each site. Raises ``SettingError`` where a site lacks it."""
    lacking = [site for site in sites if key not in table.facts.get(site, {})]
    if lacking:
        rest = "" if len(lacking) == len(sites) else f" for {', '.join(lacking[:3])}{' and others' if len(lacking) > 3 else ''}"
        raise SettingError(f"{who}: must have the sites' {_FACTS[key]}, the table holds none{rest}. Measure with --curvature.")
    return {site: table.facts[site][key] for site in sites}
