import pytest
import torch

import modicum
from modicum.core.errors import SettingError
from modicum.core.slopes import Slopes
from modicum.core.unit import Stats
from modicum.prune import Dpruner, Magnitude
from modicum.testing import zoo


def seen(mean, own, general):
    value = lambda rows: None if rows is None else torch.tensor([rows])
    return Stats(slopes=Slopes(1, value(mean), value(own), None, value(general)))


def test_the_domain_and_what_is_known_in_general_both_keep_a_weight():
    """Of four weights one is felt by the domain, one in general, one by both and one by neither."""
    stats = seen([1.0, 0.0, 1.0, 0.0], [0.1, 0.0, 0.1, 0.0], [0.0, 1.0, 1.0, 0.0])
    scores = Dpruner(preserve=1.0).score(torch.ones(1, 4), stats)[0]
    assert scores.argsort().tolist()[0] == 3 and scores.argmax() == 2
    alone = Dpruner(preserve=0.0).score(torch.ones(1, 4), stats)[0]
    assert alone[1] == alone[3] == 0 and alone[0] == alone[2] > 0


def test_the_scale_of_a_loss_does_not_count_and_no_gradient_is_told(layer):
    weight = torch.randn(1, 6)
    mean, own, general = torch.randn(6), torch.rand(6), torch.rand(6)
    masks = [
        Dpruner(keep=0.5).solve(weight, seen((0 * mean).tolist(), own.tolist(), (scale * general).tolist()))[1]
        for scale in (1e-3, 1.0, 1e3)
    ]
    assert all(torch.equal(masks[0], other) for other in masks)
    thing = layer()
    stats = thing.stats(Dpruner.needs)
    stats.slopes = None
    form = thing.apply(Dpruner(keep=0.4), stats=stats)
    assert torch.equal(form.dense() != 0, Magnitude(keep=0.4, per_row=True).solve(thing.weight, stats)[1])
    with pytest.raises(SettingError, match=r"preserve: must"):
        Dpruner(preserve=-1.0)


def test_a_language_model_writes_what_it_knows_and_others_tell_that_they_do_not():
    module, batches = zoo.build("llama")
    receipt = modicum.fit(
        module, data=batches, method="dpruner keep=0.5", target="modicum", gradient_samples=1, tokens=8, allow_broken=True
    ).receipt
    assert not any("writes no text" in event for event in receipt["events"])
    module, batches = zoo.build("mlp")
    receipt = modicum.fit(module, data=batches, method="dpruner keep=0.5", target="modicum", gradient_samples=1, allow_broken=True).receipt
    assert any("the model writes no text" in event for event in receipt["events"])
