"""The claim: all weights move in one random subspace, told by its numbers and a seed."""

import torch
from torch import nn

from modicum.adapt import Subspace
from modicum.core.parametrization import Start
from modicum.forms import Base
from modicum.forms.projected import drawing, projected, walsh
from modicum.train.trained import trained


def test_numbers_are_shared_by_all_weights_and_a_file_holds_nothing_else():
    model = nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 8))
    with trained(model, "subspace size=7") as t:
        assert t.count == 7
        for parameter in t.parameters():
            parameter.data.normal_()
        assert all(not torch.equal(t.weight(name).detach(), t.places[name].base.dense()) for name in t.places)
        assert t.delta().nbytes == 4 * (7 + 2)
    with trained(model, "subspace size=7 scales=trained") as t:
        assert t.count == 7 + 2


def test_the_transform_is_that_of_the_hadamard_matrix():
    from scipy.linalg import hadamard

    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(walsh(x), torch.tensor(hadamard(64), dtype=torch.float32) @ x)
    torch.testing.assert_close(walsh(walsh(x)), 64 * x)


def test_both_projections_keep_the_numbers_variance_and_mix_all_of_them():
    numbers = torch.randn(300, generator=torch.Generator().manual_seed(0))
    for kind in ("fastfood", "dense"):
        drawn = drawing(3, kind, 96 * 64, 300)
        made = projected(numbers, torch.ones(1), drawn, (96, 64))
        assert 0.8 < float(made.std() / numbers.std()) < 1.25
        one = projected(torch.eye(300)[7], torch.ones(1), drawn, (96, 64))
        assert float((one != 0).float().mean()) > 0.99


def test_a_subspace_as_large_as_the_weight_reaches_any_change():
    method, shape = Subspace(size=64, projection="dense"), (8, 8)
    common = method.common({"w": shape}, torch.Generator(), 1)
    base = torch.zeros(shape)
    state = method.begin(Start("w", shape, base, torch.Generator(), 5, common=common, base=Base(shape, torch.float32, "w")))
    wanted = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    solved = torch.linalg.solve(state["matrix"].double(), wanted.reshape(-1).double()).float()[None]
    common.trained["numbers"].copy_(solved)
    torch.testing.assert_close(method.weight(base, state, None), wanted, rtol=1e-3, atol=1e-3)
