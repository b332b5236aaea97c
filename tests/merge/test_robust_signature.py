"""A signature of few bits in the shallow half lowers what corruption costs, and taken away again it leaves the model."""

import torch


def test_only_shallow_layers_move_in_few_bits(merged):
    draw = torch.Generator().manual_seed(0)
    base = {f"{place}.w": torch.randn(20, 10, generator=draw) for place in range(4)}
    one = {name: value + 0.1 * torch.randn(20, 10, generator=draw) for name, value in base.items()}
    found = merged("robust_signature depth=0.4 bits=4", base, [one])
    change = {name: found[name] - base[name] for name in base}
    assert [bool(change[f"{place}.w"].any()) for place in range(4)] == [True, True, False, False]
    values = (change["0.w"] / change["0.w"].abs()[change["0.w"].abs() > 1e-4].min()).round().unique()
    assert len(values) <= 16
    whole = merged("robust_signature depth=0.4 bits=0", base, [one])
    assert abs(float(((whole["0.w"] - base["0.w"]) * base["0.w"]).sum())) < 1e-4, "nothing of it lies along the weight"
    back = merged("task_arithmetic", found, [{name: base[name] for name in base}])
    assert all(torch.allclose(back[name], base[name]) for name in base)
