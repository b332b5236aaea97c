"""The closed form is the least-squares fit to both models' outputs on their own inputs, nearer to both than the mean."""

import pytest
import torch

from modicum.core.errors import ModelError


def test_outputs_on_own_inputs_are_kept(merged):
    draw = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(40, 12, generator=draw, dtype=torch.float64) * torch.rand(12, generator=draw, dtype=torch.float64) ** 3
        for _ in range(2)
    ]
    models = [{"w": torch.randn(5, 12, generator=draw, dtype=torch.float64)} for _ in range(2)]
    grams = [{"w/gram": x.T @ x} for x in inputs]
    error = lambda w: sum(float((x @ (w - model["w"]).T).square().sum()) for x, model in zip(inputs, models))
    found = merged("regmean off=1", models[0], models, statistics=grams)["w"]
    fitted = torch.linalg.lstsq(torch.cat(inputs), torch.cat([x @ model["w"].T for x, model in zip(inputs, models)])).solution.T
    torch.testing.assert_close(found, fitted, rtol=1e-6, atol=1e-6)
    assert (
        error(found) < error(merged("regmean", models[0], models, statistics=grams)["w"]) < error(merged("average", models[0], models)["w"])
    )


@pytest.mark.parametrize("method", ["regmean", "afl", "fisher"])
def test_statistics_of_some_models_alone_are_told(merged, method):
    models, kind = [{"w": torch.ones(2, 3)}, {"w": torch.zeros(2, 3)}], "fisher" if method == "fisher" else "gram"
    given = [{f"w/{kind}": torch.ones(2, 3) if kind == "fisher" else torch.eye(3)}, {}]
    with pytest.raises(ModelError, match=f"w: all models must have the statistic {kind} of it, or none, 1 of 2 have"):
        merged(method, models[0], models, statistics=given)
