"""Codes, entries and scales of codebooks refined together, given how inputs go together.

With the weight error ``E = W - Q`` and the covariance H the loss is ``tr(E H Eᵀ)`` and its gradient ``G = E H``. While all others stay, a vector
would best be ``q + G_v H_vv⁻¹``, and takes the entry that is nearest to that under ``H_vv``. Entries solve least squares for all codes at
once, by conjugate gradients: what the entries make is a gather, its transpose a sum over codes. Scales of rows have a closed form.
"""

from __future__ import annotations

import torch

from modicum.core.blocks import Blocks, spans
from modicum.core.finite import finite
from modicum.forms.codebook import Codebook, placed
from modicum.numerics.codebook import nearest

# Columns whose gradients follow at once, before those of all others do; steps of conjugate gradients.
_PIECE, _STEPS = 128, 6
# The largest entry that float16 has.
_MOST = 65504.0


class Descent:
    """A codebook on float32 ``weight`` (rows, columns), under the covariance ``moment`` plus ``damping`` times its mean diagonal."""

    def __init__(self, weight: torch.Tensor, form: Codebook, moment: torch.Tensor | Blocks, damping: float):
        self.weight, self.form, self.moment = weight, form, moment
        mean = float(moment.diagonal().double().mean())
        self.ridge = damping * (mean if mean > 0 else 1.0)

    def refined(self, rounds: int) -> Codebook:
        """The best form that as many rounds met."""
        best, least = self.form, self.loss()
        for _ in range(rounds if finite(torch.tensor(least)) else 0):
            for move in (self.move_entries, self.move_scales, self.move_codes):
                move()
                if (loss := self.loss()) < least:
                    best, least = self.form, loss
        return best

    def felt(self, values: torch.Tensor) -> torch.Tensor:
        """``values H`` for values (rows, columns)."""
        return torch.cat([values[:, columns] @ square for columns, square in spans(self.moment)], 1).add_(values, alpha=self.ridge)

    def loss(self) -> float:
        """``tr(E H Eᵀ)``."""
        error = self.weight - self.form.value()
        return float((error.double() * self.felt(error)).sum())

    def move_scales(self) -> None:
        """Each row's scale to its best, rounded to its dtype; none changes its sign."""
        one = self.form.value() / self.form.scale.float()
        felt = self.felt(one)
        best = ((felt * self.weight).sum(1) / (felt * one).sum(1)).to(self.form.dtype)[:, None]
        fine = torch.isfinite(best) & (best.float() * self.form.scale.float() > 0)
        self.form = self.form.having({"tables": self.form.tables, "scale": torch.where(fine, best, self.form.scale)})  # type: ignore[assignment]

    def move_entries(self) -> None:
        """Entries towards their best for these codes, by conjugate gradients scaled by what each entry is worth."""
        form, scale = self.form, self.form.scale.float()
        places, flat = placed(form.codes, form.layout, form.shape[1]), form.tables.flatten(0, 2)

        def back(values: torch.Tensor) -> torch.Tensor:
            wide = torch.nn.functional.pad(values * scale, (0, -form.shape[1] % form.layout.dimension)).view(-1, form.layout.dimension)
            found = torch.zeros(flat.shape)
            for stage in places.unbind(1):
                found.index_add_(0, stage.reshape(-1), wide)
            return found

        made = lambda step: form.having({"tables": step.view(form.tables.shape), "scale": form.scale}).value()
        worth = back((self.moment.diagonal() + self.ridge).expand(form.shape) * scale)
        inverse = torch.where(worth > 0, 1 / worth, 0.0)
        entries = flat.float()
        left = back(self.felt(self.weight - form.value()))
        along = ahead = inverse * left
        size = (left * ahead).sum()
        for _ in range(_STEPS):
            turned = back(self.felt(made(along)))
            curvature = (along * turned).sum()
            if not curvature > 0:
                break
            step = size / curvature
            entries, left = entries + step * along, left - step * turned
            ahead = inverse * left
            before, size = size, (left * ahead).sum()
            along = ahead + (size / before) * along
        if finite(entries):
            self.form = form.having({"tables": entries.clamp(-_MOST, _MOST).half().view(form.tables.shape), "scale": form.scale})  # type: ignore[assignment]

    def move_codes(self) -> None:
        """Every vector to its best while all others stay, one after the other."""
        form, value = self.form, self.form.value()
        pull, codes = self.felt(self.weight - value), form.codes.clone()
        for columns, square in spans(self.moment):
            self._move(columns, square, value, pull, codes)
        self.form = form.with_codes(codes)

    def _move(self, columns: slice, square: torch.Tensor, value: torch.Tensor, pull: torch.Tensor, codes: torch.Tensor) -> None:
        """The vectors of a block of columns."""
        layout, scale, tables = self.form.layout, self.form.scale.float(), self.form.tables.float()
        groups, wide = layout.groups(self.form.shape[1]).tolist(), layout.dimension
        piece = max(wide, _PIECE // wide * wide)
        for low in range(columns.start, columns.stop, piece):
            high = min(low + piece, columns.stop)
            own, change = pull[:, low:high].clone(), torch.zeros(len(value), high - low)
            for first in range(low, high, wide):
                vector, last = first // wide, min(first + wide, high)
                there, inside = slice(first - columns.start, last - columns.start), slice(first - low, last - low)
                corner = square[there, there].clone()
                corner.diagonal().add_(self.ridge)
                if not bool((corner.diagonal() > 0).all()):
                    continue
                aim = (value[:, first:last] + torch.linalg.solve(corner, own[:, inside].T).T) / scale
                codes[:, :, vector], entry = nearest(aim, tables[groups[vector], :, :, : last - first], corner)
                change[:, inside] = entry * scale - value[:, first:last]
                own -= change[:, inside] @ square[there, low - columns.start : high - columns.start]
            value[:, low:high] += change
            pull[:, columns] -= change @ square[low - columns.start : high - columns.start]
            pull[:, low:high] -= self.ridge * change
