"""SR-STE: the pattern is met in every row, and what is not used is drawn to zero."""

import torch

from modicum.restrict import SrSte


def test_the_pattern_is_met_and_it_beats_one_that_is_drawn(problem):
    loss, weights = problem.learn("sr_ste n=2 m=8")
    random, _ = problem.learn("random keep=0.25 layers=uniform")
    assert all(int((weight.view(-1, 8) != 0).sum(1).max()) <= 2 for weight in weights.values())
    assert loss < random


def test_what_is_not_used_shrinks_with_the_decay(problem):
    sizes = {}

    def each(number, t, optimizer):
        for place in t.places.values():
            latent = place.state["latent"].detach()
            sizes[name] = float((latent * ~place.method.mask(latent)).norm())

    for name in ("0.0", "0.1"):
        problem.learn(f"sr_ste n=1 m=8 decay={name}", steps=60, each=each)
    assert sizes["0.1"] < 0.8 * sizes["0.0"]


def test_a_ragged_row_keeps_as_many_of_its_last_entries():
    mask = SrSte(n=2, m=4).mask(torch.randn(3, 10))
    assert mask[:, :8].sum(1).tolist() == [4, 4, 4] and mask[:, 8:].all()


def test_the_mask_is_that_of_a_stable_sort():
    latent = torch.randint(-3, 4, (6, 32)).float()
    order = latent.abs().view(6, -1, 8).argsort(dim=-1, descending=True, stable=True)[..., :3]
    wanted = torch.zeros(6, 4, 8, dtype=torch.bool).scatter(-1, order, True).view(6, 32)
    assert torch.equal(SrSte(n=3, m=8).mask(latent), wanted)
