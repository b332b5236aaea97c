"""Tasks of lm-evaluation-harness, on a result and on its original: figures with their standard errors."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from modicum.core.errors import DataError, ModelError, SettingError, near, quoted
from modicum.core.extras import require_package

_ERROR = "_stderr"
# Prompts that are run at once.
_BATCH = 8


def require_harness() -> None:
    """Raise ``SettingError`` where the package is not installed."""
    require_package("lm-eval", "lm_eval", "lm-eval")


def on_tasks(asked: str, models: Sequence[tuple[str, nn.Module, Any]], seed: int) -> tuple[list[dict[str, Any]], list[str]]:
    """What models, each with its name, module and tokenizer, reach on tasks: one row for each task and metric; and what a reader must know of it.

    ``asked``: names of tasks and folders of task files (YAML), by commas; of a folder all tasks are run. A row has ``task``, ``metric``, the number
    of ``samples``, and for each model ``value`` and ``error`` (its standard error, None where the task tells none), the original's as ``original``
    and ``original_error``. Raises ``SettingError`` for an unknown task, ``DataError`` where a task cannot be read or run.
    """
    require_harness()
    with _heard() as said:
        names, manager = _tasks(asked)
        found = [_run(name, module, tokenizer, names, manager, seed) for name, module, tokenizer in models]
    cut = len([word for word in said if "truncat" in word.lower()])
    notes = [f"lm-eval: it told {cut} times that a text is longer than the model's window and loses its beginning."] if cut else []
    return list(_rows(*found)), notes


@contextmanager
def _heard() -> Iterator[list[str]]:
    """What the harness warns of, kept from mixing with ours; its data's bars are off."""
    import datasets

    said: list[str] = []
    logger, bars = logging.getLogger("lm_eval"), datasets.are_progress_bars_disabled()
    handler, passed = _Listener(said), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    datasets.disable_progress_bars()
    try:
        yield said
    finally:
        logger.propagate = passed
        logger.removeHandler(handler)
        if not bars:
            datasets.enable_progress_bars()


class _Listener(logging.Handler):
    def __init__(self, said: list[str]):
        super().__init__(logging.WARNING)
        self.said = said

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def _tasks(asked: str) -> tuple[list[str], Any]:
    """Names of the tasks, and what reads them: only the user's own files where nothing but folders is asked for."""
    from lm_eval.tasks import TaskManager

    words = [word.strip() for word in asked.split(",") if word.strip()]
    folders = [word for word in words if Path(word).is_dir()]
    try:
        own = TaskManager(include_path=folders, include_defaults=False) if folders else None
        manager = own if len(folders) == len(words) and own else TaskManager(include_path=folders or None)
    except Exception as error:  # whatever reading somebody's files raises
        raise DataError(f"lm-eval: the task files in {', '.join(folders)} cannot be read ({quoted(error)}). Check them.") from None
    mine = list(own.all_subtasks) if own else []
    if folders and not mine:
        raise SettingError(f"lm-eval: {', '.join(folders)} must hold a YAML file with a task, holds none. Check the path.")
    others = [word for word in words if word not in folders]
    if unknown := [word for word in others if word not in manager.all_tasks]:
        raise SettingError(f"lm-eval: {unknown[0]!r} is no task and no folder of tasks. {near(unknown[0], manager.all_tasks)}")
    if not (mine or others):
        raise SettingError("lm-eval: at least one task must be named, none is. Give names, or folders of task files.")
    return list(dict.fromkeys([*mine, *others])), manager


def _run(name: str, module: nn.Module, tokenizer: Any, names: list[str], manager: Any, seed: int) -> dict[str, Any]:
    """What the harness tells of one model."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    try:
        runner = HFLM(pretrained=module, tokenizer=tokenizer, batch_size=_BATCH)
    except Exception as error:  # a model that is none of Transformers' with a language head
        raise ModelError(f"{name}: lm-evaluation-harness cannot run it ({quoted(error)}). Judge it on text instead.") from None
    try:
        return simple_evaluate(
            model=runner, tasks=names, task_manager=manager, log_samples=False, random_seed=seed, numpy_random_seed=seed,
            torch_random_seed=seed, fewshot_random_seed=seed,
        )  # fmt: skip
    except Exception as error:  # data that is not there, a task file with a slip
        raise DataError(f"lm-eval: the tasks cannot be run ({quoted(error)}). Check their files and data.") from None


def _rows(mine: Mapping[str, Any], theirs: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    for task, figures in mine["results"].items():
        samples = mine.get("n-samples", {}).get(task, {}).get("effective")
        for key, value in figures.items():
            metric, _, kind = key.partition(",")
            if metric.endswith(_ERROR) or not isinstance(value, float | int) or not kind:
                continue
            beside = f"{metric}{_ERROR},{kind}"
            row = {"task": task, "metric": metric if kind == "none" else f"{metric} ({kind})", "samples": samples}
            row |= {"value": float(value), "error": _finite(figures.get(beside))}
            if theirs is not None:
                other = theirs["results"][task]
                row |= {"original": float(other[key]), "original_error": _finite(other.get(beside))}
            yield row


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, float | int) and math.isfinite(value) else None
