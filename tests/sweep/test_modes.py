"""A suspended forward's modes are its own: no other forward and no caller meets them."""

import contextlib
import io
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

import modicum
from modicum.models.open import open_model
from modicum.sweep import Sweep, rehearse
from modicum.testing import tiny


class Region(nn.Module):
    """One of two maps under another mode."""

    def __init__(self, mode):
        super().__init__()
        self.a, self.b, self.c, self.mode = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), mode

    def forward(self, x):
        with self.mode():
            y = self.b(self.a(x)).sigmoid()
        return self.c(y.float())


def swept(module, batches):
    model = open_model(module.eval())
    script = rehearse(model, batches[0])
    return [output for _, output in Sweep(model, batches, script, lambda stage: {}).run()]


def test_regions_of_other_modes_give_what_they_give_alone():
    batches = [(torch.randn(4, 8),) for _ in range(3)]
    for mode in (lambda: torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode, torch.enable_grad):
        module = Region(mode)
        with torch.no_grad():
            alone = [module(*batch) for batch in batches]
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(swept(module, batches), alone))
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled() and not torch.is_autocast_enabled("cpu")
        assert nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == torch.float32


class Seeing(TorchDispatchMode):
    """Sees what its own forward computes, and nothing else."""

    seen = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        Seeing.seen += 1
        return function(*args, **(kwargs or {}))


def test_what_watches_in_a_forward_watches_that_forward_alone():
    module, batches = Region(Seeing), [(torch.randn(4, 8),) for _ in range(3)]
    Seeing.seen = 0
    with torch.no_grad():
        alone = [module(*batch) for batch in batches]
    expected, Seeing.seen = Seeing.seen, 0
    model = open_model(module.eval())
    script = rehearse(model, batches[0])
    Seeing.seen = 0
    found = [output for _, output in Sweep(model, batches, script, lambda stage: {}).run()]
    assert Seeing.seen == expected and not _get_current_dispatch_mode_stack()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, alone))


def test_switches_of_the_process_are_as_they_were():
    class Quiet:
        def __enter__(self):
            self.caught = warnings.catch_warnings()
            self.caught.__enter__()
            warnings.simplefilter("ignore")
            self.printed = contextlib.redirect_stdout(io.StringIO())
            self.printed.__enter__()

        def __exit__(self, *error):
            self.printed.__exit__(*error)
            self.caught.__exit__(*error)

    filters, stdout = warnings.filters, sys.stdout
    swept(Region(Quiet), [(torch.randn(4, 8),) for _ in range(3)])
    assert warnings.filters is filters and sys.stdout is stdout


def test_a_sweep_that_is_left_half_way_leaves_no_mode():
    module = Region(torch.inference_mode)
    model, batches = open_model(module.eval()), [(torch.randn(4, 8),) for _ in range(2)]

    def treat(stage):
        raise ArithmeticError

    script = rehearse(model, batches[0])
    for _ in range(2):
        with pytest.raises(ArithmeticError):
            Sweep(model, batches, script, treat).finish()
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_encoder_layers_call_their_modules_under_a_padding_mask():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)

        def forward(self, x, pad):
            return self.encoder(x, src_key_padding_mask=pad)

    pad = torch.zeros(2, 6, dtype=torch.bool)
    pad[0, 4:] = True
    model = open_model(Net().eval())
    script = rehearse(model, (torch.randn(2, 6, 16), pad))
    assert "encoder.layers.1.linear2.weight" not in script.uncalled
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_forward_that_makes_tensors_where_its_weights_are_not_loaded_yet(tmp_path):
    from transformers import LlamaForCausalLM

    tiny.build("LlamaForCausalLM").save_pretrained(tmp_path / "model")
    plain, seen = LlamaForCausalLM.forward, []

    def forward(self, input_ids=None, **arguments):
        seen.append(self.device.type)
        return plain(self, input_ids=input_ids + torch.zeros(1, dtype=torch.long, device=self.device), **arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "forward", forward)
        batches = [{"input_ids": torch.arange(16).reshape(2, 8) + start} for start in range(8)]
        result = modicum.fit(tmp_path / "model", method="nearest bits=8 group=0", target="modicum", data=batches, out=tmp_path / "out")
    assert result.receipt["quality"]["mean"] < 0.01 and "cpu" in seen
    assert LlamaForCausalLM.device.fget.__module__ == "transformers.modeling_utils"
