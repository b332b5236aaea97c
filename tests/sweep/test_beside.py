"""Forwards that share state: each batch's own, wherever the state lies, or refused."""

import threading

import pytest
import torch
from torch import nn

import modicum
from modicum.core.errors import ModelError
from modicum.models.open import open_model
from modicum.sweep import Sweep, rehearse

WIDTH = 16


class Plain(nn.Module):
    """What all of the others compute."""

    def __init__(self):
        super().__init__()
        self.down, self.mid, self.up = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.ended(torch.relu(self.down(x)), lambda skip: skip)

    def ended(self, skip, kept):
        return self.up(torch.relu(self.mid(skip)) + kept(skip))


class Shelf:
    """Something that is no module, as caches are."""

    kept = None


class InClass(Plain):
    def forward(self, x):
        Shelf.kept = torch.relu(self.down(x))
        return self.ended(Shelf.kept, lambda _: Shelf.kept)


class InThread(Plain):
    place = threading.local()

    def forward(self, x):
        self.place.kept = torch.relu(self.down(x))
        return self.ended(self.place.kept, lambda _: self.place.kept)


class InHooks(Plain):
    def __init__(self):
        super().__init__()
        kept = []
        self.mid.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
        self.up.register_forward_pre_hook(lambda _, args: (args[0] + kept.pop(),))

    def forward(self, x):
        return self.ended(torch.relu(self.down(x)), lambda _: 0)


class InList(Plain):
    def __init__(self):
        super().__init__()
        self.found = []

    def forward(self, x):
        self.found.append(torch.relu(self.down(x)))
        return self.ended(self.found[0], lambda _: self.found.pop())


class InBuffer(Plain):
    def __init__(self):
        super().__init__()
        self.register_buffer("place", torch.zeros(4, WIDTH))

    def forward(self, x):
        self.place.copy_(torch.relu(self.down(x)).mean(0, keepdim=True).expand(4, -1))
        self.mid(x)
        return self.ended(torch.relu(self.down(x)), lambda skip: skip + 0 * self.place.sum())


def swept(module, batches):
    model = open_model(module.eval())
    script = rehearse(model, batches[0], batches[1:])
    return model, script, dict(Sweep(model, batches, script, lambda stage: {}).run())


@pytest.mark.parametrize("kind", [InClass, InThread, InHooks, InList])
def test_state_that_would_mix_makes_batches_run_in_turn(kind):
    batches = [(torch.randn(4, WIDTH),) for _ in range(3)]
    module = kind()
    with torch.no_grad():
        alone = [module.eval()(*batch) for batch in batches]
    model, script, outputs = swept(module, batches)
    assert script.in_turn and any("one after the other" in note for note in model.notes)
    assert all(torch.equal(outputs[index], value) for index, value in enumerate(alone))


def test_weights_are_those_of_the_module_without_state():
    data, made = [torch.randn(8, WIDTH) for _ in range(5)], {}
    weights = Plain().state_dict()
    for kind in (Plain, InClass, InHooks):
        module = kind()
        module.load_state_dict(weights)
        result = modicum.fit(module, "20bpw", data=data, search_time=0, target="modicum")
        made[kind] = {name: value for name, value in result.model.state_dict().items() if name in weights}
        assert ("one after the other" in str(result.receipt["events"])) == (kind is not Plain)
    assert all(torch.equal(value, made[kind][name]) for kind in made for name, value in made[Plain].items())


def test_a_buffer_that_forwards_write_is_written_as_it_was():
    module = InBuffer()
    module.place.fill_(3.0)
    result = modicum.fit(module, method="nearest bits=8 group=0", data=[torch.randn(4, WIDTH) for _ in range(4)])
    assert torch.equal(result.model.place, torch.full((4, WIDTH), 3.0)) and torch.equal(module.place, torch.full((4, WIDTH), 3.0))


class Counting(Plain):
    """Its answer depends on how often it was called."""

    calls = [0]

    def forward(self, x):
        self.calls[0] += 1
        return super().forward(x) * self.calls[0]


class Generating(Plain):
    """Draws from a generator of its own, which nobody sets back."""

    source = torch.Generator().manual_seed(0)

    def forward(self, x):
        return super().forward(x) + torch.randn(WIDTH, generator=self.source)


@pytest.mark.parametrize("kind", [Counting, Generating])
def test_one_batch_with_two_answers_is_refused(kind):
    with pytest.raises(ModelError, match="must give a batch the same output each time"):
        rehearse(open_model(kind().eval()), (torch.randn(4, WIDTH),))


class Looping(nn.Module):
    """Its blocks are gone through twice."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(3)])
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        for _ in range(2):
            for layer in self.layers:
                x = x + layer(x)
        return self.head(x)


class Spent(Plain):
    """Runs once."""

    spent = False

    def forward(self, x):
        made = self.ended(torch.relu(self.down(x)), lambda skip: skip)
        if Shelf.kept == "spent":
            raise ValueError("the paper is used up")
        Shelf.kept = "spent"
        return made


def test_what_a_second_run_raises_is_told_with_its_place():
    Shelf.kept = None
    batches = [(torch.randn(2, WIDTH),) for _ in range(2)]
    with pytest.raises(ModelError, match=r"after up it raises ValueError: the paper is used up\. Keep nothing between calls"):
        rehearse(open_model(Spent().eval()), batches[0], batches[1:])


def test_blocks_that_a_forward_enters_twice_are_no_steps_of_their_own():
    batches = [(torch.randn(4, WIDTH),) for _ in range(3)]
    module = Looping().eval()
    model, script, outputs = swept(module, batches)
    assert not model.blocks and not script.blocks and not script.in_turn and len(script.reused) == 3
    with torch.no_grad():
        assert all(torch.equal(outputs[index], module(*batch)) for index, batch in enumerate(batches))


class Hooked(Plain):
    """Hooks itself up on first use, and computes with what its hooks have seen."""

    def forward(self, x):
        if not hasattr(self, "hooked"):
            self.hooked = True
            self.down.register_forward_hook(lambda part, args, output: self.seen.append(output))
        self.seen = []
        return super().forward(x) + len(self.seen)


def test_what_a_forward_hooks_up_on_first_use_is_hooked_up_once():
    batches = [(torch.randn(4, WIDTH),) for _ in range(3)]
    module = Hooked().eval()
    _, script, outputs = swept(module, batches)
    assert not script.in_turn
    with torch.no_grad():
        assert all(torch.equal(outputs[index], module(*batch)) for index, batch in enumerate(batches))
