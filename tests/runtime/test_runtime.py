"""What a model takes in the runtime: memory as it is really held, and times that add up, grow with shapes and are measured once."""

import json
from types import SimpleNamespace

import hypothesis.strategies as some
import psutil
import pytest
import torch
from hypothesis import given

import modicum
from modicum.core.errors import BudgetError, ModelError
from modicum.core.unit import Unit
from modicum.data.splits import call
from modicum.drop import Ziplm
from modicum.forms import Cut, Dense, Sum
from modicum.models.open import open_model
from modicum.runtime import clock as clocks
from modicum.runtime import runtime as runtimes
from modicum.runtime.clock import Clock, Watched, default_path, time_linear, timed
from modicum.runtime.runtime import Runtime, alive, counted_bytes, left
from modicum.sweep import rehearse
from modicum.sweep.coupling import coupled_cuts
from modicum.sweep.spill import SpillPool
from modicum.testing import zoo


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    monkeypatch.setattr(runtimes, "_SECONDS", 0.02)


def area(rows, columns, tokens, dtype):
    """A clock for which work is all that counts."""
    return rows * columns * tokens * 1e-12


def opened(name, dtype=torch.float32, *, batch=2, context=32, cuts=False, example=True, measure=area):
    module, batches = zoo.build(name, dtype=dtype)
    model = open_model(module)
    script = rehearse(model, batches[0])
    found = {site.name: site for site in coupled_cuts(model, script, batches[0])} if cuts else {}
    clock = Clock(None, measure)
    if model.config is not None:
        model.config.use_cache = True
    return Runtime(model, script, batch=batch, context=context, example=batches[0] if example else None, cuts=found, clock=clock)


def dense(unit):
    return Dense(torch.empty(unit.shape, dtype=unit.dtype, device="meta"))


def cut(unit, rows, columns):
    inner = Dense(torch.empty(rows, columns, dtype=unit.dtype, device="meta"))
    masks = [None if kept == size else torch.arange(size) < kept for kept, size in zip((rows, columns), unit.shape)]
    return Cut(inner, *masks)


# The clock


def counting(seconds=1e-3):
    asked = []

    def measure(rows, columns, tokens, dtype):
        asked.append((rows, columns, tokens, dtype))
        return seconds * rows

    return asked, measure


def test_a_shape_is_measured_once_and_kept(tmp_path):
    asked, measure = counting()
    path = tmp_path / "deep" / "clock.json"
    clock = Clock(path, measure)
    assert clock.linear(8, 4, 2, torch.float32) == clock.linear(8, 4, 2, torch.float32) == 8e-3
    assert Clock(path, measure).linear(8, 4, 2, torch.float32) == 8e-3
    assert asked == [(8, 4, 2, torch.float32)]
    for other in ((8, 4, 2, torch.bfloat16), (8, 4, 3, torch.float32), (8, 5, 2, torch.float32), (9, 4, 2, torch.float32)):
        clock.linear(*other)
    assert len(asked) == 5 and [file.name for file in path.parent.iterdir()] == ["clock.json"]


def test_another_machine_measures_for_itself(tmp_path, monkeypatch):
    asked, measure = counting()
    Clock(tmp_path / "clock.json", measure).linear(8, 4, 2, torch.float32)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    clock = Clock(tmp_path / "clock.json", measure)
    clock.linear(8, 4, 2, torch.float32)
    assert len(asked) == 2 and "77 threads" in clock.machine and torch.__version__ in clock.machine
    assert len(json.loads((tmp_path / "clock.json").read_text())["machines"]) == 2


def test_what_others_wrote_meanwhile_stays(tmp_path):
    asked, measure = counting()
    first, second = Clock(tmp_path / "clock.json", measure), Clock(tmp_path / "clock.json", measure)
    first.linear(1, 1, 1, torch.float32)
    second.linear(2, 1, 1, torch.float32)
    first.linear(3, 1, 1, torch.float32)
    fresh = Clock(tmp_path / "clock.json", measure)
    for rows in (1, 2, 3):
        fresh.linear(rows, 1, 1, torch.float32)
    assert len(asked) == 3


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "7", "null", "\udcff", "[" * 100_000, '{"format": "modicum-clock", "version": 1}', '{"format": "x", "version": 1}',
        '{"format": "modicum-clock", "version": 2, "machines": {MACHINE: {KEY: 9.0}}}',
        '{"format": "modicum-clock", "version": 1, "machines": []}', '{"format": "modicum-clock", "version": 1, "machines": {MACHINE: 3}}',
        *(f'{{"format": "modicum-clock", "version": 1, "machines": {{MACHINE: {{KEY: {bad}}}}}}}' for bad in
          ("-1.0", "0.0", "NaN", "Infinity", '"1.0"', "null", "true", "[]")),
    ],
)  # fmt: skip
def test_a_damaged_table_is_measured_anew(tmp_path, text):
    asked, measure = counting()
    path = tmp_path / "clock.json"
    text = text.replace("MACHINE", json.dumps(Clock(None).machine)).replace("KEY", '"8x4 on 2 in float32"')
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert Clock(path, measure).linear(8, 4, 2, torch.float32) == 8e-3
    assert len(asked) == 1 and Clock(path, measure).linear(8, 4, 2, torch.float32) == 8e-3 and len(asked) == 1


