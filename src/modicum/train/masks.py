"""Which blocks should train, searched outside of training by several rewards at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from modicum.core.errors import SettingError


def search(count: int, rewards: Callable[[str], Sequence[float]], trials: int, *, seed: int = 0) -> list[tuple[str, tuple[float, ...]]]:
    """Masks of ``count`` digits of which none is better in every reward than another: a front, found in ``trials`` trainings.

    ``rewards`` trains with a mask, say by ``full | memcontrol blocks=...``, and gives what is to be small: held-out loss, how near what is generated
    lies to an example. The first mask trains everything; then halves at random, then what mutation and crossing make of the best so far.

    Raises ``SettingError`` for fewer than two trials or one block.
    """
    if trials < 2 or count < 1:
        raise SettingError(f"masks: two trials and a block at least must be there, got {trials} and {count}.")
    chance, known = np.random.default_rng(seed), dict[str, tuple[float, ...]]()
    for trial in range(min(trials, 2**count - 1)):
        mask = "1" * count
        while mask in known:
            mask = _drawn(count, chance) if trial < max(2, trials // 3) else _bred([each for each, _ in front(known)], chance)
        known[mask] = tuple(float(value) for value in rewards(mask))
    return front(known)


def front(known: dict[str, tuple[float, ...]]) -> list[tuple[str, tuple[float, ...]]]:
    """What no other mask is better than in one reward and as good in all, by the first reward."""
    worse = lambda mine, other: all(a >= b for a, b in zip(mine, other)) and mine != other
    best = [(mask, mine) for mask, mine in known.items() if not any(worse(mine, other) for other in known.values())]
    return sorted(best, key=lambda item: item[1])


def _drawn(count: int, chance: np.random.Generator) -> str:
    return _some("".join("01"[digit] for digit in chance.integers(0, 2, count)), chance)


def _bred(parents: Sequence[str], chance: np.random.Generator) -> str:
    one, other = (parents[int(chance.integers(len(parents)))] for _ in range(2))
    crossed = [(a, b)[int(chance.integers(2))] for a, b in zip(one, other)]
    flips = chance.random(len(crossed)) < max(1.0, len(crossed) / 4) / len(crossed)
    return _some("".join("10"[int(digit)] if flip else digit for digit, flip in zip(crossed, flips)), chance)


def _some(mask: str, chance: np.random.Generator) -> str:
    """The mask, or where nothing would train one block of it."""
    if "1" in mask:
        return mask
    at = int(chance.integers(len(mask)))
    return mask[:at] + "1" + mask[at + 1 :]
