"""Keys and values in eight bits: what runtimes keep of earlier tokens, rounded as they round it, a scale for each attention's keys and values.

Half the memory of a cache of sixteen bits. Scales are the largest magnitudes in calibration over the largest 8-bit float; they are buffers of the
attentions of a copy of the model, whose keys and values (after positions were put in) are rounded whatever else becomes of it. So they are in its
files, in the bytes of tables, and in every output that is judged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from modicum.core.errors import ModelError
from modicum.data.splits import Batch, each_row
from modicum.judge.quality import compare, streamed
from modicum.models.cached import LARGEST, PROJECTIONS, round_cache, watched
from modicum.models.model import Model
from modicum.runtime.compute import Compute
from modicum.sweep import Script

_LEAST = 2.0**-20
_ROWS = 8  # that tell what is lost: one row loses up to 2.4 times what rows lose in the mean


def cached(model: Model, script: Script, batches: Sequence[Batch], compute: Compute) -> tuple[Model, float, list[str]]:
    """A copy of the model whose keys and values are in eight bits, by scales of ``batches``, what that alone loses, and what there is to tell.

    Needs and cost: a forward of all batches, and two of at least eight rows where there are so many. Raises ``ModelError`` where no attention keeps
    keys and values.
    """
    other, dtype = model.stored.twin(), model.stored.dtype
    scale = lambda value: (value / LARGEST).clamp_min(_LEAST).reshape(1).to(dtype)
    found = {name: (scale(keys), scale(values)) for name, (keys, values) in _largest(model.twin(), script, batches).items()}
    round_cache(other.module, found)
    other = compute.of(other)
    rows = [row for batch in batches[:_ROWS] for row in each_row(batch)[: -(-_ROWS // len(batches))]]
    before, after = (streamed(each.twin(), rows, script) for each in (model, other))
    alone = compare(before, after, rows, False, script.outputs)
    told = f"alone that loses {alone.worst.mean:.1e} ({alone.metric}, {len(rows)} rows of calibration)"
    said = f"kv: keys and values of {len(found)} attentions are rounded to 8-bit floats under static scales; {told}"
    return other, alone.worst.mean, [said]


def _largest(model: Model, script: Script, batches: Sequence[Batch]) -> dict[str, list[torch.Tensor]]:
    """The largest magnitudes of keys and of values by attention."""
    found: dict[str, list[torch.Tensor]] = {}

    def see(name: str, place: int, value: torch.Tensor) -> None:
        held = found.setdefault(name, [torch.zeros(()), torch.zeros(())])
        held[place] = torch.maximum(held[place], value.detach().abs().amax().float().cpu())

    with watched(model.module, see):
        for _ in streamed(model, batches, script):
            pass
    if not found:
        raise ModelError(
            f"{model.name}: must have attentions with projections that runtimes have scales of a cache for ({', '.join(PROJECTIONS)}), none was "
            "met. Leave kv out."
        )
    return found
