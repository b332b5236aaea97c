"""Sub-models that leave out some groups, tried by forwards alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from modicum.core.unit import Site
from modicum.data.splits import Batch
from modicum.forms import Dense, Form
from modicum.models.model import Model
from modicum.sweep import Script, Sweep
from modicum.sweep.outputs import CLASSES
from modicum.sweep.spill import SpillPool


class Trial:
    """What a model without some groups diverges by from the whole one on a few batches, whose outputs it keeps."""

    def __init__(self, model: Model, script: Script, batches: Sequence[Batch], sites: Mapping[str, Site], pool: SpillPool, seed: int):
        self.model, self.script, self.batches, self.sites, self.pool, self.seed = model, script, batches, sites, pool, seed
        self.whole = {index: value for index, value, _ in self._outputs({})}

    def _outputs(self, values: Mapping[str, Form]) -> Iterator[tuple[int, torch.Tensor, bool]]:
        """Each batch's main output, of classes logarithms of chances, and whether it is that."""
        sweep = Sweep(self.model, self.batches, self.script, values=dict(values), seed=self.seed, pool=self.pool)
        for index, output in sweep.run():
            part, value = self.script.outputs.of(output)[0]
            classes = part.kind == CLASSES
            yield index, value.float().log_softmax(-1) if classes else value.float(), classes

    def __call__(self, off: Mapping[str, torch.Tensor]) -> float:
        """Mean divergence without the groups ``off`` (boolean) by site: KL, of values half the squared distance relative to the square."""
        values: dict[str, Form] = {}
        for name, groups in off.items():
            axis = self.sites[name].axes[-1]
            weight = self.model.matrix(self.model.units[axis.unit]).clone()
            weight[:, [column for group in groups.nonzero()[:, 0].tolist() for column in axis.groups[group]]] = 0
            values[axis.unit] = Dense(weight)
        found = [_divergence(self.whole[index], value, classes) for index, value, classes in self._outputs(values)]
        return sum(found) / len(found)


def _divergence(one: torch.Tensor, other: torch.Tensor, classes: bool) -> float:
    if not classes:
        return 0.5 * float((one - other).square().sum() / one.square().sum().clamp_min(1e-30))
    finite = one.isfinite()
    return float(torch.where(finite, one.exp() * (one - other), 0.0).sum(-1).mean())
