"""The dtype to compute in is a fact of the machine: what is stored and made is the same, whichever is faster here, and the receipt says which."""

import json
import threading

import pytest
import torch
from safetensors.torch import load_file

import modicum
from modicum.core.errors import BudgetError, DataError, SettingError
from modicum.core.progress import Quiet
from modicum.measure import computing, measure
from modicum.measure.settings import Settings
from modicum.measure.subject import Subject
from modicum.models.open import open_model
from modicum.receipt import report
from modicum.runtime import compute
from modicum.runtime.compute import Compute, chosen, turned
from modicum.runtime.memory import weights_held
from modicum.sweep import output_gradients
from modicum.testing import zoo

HALF, WIDE = torch.bfloat16, torch.float32
SETTINGS = {"target": "modicum", "search_time": 0.0, "gradient_samples": 2}
FEW = {"budget": "6bpw", "menu": "nearest bits=4,gptq bits=8 sweeps=0"}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine on which products of half precision take so many times as long as those in float32."""

    def like(forward, backward=None):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"home {forward} {backward}"))
        slower = {"linear": forward, "gradient": forward if backward is None else backward}
        monkeypatch.setattr(compute, "time_product", lambda kind, dtype, *_: 1e-3 * (slower[kind] if dtype.itemsize == 2 else 1.0))

    return like


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small decoder as a checkpoint in bfloat16, with its batches."""
    model, batches = zoo.build("llama", dtype=HALF)
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    model.save_pretrained(folder)
    return folder, batches


def fitted(source, batches, out, **settings):
    receipt = modicum.fit(source, data=batches, out=out, **SETTINGS, **settings).receipt
    return receipt, load_file(out / "model.safetensors")


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)


