"""What every method that trains a sparse weight is held to: its density, and the naive twin with dense tensors and explicit masks."""

import copy

import pytest
import torch
from torch import nn

from modicum.core.method import registry
from modicum.core.parametrization import Step
from modicum.core.progress import Quiet
from modicum.restrict._family import Sparsity
from modicum.train.loop import _drawn, joined, train
from modicum.train.scoring import scored
from modicum.train.settings import Loop
from modicum.train.trained import trained

KEEP, STEPS = 0.4, 12
TRIED = {"keep": KEEP, "every": 2}


def methods(but=()):
    for key, cls in registry().items():
        if issubclass(cls, Sparsity) and key.split("/")[1] not in but:
            yield pytest.param(cls(**{name: value for name, value in TRIED.items() if name in cls.__dataclass_fields__}), id=key)


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 12, bias=False), nn.Tanh(), nn.Linear(12, 4, bias=False))
    return model, torch.randn(32, 10), torch.randn(32, 4)


def masks(t):
    found = {}
    for name, place in t.places.items():
        rows, columns = place.state["shape"].tolist()
        found[name] = torch.zeros(rows * columns, dtype=torch.bool).index_fill(0, place.state["places"], True).reshape(rows, columns)
    return found


@pytest.mark.parametrize("method", list(methods(but=("spdf",))))
def test_the_density_is_met_to_the_entry(method):
    """In the end, and what a budget is told of it beforehand are the same."""
    model, x, y = problem()
    with trained(model, str(method), total=STEPS, scratch=True) as t:
        run(model, t, x, y)
        forms = t.forms()
    shapes = {name: form.shape for name, form in forms.items()}
    assert sum(form.values for form in forms.values()) == round(KEEP * (10 * 12 + 12 * 4))
    assert sum(form.nbytes for form in method.outlines(shapes).values()) == sum(form.nbytes for form in forms.values())


@pytest.mark.parametrize("method", list(methods()))
def test_equal_seeds_give_equal_bits(method):
    found = []
    for _ in range(2):
        model, x, y = problem()
        with trained(model, str(method), total=STEPS, seed=3, scratch=True) as t:
            run(model, t, x, y)
            found.append([t.weight(name).detach() for name in t.places])
    assert all(torch.equal(one, two) for one, two in zip(*found))


@pytest.mark.parametrize("method", list(methods(but=("tickets", "freezenet", "smp", "pst"))))
def test_every_step_is_that_of_a_dense_twin_with_a_mask(method):
    """An entry that goes, or comes, has no value and no momentum; the others are the twin's to the last bit."""
    model, x, y = problem()
    plain = copy.deepcopy(model)
    with trained(model, str(method), total=STEPS) as t:
        scored(t, lambda: (model(x) - y).square().mean())
        mask = masks(t)
        for name in mask:
            plain.get_parameter(name).data = t.weight(name).detach().clone()
        mine = torch.optim.SGD(t.parameters(), lr=0.1, momentum=0.9)
        twin = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
        for number in range(STEPS):
            for module, optimizer in ((model, mine), (plain, twin)):
                optimizer.zero_grad()
                (module(x) - y).square().mean().backward()
                if module is plain:
                    for name in mask:
                        plain.get_parameter(name).grad *= mask[name]
                optimizer.step()
            t.revise(mine)
            new = masks(t)
            for name, old in mask.items():
                stays = old & new[name] if method.key() != "restrict/spdf" else new[name]
                plain.get_parameter(name).data *= stays
                twin.state[plain.get_parameter(name)]["momentum_buffer"] *= stays
                assert torch.equal(t.weight(name), plain.get_parameter(name)), (name, number)
            mask = new


