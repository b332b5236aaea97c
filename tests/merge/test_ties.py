"""Redundant entries and signs that disagree: TIES keeps what each task needs, where the mean halves it. A slow twin sorts."""

import pytest
import torch


def twin(base, others, weights, density, scope):
    """Trims by sorting, elects, and averages what agrees, entry by entry."""
    changes = [{name: other[name] - base[name] for name in base} for other in others]
    kept = []
    for change in changes:
        whole = torch.cat([value.abs().reshape(-1) for value in change.values()]).sort(descending=True).values
        mine = {}
        for name, value in change.items():
            among = whole if scope == "model" else value.abs().reshape(-1).sort(descending=True).values
            mine[name] = value * (value.abs() >= among[max(1, round(density * len(among))) - 1])
        kept.append(mine)
    found = {}
    for name in base:
        sign = sum(w * change[name] for w, change in zip(weights, kept)).sign()
        agree = [(change[name].sign() == sign) & (change[name] != 0) for change in kept]
        total = sum(w * a * change[name] for w, a, change in zip(weights, agree, kept))
        found[name] = base[name] + total / sum(w * a.double() for w, a in zip(weights, agree)).clamp(min=1e-300)
    return found


@pytest.mark.parametrize("scope", ["model", "tensor"])
@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
def test_as_sorting_says(tensors, merged, same, scope, density):
    base, others = tensors(3, shapes=((64, 48), (30,), (5, 4, 3)))
    others[0]["t1"] = base["t1"] + 3.0  # so that the whole model's share is another one than each tensor's
    weights = [1.0, 0.5, 2.0]
    same(merged(f"ties density={density} trim={scope}", base, others, weights), twin(base, others, weights, density, scope))


def test_what_one_task_needs_is_not_halved(merged):
    base = {"w": torch.zeros(1000)}
    draw = torch.Generator().manual_seed(0)
    models = [{"w": 0.01 * torch.randn(1000, generator=draw)} for _ in range(4)]
    for place, model in enumerate(models):
        model["w"][place * 10 : place * 10 + 10] = 1.0
    found = merged("ties density=0.01 trim=tensor", base, models)["w"]
    assert torch.equal(found[:40], torch.ones(40)) and not found[40:].any()
    assert float(merged("average", base, models)["w"][:40].max()) < 0.3


@pytest.mark.parametrize("text", ["ties density=0.4", "ties density=1", "dare density=0.6", "task_arithmetic", "average", "breadcrumbs"])
def test_zeros_keep_their_sign(merged, text):
    one = {"w": torch.tensor([-0.0, 1.0, -0.0, 0.0, -2.0])}
    found = merged(text, one, [one, one], [2.0, 2.0])["w"]
    assert torch.equal(found.signbit(), one["w"].signbit()) and torch.equal(found.abs() > 0, one["w"].abs() > 0)


def test_what_is_kept_is_that_models_zero(merged):
    base = {"w": torch.tensor([5.0, -0.0, 3.0, 1.0])}
    one, other = {"w": torch.tensor([-0.0, -0.0, 3.0, 1.0])}, {"w": torch.tensor([5.0, -0.0, 3.1, 1.0])}
    found = merged("ties density=0.25 trim=tensor", base, [one, other])["w"]
    assert found.tolist()[:2] == [0.0, 0.0] and found.signbit().tolist() == [True, True, False, False]
    assert float(found[2]) == float(torch.tensor(3.1)) and float(found[3]) == 1.0
