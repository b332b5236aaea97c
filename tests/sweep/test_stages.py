"""Units are one stage where they see the same rows: the same tensor, unchanged, and of convolutions the same patches."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import modicum
from modicum.core.method import Need
from modicum.data.splits import from_batches
from modicum.models.open import open_model
from modicum.sweep import Sweep, output_gradients, rehearse
from modicum.sweep.stage import seed_of


class Branches(nn.Module):
    def __init__(self, **other):
        super().__init__()
        self.near, self.far = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, **({"kernel_size": 3, "padding": 1} | other))

    def forward(self, x):
        return self.near(x).mean((2, 3)) + self.far(x).mean((2, 3))


class Edited(nn.Module):
    """Three maps read one tensor, the last of them after it was written to."""

    def __init__(self):
        super().__init__()
        self.a, self.between, self.b, self.c = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        x = x * 1
        y = self.between(self.a(x))
        y = y + self.b(x)
        x.mul_(2)
        return y + self.c(x)


class Padded(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


def stages(module, *inputs):
    return rehearse(open_model(module.eval()), inputs).stages


def statistics(module, *inputs):
    found, model = {}, open_model(module.eval())
    Sweep(model, [inputs], rehearse(model, inputs), lambda stage: found.update(stage.stats), needs={Need.COVARIANCE}).finish()
    return found


def test_convolutions_share_a_stage_where_their_patches_are_alike():
    image = torch.randn(2, 4, 8, 8)
    assert len(stages(Branches(), image)) == 1
    for other in ({"dilation": 2}, {"stride": 2}, {"padding": 0}, {"kernel_size": 1}, {"groups": 2}, {"padding_mode": "circular"}):
        assert len(stages(Branches(**other), image)) == 2, other


def test_a_tensor_written_to_is_another_input_and_calls_between_do_not_matter():
    assert stages(Edited(), torch.randn(3, 8)) == [("a.weight", "b.weight"), ("between.weight",), ("c.weight",)]
    found = statistics(Edited(), inputs := torch.randn(3, 8))
    torch.testing.assert_close(found["b.weight"].covariance, inputs.T @ inputs)
    torch.testing.assert_close(found["c.weight"].covariance, 4 * inputs.T @ inputs)


def test_under_inference_mode_stages_are_the_same():
    with torch.inference_mode():
        assert stages(Edited(), torch.randn(3, 8))[0] == ("a.weight", "b.weight")


def test_a_convolution_that_pads_as_it_goes_takes_options_without_data():
    module = nn.Sequential(Padded(4, 6, 3), nn.Flatten(), nn.LazyLinear(5))
    image = torch.randn(2, 4, 2, 2)
    module(image)
    model = open_model(module.eval())
    script = rehearse(model, (image,))
    assert script.data_free(model.units["0.weight"]) == "own forward"
    assert statistics(module, image)["0.weight"].covariance is None
    felt = output_gradients(model, [(image,)], script)["0.weight"]
    assert felt.square is None and felt.weight is not None, "its inputs are no rows: it is felt through the weight's own gradient"


def test_an_image_without_a_batch_axis_is_measured_as_one():
    class Unbatched(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x[0])

    image = torch.randn(1, 3, 5, 5)
    rows = F.unfold(image, 3)[0].T
    torch.testing.assert_close(statistics(Unbatched(), image)["conv.weight"].covariance, rows.T @ rows)


def test_a_units_chance_depends_on_the_runs_seed_and_its_name_alone():
    """A number that is written down: neither the order of units nor the seed of Python's hashes has a part in it."""
    assert seed_of(0, "layers.0.weight") == 611314259352508050
    assert len({seed_of(seed, name) for seed in (0, 1) for name in ("a", "b")}) == 4


class Borrowing(nn.Module):
    """A layer that is called, whose weight is then multiplied once more, turned; another whose weight is asked for its dtype alone."""

    def __init__(self, tied=False):
        super().__init__()
        self.there, self.plain = nn.Embedding(20, 16) if tied else nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        x = self.plain(self.there(x).to(self.plain.weight.dtype)).tanh()
        return F.linear(x, self.there.weight if isinstance(self.there, nn.Embedding) else self.there.weight.T)


@pytest.mark.parametrize("tied", [False, True])
def test_a_weight_that_is_multiplied_outside_its_layer_is_treated_there_too(tied):
    torch.manual_seed(0)
    module, batches = Borrowing(tied).eval(), [(torch.randint(20, (4, 3)) if tied else torch.randn(4, 16),) for _ in range(6)]
    script = rehearse(model := open_model(module), batches[0])
    assert script.uncalled == {"there.weight"} and script.reused == {"there.weight"} and "there" in script.read
    assert script.data_free(model.units["plain.weight"]) == ""
    result = modicum.fit(module, method="nearest bits=3 group=0", data=batches)
    test = from_batches(batches, seed=0).test
    with torch.no_grad():
        pairs = [(module(*batch).double(), result.model(*batch).double()) for batch in test]
    errors = torch.cat([(a - b).flatten(1).square().sum(1) / a.flatten(1).square().sum(1) for a, b in pairs])
    assert result.receipt["quality"]["mean"] == pytest.approx(float(errors.mean()), rel=1e-4)


class Routed(nn.Module):
    """Each row goes to the expert that its first entry names; ``dense``: to all of them."""

    def __init__(self, dense):
        super().__init__()
        self.experts, self.dense = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3)), dense

    def forward(self, x):
        if self.dense:
            return sum(expert(x) * (1 + place) for place, expert in enumerate(self.experts))
        made, chosen = torch.zeros_like(x), x.argmax(-1) % 3
        for place, expert in enumerate(self.experts):
            if bool((chosen == place).any()):
                made[chosen == place] = expert(x[chosen == place])
        return made


@pytest.mark.parametrize("dense", [False, True])
def test_experts_in_a_list_are_never_left_out(dense):
    torch.manual_seed(0)
    opened = open_model(Routed(dense).eval())
    script = rehearse(opened, {"x": torch.randn(64, 8)})
    assert len(opened.blocks) == 3
    assert not script.droppable


def test_a_chain_of_blocks_may_be_shorter():
    torch.manual_seed(0)
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3))
    model = nn.Module()
    model.blocks, model.forward = blocks, lambda x: blocks[2](blocks[1](blocks[0](x) * 2) + x)
    opened = open_model(model.eval())
    assert rehearse(opened, {"x": torch.randn(4, 8)}).droppable == set(opened.blocks)
