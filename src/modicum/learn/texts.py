"""A language model and files of text as tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modicum.core.errors import DataError, SettingError
from modicum.data.splits import from_text
from modicum.fit.working import working
from modicum.learn.tasks import Task
from modicum.train.loop import single


def opened(
    model: str | Path, tasks: Sequence[Any], *, tokens: int, samples: int, test_samples: int, seed: int, text_column: str | None
) -> tuple[nn.Module, list[Task]]:
    """A causal language model in float32, and a task for each file, named after it.

    Raises ``DataError`` for a text that cannot be read or is too short; ``SettingError`` where a task is no path.
    """
    if not tasks or not all(isinstance(task, str | Path) for task in tasks):
        raise SettingError(
            "tasks: must be files of text where the model is named, at least one. Give paths, or a module with values of Task."
        )
    with working(model, tokens) as (source, module):
        found = []
        for path in map(Path, tasks):
            if not path.exists():
                raise DataError(f"data: {path} must be a file or folder of text, is not there. Check the path.")
            splits = from_text(
                path,
                source.tokenizer,
                samples=samples,
                tokens=tokens,
                seed=seed,
                batch=8,
                test_samples=test_samples,
                text_column=text_column,
            )
            found.append(Task(path.stem, *([_row(row) for row in single(part)] for part in (splits.calibration, splits.test))))
    return module, found


def _row(row: Any) -> dict[str, torch.Tensor]:
    ids = row["input_ids"]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
