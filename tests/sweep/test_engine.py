"""A sweep is the model's own forward: outputs equal bit for bit, and statistics are those of the plain inputs."""

import pytest
import torch
import transformers

from modicum.core.method import Need
from modicum.data.splits import call
from modicum.forms import Dense
from modicum.models.open import open_model
from modicum.sweep import Sweep, rehearse
from modicum.sweep.outputs import output_tensor
from modicum.sweep.spill import SpillPool
from modicum.testing import zoo


@pytest.mark.parametrize("name", [*zoo.names(), *zoo.extra_names()])
def test_outputs_are_those_of_the_plain_forward(name):
    module, batches = zoo.build(name)
    model = open_model(module)
    script = rehearse(model, batches[0])
    with torch.no_grad():
        plain = [output_tensor(call(module, batch))[0] for batch in batches]
    seen = []
    sweep = Sweep(model, batches, script, lambda stage: seen.extend(unit.name for unit in stage.units), needs={Need.COVARIANCE})
    for index, output in sweep.run():
        assert torch.equal(output_tensor(output)[0], plain[index])
    assert set(seen) | script.uncalled == set(model.units)
    assert len(seen) == len(set(seen))


def test_stages_are_units_that_share_an_input():
    module, batches = zoo.build("llama")
    script = rehearse(open_model(module), batches[0])
    sizes = [len(stage) for stage in script.stages]
    assert sizes == [1, *([3, 1, 2, 1] * 3), 1]


