import pytest
import torch

import modicum
from modicum.core.errors import SettingError
from modicum.forms import Nested
from modicum.numerics.grid import Grid
from modicum.numerics.nested import nested
from modicum.quantize import Gptq, Nearest


def lost(thing, form):
    return float((((form.dense().float() - thing.weight.float()) @ thing.inputs.T) ** 2).sum())


@pytest.mark.parametrize("symmetric", [False, True])
def test_eight_bits_of_a_scale_lose_nothing_and_save_a_tenth(layer, symmetric):
    thing = layer(96, 128, dtype=torch.bfloat16)
    words = {"bits": 2, "group": 32, "symmetric": symmetric}
    plain, ours, few = (thing.apply(Gptq(**words, scales=scales)) for scales in (16, 8, 4))
    assert isinstance(ours, Nested) and ours.nbytes == plain.nbytes - 96 * 4 * 2 + 96 * (4 + 2)
    assert lost(thing, ours) < 1.01 * lost(thing, plain) < 1.1 * lost(thing, few)
    assert lost(thing, thing.apply(Gptq(**words, scales=8))) < lost(thing, thing.apply(Gptq(**{**words, "group": 64})))


def test_steps_are_whole_numbers_under_a_row_and_codes_are_the_nearest(layer):
    weight = layer(16, 64).weight
    grid = Grid(3, 16)
    plain = grid.encode(weight, *grid.fit(weight, torch.float32))
    made = nested(plain, weight, 6)
    assert int(made.steps.abs().max()) <= 31 and float((made.plain.scale / plain.scale - 1).abs().max()) < 0.08
    codes = (weight / made.plain.spread(made.plain.scale) + plain.spread(plain.zero)).round().clamp(0, 7)
    assert torch.equal(made.codes, codes.to(torch.uint8))


def test_rows_of_zeros_and_scales_of_whole_rows(layer):
    thing = layer(8, 32)
    thing.weight[3] = 0
    form = thing.apply(Gptq(bits=3, group=8, scales=6))
    assert form.finite() and not form.dense()[3].any()
    assert thing.apply(Nearest(bits=3, group=32, scales=6)).kind == "integer"  # its rows are no longer than the group
    for group in (0, -1):
        with pytest.raises(SettingError, match=rf"nearest: scales must be 16 where a \w+ has one scale \(group={group}\), is 6"):
            Nearest(bits=3, group=group, scales=6)


def test_they_stand_on_a_menu_and_their_bytes_are_exact(tmp_path):
    net, data = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.Linear(64, 32)), [(torch.randn(16, 32),) for _ in range(4)]
    asked = modicum.fit(
        net, data=data, bpw=8.0, menu="gptq bits=2 group=16 scales=6, gptq bits=4 group=16", target="modicum", dry_run=True
    ).receipt
    assert all("gptq bits=2 group=16 scales=6" in site["options"] for site in asked["sites"])
    made = modicum.fit(
        net, data=data, method="gptq bits=2 group=16 scales=6", target="modicum", out=tmp_path / "out", allow_broken=True
    ).receipt["bytes"]
    assert made["actual"] == made["predicted"]
