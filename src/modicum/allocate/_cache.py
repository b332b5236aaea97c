"""Remembers what was judged, and finds selections that are one and the same function."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from modicum.allocate._family import Judge
from modicum.core.errors import SettingError
from modicum.core.plan import Picks

# Sequences that tell one function from another.
PROBE = 2

_Key = tuple[tuple[str, int], ...]


class Cached:
    """A judge that judges no function twice (functional equivalence caching, arXiv 2302.05433).

    A new selection is judged on a small probe first, the first ``probe`` sequences. Selections whose probes agree to the last bit are taken
    for one function, however different their options read (an option that leaves a site as it is, experts that no token meets, groups as
    wide as the row), and share every later judgement. More sequences than known are judged from the first on, as the protocol has no
    offset; fewer are never judged again.

    ``hits`` counts selections answered from memory, ``equal`` those among them that were judged under another name, ``misses`` those that
    were judged, ``sequences`` all sequences judged, probes included. *Needs and cost:* one probe per new selection beyond what is judged
    anyway. *Differs from the paper:* there is no training, so that the hash is of the divergences themselves, without rounding.
    """

    def __init__(self, judge: Judge, probe: int = PROBE):
        self.judge, self.samples = judge, judge.samples
        self.probe = min(probe, judge.samples)
        self.hits = self.equal = self.misses = self.sequences = 0
        self._function: dict[_Key, bytes] = {}
        self._first: dict[bytes, _Key] = {}
        self._outcomes: dict[bytes, np.ndarray] = {}

    @property
    def rate(self) -> float:
        """Share of the selections that were answered from memory."""
        return self.hits / max(self.hits + self.misses, 1)

    def __call__(self, picks: Picks, samples: int) -> np.ndarray:
        """KL per token of each of the first ``samples`` sequences."""
        return self.many([picks], samples)[0]

    def many(self, candidates: Sequence[Picks], samples: int) -> list[np.ndarray]:
        """Judge several; what is new is handed on in one call of the judge's own ``many``."""
        named = {_key(picks): picks for picks in candidates}
        judged = self._probed({key: picks for key, picks in named.items() if key not in self._function})
        wanted = {self._function[key]: picks for key, picks in reversed(named.items())}
        lacking = {function: picks for function, picks in wanted.items() if len(self._outcomes[function]) < samples}
        self._learn(lacking, samples)
        judged |= lacking.keys()
        self._count([_key(picks) for picks in candidates], judged)
        return [self._outcomes[self._function[_key(picks)]][:samples].copy() for picks in candidates]

    def _probed(self, fresh: dict[_Key, Picks]) -> set[bytes]:
        """Judge the probe of each; the functions not met before."""
        found = set()
        for key, outcome in zip(fresh, self._judged(list(fresh.values()), self.probe)):
            self._function[key] = function = hashlib.sha256(outcome.tobytes()).digest()
            if function not in self._outcomes:
                self._outcomes[function], self._first[function] = outcome, key
                found.add(function)
        return found

    def _learn(self, lacking: dict[bytes, Picks], samples: int) -> None:
        for function, outcome in zip(lacking, self._judged(list(lacking.values()), samples)):
            self._outcomes[function] = outcome

    def _judged(self, candidates: list[Picks], samples: int) -> list[np.ndarray]:
        self.sequences += len(candidates) * samples
        return [np.asarray(found, dtype=np.float64) for found in self.judge.many(candidates, samples)] if candidates else []

    def _count(self, keys: list[_Key], judged: set[bytes]) -> None:
        """The first of each function that was judged is a miss, everything else a hit."""
        left = set(judged)
        for key in keys:
            function = self._function[key]
            if function in left:
                left.remove(function)
                self.misses += 1
            else:
                self.hits += 1
                self.equal += key != self._first[function]


def _key(picks: Picks) -> _Key:
    return tuple(sorted(picks.items()))


def cached(judge: Judge | None, who: str) -> Cached:
    """The judge with a memory. Raises ``SettingError`` where there is none."""
    if judge is None:
        raise SettingError(
            f"{who}: must judge selections by their real divergence, no judge was given. "
            "Choose integer_program, which needs the table alone."
        )
    return judge if isinstance(judge, Cached) else Cached(judge)
