"""What each site got, and why: the harm table beside the plan.

python docs/gallery/03_what_each_site_got.py
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import modicum
from modicum.core.plan import Table
from modicum.fit.choose import Chooser
from modicum.fit.request import Request
from modicum.measure.settings import common
from modicum.measure.subject import Subject

SMALL = {"samples": 8, "test_samples": 8, "tokens": 256, "menu": "int2,int3,int4,int8"}


def main() -> None:
    """Choose for the demo at 3 bits per weight, then say for the most and the least sensitive weights what another bit would have done."""
    with tempfile.TemporaryDirectory() as folder:
        measured = modicum.measure("demo", out=Path(folder) / "measured", target="modicum", **SMALL)
        request = Request(budget=modicum.Budget(bpw=3.0), allocator="integer_program", **common(target="modicum", **SMALL))
        subject = Subject.open("demo", request, None, measured.splits)
        chooser = Chooser(subject, "modicum", request)
        table = chooser.table(measured.findings)
        picks = chooser.choose(table, measured.findings, None)
    chosen = {site: table.choices[site][index].option for site, index in picks.items() if site not in table.children}
    print("chosen:", ", ".join(f"{option} on {count}" for option, count in Counter(chosen.values()).most_common()))
    prices = {site: price(table, picks, site) for site in chosen}
    ordered = sorted((site for site in prices if prices[site]), key=lambda site: -prices[site])
    print(f"{'weight':<45} {'got':<28} {'nats lost per byte saved':>25}")
    for site in [*ordered[:5], *ordered[-5:]]:
        print(f"{site:<45} {chosen[site]:<28} {prices[site]:>25.3g}")


def price(table: Table, picks: dict[str, int], site: str) -> float:
    """Harm per byte of the next smaller option of a site: what it would have cost to take less here."""
    now = table.choices[site][picks[site]]
    smaller = [table.choices[site][index] for index in table.allowed(site, picks) if table.choices[site][index].bytes < now.bytes]
    return min(((choice.harm - now.harm) / (now.bytes - choice.bytes) for choice in smaller), default=0.0)


if __name__ == "__main__":
    main()
