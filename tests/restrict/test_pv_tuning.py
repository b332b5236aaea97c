"""Codes are chosen anew where the gradient is largest, in the same bytes; with none of them it is what trains entries and scales."""

import pytest
import torch
from torch import nn

from modicum.core.errors import SettingError
from modicum.core.parametrization import Start, Step
from modicum.core.unit import Stats
from modicum.forms import Dense, restore
from modicum.quantize import Kmeans
from modicum.restrict import Held, PvTuning
from modicum.train.trained import trained

SETTINGS = [{"bits": 3}, {"bits": 2, "dimension": 4, "stages": 2, "columns": 8}, {"bits": 3, "dimension": 3}]


def stored(weight=None, **settings):
    weight = torch.randn(24, 32, generator=torch.Generator().manual_seed(0)) if weight is None else weight
    return Kmeans(**settings).code(weight, Stats(), torch.float32)


def begun(method, form):
    return method.begin(Start(unit="w", shape=form.shape, weight=None, chance=torch.Generator(), seed=0, stored=form))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_few_codes_move_where_the_gradient_is_largest_and_bytes_stay(settings):
    form, method = stored(**settings), PvTuning(share=0.1, pace=2.0)
    state, gradient = begun(method, form), torch.zeros(24, 32)
    assert torch.equal(method.weight(None, state, Step()), form.dense())
    gradient[:4] = torch.randn(4, 32)
    revised, met = state, []
    for number in range(1, 30):  # of few updates nobody knows the mean
        before, revised = revised, method.revise({"w": revised}, {"w": gradient}, 0, Step(number, 60)).states["w"]
        met.append(int((revised["codes"] != before["codes"]).any(1).sum()))
    made = method.form(revised)
    moved = (made.codes != form.codes).any(1)
    assert met[0] == 0 < max(met) <= 0.1 * moved.numel() and moved.any() and not moved[4:].any()
    assert float((gradient * (made.dense() - form.dense())).sum()) < 0
    assert made.outline == form.outline and made.describe() == form.describe()
    assert torch.equal(restore(made.describe(), made.tensors()).dense(), method.weight(None, revised, Step()))


def test_no_more_codes_move_than_the_share_says_and_none_at_the_end():
    form, gradient = stored(bits=3), torch.randn(24, 32)

    def moved(share, step):
        method = PvTuning(share=share, pace=50.0)
        state = method.revise({"w": begun(method, form)}, {"w": gradient}, 0, step).states["w"]
        return int((state["codes"] != form.codes).sum())

    assert moved(1.0, Step(1, 9)) > 100 and moved(1.0, Step(9, 9)) == 0
    assert 3 <= sum(moved(0.0005, Step(number, 10**6)) for number in range(1, 21)) <= 4  # of 384 vectors 0.19 an update


def test_a_ragged_last_vector_goes_to_the_entry_that_is_nearest_in_its_own_columns():
    form, method = (
        stored(torch.randn(400, 17, generator=torch.Generator().manual_seed(0)), bits=6, dimension=16),
        PvTuning(share=1.0, pace=0.5),
    )
    gradient = torch.zeros(400, 17)
    gradient[:, -1] = 1.0
    made = method.form(method.revise({"w": begun(method, form)}, {"w": gradient}, 0, Step(1, 1000)).states["w"])
    mean, root = 0.05, (0.02 / 0.02) ** 0.5
    aim = form.value()[:, -1:] - 0.5 * form.value().square().mean(1, keepdim=True).sqrt() * mean / root
    best = (aim / form.scale - form.tables[0, 0, :, 0].float()).abs().amin(1)
    moved = (made.codes != form.codes).any(1)[:, -1]
    assert moved.any()
    torch.testing.assert_close((aim - made.value()[:, -1:]).abs()[moved, 0], (best * form.scale[:, 0])[moved])


def test_without_codes_it_is_held():
    form, found = stored(bits=3), []
    for method in (PvTuning(share=0.0), Held()):
        state = begun(method, form)
        leaf = torch.full(form.tables.shape, 0.1).requires_grad_()
        weight = method.weight(None, state.having({"tables": leaf}), Step())
        weight.square().sum().backward()
        found.append((weight.detach(), leaf.grad))
        assert not method.watches(Step(1, 9))
    assert all(torch.equal(one, other) for one, other in zip(*found))


def test_codes_chosen_anew_find_what_entries_alone_cannot():
    """Inputs that go together: what counts are sums of weights, which the nearest entries get wrong."""
    torch.manual_seed(0)
    x = torch.randn(256, 4).repeat_interleave(8, 1) + 0.05 * torch.randn(256, 32)
    model, least = nn.Sequential(nn.Linear(32, 16, bias=False)).requires_grad_(False), {}
    wanted, form = model(x), stored(model[0].weight.detach(), bits=3)
    for option in ("held", "pv_tuning share=0.01"):
        with trained(model, {"0.weight": option}, total=150, forms={"0.weight": form}) as t:
            optimizer, losses = torch.optim.Adam(t.parameters(), lr=0.005), []
            for _ in range(150):
                loss = (model(x) - wanted).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                t.revise(optimizer)
                losses.append(loss.item())
            least[option] = min(losses)
            assert t.forms()["0.weight"].nbytes == form.nbytes
    assert least["pv_tuning share=0.01"] < 0.5 * least["held"]


def test_what_is_no_codebook_is_refused_in_words():
    assert not PvTuning().suits(Dense(torch.zeros(2, 3))) and PvTuning().suits(stored(bits=3))
    with pytest.raises(SettingError, match="must be stored as a codebook .* is dense. Train it with held"):
        PvTuning().begin(Start(unit="w", shape=(2, 3), weight=None, chance=torch.Generator(), seed=0, stored=Dense(torch.zeros(2, 3))))
