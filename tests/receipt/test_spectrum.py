"""The picture of a change says what the change is."""

import re

import pytest
import torch

from modicum.core.errors import SettingError
from modicum.delta.opened import described
from modicum.receipt.spectrum import spectrum
from modicum.testing import zoo
from modicum.train.trained import trained


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    module, _ = zoo.build("llama")
    module.save_pretrained(folder)
    with trained(module, "lora rank=2 alpha=2") as t:
        for name, parameter in t.named_parameters().items():
            parameter.data = torch.zeros_like(parameter)
            if "layers.0.self_attn.q_proj" in name:  # energies of 9 and 1 in two directions
                parameter.data[(0, 0) if "right" in name else (0, 0)] = 1.0
                parameter.data[(1, 1)] = 3**-0.5 if "left" in name else 3**-0.5
        return described(t.delta(), folder)


def test_a_spectrum_is_told_by_doubling_directions(rows):
    told = next(row for row in rows if "layers.0.self_attn.q_proj" in row["weight"])
    assert told["spectrum"] == pytest.approx({"1": 0.9, "2": 1.0}, abs=1e-3) and told["half"] == 1
    assert all(row["spectrum"] == {} for row in rows if row is not told), "what changes nothing has no energy"


def test_every_weight_that_moves_has_a_row_in_the_models_order(rows):
    drawn = spectrum([{**row, "spectrum": {"1": 0.5, "2": 1.0}, "relative": 0.1} for row in rows])
    names = re.findall(r">(\d\.[a-z_.]+_proj)<", drawn)
    assert len(names) == len(rows) and names == sorted(names, key=lambda name: int(name[0]))
    assert "prefers-color-scheme: dark" in drawn and drawn == spectrum(
        [{**row, "spectrum": {"1": 0.5, "2": 1.0}, "relative": 0.1} for row in rows]
    )


def test_nothing_to_draw_is_told_in_words(rows):
    with pytest.raises(SettingError, match="must be there to be drawn"):
        spectrum([{"weight": "w", "form": "dense", "bytes": 4}])
