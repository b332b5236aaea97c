"""PCB against a slow twin that sorts; what a model needs alone outweighs what others have there by chance."""

import pytest
import torch


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_as_sorting_says(tensors, merged, same, clip):
    base, others = tensors(3, shapes=((24, 16), (30,)))
    flat = torch.stack([torch.cat([(other[name] - base[name]).reshape(-1) for name in base]) for other in others])
    size, entries = flat.abs(), flat.shape[1]
    order = size.sort(1).values
    cut = int(clip * entries)
    cropped = size.clamp(order[:, cut, None], order[:, entries - 1 - cut, None])
    unit = (cropped - cropped.min(1, keepdim=True).values) / (cropped.max(1).values - cropped.min(1).values)[:, None]
    score = (3 * unit.square()).exp() * (flat * flat.sum(0)).tanh()
    ranks = score.sort(1).values
    low = ranks[:, entries - round(0.2 * entries) - 1, None]
    share = (score.clamp(min=low) - low) / (ranks[:, -1:] - low)
    wanted = (share * flat.clamp(-order[:, entries - 1 - cut, None], order[:, entries - 1 - cut, None])).sum(0) / share.sum(0).clamp(
        min=1e-300
    )
    found = merged(f"pcb keep=0.2 clip={clip}", base, others)
    same({"all": torch.cat([(found[name] - base[name]).reshape(-1) for name in base])}, {"all": wanted}, 1e-9)


def test_what_one_task_needs_is_kept(merged):
    base, draw = {"w": torch.zeros(1000)}, torch.Generator().manual_seed(0)
    models = [{"w": 0.01 * torch.randn(1000, generator=draw)} for _ in range(4)]
    for place, model in enumerate(models):
        model["w"][place * 10 : place * 10 + 10] = 1.0
    assert float(merged("pcb keep=0.01 clip=0", base, models)["w"][:40].min()) > 0.9
