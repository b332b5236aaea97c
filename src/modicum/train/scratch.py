"""A small model from the start: a config and a budget in, weights that are trained within it out, with what they are worth."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from modicum.core.arguments import checked
from modicum.core.budget import Budget, every
from modicum.core.errors import BudgetError, DataError, SettingError
from modicum.core.output import write_receipt
from modicum.core.progress import Quiet
from modicum.models.quiet import hushed
from modicum.train import baselines as against
from modicum.train.accounts import Account, exceeded, restriction, within
from modicum.train.adapt import compared
from modicum.train.finding import planned
from modicum.train.identity import identity
from modicum.train.learning import Learnt, learn, operations
from modicum.train.loop import evaluate, single
from modicum.train.objectives import next_token
from modicum.train.race import candidates, race
from modicum.train.settings import Loop
from modicum.train.subject import Subject, of_config, of_module
from modicum.train.written import account, require_same, write
from modicum.work.meter import Meter
from modicum.work.workdir import WorkDir, read_from

KIND, FORMAT = "modicum-training", "modicum-trained"
AUTO = "auto"


@dataclass(frozen=True)
class Small:
    """What ``train`` wrote: the folder, its receipt, and the model as it is loaded from there."""

    out: Path
    receipt: dict[str, Any]
    model: nn.Module


@checked(but=("model", "data", "objective"))
def train(
    model: str | Path | nn.Module, out: str | Path, budget: str | Budget | None = None, *, size: str | int | None = None,
    bpw: float | str | None = None, params: str | float | None = None, method: str = "rigl", data: Any = None, objective: Any = None,
    tokenizer: str | Path | None = None, tokens: int = 256, samples: int = 4096, test_samples: int = 64, text_column: str | None = None,
    target: str = "modicum", baselines: bool = False, overwrite: bool = False, progress: Quiet | None = None, loop: Loop | None = None,
) -> Small:  # fmt: skip
    """Train a model from random weights within a budget, under a ``method`` that keeps its weights small, and write it.

    ``model``: the config of a causal language model (a file, a folder, ``demo`` or a Hugging Face id; no weights are read), or a module,
    which stays as it is, with ``data`` an iterable of batches and an ``objective`` that gives the loss of each row of a batch and the number of its
    tokens. ``budget``, ``size``, ``bpw`` and ``params`` as for ``fit``: the method's first dial that is not set in its text is turned as far as
    they allow, to the byte; without any the method's own settings stand. ``auto`` races the methods that fit, by successive halving.
    ``baselines`` trains the dense model too, and dense ones as small, at equal updates and at equal operations.

    The receipt says parameters, bytes, multiply-adds of training, the loss per token on the test part, and paired 95 % intervals against the
    baselines. A training that was interrupted goes on where it was, with the same numbers.

    *Raises*: ``SettingError`` for a method or settings that the weights cannot have, or an ``out`` that must not be written;
    ``BudgetError`` where the method, or all of them, need more; ``DataError`` for data that cannot be read; ``ModelError`` for a config that
    cannot be built, and where the loss is no number.
    """
    settings, allowed = loop or Loop(), _budget(budget, size, bpw, params)
    if method == AUTO and allowed is None:
        raise SettingError("method: auto needs a budget to choose for. Pass --params 40%, --size 2MB or --bpw 4.")
    if method != AUTO:
        restriction(method)
    place = WorkDir(Path(out), KIND, overwrite, read_from(None if isinstance(model, nn.Module) else model, data))
    place.check()
    meter = Meter(progress or Quiet())
    with meter.stage("opening"):
        subject = _subject(model, data, objective, tokenizer, tokens, samples, test_samples, text_column, settings)
        found = account(subject.fresh(), target, subject.example())
        names, left = candidates(allowed, found) if method == AUTO and allowed is not None else ([str(within(method, allowed, found))], {})
    asked = {
        "model": _identity(model, subject.config), "method": method, "budget": str(allowed), "loop": asdict(settings), "data": subject.splits.hashes,
        "target": target, "baselines": baselines, "parameters": found.target.model.parameters, "objective": identity(subject.objective),
    }  # fmt: skip
    with place.held():
        folder = place.begin(repr(asked))
        run = _Run(subject, settings, folder, meter, found, progress)
        raced = run.race(names, left) if method == AUTO else None
        chosen = raced["chosen"] if raced else names[0]
        learnt, module = run.learn(chosen)
        receipt = {
            "format": FORMAT, "version": 1, "model": subject.name, "method": chosen, "budget": str(allowed) if allowed else None,
            "target": target, "loop": asdict(settings), "notes": [*subject.splits.notes, *subject.notes, *found.untold(learnt.forms)],
            "data": {"source": subject.splits.source, "hashes": subject.splits.hashes},
        } | ({"race": raced} if raced else {})  # fmt: skip
        receipt |= run.write(learnt, module, target, allowed)
        receipt |= {"test": _loss(learnt.test), "losses": learnt.losses}
        if baselines:
            receipt["against"] = run.against(learnt, receipt)
        receipt["stages"] = meter.stages
        write_receipt(folder / "final", receipt)
        place.finish(folder / "final")
    return Small(place.out, receipt, subject.loaded(place.out))


def _budget(budget: str | Budget | None, size: Any, bpw: Any, params: Any) -> Budget | None:
    """What was asked for. Raises ``BudgetError`` for what no training can promise."""
    given = every([Budget.parse(budget) if isinstance(budget, str) else budget, Budget.of(size=size, bpw=bpw, params=params)])
    for name in ("macs", "loss", "memory", "speed", "latency"):
        if given is not None and getattr(given, name) is not None:
            raise BudgetError(f"{name}: a training is held to --size, --bpw or --params, not to this. Use modicum fit on what was trained.")
    return given


def _subject(
    model: Any, data: Any, objective: Any, tokenizer: Any, tokens: int, samples: int, test_samples: int, text_column: Any, settings: Loop
) -> Subject:  # fmt: skip
    if isinstance(model, nn.Module):
        if data is None or isinstance(data, str | Path):
            raise DataError("data: a module needs batches, an iterable of tensors or dicts of them. Pass data=.")
        return of_module(model, data, objective or next_token, settings.seed)
    if objective is not None:
        raise SettingError("objective: belongs to a module with batches; a config's model learns the next token.")
    return of_config(
        model, data, tokenizer=tokenizer, tokens=tokens, samples=samples, test_samples=test_samples, text_column=text_column,
        seed=settings.seed, batch=settings.batch,
    )  # fmt: skip


def _identity(model: Any, config: Any) -> str:
    """What tells one model to train from another: a name and what its config says, or a module's weights."""
    if not isinstance(model, nn.Module):
        return f"{model} {config.to_json_string()}"
    return identity([repr(model), dict(model.state_dict())])