def test_a_home_that_cannot_be_written_costs_measuring_again(tmp_path):
    asked, measure = counting()
    (tmp_path / "file").write_text("no folder")
    clock = Clock(tmp_path / "file" / "clock.json", measure)
    assert clock.linear(8, 4, 2, torch.float32) == clock.linear(8, 4, 2, torch.float32) == 8e-3
    assert len(asked) == 1


def test_the_table_stands_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "modicum" / "clock.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_path() == tmp_path / ".cache" / "modicum" / "clock.json"


def test_real_products_take_time_and_larger_ones_more():
    small, large = (time_linear(rows, rows, 64, torch.float32) for rows in (16, 1024))
    assert 0 < small < large
    assert Clock(None, lambda *_: pytest.fail("nothing to measure")).linear(0, 8, 8, torch.float32) == 0


def test_runs_are_repeated_within_their_time():
    ran = []
    assert len(timed(lambda: ran.append(torch.is_grad_enabled()), seconds=60, repeats=7)) == 7
    assert len(ran) == 8 and not any(ran)
    assert len(timed(lambda: [None for _ in range(300_000)], seconds=1e-9)) == 1


# Times


def test_parts_add_up_to_the_whole():
    runtime = opened("llama", cuts=True)
    watched, model = runtime.watched, runtime.model
    units = sum(runtime.seconds(unit, dense(unit)) for unit in model.units.values())
    assert units + runtime.rest() == pytest.approx(runtime.original()) and units > 0 and runtime.rest() >= 0
    assert all(watched.units[name] > 0 for name in model.units)
    rests = [runtime.block_rest(block) for block in model.blocks]
    assert min(rests) >= 0 and 0 < sum(rests) <= runtime.rest() * (1 + 1e-9)
    assert watched.tokens["model.layers.0.mlp.down_proj.weight"] == 64 == watched.tokens["lm_head.weight"]


def test_a_cut_takes_its_share_of_the_unit_and_of_what_lies_before_it():
    runtime = opened("llama", cuts=True)
    units = runtime.model.units
    up, down = units["model.layers.0.mlp.up_proj.weight"], units["model.layers.0.mlp.down_proj.weight"]
    between = {down.name: 0.25}
    runtime.__dict__["watched"] = Watched(2.0, {up.name: 0.5, down.name: 0.75}, {}, between, {up.name: 64, down.name: 64})
    assert runtime.seconds(up, dense(up)) == 0.5 and runtime.seconds(down, dense(down)) == 1.0
    assert runtime.seconds(up, cut(up, 32, 64)) == pytest.approx(0.5 / 4)
    assert runtime.seconds(down, cut(down, 64, 32)) == pytest.approx((0.75 + 0.25) / 4)
    assert runtime.seconds(down, Sum((cut(down, 64, 32), dense(down)))) == pytest.approx((0.75 + 0.25) / 4)
    assert runtime.rest() == 0.5 and runtime.seconds(units["lm_head.weight"], dense(units["lm_head.weight"])) == 0


@given(shapes=some.lists(some.tuples(some.integers(1, 128), some.integers(1, 64)), min_size=2, max_size=2))
def test_what_is_smaller_is_never_slower(shapes):
    (a, b), (c, d) = shapes
    unit = Unit("u.weight", "u.weight", "u", "linear", (128, 64), (128, 64), torch.float32)
    runtime = Runtime(SimpleNamespace(), SimpleNamespace(), batch=1, context=1, clock=Clock(None, area))
    runtime.__dict__["watched"] = Watched(9.0, {unit.name: 3.0}, {}, {unit.name: 1.0}, {unit.name: 8})
    less, more = (runtime.seconds(unit, cut(unit, *shape)) for shape in ((min(a, c), min(b, d)), (max(a, c), max(b, d))))
    assert 0 < less <= more <= runtime.seconds(unit, dense(unit)) == 4.0


