import pytest
import torch
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from modicum.core.method import Need
from modicum.models.open import open_model
from modicum.sweep import Sweep, rehearse
from modicum.sweep.experts import Watch, routed
from modicum.testing import zoo

KINDS = ["mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss", "jamba"]


def built(name, dtype):
    if name != "mixtral":
        return zoo.build(name, dtype=dtype)
    _, batches = zoo.build("llama")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = MixtralConfig(**sizes, vocab_size=256, num_local_experts=8, initializer_range=0.08, bos_token_id=None, eos_token_id=None)
    return MixtralForCausalLM(config).eval().to(dtype), batches


def swept(name, dtype=torch.float32):
    """What every expert's last product met, by unit; the model; and what its own router decided, by module."""
    module, batches = built(name, dtype)
    model = open_model(module)
    script = rehearse(model, batches[0])
    told = {stack: [] for stack in script.stacks}
    hooks = [
        module.get_submodule(stack).register_forward_pre_hook(
            lambda _, args, kwargs, stack=stack: told[stack].append([*args, *kwargs.values()]), with_kwargs=True
        ) for stack in script.stacks
    ]  # fmt: skip
    with torch.no_grad():
        for batch in batches:
            module(**batch)
    for hook in hooks:
        hook.remove()
    found = {}
    sweep = Sweep(model, batches, script, lambda stage: found.update(stage.stats), needs={Need.ROUTED})
    sweep.finish()
    return model, script, {unit: stats.routed for unit, stats in found.items() if stats.routed is not None}, told, sweep


