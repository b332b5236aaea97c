"""What no choice reaches, in a sentence: the smallest that is within reach, what blocks it, and what to relax."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modicum.core.budget import many, readable
from modicum.core.errors import SettingError
from modicum.core.option import Option
from modicum.export import TARGETS, Target
from modicum.models.structure import plain_parameters
from modicum.table.menu import misfit, suits

if TYPE_CHECKING:
    from modicum.fit.choose import Chooser

# Parameters that stand in a budget's way that are named.
_TOLD = 3


def out_of_reach(chooser: Chooser, resource: str, most: float, smallest: float) -> str:
    """What is to be said where the ``smallest`` of a resource that the table of a chooser has is above the ``most`` that is allowed."""
    budget, model, runtime = chooser.budget, chooser.subject.model, chooser.runtime
    kept = " with --keep" if chooser.request.keep else ""
    where = f"the smallest for target {chooser.target} and this menu{kept} is"
    if resource == "bytes":
        bits = 8 * smallest / model.parameters
        tail = f"{_blocked(chooser)}{' Keep less, or allow more bytes.' if kept else ''}{_other_target(chooser, most)}"
        return f"budget {budget}: {readable(most)} cannot be reached, {where} {readable(smallest)} ({bits:.2f} bpw).{tail}"
    if resource == "values":
        share = 100 * smallest / model.parameters
        return f"budget {budget}: cannot be reached, {where} {share:.1f} % of the values. Allow more, or add options that store fewer."
    whole = "multiplies with weights whole" if resource == "macs" else "holds weights whole in memory"
    only = f"Only cuts and dropped blocks help: {chooser.target} {whole}."
    only = ("" if resource in ("memory", "seconds") and runtime.packed else only) + _blocked(chooser)
    if resource == "macs":
        share = smallest / chooser.products.work.whole
        told = f"{many(smallest)} multiply-adds, {share:.1%} of the original's"
        return f"budget {budget}: cannot be reached, {where} {told}. {only} Allow more."
    if resource == "memory":
        total, overhead = smallest + runtime.overhead(), runtime.overhead()
        return (
            f"budget {budget}: cannot be reached, {where} {readable(total)}, {readable(overhead)} of it cache and activations. "
            f"{only} Allow more, or a shorter --context or smaller --batch.".replace("  ", " ")
        )
    return f"budget {budget}: cannot be reached, {where} {1000 * smallest:.3f} ms of {1000 * runtime.original():.3f}. {only}"


def _blocked(chooser: Chooser) -> str:
    target = chooser.subject.target(chooser.target)
    if why := next((why for option in chooser.sizing.menu if (why := _misfit(chooser, target, option))), ""):
        return f" {why[0].upper()}{why[1:]}."
    model = chooser.subject.model
    parts = [(unit.dense_bytes, unit.name, target.refusal(unit)) for unit in model.units.values() if target.refusal(unit)]
    parts += [(model.bytes_of(name), name, reason) for name, reason in plain_parameters(model).items() if reason != "vector"]
    told = [f"{name} ({readable(size)}, {reason})" for size, name, reason in sorted(parts, reverse=True)[:_TOLD]]
    more = f" and {len(parts) - _TOLD} more ({readable(sum(size for size, _, _ in parts))} in all)" if len(parts) > _TOLD else ""
    return f" {', '.join(told)}{more} {'stay' if len(parts) > 1 else 'stays'} dense there." if parts else ""


def _misfit(chooser: Chooser, target: Target, option: Option) -> str:
    """Why the group of an option keeps it off layers, where the group was asked for."""
    free = suits(chooser.sizing.menu)
    return "" if free else misfit(target, [site for site in target.sites() if not chooser.subject.kept(site)], option)


def _other_target(chooser: Chooser, allowed: float) -> str:
    for name in TARGETS:
        if name == chooser.target or name not in chooser.subject.possible_targets():
            continue
        try:
            table = chooser.subject.sizing(name).table()
        except SettingError:  # the menu has nothing for some layer there, which is no help here
            continue
        smallest = table.cost(table.cheapest())
        fits = "reaches it" if smallest <= allowed else "does not reach it either"
        return f" --target {name} {fits}: its smallest is {readable(smallest)}."
    return ""
