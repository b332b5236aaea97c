"""What the caller asked for, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from modicum.core.budget import Budget
from modicum.core.errors import BudgetError, SettingError
from modicum.core.option import Option
from modicum.core.plan import Plan
from modicum.core.settings import param
from modicum.measure.settings import Settings

# Read off the folder, as the allocators themselves are found, without importing what is in it.
ALLOCATORS = tuple(sorted(path.stem for path in Path(__file__).parents[1].joinpath("allocate").glob("[!_]*.py")))

# Three ways to say what is wanted, of which a run takes one.
WANTED = (("budget", *(field.name for field in fields(Budget))), ("method",), ("plan",))


@dataclass(frozen=True, kw_only=True)
class Request(Settings):
    """One fit's settings."""

    budget: Budget | None = param(None, "what must fit; several budgets hold together")
    method: Option | None = param(
        None, 'instead of a budget: one option everywhere, such as "gptq bits=4 group=128"', metavar="OPTION", group="method"
    )
    plan: Plan | None = param(None, "instead of a budget: a plan.json, as fit wrote it or edited", metavar="FILE", group="method")
    allocator: str = param("auto", "how the budget is divided", choices=ALLOCATORS, metavar="NAME", group="method")
    workers: str = param("1", "processes that judge candidates side by side, or ray", metavar="N", group="machine")
    context: int = param(
        2048, "tokens that budgets of memory, speed and latency are for", between=(1, float("inf")), metavar="N", group="budget"
    )
    batch: int = param(1, "sequences served at once that they are for", between=(1, float("inf")), metavar="N", group="budget")
    allow_broken: bool = param(
        False, "keep a language model of 3 bits or fewer that clearly repeats itself more, or foresees less, than its original does; the receipt "
        "says so", group="method",
    )  # fmt: skip
    heal: int = param(
        0, "updates in which what was made is trained to answer as the original does, in the same bytes; 0: none", between=(0, 10**9), metavar="N",
        group="heal",
    )  # fmt: skip
    heal_with: str = param(
        "norms, held", "what is trained, by commas: norms (and biases), held (the numbers of what is stored), scales (zero points and codes too)",
        metavar="METHODS", group="heal",
    )  # fmt: skip
    heal_rate: float = param(0.0, "learning rate at its highest, 0.005 where 0", between=(0.0, 1e3), metavar="RATE", group="heal")
    heal_batch: int = param(8, "sequences that an update is made of", between=(1, 10**6), metavar="N", group="heal")
    rounds: int = param(
        1, "times that pruning and healing follow each other, each pruning more until the last keeps the share that was asked for",
        between=(1, 1000), metavar="N", group="heal",
    )  # fmt: skip
    kv: str | None = param(
        None, "let the runtime keep keys and values of earlier tokens in 8-bit floats, under scales that calibration finds; for Transformers, vLLM; "
        "auto: where --memory for vLLM buys more with what that saves than it loses", choices=("fp8", "auto"), metavar="FORMAT", group="method",
    )  # fmt: skip
    retune: bool = param(
        False, "measure the statistics of batch norms anew on the compressed model; their scales and biases take the difference up", group="heal"
    )  # fmt: skip
    uniform: bool = param(
        False, "one scheme for all that is quantized, so that every way to load the result gives the same; the receipt says what that costs",
        group="method",
    )  # fmt: skip
    dry_run: bool = param(False, "say what would be done and what is within reach, then stop", group="files")

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("budget", "method", "plan") if getattr(self, name) is not None]
        if len(given) != 1:
            came = " and ".join(given) or "nothing"
            raise BudgetError(f"fit: exactly one of a budget, a method or a plan must be given, got {came}. Pass --size 4.5MB or --bpw 4.")
        if self.uniform and (self.budget is None or self.budget.loss is not None):
            raise SettingError(
                "uniform: must stand beside a budget of what is spent, one scheme is chosen within it. Pass --size or --bpw."
            )
        if self.uniform and self.activations is not None:
            raise SettingError(
                "uniform: must not stand beside activations, which a loader that decodes weights leaves out. Leave out one of them."
            )
        if self.plan is not None and self.set:
            raise SettingError(
                f"set {str(self.set[0])!r}: must not stand beside a plan, which says what each layer has. Write it into the plan."
            )
        if self.plan is not None and self.activations is not None:
            raise SettingError(
                f"activations {self.activations}: must not stand beside a plan, which says what each layer has. Write '| activations' into it."
            )
        if self.kv is not None:
            _check_kv(self)
        if not self.heal and (beside := _beside(self)):
            raise SettingError(f"{beside}: must stand beside heal, which was not asked for. Pass --heal 200.")
        if self.workers != "ray" and not (self.workers.isdigit() and int(self.workers) >= 1):
            raise SettingError(f"workers: must be a number of processes or ray, got {self.workers!r}.")


def _check_kv(request: Request) -> None:
    """Raise ``SettingError`` for a cache in eight bits beside what cannot have it, whatever the model."""
    if request.uniform:
        raise SettingError("kv: must not stand beside uniform, a loader that decodes weights leaves it out. Leave out one of them.")
    if request.kv == "auto" and (request.budget is None or request.budget.memory is None):
        raise SettingError("kv auto: must stand beside --memory, which alone says what a smaller cache is worth. Pass it, or --kv fp8.")


def _beside(request: Request) -> str:
    """A setting of healing that was given."""
    named = {field.name: field.default for field in fields(Request) if field.name.startswith("heal_") or field.name == "rounds"}
    return next((name for name, default in named.items() if getattr(request, name) != default), "")
