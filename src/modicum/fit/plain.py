"""Plain options, one and the same on every weight that takes it: what every choice is held against, and never worse than.

A forecast adds up harms that were measured layer by layer; where many layers are cut or have few bits it falls short, and no sum tells by how
much. A plain option is what anybody would have tried, so each is judged once by its real divergence.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modicum.core.option import KEEP, Option
from modicum.core.plan import Picks, Table
from modicum.core.unit import Site
from modicum.export import Target
from modicum.fit.judge import PlanJudge
from modicum.fit.menu import Menu, suited, weight_options
from modicum.fit.quality import Tried

# Sequences that plain options are judged on: enough, sequence by sequence, to tell two apart that differ by a twentieth.
SEQUENCES = 16


@dataclass(frozen=True)
class Rival:
    """A plain option within a budget: bytes of its files, the forecast of what it loses, and what it was measured to lose, where it was."""

    name: str
    picks: Picks
    bytes: int
    harm: float
    tried: Tried | None

    @property
    def expected(self) -> float:
        """What it loses, as far as that is known."""
        return self.harm if self.tried is None else self.tried.mean

    def told(self) -> dict[str, Any]:
        """JSON value."""
        return {"option": self.name, "bytes": self.bytes, "forecast": self.harm}


def plains(target: Target, menu: Sequence[Option], table: Table) -> dict[str, Picks]:
    """Selections of one option on every weight that takes it, by what they are called; structure and all other weights stay as they are.

    Where rows of several widths need other groups, there is one more of each method and width in bits: with the group that suits each row.
    """
    sites, found = target.sites(), dict[str, Picks]()
    for name, wanted in _wanted(target, sites, menu):
        picks = _everywhere(table, wanted)
        treated = any(table.choices[site][index].option == wanted.get(site) for site, index in picks.items())
        if treated and picks not in found.values():
            found[name] = picks
    return found


def _wanted(target: Target, sites: Sequence[Site], menu: Sequence[Option]) -> Iterator[tuple[str, dict[str, str]]]:
    """Names of plain options, and the option's text for every site that can hold it."""
    for option in (option for option in weight_options(menu) if _plain(option)):
        if not isinstance(menu, Menu):
            yield _named(held(target, sites, lambda site, option=option: option))
            continue
        fitting = {site.name: list(suited(target, site, option)) for site in sites}
        for one in dict.fromkeys(one for options in fitting.values() for one in options):
            yield _named(held(target, sites, lambda site, one=one: one))
        yield _named(held(target, sites, lambda site, fitting=fitting: fitting[site.name][0]))


def _plain(option: Option) -> bool:
    """Whether an option rounds every weight by itself."""
    return len(option.steps) == 1 and type(option.steps[0]).family() == "quantize"


def held(target: Target, sites: Iterable[Site], option: Any) -> dict[str, str]:
    """What a target makes of each site's option, for the sites where it can hold it."""
    fitted = {site.name: target.adapt(site, option(site)) for site in sites}
    return {site: str(found) for site, found in fitted.items() if found is not None}


def _named(wanted: dict[str, str]) -> tuple[str, dict[str, str]]:
    """A plain option under the text that most sites have, with its groups where they differ."""
    counts: dict[str, int] = {}
    for text in wanted.values():
        counts[text] = counts.get(text, 0) + 1
    name = max(counts, key=lambda text: counts[text], default=KEEP)
    method = name.split(" ")[0]
    groups = dict.fromkeys(_group(text) for text in wanted.values() if text.split(" ")[0] == method)
    return (name if len(groups) < 2 else f"{_without_group(name)} group={' or '.join(map(str, groups))}"), wanted


def _group(text: str) -> str:
    return next((word.partition("=")[2] for word in text.split() if word.startswith("group=")), "")


def _without_group(text: str) -> str:
    return " ".join(word for word in text.split() if not word.startswith("group="))


def _everywhere(table: Table, wanted: Mapping[str, str]) -> Picks:
    """The selection of each site's wanted option; a site that does not take it is kept, or harmed least where it cannot be kept."""
    picks: Picks = {}
    for site, choices in table.choices.items():
        allowed = {choices[index].option: index for index in table.allowed(site, picks)}
        named = [allowed[text] for text in (wanted.get(site, KEEP), KEEP) if text in allowed]
        picks[site] = named[0] if named else min(allowed.values(), key=lambda index: (choices[index].harm, choices[index].bytes))
    return picks


def try_all(found: Mapping[str, Picks], sizes: Mapping[str, int], judge: PlanJudge, seed: int, seconds: float) -> dict[str, Tried]:
    """Judge plain options, those of few bytes first, until ``seconds`` are spent; their forms are those that the measurement made."""
    begun, tried = time.monotonic(), dict[str, Tried]()
    judge.prepare(list(found.values()))
    for name in sorted(found, key=lambda name: sizes[name]):
        if tried and time.monotonic() - begun > seconds:
            break
        tried[name] = Tried.of(sizes[name], judge(found[name], SEQUENCES).tolist(), seed)
    return tried
