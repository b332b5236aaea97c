"""What allocators share: the verb's type, and filling what is left."""

from __future__ import annotations

from collections.abc import Callable

from modicum.core.plan import Table

Picks = dict[str, int]
Judge = Callable[[Picks, int], float]


def fill(table: Table, picks: Picks, budget: int, order: list[str] | None = None) -> Picks:
    """Spend what is left: while an upgrade that lowers the predicted harm fits, take one.

    In the given site order the next larger option of each site in turn, otherwise always the one with the largest drop of harm per byte.
    Afterwards the bytes left over are fewer than the cheapest such upgrade.
    """
    picks, left = dict(picks), budget - table.cost(picks)
    for site in order or []:
        if found := _upgrades(table, picks, left, [site]):
            _, _, bytes_, picks[site], _ = min(found, key=lambda upgrade: upgrade[2])
            left -= bytes_
    while found := _upgrades(table, picks, left, list(table.choices)):
        _, _, bytes_, index, site = max(found, key=lambda upgrade: (upgrade[1], upgrade[4]))
        picks[site], left = index, left - bytes_
    return picks


def _upgrades(table: Table, picks: Picks, left: int, sites: list[str]) -> list[tuple[float, float, int, int, str]]:
    """(drop of harm, drop per byte, bytes, choice index, site) of every upgrade that fits."""
    found = []
    for site in sites:
        now = table.choices[site][picks[site]]
        for index, choice in enumerate(table.choices[site]):
            extra, drop = choice.bytes - now.bytes, now.harm - choice.harm
            if drop > 0 and extra <= left:
                found.append((drop, drop / max(extra, 1), extra, index, site))
    return found
