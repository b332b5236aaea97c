"""Statistics that do not fit: what is measured instead is told, or the run is refused before it measures."""

import re

import pytest
import torch
import transformers
from torch import nn

import modicum
from modicum.core.errors import BudgetError, SettingError
from modicum.core.memory import _groups, free_memory
from modicum.core.option import Option
from modicum.measure import subject as subjects
from modicum.models.open import open_model
from modicum.runtime.memory import _LATER_BYTES, planned
from modicum.sweep import rehearse

MENU = [Option.parse(text) for text in ("keep", "gptq bits=8", "gptq bits=4", "sparsegpt keep=0.5 towards=0")]


def room(bytes_for_statistics):
    """Free memory of which so much is left to statistics."""
    return _LATER_BYTES + 2 * bytes_for_statistics


def plan(module, batch, statistics, **settings):
    model = open_model(module)
    script = rehearse(model, batch)
    return script, planned(model, script, batch, MENU, free=room(statistics), **settings)


class Wide(nn.Module):
    """A wide convolution among small ones, of one, two or three axes."""

    def __init__(self, axes=1, channels=16, kernel=80):
        super().__init__()
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        ones = (1,) * (axes - 1)
        self.first = convolution(1, channels, (5, *ones))
        self.wide = convolution(channels, 8, (kernel, *ones))
        self.last = nn.Linear(8, 10)

    def forward(self, x):
        return self.last(self.wide(torch.relu(self.first(x))).flatten(2).mean(2))


def batches(axes=1, count=4, rows=4, length=100):
    chance = torch.Generator().manual_seed(0)
    return [{"x": torch.randn(rows, 1, length, *(1,) * (axes - 1), generator=chance)} for _ in range(count)]


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_the_wide_one_alone_is_measured_in_blocks(axes):
    script, made = plan(Wide(axes), batches(axes)[0], 9_000_000)
    assert script.together == {"wide.weight": 256}
    (event,) = made.events
    assert event.startswith("wide.weight: its inputs have 1280 columns") and "in blocks of 256 columns" in event


def test_a_linear_of_many_inputs():
    script, made = plan(nn.Sequential(nn.Linear(70_000, 4), nn.ReLU(), nn.Linear(4, 3)), (torch.randn(2, 70_000),), 1_000_000_000)
    assert script.together == {"0.weight": 512} and len(made.events) == 1


@pytest.mark.parametrize(("rows", "width"), [(2, 512), (16, 1024), (128, 2048), (700, 0)])
def test_few_rows_do_not_pay_for_the_whole_covariance_of_many_columns(rows, width):
    module = nn.Sequential(nn.Linear(10_000, rows, bias=False), nn.ReLU(), nn.Linear(rows, 3))
    script, made = plan(module, (torch.randn(2, 10_000),), 8_000_000_000)
    assert script.together == ({"0.weight": width} if width else {}) and len(made.events) == bool(width)
    assert all(
        f"nearly all of the time for a weight of {rows} rows. It was measured in blocks of {width} columns" in event
        for event in made.events
    )


def test_all_is_whole_where_it_fits():
    script, made = plan(Wide(), batches()[0], 100_000_000)
    assert script.together == {} and made.events == ()


def test_nothing_is_told_of_covariances_that_nobody_asks_for():
    model = open_model(Wide())
    script = rehearse(model, batches()[0])
    assert planned(model, script, batches()[0], [Option.parse("nearest bits=4")], free=room(9_000_000)).events == ()
    assert script.together == {}