def dense_routing(calls):
    """Weights (tokens, experts) that a router handed to a module in all its calls: two tensors of (tokens, chosen), in either order."""
    found = []
    for _, *rest in calls:
        indices, weights = sorted((value for value in rest if isinstance(value, torch.Tensor)), key=lambda value: value.is_floating_point())
        found.append(torch.zeros(len(indices), 64).scatter_(1, indices, weights.float()))
    return torch.cat(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", KINDS)
def test_weights_and_places_are_the_routers_own(name, dtype):
    model, script, found, told, _ = swept(name, dtype)
    assert {model.units[unit].module for unit in found} == set(script.stacks)
    for unit, parts in found.items():
        routing = dense_routing(told[model.units[unit].module])[:, model.units[unit].expert]
        tokens, weights = torch.cat([part.tokens for part in parts]), torch.cat([part.weights for part in parts])
        assert torch.equal(tokens, routing.nonzero()[:, 0])
        torch.testing.assert_close(weights, routing[tokens], rtol=2**-7 if dtype == torch.bfloat16 else 1e-6, atol=0)


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral"])
def test_experts_that_met_few_tokens_are_measured_on_others_and_it_is_told(name):
    module, batches = built(name, torch.float32)
    model, few = open_model(module), [{"input_ids": batches[0]["input_ids"][:1, :24]}]
    script, states, found = rehearse(model, few[0]), {}, {}
    script.sent = True
    hooks = [
        module.get_submodule(stack).register_forward_pre_hook(
            lambda _, args, kwargs, stack=stack: states.update({stack: [*args, *kwargs.values()][0].reshape(-1, 64)}), with_kwargs=True
        ) for stack in script.stacks
    ]  # fmt: skip
    with torch.no_grad():
        before = module(**few[0]).logits
    for hook in hooks:
        hook.remove()
    sweep = Sweep(model, few, script, lambda stage: found.update(stage.stats), needs={Need.COVARIANCE})
    ((_, output),) = sweep.run()
    assert torch.equal(output.logits, before)  # what went elsewhere for statistics went nowhere else
    starved = {unit: stats for unit, stats in found.items() if any(event.startswith("starved: ") for event in stats.events)}
    assert starved and all("starved experts were measured on tokens that went to others" in event for event in sweep.chronicle.events)
    for unit, stats in starved.items():
        expert, owner = model.units[unit].expert, module.get_submodule(model.units[unit].module)
        met = states[model.units[unit].module]
        rows = (
            gated(owner, met, expert)
            if model.units[unit].parameter.endswith(script.stacks[model.units[unit].module].attributes[-1])
            else met
        )
        assert 0.25 * rows.shape[1] <= stats.count <= len(rows)
        if stats.count == len(rows):  # sent all there are
            torch.testing.assert_close(stats.covariance, rows.T @ rows, rtol=1e-3, atol=1e-3)
        else:
            assert float(torch.linalg.eigvalsh((rows.T @ rows - stats.covariance).double()).min()) > -1e-3


@pytest.mark.parametrize(("tokens", "sent"), [(16, False), (6, True)])
def test_experts_that_met_few_tokens_take_the_covariance_of_their_stack_and_it_is_told(tokens, sent):
    module, batches = zoo.build("qwen3_moe")
    model, few = open_model(module), [{"input_ids": batches[0]["input_ids"][:1, :tokens]}]
    found, script = {}, rehearse(model, few[0])
    script.sent = sent  # six are too few for any
    sweep = Sweep(model, few, script, lambda stage: found.update(stage.stats), needs={Need.COVARIANCE})
    sweep.finish()
    experts = {unit: stats for unit, stats in found.items() if model.units[unit].kind == "expert"}
    starved = {unit for unit, stats in experts.items() if stats.events == [f"starved: {int(stats.frequency)} tokens"]}
    assert starved == {unit for unit, stats in experts.items() if stats.frequency < model.units[unit].shape[1] / 4}
    owners = {(model.units[unit].module, model.units[unit].parameter) for unit in starved}
    assert starved and len(sweep.chronicle.events) == len(owners)
    assert all("starved experts take the covariance of all experts of their stack" in event for event in sweep.chronicle.events)
    for module, parameter in owners:
        mine = [experts[unit].covariance for unit in starved if model.units[unit].parameter == parameter]
        assert all(torch.equal(one, mine[0]) for one in mine), module


@pytest.mark.parametrize("name", KINDS)
def test_inputs_stand_at_the_tokens_they_came_from(name):
    model, script, found, told, _ = swept(name)
    for stack in script.stacks:
        states = torch.cat([call[0].reshape(-1, call[0].shape[-1]) for call in told[stack]])
        parts = [(unit, part) for unit, mine in found.items() if model.units[unit].module == stack for part in mine]
        owner = model.module.get_submodule(stack)
        for unit, part in parts[:4]:
            torch.testing.assert_close(part.inputs, gated(owner, states[part.tokens], model.units[unit].expert), rtol=1e-4, atol=1e-5)


def gated(owner, states, expert):
    """The last product's inputs, as the architectures compute them."""
    if hasattr(owner, "gate_up_proj_bias"):
        return owner._apply_gate(states @ owner.gate_up_proj[expert] + owner.gate_up_proj_bias[expert]).detach()
    gate, up = (states @ owner.gate_up_proj[expert].T).chunk(2, dim=-1)
    return (owner.act_fn(gate) * up).detach()


def test_several_ranks_find_what_one_finds(together):
    """In the same order of tokens, however the micro-batches are shared."""
    _, _, alone, _, _ = swept("qwen3_moe")
    models = [open_model(zoo.build("qwen3_moe")[0]) for _ in range(2)]

    def work(ranks):
        model, found = models[ranks.rank], {}
        _, batches = zoo.build("qwen3_moe")
        treat = lambda stage: found.update({unit: stats.routed for unit, stats in stage.stats.items() if stats.routed is not None})
        Sweep(model, batches, rehearse(model, batches[0]), treat, needs={Need.ROUTED}, ranks=ranks).finish()
        return found

    for found in together(work):
        assert found.keys() == alone.keys()
        for unit in found:
            for field in ("inputs", "tokens", "weights"):
                assert torch.equal(*(torch.cat([getattr(part, field) for part in parts[unit]]) for parts in (found, alone)))


def test_a_module_that_answers_each_expert_by_itself_has_nobody_to_share_with():
    _, _, found, _, _ = swept("llama4")
    owners = [set(torch.cat([part.tokens for part in parts]).tolist()) for parts in found.values()]
    assert found and all(torch.cat([part.weights for part in parts]).eq(1).all() for parts in found.values())
    assert all(mine.isdisjoint(other) for at, mine in enumerate(owners[:4]) for other in owners[at + 1 : 4])


class Mixed(nn.Module):
    """Router, experts, what is added to them and what comes after, all in one module."""

    def __init__(self, experts=40, after=lambda value: value, before=False):
        super().__init__()
        torch.manual_seed(0)
        self.router, self.after, self.before = nn.Parameter(torch.randn(8, experts)), after, before
        self.first, self.last = nn.Parameter(torch.randn(experts, 6, 8)), nn.Parameter(torch.randn(experts, 8, 6))

    def forward(self, x):
        weights, chosen = (x @ self.router).softmax(-1).topk(3)
        output = x + 0.5  # a residual, and a shared part
        for expert in range(len(self.first)):
            tokens, place = torch.where(chosen == expert)
            weight = weights[tokens, place, None]
            inner = (x[tokens] @ self.first[expert].T).relu() * (weight if self.before else 1.0)
            output = output.index_add(0, tokens, inner @ self.last[expert].T * (1.0 if self.before else weight))
        return self.after(output)

    def told(self, x):
        stacks = {"first": self.first.detach(), "last": self.last.detach()}
        with torch.no_grad():
            return routed(lambda: self(x), stacks, "last"), (x @ self.router).softmax(-1).topk(3)


@pytest.mark.parametrize("before", [False, True], ids=["after the product", "before it"])
def test_codes_that_need_several_passes(before):
    """Forty experts are more than the output has columns; where the weight is in the inputs already, it comes out as one."""
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    (found, rows), (weights, chosen) = Mixed(before=before).told(x)
    assert rows == 50 and sum(len(part.tokens) for part in found.values()) == 150
    for expert, part in found.items():
        tokens, place = torch.where(chosen == expert)
        assert torch.equal(part.tokens, tokens)
        torch.testing.assert_close(part.weights, torch.ones(len(tokens)) if before else weights[tokens, place], rtol=1e-5, atol=0)


def test_an_output_that_is_no_sum_is_told():
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    assert Mixed(after=lambda value: nn.functional.layer_norm(value, (8,))).told(x)[0] is None
    assert Mixed(after=lambda value: value[:, :5]).told(x)[0] is None


def test_hollow_products_are_not_taken():
    module, x, seen = Mixed(experts=3), torch.ones(4, 8), []
    module.last.data.fill_(float("nan"))
    with torch.no_grad(), Watch({"first": module.first.detach(), "last": module.last.detach()}, seen.append, hollow=True):
        assert torch.equal(module(x), x + 0.5)
    assert {use.attribute for use in seen} == {"first", "last"} and all(not use.output.any() for use in seen)