class Twin(Quiet):
    """A dense module with explicit masks that follows a training of the loop, update by update."""

    def __init__(self, module, t, rows, loop):
        self.module, self.t, self.rows, self.loop, self.done = module, t, rows, loop, 0
        self.mask = masks(t)
        for name in self.mask:
            module.get_parameter(name).data = t.weight(name).detach().clone()
        self.optimizer = torch.optim.AdamW(module.parameters(), weight_decay=0.0)

    def step(self):
        for group in self.optimizer.param_groups:
            group["lr"] = self.loop.at(self.done)
        self.optimizer.zero_grad()
        losses, count = objective(self.module, joined(_drawn(self.rows, self.loop, self.done), self.loop.batch)[0])
        losses.sum().backward()
        new, spdf = masks(self.t), any(place.method.key() == "restrict/spdf" for place in self.t.places.values())
        for name, mask in self.mask.items():
            self.module.get_parameter(name).grad /= count
            self.module.get_parameter(name).grad *= mask
        self.optimizer.step()
        for name, mask in self.mask.items():
            parameter, stays = self.module.get_parameter(name), new[name] if spdf else mask & new[name]
            parameter.data *= stays
            for moment in ("exp_avg", "exp_avg_sq"):
                self.optimizer.state[parameter][moment] *= stays
            assert torch.equal(self.t.weight(name), parameter), (name, self.done)
        self.mask, self.done = new, self.done + 1


def objective(module, batch):
    return (module(batch[0]) - batch[1]).square().mean(1), len(batch[0])


@pytest.mark.parametrize("method", list(methods(but=("tickets", "freezenet", "smp", "pst"))))
def test_ten_updates_of_the_loop_are_those_of_a_dense_twin_with_masks(method):
    """Under AdamW and its rates as they are for everybody, clipping off."""
    model, x, y = problem()
    plain, rows, loop = copy.deepcopy(model), list(zip(x[:, None], y[:, None])), Loop(steps=10, batch=8, clip=0.0)
    with trained(model, str(method), total=loop.steps) as t:
        scored(t, lambda: (model(x) - y).square().mean())
        twin = Twin(plain, t, rows, loop)
        train(model, t, rows, loop, objective=objective, progress=twin)
    assert twin.done == 10


class Explicit:
    """A method with dense tensors and an explicit mask, by hand: the weight of now, what its gradient is to what is trained, what an update moves."""

    def __init__(self, place, first, total):
        self.state, self.method, self.first, self.total = place.state, place.method, first, total
        self.learnt, self.mask = {}, torch.ones_like(first)
        self.begin()

    def begin(self):
        self.learnt = {"weight": self.first.clone()}

    def count(self, number):
        """Entries of a cubic schedule that ends at the share ``until``."""
        end = int(self.state["entries"])
        left = 0.0 if number >= self.method.last(self.step(number)) else (1 - number / self.total / self.method.until) ** 3
        return end + round((self.first.numel() - end) * left)

    def step(self, number):
        return Step(number, self.total)

    def weight(self, number):
        return self.learnt["weight"]

    def gradients(self, gradient):
        return {"weight": gradient * self.mask}

    def pulled(self):
        """What a penalty adds to gradients."""
        return {}

    def moved(self, number, optimizer):
        pass


class Tickets(Explicit):
    """All are wound back whenever the mask shrinks, and nothing is remembered of what was before."""

    option = f"tickets keep={KEEP} layers=uniform"

    def moved(self, number, optimizer):
        rounds = [round(self.method.until * self.total * cycle / self.method.cycles) for cycle in range(1, self.method.cycles + 1)]
        if number in rounds:
            share, end = (rounds.index(number) + 1) / len(rounds), int(self.state[f"entries of {self.name}"])
            count = max(end, round(self.first.numel() * (end / self.first.numel()) ** share)) if share < 1 else end
            self.mask = highest(self.learnt["weight"].abs(), count)
            self.learnt["weight"].data = self.first * self.mask
            for moment in ("exp_avg", "exp_avg_sq"):
                optimizer.state[self.learnt["weight"]][moment].zero_()


