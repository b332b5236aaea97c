"""Distillation on point clouds: neighbourhoods of the points that matter most."""

from __future__ import annotations

import torch

from modicum.core.errors import DataError


def importance(features: torch.Tensor) -> torch.Tensor:
    """How much each point (clouds, points) matters to a net whose features (clouds, points, width) are joined by their largest: its greatest one."""
    return features.amax(-1)


def local_distillation(
    student: torch.Tensor, teacher: torch.Tensor, places: torch.Tensor, important: torch.Tensor, *, points: int = 32, near: int = 4
) -> torch.Tensor:
    """The mean square by which a student's neighbourhoods differ from a teacher's, at the points that matter most, weighted by how much they do.

    A neighbourhood is a graph: the features of a point and the differences to those of its ``near`` nearest points in space, each normalized over its
    width. Weights are a softmax of ``important`` over the ``points`` of a cloud that are chosen. Zhang and others, PointDistiller (2205.11098).

    *Shapes:* student and teacher (clouds, points, width), places (clouds, points, 3), important (clouds, points).

    *Raises:* ``DataError`` where shapes do not fit each other, or there are fewer points than asked for.
    """
    if (
        student.shape != teacher.shape
        or student.shape[:2] != places.shape[:2] != important.shape
        or student.shape[1] < max(points, near + 1)
    ):
        raise DataError(
            f"points: features of {tuple(student.shape)} and {tuple(teacher.shape)} must be alike and have {max(points, near + 1)} points or more, "
            f"with places of {tuple(places.shape)} and importance of {tuple(important.shape)}."
        )
    clouds = torch.arange(len(places))[:, None]
    chosen = important.topk(points, dim=1).indices
    nearest = torch.cdist(places[clouds, chosen], places).topk(near + 1, largest=False).indices[..., 1:]
    weight = important[clouds, chosen].softmax(1)
    apart = _graph(student, chosen, nearest) - _graph(teacher, chosen, nearest)
    return (weight * apart.square().mean((2, 3))).sum(1).mean()


def _graph(features: torch.Tensor, chosen: torch.Tensor, nearest: torch.Tensor) -> torch.Tensor:
    """Of each chosen point (clouds, points, 1 + near, width): its features, and the differences to its nearest."""
    clouds = torch.arange(len(features))[:, None]
    whole = torch.nn.functional.layer_norm(features, features.shape[-1:])
    centre = whole[clouds, chosen][:, :, None]
    return torch.cat([centre, whole[clouds[..., None], nearest] - centre], 2)
