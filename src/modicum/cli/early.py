"""What can be refused without looking at a model: told before anything heavy is imported, in the library's own words."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from modicum.core import grammar
from modicum.core.budget import Budget
from modicum.core.errors import SettingError
from modicum.core.extras import require_package
from modicum.core.files import no_delta, require_there
from modicum.core.option import Option
from modicum.core.output import require_free
from modicum.core.plan import Plan
from modicum.core.sources import is_own, sources_of
from modicum.fit.receipts import FILE, read_receipt
from modicum.fit.request import Request
from modicum.measure.meta import require_decided, require_measurement
from modicum.measure.settings import Settings, common, menu_words
from modicum.models.located import here, is_gguf


def check_fit(model: str | None, measured: str | None, out: Path | None, given: dict[str, Any]) -> None:
    """Raise what ``fit`` would raise for a slip in its settings, a folder that is not there, or one that must not be written."""
    words = dict(given)
    budget = Budget.of(**{field.name: words.pop(field.name, None) for field in fields(Budget)})
    method, plan = words.pop("method", None), words.pop("plan", None)
    if method is not None:
        grammar.check(method)
    known: dict[str, Any] = {
        "budget": budget,
        "method": None if method is None else Option(),
        "plan": None if plan is None else Plan.read(Path(plan)),
    }
    request = Request(**known, **_common(words))
    for word in request.heal_with.split(",") if request.heal else ():
        grammar.check(word.strip(), trained=True)
    check_places(model, words.get("data"))
    if measured is not None:
        require_decided(Path(measured), require_measurement(Path(measured))["settings"], words)
    if not request.dry_run:
        check_work(out or Path("out") / default_name(model, measured), request.overwrite, model, read=[measured, words.get("data")])


def default_name(model: str | None, measured: str | None) -> str:
    """What the output is called by default: the model's name, of one that was measured as the measurement gives it."""
    if model is None:
        model = require_measurement(Path(measured or ""))["model"]["name"]
    return Path(os.path.realpath(model)).name or "model"


def check_measure(model: str, out: Path, given: dict[str, Any]) -> None:
    """Raise what ``measure`` would raise for a slip in its settings, a folder that is not there, or one that must not be written."""
    check_work(out, Settings(**_common(given)).overwrite, model, read=[given.get("data")])


def check_places(model: str | None, *data: str | None) -> None:
    """Raise for a model or data that are not there."""
    if model is not None and not model.strip():
        raise SettingError(f"model {model!r}: must be demo, a directory, or a Hugging Face id, is empty. Name one.")
    if model is not None and not is_gguf(model):
        here(model)
    for path in data:
        if path is not None:
            for source, _ in sources_of(path):
                if not is_own(source):
                    require_there(Path(source))


def check_work(out: Path, overwrite: bool, *models: str | Path | None, read: Iterable[str | Path | None] = ()) -> None:
    """Raise for a folder that must not be written, and for models, or what else is ``read``, that are not there."""
    for model in models:
        check_places(None if model is None else str(model))
    check_places(None, *(None if path is None else str(path) for path in read))
    if out.name not in ("", ".."):  # of which more is said later
        require_free(out, [Path(path) for path in (*models, *read) if path is not None and Path(path).exists()], overwrite)


def require_results(*directories: str | Path) -> None:
    """Raise ``SettingError`` for a folder that a command wrote, which is not there."""
    for directory in directories:
        if not Path(directory).is_dir():
            raise SettingError(f"{directory}: must be a folder that modicum wrote, is none. Check the path.")


def require_deltas(*paths: str | Path) -> None:
    """Raise ``SettingError`` for a change of a model that is not there."""
    for path in paths:
        if not Path(path).is_dir():
            raise no_delta(path)


def check_harness(tasks: str | None) -> None:
    """Raise ``SettingError`` for tasks of a harness that is not installed."""
    if tasks is not None:
        require_package("lm-eval", "lm_eval", "lm-eval")


def check_export(directory: Path, target: str, out: Path, overwrite: bool) -> tuple[dict[str, Any], Plan]:
    """The receipt and the plan in a folder that ``fit`` wrote. Raises ``SettingError`` where it holds none, or where ``out`` cannot be written."""
    if not directory.is_dir():
        raise SettingError(f"{directory}: must be a folder that fit wrote, is none. Check the path.")
    before, plan = read_receipt(directory / FILE), Plan.read(directory / "plan.json")
    Settings(target=target)
    check_places(before["model"]["name"])
    if os.path.lexists(out) and not overwrite:
        raise SettingError(f"{out}: exists already. Choose another --out, or pass --overwrite.")
    return before, plan


def require_folder(directory: Path) -> None:
    """Raise ``SettingError`` for a folder to look through that is none."""
    if not directory.is_dir():
        raise SettingError(f"{directory}: must be a folder to look through, is none. Check the path.")


def _common(given: dict[str, Any]) -> dict[str, Any]:
    """Settings in the types that ``Settings`` holds, options of the menu spelled right and left out."""
    for word in menu_words(given.get("menu"), given.get("group")):
        grammar.check(str(word))
    return common(**{name: value for name, value in given.items() if name != "menu"})
