"""What of the default menu a budget of bytes has a use for."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

from modicum.core.option import KEEP
from modicum.core.plan import Table

# Of the bits per weight that a budget pays for, those that an option takes at the least to stay: half, or all but three; where the last bit shall buy
# the same everywhere, a weight takes three bits less than a typical one if the output feels it 64 times less.
_SHARE, LESS = 0.5, 3.0
# The same where one grid on all weights is near-lossless already: a bit more or less is all that they differ by.
NEAR = 1.5


def far_below(table: Table, most: int, less: float = LESS) -> frozenset[str]:
    """Options, as texts, of far fewer bits than ``most`` bytes pay for; none where the budget is out of reach without them; ``less`` bits are.

    ``table`` is one of weights alone and needs no harms. It takes as long to measure an option that is never chosen as one that is, and longest where
    bits are few: those codes are refined, settled and repaired.
    """
    kept = {site: next((one for one in choices if one.option == KEEP), None) for site, choices in table.choices.items() if len(choices) > 1}
    weights = {site: one.values for site, one in kept.items() if one is not None}
    room = most - table.fixed["bytes"] - sum(min(one.bytes for one in table.choices[site]) for site in table.choices if site not in weights)
    paid, bits = 8 * room / max(sum(weights.values()), 1), _bits(table, weights)
    affordable = max((one for one in bits.values() if one <= paid), default=0.0)
    left_out = {text for text, one in bits.items() if one < min(max(_SHARE * paid, paid - less), affordable)} - {KEEP}
    # What cannot stay as it is, such as experts between two layers of one grid, loses options too.
    left = [[one.bytes for one in choices if one.option not in left_out] for choices in table.choices.values()]
    least = table.fixed["bytes"] + sum(min(each, default=math.inf) for each in left)
    return frozenset(left_out) if least <= most else frozenset()


def _bits(table: Table, weights: Mapping[str, int]) -> dict[str, float]:
    """Bits per weight that each option takes where it can be chosen."""
    spent: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for site, size in weights.items():
        for one in table.choices[site]:
            spent[one.option].append((8 * one.bytes, size))
    return {text: sum(bits for bits, _ in pairs) / sum(size for _, size in pairs) for text, pairs in spent.items()}
