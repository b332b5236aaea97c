"""Uniform against the integer program at equal true bytes, from one measurement per target."""

from __future__ import annotations

import modicum
from bench.common import SAMPLES, TEST, TOKENS, interval, show
from modicum.allocate import ALLOCATORS
from modicum.core.option import Option
from modicum.core.plan import Plan
from modicum.data.splits import from_text
from modicum.export import TARGETS
from modicum.fit.measure import Measurement
from modicum.fit.request import MENUS
from modicum.models.open import open_model
from modicum.sweep import output_gradients, rehearse
from modicum.sweep.spill import SpillPool

BUDGETS = {"transformers": (2.95, 3.2, 3.6, 4.2, 5.0), "modicum": (2.35, 2.7, 3.2, 4.0, 5.0)}


def main() -> None:
    for target in TARGETS:
        show(
            f"Allocators {target}: the demo at equal true bytes, menu {','.join(MENUS[target])}",
            ("bpw", "allowed", "uniform bytes", "uniform KL [95 %]", "integer program bytes", "integer program KL [95 %]"),
            compared(target),
        )


def compared(target_name: str) -> list[tuple]:
    model = open_model("demo")
    data = from_text(None, model.tokenizer, samples=SAMPLES, tokens=TOKENS)
    script = rehearse(model, data.calibration[0])
    target = TARGETS[target_name](model, script)
    menu = [Option.parse(f"{name} group=64") for name in MENUS[target_name]]
    sensitivities = output_gradients(model, data.calibration[:2], script)
    table = Measurement(model, script, target, target.sites(), menu, sensitivities).run(data.calibration, seed=0, pool=SpillPool(None))
    rows = []
    for bpw in BUDGETS[target_name]:
        allowed = int(bpw * model.parameters / 8)
        row: list = [bpw, allowed]
        for name in ("uniform", "integer_program"):
            picks = ALLOCATORS[name](table, allowed, None)
            plan = Plan(target_name, {site: table.choices[site][index].option for site, index in picks.items()})
            receipt = modicum.fit("demo", plan=plan, samples=SAMPLES, test_samples=TEST).receipt
            row += [receipt["bytes"]["actual"], interval(receipt["quality"])]
        rows.append(tuple(row))
    return rows


if __name__ == "__main__":
    main()
