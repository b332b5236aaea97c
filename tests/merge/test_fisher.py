"""Of two posteriors the product's mode: each entry comes from the model that is sure of it."""

import torch


def test_each_entry_comes_from_who_is_sure(tensors, merged, same):
    base, (one, other) = tensors(2)
    draw = torch.Generator().manual_seed(1)
    sure = [
        {f"{name}/fisher": torch.rand(value.shape, generator=draw, dtype=torch.float64) for name, value in base.items()} for _ in range(2)
    ]
    found = merged("fisher", base, [one, other], [1.0, 2.0], statistics=sure)
    first, second = ({name: each[f"{name}/fisher"] for name in base} for each in sure)
    same(found, {name: (first[name] * one[name] + 2 * second[name] * other[name]) / (first[name] + 2 * second[name]) for name in base})
    alike = [{name: torch.ones_like(value) for name, value in each.items()} for each in sure]
    same(merged("fisher", base, [one, other], statistics=alike), merged("average", base, [one, other]))
    nothing = [{name: torch.zeros_like(value) for name, value in each.items()} for each in sure]
    same(merged("fisher", base, [one, other], statistics=nothing), merged("average", base, [one, other]))