def test_experts_share_the_time_of_their_stack():
    runtime = opened("qwen3_moe")
    experts = [unit for unit in runtime.model.units.values() if unit.kind == "expert" and unit.module == "model.layers.1.mlp.experts"]
    times = {unit.name: runtime.seconds(unit, dense(unit)) for unit in experts}
    assert len(experts) == 16 and min(times.values()) > 0
    per_weight = {times[unit.name] / unit.size for unit in experts}
    assert max(per_weight) == pytest.approx(min(per_weight))


def test_a_tied_weight_has_the_time_of_both_its_modules():
    runtime = opened("qwen2")
    (tied,) = [unit for unit in runtime.model.units.values() if unit.aliases]
    assert runtime.watched.units[tied.name] > 0 and runtime.watched.tokens[tied.name] == 64


@pytest.mark.parametrize("name", ["vit", "whisper", "bert", "cnn", "mlp", "t5"])
def test_every_kind_of_input_can_be_timed(name):
    runtime = opened(name, batch=3, context=20)
    called = runtime.model.units.keys() - runtime.script.uncalled
    assert runtime.original() > 0 and all(runtime.watched.units[name] > 0 for name in called) and len(called) > 2
    example = runtime._input(3, 20)
    assert {len(value) for value in example.values()} == {3}
    assert all(value.shape[1] == 20 for key, value in example.items() if key.endswith("ids") or key == "attention_mask")


def test_the_model_is_left_as_it_was():
    runtime = opened("llama", cuts=True)
    module, before = runtime.model.module, dict(runtime.model.module.named_parameters())
    state = {name: value.clone() for name, value in before.items()}
    runtime.original(), runtime.wide, runtime.overhead()
    after = dict(module.named_parameters())
    assert all(after[name] is before[name] and torch.equal(after[name], state[name]) for name in before)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_weights_from_disk_are_released(tmp_path):
    module, batches = zoo.build("llama")
    module.save_pretrained(tmp_path)
    model = open_model(tmp_path)
    script = rehearse(model, batches[0])
    held = {name for name in model.weights.names if model.weights.held(name).device.type != "meta"}
    runtime = Runtime(model, script, batch=1, context=16, clock=Clock(None, area))
    assert runtime.original() > 0
    assert held == {name for name in model.weights.names if model.weights.held(name).device.type != "meta"}


def test_a_context_beyond_the_positions_is_refused():
    with pytest.raises(
        BudgetError, match=r"--context: must be what the model takes, got 65 tokens where it has 64 positions\. Pass a smaller"
    ):
        opened("gpt2", context=65).original()
    assert opened("gpt2", context=64).original() > 0


def test_an_original_beyond_memory_is_refused(tmp_path, monkeypatch):
    module, batches = zoo.build("llama")
    module.save_pretrained(tmp_path)
    model = open_model(tmp_path)
    script = rehearse(model, batches[0])
    model.weights.release(model.weights.names)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100_000))
    with pytest.raises(BudgetError, match=r"the whole original must fit in memory, .* where 100\.000 kB are free\. Pass a size instead"):
        Runtime(model, script, batch=1, context=16, clock=Clock(None, area)).original()


def test_what_is_no_text_needs_an_example():
    with pytest.raises(ModelError, match="time needs an example of its inputs, none came"):
        opened("vit", example=False).original()


def test_parts_never_make_more_than_the_whole(monkeypatch):
    runtime = opened("llama", cuts=True)
    units = {name: 1.0 for name in runtime.model.units}
    noisy = lambda *_, **__: Watched(
        3.0, dict(units), dict.fromkeys(runtime.model.blocks, 9.0), {"model.layers.0.mlp.down_proj.weight": 5.0}
    )
    monkeypatch.setattr(runtimes, "watch", noisy)
    assert sum(runtime.watched.units.values()) == pytest.approx(3.0) and runtime.rest() == pytest.approx(0, abs=1e-12)
    assert all(runtime.block_rest(block) == pytest.approx(0, abs=1e-12) for block in runtime.model.blocks)
    assert runtime.block_rest("no block") == 0


# Memory


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe", "deepseek_v3"])
def test_the_cache_is_what_the_model_really_keeps(name):
    runtime = opened(name, torch.bfloat16)
    with torch.no_grad():
        kept = call(runtime.model.module, runtime._input(2, 32), cached=True).past_key_values
    assert runtime.cache() == sum(layer.keys.nbytes + layer.values.nbytes for layer in kept.layers)
    runtime.model.module.config.use_cache = False
    assert runtime.cache() == 0


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "bert", "t5", "vit", "whisper", "convnext", "mamba", "falcon", "cnn"])
def test_memory_beside_weights_is_counted_to_the_byte(name):
    runtime = opened(name, torch.bfloat16)
    assert runtime.overhead() == runtime.counted == alive(runtime.model.module, runtime._input(2, 32))