CASES = {
    "units for half precision": (0.2, 0.2, HALF, ("bfloat16", "bfloat16")),
    "none": (8.0, 40.0, HALF, ("float32", "float32")),
    "forward alone": (1.0, 10.0, HALF, ("bfloat16", "float32")),
    "not worth twice the memory": (1.2, 1.2, HALF, ("bfloat16", "bfloat16")),
    "float16": (8.0, 8.0, torch.float16, ("float32", "float32")),
    "wide weights": (0.1, 0.1, WIDE, ("float32", "float32")),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_faster_and_exact_is_chosen(machine, name):
    forward, backward, dtype, wanted = CASES[name]
    machine(forward, backward)
    found = chosen(open_model(zoo.build("llama", dtype=dtype)[0]), "auto")
    assert (found.forward, found.gradients) == wanted
    assert found.stored == str(dtype)[6:]


def test_a_product_is_really_timed():
    assert 0 < compute.time_product("linear", WIDE, 256, 256) < 1
    assert 0 < compute.time_product("gradient", WIDE, 256, 256) < 1


def test_forms_without_data_are_the_same_to_the_bit(checkpoint, machine, tmp_path):
    source, batches = checkpoint
    machine(0.2)
    narrow, files = fitted(source, batches, tmp_path / "narrow", method="nearest bits=4")
    machine(8.0)
    wide, same = fitted(source, batches, tmp_path / "wide", method="nearest bits=4")
    assert equal(files, same)
    assert (narrow["compute"]["forward"], wide["compute"]["forward"]) == ("bfloat16", "float32")
    assert wide["compute"]["stored"] == "bfloat16" and "against" in wide["compute"]["why"]
    assert not any(event.startswith("compute:") for event in narrow["events"])
    assert any(event.startswith("compute: in float32, where the weights are stored in bfloat16") for event in wide["events"])
    assert wide["quality"]["mean"] == pytest.approx(narrow["quality"]["mean"], rel=0.1)
    assert wide["bytes"]["actual"] == narrow["bytes"]["actual"]
    assert "<th>computed in</th><td>float32; stored in bfloat16 (products in float32 against" in report(wide)


def test_solved_forms_differ_by_rounding_alone(checkpoint, machine, tmp_path):
    source, batches = checkpoint
    machine(0.2)
    narrow, files = fitted(source, batches, tmp_path / "narrow", **FEW)
    machine(8.0)
    wide, other = fitted(source, batches, tmp_path / "wide", **FEW)
    assert {name: value.dtype for name, value in files.items()} == {name: value.dtype for name, value in other.items()}
    assert wide["bytes"]["actual"] <= wide["bytes"]["allowed"] == narrow["bytes"]["allowed"]
    assert wide["quality"]["mean"] == pytest.approx(narrow["quality"]["mean"], rel=0.25)


def test_gradients_may_have_a_dtype_of_their_own(checkpoint, machine):
    source, batches = checkpoint
    machine(1.0, 40.0)
    subject = Subject.open(source, Settings(target="modicum"), batches)
    assert (subject.model.computed, subject.felt.computed) == (HALF, WIDE)
    assert "compute: in bfloat16, gradients in float32, where the weights are stored in bfloat16" in subject.model.notes[-1]
    narrow, wide = (output_gradients(model, batches[:1], subject.script) for model in (subject.model, subject.felt))
    assert all(torch.allclose(wide[name].gradient, narrow[name].gradient, rtol=0.3, atol=1e-3) for name in narrow)


class Recurrent(torch.nn.Module):
    """Weights that a module keeps in a list of its own too, and a buffer."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = torch.nn.LSTM(16, 32, batch_first=True, dtype=HALF), torch.nn.Linear(32, 8, dtype=HALF)
        self.register_buffer("shift", torch.randn(16, dtype=HALF))

    def forward(self, x):
        return self.head(self.lstm(x + self.shift)[0])


@pytest.mark.parametrize("name", ["cnn", "qwen3_moe", "recurrent"])
def test_a_module_in_memory_keeps_its_own_dtype(machine, tmp_path, name):
    """Buffers of half precision too: they are computed with wide, and written as they were; batches likewise."""
    model, batches = (Recurrent(), [{"x": torch.randn(2, 8, 16)} for _ in range(3)]) if name == "recurrent" else zoo.build(name, dtype=HALF)
    for owner in model.modules():
        owner._buffers.update({key: value.to(HALF) for key, value in owner._buffers.items() if value is not None and value.dtype == WIDE})
    batches = [{key: value.to(HALF) if value.is_floating_point() else value for key, value in batch.items()} for batch in batches]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    machine(8.0)
    receipt, files = fitted(model, batches, tmp_path / "out", method="wanda keep=0.5")
    assert receipt["compute"]["forward"] == "float32", receipt["events"]
    after = model.state_dict()
    assert all(after[key].dtype == value.dtype and torch.equal(after[key], value) for key, value in before.items())
    assert not any(value.dtype == WIDE for value in files.values())


def test_batches_that_the_own_dtype_does_not_take_are_refused_before_any_work(machine, tmp_path):
    machine(8.0)
    with pytest.raises(DataError, match="its forward must take the batches as they come"):
        fitted(Recurrent(), [{"x": torch.randn(2, 8, 16)} for _ in range(3)], tmp_path / "out", method="wanda keep=0.5")
    assert not list(tmp_path.glob("out*"))


class Stubborn(torch.nn.Module):
    """Turns what it gets into bfloat16 itself, whatever its weights are in."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(32, 32, dtype=HALF) for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x.to(HALF))
        return x


def test_a_forward_that_runs_in_its_own_dtype_alone_stays_in_it(machine, tmp_path):
    batches = [torch.randn(4, 8, 32) for _ in range(3)]
    machine(8.0)
    receipt, _ = fitted(Stubborn(), batches, tmp_path / "out", method="gptq bits=4")
    assert receipt["compute"]["forward"] == "bfloat16"
    assert any("its forward does not run in float32" in event for event in receipt["events"])
    with pytest.raises(SettingError, match="compute float32: .* own forward must run in it, raises RuntimeError"):
        fitted(Stubborn(), batches, tmp_path / "asked", method="gptq bits=4", compute="float32")
    assert not (tmp_path / "asked").exists()


def test_what_was_asked_for_is_done(checkpoint, machine, tmp_path):
    source, batches = checkpoint
    machine(0.2)
    receipt, _ = fitted(source, batches, tmp_path / "wide", method="nearest bits=4", compute="float32")
    assert receipt["compute"] == {
        "asked": "float32",
        "stored": "bfloat16",
        "forward": "float32",
        "gradients": "float32",
        "why": "as asked for",
    }
    model, batches = zoo.build("llama")
    receipt, files = fitted(model, batches, tmp_path / "narrow", method="gptq bits=4", compute="bfloat16")
    assert any("in bfloat16, where the weights are stored in float32" in event for event in receipt["events"])
    assert not any(value.dtype == HALF for value in files.values())
    with pytest.raises(SettingError, match="compute 'float64': is not known"):
        modicum.fit(model, data=batches, method="nearest bits=4", compute="float64")


class StopError(Exception):
    pass


class Interrupting(Quiet):
    """Ends a run where its forms are about to be made."""

    def start(self, what, total):
        if what == "assemble":
            raise StopError


def test_a_run_goes_on_in_the_dtype_it_began_in(checkpoint, machine, tmp_path):
    source, batches = checkpoint
    machine(8.0)
    with pytest.raises(StopError):
        fitted(source, batches, tmp_path / "out", progress=Interrupting(), **FEW)
    assert json.loads((tmp_path / "out.partial" / "state.json").read_text())["compute"]["forward"] == "float32"
    machine(0.2)
    receipt, _ = fitted(source, batches, tmp_path / "out", **FEW)
    assert receipt["compute"]["forward"] == "float32" and receipt["compute"]["why"].startswith("products")


def test_a_measurement_goes_on_in_its_dtype(checkpoint, machine, tmp_path):
    source, batches = checkpoint
    machine(8.0)
    known = measure(source, data=batches, out=tmp_path / "measured", menu="nearest bits=4,nearest bits=8", **SETTINGS)
    machine(0.2)
    receipt = modicum.fit(measured=known.directory, budget="6bpw", out=tmp_path / "out").receipt
    assert receipt["compute"]["forward"] == "float32" and receipt["compute"]["why"].startswith("as it was measured: ")
    asked = modicum.fit(measured=known.directory, budget="6bpw", out=tmp_path / "asked", compute="bfloat16").receipt
    assert asked["compute"]["forward"] == "bfloat16"


def test_blocks_are_widened_as_they_are_loaded(checkpoint):
    model = open_model(checkpoint[0])
    wide = model.computing(turned(HALF, WIDE))
    name = next(iter(wide.blocks.values())).parameters[0]
    assert wide.weights.held(name).device.type == "meta" and wide.weights.held(name).dtype == WIDE
    wide.weights.load([name])
    assert wide.weights.held(name).dtype == WIDE and wide.weights.read(name).dtype == HALF
    assert torch.equal(wide.weights.held(name), model.weights.read(name).float())
    wide.weights.release([name])
    assert wide.weights.held(name).device.type == "meta"
    assert wide.hash() == model.hash() and wide.dense_bytes == model.dense_bytes and wide.stored is model
    assert weights_held(wide) == 2 * weights_held(model)
    assert model.computing(turned(HALF, HALF)) is model


def test_too_little_memory_names_the_narrower_dtype(checkpoint, machine):
    source, batches = checkpoint
    machine(8.0)
    with pytest.raises(BudgetError, match="It computes in float32; --compute bfloat16 takes less, and longer"):
        modicum.fit(source, data=batches, method="gptq bits=4", ram="200MB", **SETTINGS)


def test_a_dry_run_says_in_which_dtype(checkpoint, machine, tmp_path):
    from modicum.cli.show import computed

    source, batches = checkpoint
    machine(8.0)
    forecast = modicum.fit(source, data=batches, dry_run=True, **FEW, **SETTINGS).receipt
    assert forecast["compute"]["forward"] == "float32"
    ((label, line),) = computed(forecast["compute"])
    assert label == "computed in" and line.startswith("float32, weights are stored in bfloat16: products in float32 against")
    machine(0.2)
    narrow = modicum.fit(source, data=batches, dry_run=True, **FEW, **SETTINGS).receipt
    assert narrow["activation_bytes"] * 2 == forecast["activation_bytes"]


def test_all_ranks_follow_the_first(monkeypatch, together):
    here = threading.local()
    monkeypatch.setattr(computing, "chosen", lambda *_: here.own)

    def settled(ranks):
        own = "float32" if ranks.leads else "bfloat16"
        here.own = Compute("bfloat16", own, own, f"what suits rank {ranks.rank}")
        return computing.agreed(Settings(target="modicum"), ranks=ranks)(None, None)

    assert [found.why for found in together(settled)] == ["what suits rank 0"] * 2


def test_written_models_are_judged_alike_too(checkpoint, machine, tmp_path):
    source, batches = checkpoint
    fitted(source, batches, tmp_path / "out", method="nearest bits=4")
    machine(0.2)
    narrow = modicum.evaluate(tmp_path / "out", data=batches, reference=source)
    machine(8.0)
    wide = modicum.evaluate(tmp_path / "out", data=batches, reference=source)
    assert (narrow["compute"]["forward"], wide["compute"]["forward"]) == ("bfloat16", "float32")
    assert wide["quality"]["mean"] == pytest.approx(narrow["quality"]["mean"], rel=0.1) and wide != narrow
    with pytest.raises(SettingError, match="compute bfloat16: all weights that are judged must be in it"):
        modicum.evaluate(zoo.build("llama")[0], data=batches, compute="bfloat16")
