"""SCE against a slow twin that sorts; where models vary, the one that moved more weighs more."""

import pytest
import torch


@pytest.mark.parametrize("select", [0.1, 1.0])
def test_as_sorting_says(tensors, merged, same, select):
    base, others = tensors(3)
    wanted = {}
    for name in base:
        changes = torch.stack([other[name] - base[name] for other in others])
        variance = changes.var(0, correction=0)
        least = variance.reshape(-1).sort(descending=True).values[max(1, round(select * variance.numel())) - 1]
        changes = changes * (variance >= least)
        strength = changes.square().reshape(3, -1).sum(1)
        agree = changes.sign() == changes.sum(0).sign()
        share = strength.reshape(3, *[1] * (changes.ndim - 1)) * agree * (changes != 0)
        wanted[name] = base[name] + (share * changes).sum(0) / share.sum(0).clamp(min=1e-300)
    same(merged(f"sce select={select}", base, others), wanted)


def test_small_changes_are_weighed_as_large_ones(merged):
    """Squares below any fixed bound still say who moved more."""
    base, one, other = {"w": torch.zeros(2)}, {"w": torch.full((2,), 2e-5)}, {"w": torch.full((2,), 1e-5)}
    torch.testing.assert_close(merged("sce select=1", base, [one, other])["w"], torch.full((2,), 1.8e-5))
    torch.testing.assert_close(merged("sce select=1 compat=mergekit", base, [one, other])["w"], torch.full((2,), 1.5e-5))