class Freezenet(Explicit):
    """What is learnt stands beside random numbers, and its gradient is masked by what the loss felt at first."""

    option = f"freezenet keep={KEEP} layers=uniform"

    def begin(self):
        self.learnt = {"added": torch.zeros_like(self.first)}
        self.mask = torch.zeros(self.first.numel()).index_fill(0, self.state["places"], 1.0).view_as(self.first)

    def weight(self, number):
        return self.state["random"] + self.learnt["added"]

    def gradients(self, gradient):
        return {"added": gradient * self.mask}


class Smp(Explicit):
    """The weights stay; a score moves by what its weight's mask would have changed."""

    option = f"smp keep={KEEP}"

    def begin(self):
        self.learnt = {"scores": self.first.abs() / self.first.abs().mean()}

    def weight(self, number):
        self.mask = highest(self.learnt["scores"], self.count(number))
        return self.first * self.mask

    def gradients(self, gradient):
        return {"scores": gradient * self.first}


class Pst(Explicit):
    """Thin matrices change the weights, and others their scores."""

    option = f"pst keep={KEEP} rank=2"

    def begin(self):
        self.learnt = {name: tensor.detach().clone() for name, tensor in self.state.trained.items()}

    def weight(self, number):
        of, ones = self.learnt, torch.ones_like
        self.changed = torch.addmm(self.first, of["up"], of["down"])
        self.scores = torch.cat([of["left"], of["row"], ones(of["row"])], 1) @ torch.cat([of["right"], ones(of["column"]), of["column"]])
        self.mask = highest((self.changed.abs() + self.first.abs().mean() * self.scores).detach(), self.count(number))
        return self.changed.detach() * self.mask

    def gradients(self, gradient):
        given = [gradient * self.mask, gradient * self.changed.detach()]
        return dict(zip(self.learnt, torch.autograd.grad([self.changed, self.scores], list(self.learnt.values()), given)))


class SrSte(Explicit):
    """The larger half of every two entries; the gradient is all entries', and what is not used is drawn to zero."""

    option = "sr_ste n=1 m=2 decay=0.1"

    def weight(self, number):
        size = self.learnt["weight"].detach().abs().view(-1, 2)
        self.mask = torch.stack([size[:, 0] >= size[:, 1], size[:, 1] > size[:, 0]], 1).view_as(self.first).float()
        return self.learnt["weight"] * self.mask

    def gradients(self, gradient):
        return {"weight": gradient}

    def pulled(self):
        return {"weight": self.method.decay * (1 - self.mask) * self.learnt["weight"].detach()}


class GradientFlow(SrSte):
    """The smaller half counts less and less, and so do its gradients."""

    option = "gradient_flow n=1 m=2 until=0.5"

    def weight(self, number):
        super().weight(number)
        self.factor = self.mask.clamp_min(max(0.0, 1 - number / self.total / self.method.until))
        return self.learnt["weight"] * self.factor

    def gradients(self, gradient):
        return {"weight": gradient * self.factor}

    def pulled(self):
        return {}


class Wgsef(Explicit):
    """Smaller rows shrink in every update, and are zero in the end, without moments."""

    option = "wgsef keep=0.5 until=0.5"

    def moved(self, number, optimizer):
        held, end = self.learnt["weight"], round(self.method.until * self.total)
        self.mask = torch.zeros_like(held).index_fill(0, held.detach().norm(dim=1).topk(round(self.method.keep * len(held))).indices, 1.0)
        shrunk = held * (1 - self.method.strength * number / self.total) if number < end else torch.zeros_like(held)
        held.data = torch.where(self.mask > 0, held, shrunk).detach()
        for moment in ("exp_avg", "exp_avg_sq") if number == end else ():
            optimizer.state[held][moment] *= self.mask

    def gradients(self, gradient):
        return {"weight": gradient * self.mask if (self.learnt["weight"] * (1 - self.mask)).count_nonzero() == 0 else gradient}


def highest(scores, count):
    """1 at the largest (rows, columns), of equal ones the first."""
    chosen = scores.reshape(-1).argsort(descending=True, stable=True)[:count]
    return torch.zeros(scores.numel()).index_fill(0, chosen, 1.0).view_as(scores)