def test_statistics_match_hooks():
    module, batches = zoo.build("llama")
    name = "model.layers.1.mlp.down_proj"
    rows = []
    hook = module.get_submodule(name).register_forward_pre_hook(lambda _, args: rows.append(args[0].reshape(-1, args[0].shape[-1])))
    with torch.no_grad():
        for batch in batches:
            call(module, batch)
    hook.remove()
    inputs, found = torch.cat(rows).double(), {}
    model = open_model(module)
    Sweep(model, batches, rehearse(model, batches[0]), lambda s: found.update(s.stats), needs={Need.COVARIANCE, Need.MEANS}).finish()
    stats = found[f"{name}.weight"]
    assert stats.count == len(inputs)
    torch.testing.assert_close(stats.covariance.double(), inputs.T @ inputs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(stats.mean.double(), inputs.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stats.variance.double(), inputs.var(0, unbiased=False), rtol=1e-3, atol=1e-5)


def test_padding_is_not_measured():
    module, batches = zoo.build("bert")
    model, found = open_model(module), {}
    Sweep(model, batches, rehearse(model, batches[0]), lambda s: found.update(s.stats), needs={Need.NORMS}).finish()
    real = sum(int(batch["attention_mask"].sum()) for batch in batches)
    assert found["bert.encoder.layer.0.intermediate.dense.weight"].count == real


def test_expert_statistics_come_from_their_own_tokens():
    module, batches = zoo.build("qwen3_moe")
    model, found = open_model(module), {}
    Sweep(model, batches, rehearse(model, batches[0]), lambda s: found.update(s.stats), needs={Need.NORMS}).finish()
    tokens = sum(batch["input_ids"].numel() for batch in batches)
    prefix = next(name for name in found if "experts.gate_up_proj[0]" in name).removesuffix("[0]")
    starved = [event for expert in range(8) for event in found[f"{prefix}[{expert}]"].events]
    counts = [found[f"{prefix}[{expert}]"].count for expert in range(8)]
    if not starved:
        assert sum(counts) == 2 * tokens
    assert all(event.startswith("starved: ") for event in starved)


def test_spilled_activations_change_nothing(tmp_path):
    module, batches = zoo.build("llama")
    wide = [{"input_ids": batch["input_ids"].repeat(16, 1)} for batch in batches]
    model = open_model(module)
    script = rehearse(model, wide[0])
    plain = [output_tensor(o)[0] for _, o in Sweep(model, wide, script, lambda s: None, needs={Need.COVARIANCE}).run()]
    pool = SpillPool(200_000, tmp_path)
    spilled = [output_tensor(o)[0] for _, o in Sweep(model, wide, script, lambda s: None, needs={Need.COVARIANCE}, pool=pool).run()]
    assert pool.spilled > 0
    assert all(torch.equal(a, b) for a, b in zip(plain, spilled))


def test_an_error_inside_leaves_the_module_as_it_was():
    module, batches = zoo.build("llama")
    model = open_model(module)
    script = rehearse(model, batches[0])

    def fail(stage):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Sweep(model, batches, script, fail, needs={Need.NORMS}).finish()
    assert not any("forward" in vars(part) for part in module.modules())


def test_covariances_of_experts_may_lie_in_files(tmp_path):
    """A stack has one for each expert, all at once: without room they spill, and are the same."""
    config = transformers.MixtralConfig(
        hidden_size=160, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, vocab_size=64,
        num_local_experts=4,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_model(transformers.MixtralForCausalLM(config).eval())
        batches = [{"input_ids": torch.randint(0, 64, (4, 32))}]
    script, experts = rehearse(model, batches[0]), [unit for unit in model.units.values() if unit.kind == "expert"]
    found = []
    for limit in (None, 0):
        pool, mine = SpillPool(limit, tmp_path), {}
        keep = lambda stage, mine=mine: mine.update(
            {unit.name: stage.stats[unit.name].covariance.clone() for unit in stage.units if unit.kind == "expert"}
        )
        Sweep(model, batches, script, keep, needs={Need.COVARIANCE}, pool=pool, measured={unit.name for unit in experts}).finish()
        found.append({unit.name: mine[unit.name] for unit in experts})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert pool.spilled >= sum(4 * unit.shape[1] ** 2 for unit in experts)


def test_one_micro_batch_at_a_time_is_between_what_is_treated():
    module, batches = zoo.build("llama")
    assert len(batches) > 1
    model, order = open_model(module), []
    script = rehearse(model, batches[0])
    for name in ("up_proj", "down_proj"):
        module.model.layers[0].mlp.get_submodule(name).register_forward_pre_hook(lambda _, __, name=name: order.append(name))
    Sweep(model, batches, script, lambda stage: None).finish()
    assert order == ["up_proj", "down_proj"] * len(batches)


def test_the_head_is_not_run_for_nobody():
    module, batches = zoo.build("llama")
    model = open_model(module)
    script, seen, left = rehearse(model, batches[0]), [], []
    module.model.norm.register_forward_hook(lambda *_: seen.append("norm"))
    head = module.lm_head.forward
    module.lm_head.forward = lambda inputs: seen.append("head") or head(inputs)
    sweep = Sweep(model, batches, script, lambda stage: None, on_block=lambda name, outputs: left.append(name))
    sweep.finish(set(model.units))
    # All stand before the head when it is treated; its product is not made for them.
    assert seen == ["norm"] * len(batches) and "lm_head.weight" in sweep.done and left == list(model.blocks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe", "bert", "whisper"])
def test_weights_that_others_stand_for_are_not_read(tmp_path, name, dtype):
    module, batches = zoo.build(name, dtype=dtype)
    module.save_pretrained(tmp_path)
    model = open_model(tmp_path)
    script, read = rehearse(model, batches[0]), []
    forms = {
        unit.name: Dense(model.matrix(unit) * 0.5)
        for unit in model.units.values()
        if unit.kind not in ("expert", "embedding") and script.block_of.get(unit.name)
    }
    values = {unit.parameter: unit for unit in model.units.values() if unit.name in forms}
    with torch.no_grad():
        for parameter, unit in values.items():
            module.get_parameter(parameter).copy_(unit.stored(forms[unit.name].dense()))
        wanted = [output_tensor(call(module, batch))[0] for batch in batches]
    known = model.units
    model = open_model(tmp_path)  # as a worker does, which rehearses nothing: no weight was ever loaded
    model.units.update(known)
    source = model.weights._value
    model.weights._value = lambda first: read.append(first) or source(first)
    for index, output in Sweep(model, batches, script, values=forms).run():
        assert torch.allclose(output_tensor(output)[0], wanted[index], atol=1e-5 if dtype == torch.float32 else 0.05)
    outside = {parameter for parameter, unit in values.items() if unit.module in script.read or unit.name in script.uncalled}
    assert forms and set(values) & set(read) == outside and len(read) == len(set(read))


CHECKPOINTS = [name for name in zoo.names() if name not in ("mlp", "cnn")]


@pytest.mark.parametrize("name", [*CHECKPOINTS, *(pytest.param(name, marks=pytest.mark.slow) for name in zoo.extra_names())])
def test_weights_outside_blocks_come_and_go(tmp_path, name):
    module, batches = zoo.build(name)
    module.save_pretrained(tmp_path)
    with torch.no_grad():
        wanted = [output_tensor(call(module, batch))[0] for batch in batches]
    model = open_model(tmp_path)
    script, held = rehearse(model, batches[0]), {}
    is_held = lambda: {parameter for parameter in model.trunk if model.weights.held(parameter).device.type != "meta"}
    assert not is_held()

    def treat(stage):
        held.update({unit.name: is_held() for unit in stage.units})
        if stage.block:
            return None
        return {unit.name: Dense(model.matrix(unit)) for unit in stage.units if unit.kind == "linear" and unit.name not in script.reused}

    got = dict(Sweep(model, batches, script, treat).run())
    for index, expected in enumerate(wanted):
        assert torch.allclose(output_tensor(got[index])[0], expected, atol=1e-5)
    assert not is_held()
    if name == "llama":
        inside = {frozenset(held[unit]) for unit in held if ".layers." in unit}
        assert inside == {frozenset({"model.norm.weight"})} and held["lm_head.weight"] == {"model.norm.weight", "lm_head.weight"}
    if name == "qwen2":  # the embedding is the head too
        assert all("model.embed_tokens.weight" in held[unit] for unit in held)


class Named(torch.nn.Module):
    """Calls its blocks by a keyword of its own."""

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(8, 8)

        def forward(self, flag=None, *, features):
            return features + self.inner(features)

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([self.Block() for _ in range(3)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(features=x)
        return x


def test_blocks_may_be_called_by_any_keyword():
    module, batches = Named().eval(), [(torch.randn(2, 8),) for _ in range(3)]
    model = open_model(module)
    script = rehearse(model, batches[0])
    assert len(script.blocks) == 3
    got = dict(Sweep(model, batches, script).run())
    with torch.no_grad():
        assert all(torch.equal(got[index], module(*batch)) for index, batch in enumerate(batches))


def test_blocks_after_the_last_that_is_awaited_are_not_run():
    module, batches = zoo.build("llama")
    model = open_model(module)
    script, seen, left = rehearse(model, batches[0]), [], []
    first, *others = list(model.blocks)
    for name in others:
        module.get_submodule(name).self_attn.q_proj.register_forward_hook(lambda *_: seen.append("later"))
    sweep = Sweep(model, batches, script, lambda stage: None, on_block=lambda name, outputs: left.append(name))
    sweep.finish({name for name in model.units if name.startswith(first)})
    assert left == [first] and not seen


def test_a_sweep_that_goes_on_ends_there_too():
    module, batches = zoo.build("llama")
    model = open_model(module)
    script, outputs, seen = rehearse(model, batches[0]), {}, []
    first, second, last = list(model.blocks)
    awaited = {name for name in model.units if name.startswith((first, second))}
    Sweep(model, batches, script, lambda stage: None, on_block=lambda name, values: outputs.setdefault(name, values)).finish(awaited)
    module.get_submodule(last).self_attn.q_proj.register_forward_hook(lambda *_: seen.append("later"))
    left = []
    again = Sweep(
        model, batches, script, lambda stage: None, replayed={first: outputs[first].__getitem__}, on_block=lambda name, _: left.append(name)
    )
    again.finish(awaited)
    assert left == [second] and not seen
