"""Codebooks: entries found by k-means under what each coordinate is worth, and codes nearest under a quadratic form.

A vector x that costs ``(x - c)ᵀ A (x - c)`` at an entry c is nearest to it where ``Lᵀ x`` is to ``Lᵀ c``, with ``A = L Lᵀ``: one product of
matrices for all vectors. Entries of several tables that are added are looked for with a beam.
"""

from __future__ import annotations

import torch

from modicum.forms import Codebook
from modicum.forms.codebook import Vectors
from modicum.numerics.grid import least_scale

# Vectors that entries are fitted to, steps of k-means at each doubling of a table and once it is whole, and rounds in which stages are fitted to
# what the others leave.
_SAMPLE, _EACH, _LAST, _ROUNDS = 1 << 15, 3, 10, 3
# Partial sums that are gone on with from stage to stage.
_BEAM = 8
# Distances that are held at a time.
_HELD = 1 << 22


def kmeans(points: torch.Tensor, worth: torch.Tensor, bits: int) -> torch.Tensor:
    """``2^bits`` entries (entries, dimension) of least ``Σ worth · (points - entry)²`` for float32 ``points`` and their ``worth`` (count, dimension).

    Lloyd's algorithm; tables are doubled from one entry on, each entry split along the coordinate in which its points lie apart most. So they
    depend on no chance, and on the order of points only by how sums are rounded.
    """
    worth = worth / worth.mean().clamp_min(1e-30)
    every = max(1, len(points) // _SAMPLE)
    points, worth = points[::every], worth[::every]
    terms = torch.cat([worth, worth * points], 1)
    places = torch.zeros(len(points), dtype=torch.long)
    entries, spread = _moved(torch.zeros(1, points.shape[1]), points, worth, places)
    for doubling in range(bits):
        along = torch.nn.functional.one_hot(spread.argmax(1), points.shape[1])
        offset = along * spread.sqrt() / 2
        entries = torch.cat([entries - offset, entries + offset])
        for _ in range(_EACH if doubling < bits - 1 else _LAST):
            places = _nearest(terms, entries)
            entries, spread = _moved(entries, points, worth, places)
    return entries


def _nearest(terms: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    """The nearest entry of each point (count,), by its ``terms``: worth, and worth times value."""
    table = torch.cat([entries.square(), -2 * entries], 1).T
    step = max(1, _HELD // len(entries))
    return torch.cat([(part @ table).argmin(1) for part in terms.split(step)])


def _moved(entries: torch.Tensor, points: torch.Tensor, worth: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of each entry's points, where it has any, and their worth times variance in each coordinate (entries, dimension)."""
    sums = lambda values: torch.zeros(entries.shape, dtype=torch.float64).index_add_(0, places, values.double())
    mass, first, second = sums(worth), sums(worth * points), sums(worth * points.square())
    mean = torch.where(mass > 0, first / mass.clamp_min(1e-300), entries.double())
    spread = (second / mass.clamp_min(1e-300) - mean.square()).clamp_min(0)
    return mean.float(), spread.float()


def fitted(points: torch.Tensor, worth: torch.Tensor, bits: int, stages: int) -> torch.Tensor:
    """Tables (stages, entries, dimension) whose entries are added, each fitted to what the others leave of the points, in turns."""
    every = max(1, len(points) // _SAMPLE)
    points, worth = points[::every], worth[::every]
    tables, left = list[torch.Tensor](), points
    for _ in range(stages):
        tables.append(kmeans(left, worth, bits))
        left = left - tables[-1][_nearest(torch.cat([worth, worth * left], 1), tables[-1])]
    found = points - left
    for _ in range(_ROUNDS if stages > 1 else 0):
        points = torch.where(worth > 0, points, found)  # what is worth nothing keeps no entry off
        codes, found = nearest(points, torch.stack(tables))
        for stage, table in enumerate(tables):
            others = found - table[codes[:, stage]]
            tables[stage], _ = _moved(table, points - others, worth, codes[:, stage])
            found = others + tables[stage][codes[:, stage]]
    return torch.stack(tables)


def nearest(points: torch.Tensor, tables: torch.Tensor, metric: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (count, stages) of the sums of one entry of each of ``tables`` (stages, entries, dimension) that are nearest to ``points`` (count,
    dimension) under a ``metric`` (dimension, dimension), and these sums.
    """
    seen, shown = points, tables
    if metric is not None and len(metric) > 1:
        lower = torch.linalg.cholesky(metric.double() / metric.diagonal().double().mean().clamp_min(1e-300)).float()
        seen, shown = points @ lower, tables @ lower
    beam = 1 if len(tables) == 1 else min(_BEAM, tables.shape[1])
    step = max(1, _HELD // (beam * tables.shape[1]))
    codes = torch.cat([_beam(part, shown, beam) for part in seen.split(step)])
    return codes, sum((table[codes[:, stage]] for stage, table in enumerate(tables)), start=torch.zeros_like(points))


def _beam(points: torch.Tensor, tables: torch.Tensor, beam: int) -> torch.Tensor:
    """Codes (count, stages) of sums near to points, the best of those that ``beam`` partial sums of each lead to."""
    left, codes = points[:, None], torch.empty(len(points), 1, 0, dtype=torch.long)
    for table in tables:
        # Squared distances but for the points' own squares where there is one partial sum: they do not tell entries apart.
        far = torch.addmm(table.square().sum(1), left.flatten(0, 1), table.T, alpha=-2).view(*left.shape[:2], len(table))
        if beam == 1:
            return far.argmin(2)
        far = (far + left.square().sum(2, keepdim=True)).flatten(1)
        best = far.topk(min(beam, far.shape[1]), 1, largest=False).indices
        before, code = best // len(table), best % len(table)
        took = torch.arange(len(points))[:, None]
        left = left[took, before] - table[code]
        codes = torch.cat([codes[took, before], code[..., None]], 2)
    return codes[torch.arange(len(points)), left.square().sum(2).argmin(1)]


def begun(weight: torch.Tensor, importance: torch.Tensor | None, layout: Vectors, dtype: torch.dtype) -> Codebook:
    """Scales of rows that are their root mean squares, and the codebooks and codes of least squared error, columns counted by ``importance``."""
    rows, columns = weight.shape
    most = weight.abs().amax(1).clamp_min(least_scale(torch.float32))  # no square is beyond float32
    scale = ((weight / most[:, None]).square().mean(1).sqrt() * most).clamp_min(least_scale(dtype)).to(dtype)[:, None]
    count, wide, groups = layout.count(columns), layout.dimension, layout.groups(columns)
    tables, codes = torch.zeros(layout.tables(columns)), torch.zeros(rows, layout.stages, count, dtype=torch.uint8)
    if bool(weight.any()):
        beyond = (0, -columns % wide)
        points = torch.nn.functional.pad(weight / scale.float(), beyond).view(rows, count, wide)
        each = (
            torch.ones(columns)
            if importance is None
            else importance.float().clamp_min(0) + 1e-6 * importance.float().mean().clamp_min(1e-30)
        )
        # What an error of one costs: a row's are as large as its scale.
        worth = torch.nn.functional.pad(each, beyond).view(count, wide) * (scale.float() / scale.float().max()).square()[:, :, None]
        for group, table in enumerate(tables):
            mine = (groups == group).nonzero()[:, 0]
            table.copy_(fitted(points[:, mine].flatten(0, 1), worth[:, mine].flatten(0, 1), layout.bits, layout.stages))
        for group, mine, some in layout.parts(columns):
            found, _ = nearest(points[:, mine, :some].flatten(0, 1), tables[group, :, :, :some].half().float())
            codes[:, :, mine] = found.view(rows, len(mine), -1).transpose(1, 2).to(torch.uint8)
    return Codebook(codes, tables.half(), scale, layout, columns, dtype)