class Shared(nn.Module):
    """Two linears that read one tensor."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(600, 4), nn.Linear(600, 8)

    def forward(self, x):
        return self.one(x).sum(1, keepdim=True) + self.two(x)


def test_units_that_share_inputs_share_blocks():
    script, made = plan(Shared(), (torch.randn(3, 600),), 4_000_000)
    assert script.together == {"one.weight": 256, "two.weight": 256} and len(made.events) == 2


@pytest.fixture
def scarce(monkeypatch):
    """A machine with little memory left, whatever this one has."""

    def given(statistics):
        monkeypatch.setattr(subjects, "free_memory", lambda ram=None: room(statistics))

    return given


SETTINGS = {"search_time": 0.0, "gradient_samples": 4}


def test_a_fit_goes_through_and_tells(scarce, tmp_path):
    scarce(12_000_000)
    torch.manual_seed(0)
    result = modicum.fit(Wide(), "8bpw", data=batches(count=6), menu="gptq bits=8 | eora rank=2, gptq bits=6, sparsegpt keep=0.5, keep",
                         out=tmp_path / "out", **SETTINGS)  # fmt: skip
    events = [event for event in result.receipt["events"] if "in blocks of" in event]
    assert [event.partition(":")[0] for event in events] == ["wide.weight"]
    assert result.receipt["quality"]["mean"] < 0.01
    assert result.receipt["bytes"]["actual"] <= result.receipt["bytes"]["allowed"]


def test_blocks_serve_nearly_as_the_whole_does(scarce):
    """And better than rounding that has seen no inputs."""
    torch.manual_seed(0)
    model, data, quality = Wide(), batches(count=12, rows=8), {}
    for name, method, statistics in [
        ("whole", "gptq bits=3", 400_000_000), ("blocks", "gptq bits=3", 12_000_000), ("none", "nearest bits=3", 400_000_000)
    ]:  # fmt: skip
        scarce(statistics)
        result = modicum.fit(model, method=method, data=data, **SETTINGS)
        quality[name] = result.receipt["quality"]["mean"]
        assert any("in blocks of" in event for event in result.receipt["events"]) == (name == "blocks")
    assert quality["whole"] < 1.2 * quality["blocks"] and quality["blocks"] < quality["none"]


def test_a_measurement_says_it_and_serves(scarce, tmp_path):
    scarce(12_000_000)
    model = Wide()
    known = modicum.measure(model, data=batches(count=6), out=tmp_path / "measured", menu="gptq bits=8, gptq bits=4, keep", **SETTINGS)
    assert any(event.startswith("wide.weight: its inputs have 1280 columns") for event in known.findings.events)
    events = modicum.fit(model, "6bpw", measured=known).receipt["events"]
    assert len([event for event in events if "in blocks of" in event]) == 1


def test_what_can_never_fit_is_refused_with_its_name(scarce):
    scarce(200_000)
    with pytest.raises(
        BudgetError, match=r"^wide\.weight: what is measured of its inputs .* must fit in memory, takes at least .* where .* are free"
    ):
        modicum.fit(Wide(), "8bpw", data=batches(), **SETTINGS)


def test_a_batch_that_cannot_fit_is_refused_with_what_to_do(scarce):
    scarce(1_000_000)
    with pytest.raises(BudgetError, match=r"^first\.weight: what it reads and gives for one batch .* Pass a smaller --micro-batch"):
        modicum.fit(Wide(), "8bpw", data=batches(rows=128, length=400), **SETTINGS)


def _bytes(said):
    """What a sentence says is needed; a process that has run much before needs more than a gigabyte."""
    number, unit = re.search(r"at least ([\d.]+) (MB|GB)", said).groups()
    return int(float(number) * {"MB": 1e6, "GB": 1e9}[unit])


def test_a_limit_in_words_still_names_the_least_that_works():
    with pytest.raises(BudgetError, match=r"^--ram: must be at least .* for this model") as told:
        modicum.fit(Wide(), "8bpw", data=batches(), ram="1MB", **SETTINGS)
    least = _bytes(str(told.value)) + 1_000_000
    receipt = modicum.fit(Wide(), method="gptq bits=8", data=batches(), ram=least, **SETTINGS).receipt
    assert receipt["bytes"]["actual"] > 0


def test_a_cut_by_a_covariance_that_is_not_whole_is_refused_or_left_out(scarce):
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=1024, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, vocab_size=32
    )  # fmt: skip
    model, data = transformers.LlamaForCausalLM(config), [{"input_ids": torch.randint(0, 32, (2, 8))} for _ in range(4)]
    scarce(9_000_000)
    with pytest.raises(
        SettingError, match=r"cuts .* by the whole covariance of .*down_proj\.weight's inputs, which does not fit in memory"
    ):
        modicum.fit(model, method="ziplm keep=0.5", data=data, **SETTINGS)
    events = modicum.fit(
        model, "8bpw", target="modicum", data=data, menu="gptq bits=8, gptq bits=4, ziplm keep=0.5, keep", **SETTINGS
    ).receipt["events"]
    assert any("is not cut, the covariance of" in event and "down_proj.weight's inputs is not whole" in event for event in events)


# What is free


def test_control_groups_of_both_kinds_bound_what_is_free(tmp_path):
    old, new = tmp_path / "memory" / "a" / "b", tmp_path / "c"
    old.mkdir(parents=True)
    new.mkdir()
    for place, names, limit in [
        (old.parent, ("memory.limit_in_bytes", "memory.usage_in_bytes"), 900),
        (new, ("memory.max", "memory.current"), 500),
    ]:
        for name, value in zip(names, (limit, 300)):
            (place / name).write_text(f"{value}\n")
    (old.parent / "memory.stat").write_text("total_inactive_file 50\n")
    (new / "memory.stat").write_text("inactive_file 20\nanon 7\n")
    own = tmp_path / "own"
    own.write_text("4:memory:/a/b\n1:cpu,cpuacct:/a\n0::/c\n")
    assert list(_groups(tmp_path, own)) == [650, 220]
    (new / "memory.max").write_text("max\n")
    assert list(_groups(tmp_path, own)) == [650]


def test_limits_of_the_process_bound_it_too():
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_AS)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 40, before[1]))
        assert free_memory() < 1 << 40
        assert free_memory(ram=1) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
