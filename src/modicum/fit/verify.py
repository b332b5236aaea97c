"""What was written, held against what was made: bytes, and the outputs of the model that the target's own loader reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modicum.core.budget import Budget, many, readable
from modicum.core.errors import BudgetError, ModelError, listed, quoted
from modicum.core.memory import own_memory
from modicum.data.splits import one_row, placed
from modicum.export._family import Layout
from modicum.fit.choosing import Chosen
from modicum.fit.made import Made
from modicum.judge.generation import FEW_BITS, Generation, generates, prompts_of
from modicum.judge.quality import Quality, compare, plain
from modicum.judge.texts import MOST_BYTES, side_by_side
from modicum.models.quiet import hushed
from modicum.runtime.memory import whole_model
from modicum.sweep.work import counted

# The most that a reloaded model may differ by.
_SAME = 1e-3


def weighed(made: Made, layout: Layout, final: Path, who: str) -> int:
    """Bytes of the files of ``who``. Raises ``ModelError`` where they are not those of the plan, ``BudgetError`` where they are too many."""
    predicted, budget = layout.nbytes(), made.scene.request.budget
    actual = sum(
        path.stat().st_size for path in final.iterdir() if path.name.endswith((".safetensors", ".safetensors.index.json", ".gguf"))
    )
    if actual != predicted:
        raise ModelError(f"{who}: must have {predicted} bytes by the plan, has {actual}. Report this.")
    allowed = budget.bytes(made.scene.model.parameters) if budget is not None else None
    if allowed is not None and actual > allowed:
        raise BudgetError(f"budget {budget}: the files have {actual} bytes, which is more. Report this.")
    return actual


def verified(made: Made, layout: Layout, final: Path, who: str, events: list[str], texts: bool = False) -> dict[str, Any]:
    """What was compared, with the model in memory or tensor by tensor, and ``texts`` to read. Raises ``ModelError`` where anything differs."""
    return reread(made, layout, final, events) if too_large(made) else reloaded(made, final, who, events, texts)


def too_large(made: Made) -> bool:
    """Whether the target's own loader, which holds the model whole, would need more memory than is allowed."""
    scene = made.scene
    return scene.request.ram is not None and whole_model(scene.model, scene.data.test[0]) > scene.request.ram


def reloaded(made: Made, final: Path, who: str, events: list[str], texts: bool = False) -> dict[str, Any]:
    """Reload with the target's own loader and compare with the dequantized weights on test sequences, in the weights' own dtype."""
    scene, budget, stored = made.scene, made.scene.request.budget, made.model.stored
    batches = [scene.data.test[0] if stored is made.model else one_row(scene.data.test[0])]  # one is enough where that is slow
    here = [placed(batches[0], "cpu")]  # whatever the device: loaders load to the computer's own memory
    target = made.target
    target.room = None if scene.request.ram is None else max(0, scene.request.ram - own_memory())
    module, found = target.verify(final, made.forms, here[0])
    events += found.pop("events", [])
    if (wide := found.get("as wide as before")) and _narrower(budget):
        raise BudgetError(f"budget {budget}: cuts must load narrower for it, these do not: {listed(sorted(wide))}. Keep them whole.")
    wanted = list(made.outputs(batches, stored))
    with hushed():  # some loaders do their last steps on first use
        judged = compare(iter(wanted), plain(module, here), batches, False, scene.script.outputs)
    worst = _largest(judged)
    if worst > _SAME:
        raise ModelError(f"{who}: the reloaded model must match the dequantized weights, differs by {worst:.2g} ({judged.metric}).")
    found |= _multiplied(made, target.as_loaded(final, module), events)
    if (prompts := _prompts(made)) is not None:
        found |= {"generation": _generated(made, prompts, module, who, events)}
    found |= _texts(made, module, events) if texts else {}
    del module  # one at a time
    found |= {"logits": {"metric": judged.metric, "largest": worst, "sequences": len(judged.divergence)}}
    judge = lambda other: _largest(compare(iter(wanted), plain(other, here), batches, False, scene.script.outputs))
    others = {name: _otherwise(load, judge) for name, load in target.otherwise(final).items()}
    for name, told in others.items():
        if scene.request.uniform and told["result"] != "the same":
            raise ModelError(f"{who}: with --uniform every way to load it must give the same, {name} gives another. Report this.")
    return found | others


def _largest(judged: Quality) -> float:
    return max(value for each in judged.parts.values() for value in each.divergence)


def _otherwise(load: Callable[[], nn.Module], judge: Callable[[nn.Module], float]) -> dict[str, Any]:
    """What another way to load the files comes to: the same model, a wrong one, or none. It fails no run, since nobody needs to go it."""
    try:
        with hushed():
            worst = judge(load())
    except ModelError as error:  # what it answers is no number, or of another shape
        return {"result": "wrong", "why": quoted(error)}
    except Exception as error:  # whatever a loader raises
        return {"result": "fails", "why": quoted(error).partition(". ")[0]}  # what follows points to what it printed
    return {"result": "the same" if worst <= _SAME else "wrong", "largest": worst}