def test_counting_holds_no_memory_and_needs_no_weights(tmp_path):
    module, batches = zoo.build("llama")
    module.save_pretrained(tmp_path)
    model = open_model(tmp_path)
    script = rehearse(model, batches[0])
    model.weights.release(model.weights.names)
    runtime = Runtime(model, script, batch=2, context=32, clock=Clock(None, area))
    module.config.use_cache = model.config.use_cache = True
    assert runtime.overhead() == alive(module, runtime._input(2, 32))
    assert Runtime(model, script, batch=10_000, context=32).overhead() > 10**8  # told at once, of a pass that would fill the memory


def test_experts_are_counted_as_they_run_by_default():
    runtime = opened("qwen3_moe", torch.bfloat16)
    with pytest.raises(Exception, match="nonzero"):
        counted_bytes(runtime.model.module, runtime._input(2, 32))
    runtime.model.module.set_experts_implementation("grouped_mm")
    assert runtime.counted == alive(runtime.model.module, runtime._input(2, 32))


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "phi3", "gpt2", "gpt_neox", "opt", "gemma2", "gemma3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_estimates_are_within_a_third_of_the_count(name, dtype):
    runtime = opened(name, dtype)
    real = alive(runtime.model.module, runtime._input(2, 32))
    assert 0.75 * real <= runtime.cache() + runtime.activations() <= 1.35 * real


def test_a_scan_too_long_to_count_is_scaled_up(monkeypatch):
    whole = opened("mamba", context=64).counted
    monkeypatch.setattr(runtimes, "_OPERATIONS", 6000)
    runtime = opened("mamba", context=64)
    with pytest.raises(runtimes._TooLongError):
        counted_bytes(runtime.model.module, runtime._input(2, 64))
    assert whole <= runtime.counted <= 1.2 * whole


def test_where_nothing_can_be_counted_the_estimate_stands(monkeypatch):
    def refuse(*_):
        raise RuntimeError("asks for values")

    monkeypatch.setattr(runtimes, "counted_bytes", refuse)
    runtime = opened("llama")
    assert runtime.counted is None and runtime.overhead() == runtime.cache() + runtime.activations() > 0


def test_memory_of_weights_is_that_of_the_narrow_model(tmp_path):
    runtime = opened("llama", cuts=True)
    model = runtime.model
    batches = [runtime._input(2, 32)]
    forms = Ziplm(keep=0.5).reshape(model, runtime.script, batches, SpillPool(None)).forms
    told = sum(runtime.memory(unit, forms.get(name, dense(unit))) for name, unit in model.units.items())
    result = modicum.fit(
        model.module, method="ziplm keep=0.5", data=zoo.build("llama")[1], target="modicum", allocator="uniform", out=tmp_path / "out"
    )
    loaded = {name: value.nbytes for name, value in result.model.named_parameters()}
    assert told == sum(size for name, size in loaded.items() if name in model.units)
    assert runtime.wide == frozenset()


def test_a_cut_that_cannot_be_narrow_saves_nothing():
    runtime = opened("phi3", cuts=True)  # its attention splits one projection at widths of the config
    units = runtime.model.units
    heads, channels = units["model.layers.1.self_attn.o_proj.weight"], units["model.layers.1.mlp.down_proj.weight"]
    assert runtime.wide == {f"model.layers.{i}.self_attn.{part}_proj.weight" for i in range(3) for part in ("o", "qkv")}
    assert runtime.memory(heads, cut(heads, 64, 32)) == heads.dense_bytes
    assert runtime.memory(channels, cut(channels, 64, 32)) == 64 * 32 * 4
    assert runtime.seconds(heads, cut(heads, 64, 32)) == runtime.seconds(heads, dense(heads))
    assert runtime.seconds(channels, cut(channels, 64, 32)) < runtime.seconds(channels, dense(channels))


def test_shapes_that_remain():
    unit = Unit("u.weight", "u.weight", "u", "linear", (8, 4), (8, 4), torch.float32)
    assert left(dense(unit)) == (8, 4) and left(cut(unit, 3, 4)) == (3, 4) and left(Sum((cut(unit, 8, 2), dense(unit)))) == (8, 2)
    runtime = Runtime(SimpleNamespace(), SimpleNamespace(), batch=1, context=1, clock=Clock(None, area))
    assert runtime.pricing(False)(unit, cut(unit, 3, 4)) == (3 * 4 * 4, 0.0)


def test_the_clock_is_the_users_own_by_default():
    assert Runtime(SimpleNamespace(), SimpleNamespace(), batch=1, context=1).clock.path == default_path()
    assert clocks.processor()
