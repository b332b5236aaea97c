"""Plain options, one and the same on every weight that takes it: what every choice is held against, and never worse than.

A forecast adds up harms that were measured layer by layer; where many layers are cut or have few bits it falls short, and no sum tells by how
much. A plain option is what anybody would have tried, so each is judged once by its real divergence.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modicum.core.option import KEEP, Option
from modicum.core.plan import Picks, Table
from modicum.core.unit import Site
from modicum.export import Target
from modicum.judge.judge import PlanJudge
from modicum.quantize._family import Quantizer
from modicum.table.menu import rounds, suited, suits, weight_options
from modicum.table.tried import Tried

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

    Where rows of several widths need other groups, each method and width in bits takes the group that suits each row, and a group that only some
    of these rows allow is no plain option.
    """
    sites, found = target.sites(), dict[str, Picks]()
    for option in (option for option in weight_options(menu) if _plain(option)):
        widest: set[str] | None = None
        for wanted in _wanted(target, sites, menu, option):
            picks = _everywhere(table, {site: str(fitted) for site, fitted in wanted.items()})
            taken = {site for site, fitted in wanted.items() if table.choices[site][picks[site]].option == str(fitted)}
            widest = taken if widest is None else widest
            if taken and taken == widest and picks not in found.values():
                found[_name({site: fitted for site, fitted in wanted.items() if site in taken})] = picks
    return found


def _wanted(target: Target, sites: Sequence[Site], menu: Sequence[Option], option: Option) -> Iterator[dict[str, Option]]:
    """An option as a target can hold it on every site: with the group that suits each, then with each group that suits some."""
    if not suits(menu):
        yield _held(target, sites, dict.fromkeys((site.name for site in sites), option))
        return
    fitting = {site.name: list(suited(target, site, option)) for site in sites}
    yield _held(target, sites, {name: options[0] for name, options in fitting.items()})
    for one in dict.fromkeys(one for options in fitting.values() for one in options):
        yield _held(target, sites, dict.fromkeys(fitting, one))


def _plain(option: Option) -> bool:
    """Whether an option rounds every weight by itself."""
    alone = [step for step in option.steps if not step.wraps]
    return len(alone) == 1 and rounds(alone[0])


def _held(target: Target, sites: Sequence[Site], options: Mapping[str, Option]) -> dict[str, Option]:
    """Each site's option as a target can hold it, for the sites where it can."""
    fitted = {site.name: target.adapt(site, options[site.name]) for site in sites}
    return {site: option for site, option in fitted.items() if option is not None}


def _name(wanted: Mapping[str, Option]) -> str:
    """The text that most sites have, with all its groups where they differ."""
    (most, _), *_ = Counter(map(str, wanted.values())).most_common(1)
    method = Option.parse(most).steps[0]
    groups = dict.fromkeys(
        step.group for option in wanted.values() if isinstance(step := option.steps[0], Quantizer) and type(step) is type(method)
    )
    if len(groups) < 2:
        return most
    return " ".join([*(word for word in most.split() if not word.startswith("group=")), f"group={' or '.join(map(str, groups))}"])


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