def few_bits(made: Made) -> float:
    """Bits that a treated weight takes; 0 where none does."""
    units = [unit for unit in made.scene.model.units.values() if unit.name in made.forms]
    return 8 * sum(made.forms[unit.name].nbytes for unit in units) / max(1, sum(unit.size for unit in units))


def _prompts(made: Made) -> torch.Tensor | None:
    """What texts are to go on from, where divergence alone does not certify: of a language model in few bits."""
    wanted = generates(made.scene.model) and 0 < few_bits(made) <= FEW_BITS
    return prompts_of(made.original, made.scene.data.test) if wanted else None


def _texts(made: Made, module: nn.Module, events: list[str]) -> dict[str, Any]:
    """What both write on from the same beginnings, where the data is text, and both are in memory together and soon done."""
    scene, model = made.scene, made.scene.model
    if scene.data.source == "batches" or not generates(model) or model.dense_bytes > MOST_BYTES:
        return {}
    if scene.request.ram is not None and 2 * whole_model(model, scene.data.test[0]) > scene.request.ram:
        return {}
    if (prompts := prompts_of(made.original, scene.data.test)) is None:
        return {}
    try:
        return {"texts": side_by_side(made.original, prompts, module, model.tokenizer)}
    except ModelError as error:
        events.append(f"texts: none of both models stand side by side ({error})")
        return {}


def _generated(made: Made, prompts: torch.Tensor, module: nn.Module, who: str, events: list[str]) -> dict[str, Any]:
    """How the reloaded model writes beside the original. Raises ``ModelError`` where it is clearly worse, unless that is allowed."""
    scene = made.scene
    found = Generation.of(made.original, prompts, scene.request.seed).against(module)
    if found["failed"]:
        said = f"at {few_bits(made):.2g} bits per treated weight the model must write as its original does; {' and '.join(found['failed'])}"
        if not scene.request.allow_broken:
            raise ModelError(f"{who}: {said}. Allow more bytes, or pass --allow-broken to keep it.")
        events.append(f"generation: {said}; kept, as --allow-broken says.")
    return found


def _multiplied(made: Made, module: nn.Module, events: list[str]) -> dict[str, int]:
    """Multiply-adds of the reloaded model's pass on what those of the original were counted on.

    Raises ``BudgetError`` where they are too many; where tokens are routed to experts, which do not stay the same, an event says so.
    """
    scene, budget = made.scene, made.scene.request.budget
    if scene.script.work is None:
        return {}
    batch = placed(scene.script.example(scene.data.calibration[0]), "cpu")
    with hushed():
        count = counted(lambda: list(plain(module, [batch])))
    allowed = budget.multiplications(scene.script.work.whole) if budget is not None else float("inf")
    if count > allowed * (1 + 1e-9):
        said = f"budget {budget}: what was written takes {many(count)} multiply-adds, which is more than {many(allowed)}"
        if not scene.script.stacks:
            raise BudgetError(f"{said}. Report this.")
        events.append(f"{said}: its tokens go to other experts than the original's.")
    return {"multiply-adds": count}


def timed(made: Made, chosen: Chosen, final: Path, events: list[str]) -> dict[str, Any]:
    """Seconds of one pass of what was written, where time was limited in a runtime that tells, beside those forecast and allowed."""
    scene, request = made.scene, made.scene.request
    if chosen.table is None or request.budget is None or not (request.budget.speed or request.budget.latency):
        return {}
    runtime = scene.subject.runtime(scene.target.name, request.batch, request.context, {})
    if (actual := runtime.written(final)) is None:
        return {}
    forecast, allowed = chosen.table.cost(chosen.picks, "seconds"), chosen.limits["seconds"]
    if actual > allowed:
        events.append(
            f"time: what was written takes {1e3 * actual:.3g} ms, {1e3 * allowed:.3g} were allowed and {1e3 * forecast:.3g} forecast; on a machine "
            "that others use too, times vary by as much"
        )
    return {"seconds": {"original": runtime.original(), "allowed": allowed, "forecast": forecast, "actual": actual}}


def reread(made: Made, layout: Layout, final: Path, events: list[str]) -> dict[str, Any]:
    """What can be verified without loading the model whole."""
    scene, budget = made.scene, made.scene.request.budget
    needed = readable(whole_model(scene.model, scene.data.test[0]))
    if _narrower(budget):
        raise BudgetError(f"budget {budget}: what really loads must be tried with the model in memory, {needed}. Allow more --ram.")
    events.append(
        f"verify: the target's own loader was not run, it holds the model whole ({needed}) and --ram allows {readable(scene.request.ram or 0)}; "
        "the files were read back tensor by tensor."
    )
    if _prompts(made) is not None:
        events.append("generation: what the model writes was not held against its original, neither is whole in memory. Allow more --ram.")
    return {"loader": "none: every tensor read back", "tensors compared": layout.compare(final)}


def _narrower(budget: Budget | None) -> bool:
    """Whether a budget counts on cuts that load narrower."""
    return budget is not None and bool(budget.memory or budget.speed or budget.latency or budget.macs)