def _loss(rows: list[tuple[float, int]]) -> dict[str, Any]:
    tokens = sum(count for _, count in rows)
    return {"loss": sum(loss for loss, _ in rows) / max(1, tokens), "sequences": len(rows), "tokens": tokens}


@dataclass
class _Run:
    """Stages of one training, in a folder from which each goes on."""

    subject: Subject
    loop: Loop
    folder: Path
    meter: Meter
    account: Account
    progress: Quiet | None

    def race(self, names: list[str], left: dict[str, str]) -> dict[str, Any]:
        """The method that is best after a few updates."""
        with self.meter.stage("race"):
            return race(self.subject, names, self.loop, self.folder / "race", self.progress) | {"left out": left}

    def learn(self, method: str) -> tuple[Learnt, nn.Module]:
        """The model under the method, and what was learnt."""
        splits, module = self.subject.splits, self.subject.fresh()
        with self.meter.stage("training"):
            learnt = learn(
                module, method, splits.calibration, splits.test, self.loop, objective=self.subject.objective, keep=self.folder / "small",
                progress=self.progress,
            )  # fmt: skip
        return learnt, module

    def write(self, learnt: Learnt, module: nn.Module, target: str, budget: Budget | None) -> dict[str, Any]:
        """Files, reloaded and compared; their bytes and values, and the operations of training."""
        first = self.subject.example()
        with self.meter.stage("writing"):
            found = account(self.subject.opened(module, self.folder / "dense checkpoint"), target, first)
            made = write(found, learnt.forms, self.folder / "final", self.subject.loaded, first)
            if budget is not None and (why := exceeded(found.forms(learnt.forms), budget, found)):
                raise BudgetError(f"budget {budget}: what was written has {why}. Report this.")
            with hushed():  # some loaders do their last steps on first use
                again = evaluate(made.module, single(self.subject.splits.test), self.subject.objective)
            worst = require_same(learnt.test, again, str(self.folder))
        method, model = restriction(learnt.method), found.target.model
        units = [unit for unit, _ in planned(self.subject.fresh(), learnt.method).units.values()]
        return {
            "parameters": {"dense": model.parameters, "stored": made.values, "trained": learnt.trained},
            "bytes": {"written": made.bytes, "dense": found.forms({}).bytes},
            "operations": operations(method, units, found.target.script.work, self.loop),
            "verified": {**made.checked, "largest difference of losses": worst},
        }  # fmt: skip

    def against(self, learnt: Learnt, receipt: dict[str, Any]) -> dict[str, Any]:
        """The dense model, and dense ones as small; what each lost, and how much more the small model does."""
        most = max(1, receipt["bytes"]["written"] * receipt["parameters"]["dense"] // receipt["bytes"]["dense"])
        share = self._linear(receipt)
        with self.meter.stage("baselines"):
            whole = against.dense(self.subject, self.loop, self.folder / "baselines", self.progress)
            found, facts, why = against.small(self.subject, most, share, self.loop, self.folder / "baselines", self.progress)
        told = {
            name: _loss(each.test) | {"difference": compared(each.test, learnt.test)} for name, each in {"dense": whole, **found}.items()
        }
        return {**told, "small model": facts or why}

    def _linear(self, receipt: dict[str, Any]) -> float:
        """How much of the operations lies in weights."""
        work = self.account.target.script.work
        return 1.0 if work is None or not work.whole else sum(work.units.values()) / work.whole