class ByHand(Quiet):
    """A dense module whose weights explicit twins make, update by update beside the loop."""

    def __init__(self, module, t, rows, loop, kind):
        self.module, self.t, self.rows, self.loop, self.done = module, t, rows, loop, 0
        self.twins = {name: kind(place, module.get_parameter(name).detach().clone(), loop.steps) for name, place in t.places.items()}
        for name, twin in self.twins.items():
            twin.name = name
            for part, tensor in twin.learnt.items():
                twin.learnt[part] = nn.Parameter(tensor)
        learnt = [tensor for twin in self.twins.values() for tensor in twin.learnt.values()]
        self.optimizer = torch.optim.AdamW(learnt, weight_decay=0.0)

    def step(self):
        self.optimizer.param_groups[0]["lr"] = self.loop.at(self.done)
        made = {name: twin.weight(self.done).detach().requires_grad_() for name, twin in self.twins.items()}
        batch = joined(_drawn(self.rows, self.loop, self.done), self.loop.batch)[0]
        losses, count = objective(lambda x: torch.func.functional_call(self.module, made, (x,)), batch)
        found = dict(zip(made, torch.autograd.grad(losses.sum(), list(made.values()))))
        for name, twin in self.twins.items():
            for part, gradient in twin.gradients(found[name]).items():
                twin.learnt[part].grad = gradient / count
            for part, gradient in twin.pulled().items():
                twin.learnt[part].grad += gradient
        self.optimizer.step()
        self.done += 1
        for name, twin in self.twins.items():
            twin.moved(self.done, self.optimizer)
            assert torch.equal(self.t.weight(name), twin.weight(self.done)), (name, self.done)


@pytest.mark.parametrize("kind", [Tickets, Freezenet, Smp, Pst, SrSte, GradientFlow, Wgsef])
def test_ten_updates_of_the_loop_are_those_of_a_twin_by_hand(kind):
    """Where more moves than a mask: what is wound back, what stays random, scores and thin matrices whose numbers no weight shows."""
    model, x, y = problem()
    plain, rows, loop = copy.deepcopy(model), list(zip(x[:, None], y[:, None])), Loop(steps=10, batch=8, rate=0.2, clip=0.0)
    with trained(model, kind.option, total=loop.steps) as t:
        scored(t, lambda: (model(x) - y).square().mean())
        twin = ByHand(plain, t, rows, loop, kind)
        train(model, t, rows, loop, objective=objective, progress=twin)
    share = 0.5 if issubclass(kind, SrSte | Wgsef) else KEEP
    assert twin.done == 10 and all(float(each.mask.mean()) == pytest.approx(share, abs=0.03) for each in twin.twins.values())


def run(model, t, x, y):
    scored(t, lambda: (model(x) - y).square().mean())
    optimizer = torch.optim.Adam(t.parameters(), lr=0.02)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        t.revise(optimizer)


ALWAYS, CUBIC = {"random", "set", "rigl", "dsl"}, {"gradual", "activating"}


@pytest.mark.parametrize("method", [each for each in methods() if each.id.split("/")[1] in ALWAYS | CUBIC])
def test_the_density_is_exact_at_the_steps_that_the_guide_names(method):
    """Always where places only move; from the share ``until`` on where entries go, and never more than before."""
    model, x, y = problem()
    total, wanted, counts = 10 * 12 + 12 * 4, round(KEEP * (10 * 12 + 12 * 4)), []
    with trained(model, str(method), total=STEPS, scratch=True) as t:
        optimizer = torch.optim.SGD(t.parameters(), lr=0.1)
        counts.append(t.count)
        for _ in range(STEPS):
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()
            t.revise(optimizer)
            counts.append(sum(int(mask.sum()) for mask in masks(t).values()))
    if method.key().split("/")[1] in ALWAYS:
        assert set(counts) == {wanted}
    else:
        assert counts[0] == total and counts == sorted(counts, reverse=True)
        assert set(counts[int(0.75 * STEPS) :]) == {wanted}
