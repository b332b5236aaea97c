"""Of models that scatter about a centre which is not the base, the stock of two is nearer to it than their mean is."""

import torch


def test_the_stock_is_nearer_to_the_centre(merged):
    draw = torch.Generator().manual_seed(0)
    centre = torch.randn(4000, generator=draw, dtype=torch.float64) * 0.5
    base = {"w": torch.zeros(4000, dtype=torch.float64)}
    models = [{"w": centre + torch.randn(4000, generator=draw, dtype=torch.float64)} for _ in range(2)]
    distance = lambda found: float((found["w"] - centre).norm())
    stock = merged("model_stock", base, models)
    # cos θ = 0.2: t = 0.4 / 1.2, and of this line no other point is nearer.
    assert distance(stock) < 0.7 * distance(merged("average", base, models))
    assert distance(stock) < 1.01 * min(distance({"w": t * merged("average", base, models)["w"]}) for t in (0.2, 0.3, 0.35, 0.4, 0.5))
    opposite = [{"w": torch.ones(3)}, {"w": -torch.ones(3)}]
    assert float(merged("model_stock", {"w": torch.zeros(3)}, opposite)["w"].abs().max()) == 0
