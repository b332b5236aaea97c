"""A change of a model, read from whatever tells it, and written as what others load."""

from __future__ import annotations

from pathlib import Path

from modicum.core.errors import ModelError, SettingError
from modicum.delta import Delta
from modicum.delta.applying import base_weights
from modicum.delta.between import between
from modicum.delta.delta import is_delta
from modicum.delta.opened import opened
from modicum.delta.peft import is_peft, to_peft
from modicum.export.gguf.adapter import to_gguf
from modicum.models.open import open_model


def changed_from(source: str | Path, base: str | Path, rank: int | None = None) -> Delta:
    """What a fine-tuned model, a delta or an adapter of PEFT changes of ``base``, with ``rank`` as products of that rank.

    Raises ``ModelError`` for another base, ``SettingError`` for a rank below 1.
    """
    if rank is not None and rank < 1:
        raise SettingError(f"rank: must be at least 1, is {rank}.")
    if not (is_delta(source) or is_peft(source)):
        return between(source, base, rank=rank)
    read = base_weights(open_model(base))
    found = opened(Path(source), base).require_on(read)
    return found if rank is None else found.ranked(rank, read)


def write(delta: Delta, directory: Path, base: str | Path, format: str = "modicum") -> None:
    """Write a change of ``base`` as a delta, or as an adapter for ``peft`` or ``gguf``.

    Raises ``ModelError`` for what such an adapter cannot hold, ``SettingError`` for another format.
    """
    for aside in delta.asides if format != "modicum" else ():
        raise ModelError(
            f"{aside.method}: is computed beside the weights, which an adapter of thin matrices cannot hold. Use it as modicum.changed(model, delta)."
        )
    if format == "modicum":
        delta.save(directory)
    elif format == "peft":
        to_peft(delta, directory, base)
    elif format == "gguf":
        to_gguf(delta, directory, base)
    else:
        raise SettingError(f"format: must be modicum, peft or gguf, is {format!r}.")
