"""The n-th largest of many numbers, without a sort."""

from __future__ import annotations

import numpy as np
import torch


def nth_largest(values: torch.Tensor, n: int) -> torch.Tensor:
    """Of each row (..., numbers) the number that ``n`` are no less than, itself among them, (...); n is from 1 to their count.

    By selection, in time that grows with their count alone; numpy's is many times as fast as torch's on a processor.
    """
    place = values.shape[-1] - n
    if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float64):
        return values.kthvalue(place + 1, dim=-1).values
    return torch.from_numpy(np.partition(values.detach().numpy(), place, axis=-1)[..., place].copy())
