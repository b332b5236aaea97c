"""Healing in a run: never worse, the same bytes, resumable, told in the receipt; and no trace of it where it is not asked for."""

import json
from types import SimpleNamespace

import pytest
import torch

import modicum
from modicum.core.errors import BudgetError, SettingError
from modicum.core.tensorfile import TensorFile
from modicum.fit import heal as healing
from modicum.fit import run as running
from modicum.forms import Masked
from modicum.models.open import open_model
from modicum.testing import zoo

FAST = {"heal": 6, "heal_batch": 2, "heal_rate": 0.01}


def fitted(kind="llama", method="nearest bits=2", **words):
    model, batches = zoo.build(kind)
    return modicum.fit(model, data=batches, method=method, allow_broken=True, **words)


def tensors(out):
    with TensorFile(out / "model.safetensors") as file:
        return {name: file.read(name) for name in file.entries}


WAYS = [
    ("modicum", "nearest bits=2"), ("transformers", "nearest bits=2"), ("modicum", "magnitude keep=0.5"), ("modicum", "svd keep=0.3"),
    ("modicum", "nearest bits=2 | eora rank=2"),
]  # fmt: skip


@pytest.mark.parametrize("target, method", WAYS)
def test_a_healed_result_is_better_in_the_same_bytes(target, method):
    plain, healed = (fitted(method=method, target=target, **words) for words in ({}, FAST))
    told, quality = healed.receipt["healing"], healed.receipt["quality"]
    assert told["taken"] and len(told["losses"]) == 6 and told["trained"] == sum(told["methods"].values()) and told["seconds"] > 0
    assert told["validation"]["after"] < told["validation"]["before"] and not healed.receipt["events"][len(plain.receipt["events"]) :]
    assert told["before"]["mean"] == pytest.approx(plain.receipt["quality"]["mean"]) and quality["mean"] < told["before"]["mean"]
    assert told["test"]["change"] == pytest.approx(quality["mean"] - told["before"]["mean"])
    low, high = told["test"]["interval"]
    assert low <= told["test"]["change"] <= high
    assert "healing" not in plain.receipt and healed.receipt["bytes"]["actual"] == plain.receipt["bytes"]["actual"]
    before, after = tensors(plain.out), tensors(healed.out)
    assert before.keys() == after.keys() and all(before[name].shape == after[name].shape for name in before)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    stay = ("codes", "mask", "weight_packed", "weight_shape")
    assert moved and not any(name.rpartition(":")[2].rpartition(".")[2] in stay or "mask" in name for name in moved)
    assert any("norm" in name for name in moved)


def test_masks_are_those_of_before():
    plain, healed = (
        fitted(method="wanda keep=0.5", target="modicum", **words) for words in ({}, {**FAST, "heal_with": "norms, held rank=2"})
    )
    before, after = tensors(plain.out), tensors(healed.out)
    masks = [name for name in before if name.endswith(":mask")]
    assert masks and all(torch.equal(before[name], after[name]) for name in masks)


def test_no_healing_is_what_a_run_was_before():
    one, two = fitted(), fitted(heal=0)
    assert {path.name: path.read_bytes() for path in one.out.glob("*.safetensors")} == {
        path.name: path.read_bytes() for path in two.out.glob("*.safetensors")
    }
    assert "healing" not in two.receipt and one.receipt.keys() == two.receipt.keys()


def test_healing_that_makes_it_worse_is_left_out():
    plain, healed = fitted(), fitted(heal=3, heal_rate=50.0)
    told = healed.receipt["healing"]
    assert not told["taken"] and "worse on validation data" in " ".join(healed.receipt["events"])
    assert tensors(plain.out).keys() == tensors(healed.out).keys()
    assert all(torch.equal(value, tensors(healed.out)[name]) for name, value in tensors(plain.out).items())
    assert healed.receipt["quality"]["mean"] == plain.receipt["quality"]["mean"]


def test_a_killed_run_goes_on_with_the_same_losses(tmp_path, monkeypatch):
    wanted = fitted(out=tmp_path / "a", **FAST)

    class Dead(BaseException):
        pass

    def dies(*given, **words):
        raise Dead

    monkeypatch.setattr(running, "paired", dies)
    with pytest.raises(Dead):
        fitted(out=tmp_path / "b", **FAST)
    monkeypatch.undo()
    trained, train = [], healing.heal
    monkeypatch.setattr(healing, "heal", lambda *given, **words: trained.append(train(*given, **words)) or trained[-1])
    made = fitted(out=tmp_path / "b", **FAST)
    assert made.receipt["healing"]["losses"] == wanted.receipt["healing"]["losses"] and trained[0].seconds < 1
    assert all(torch.equal(value, tensors(made.out)[name]) for name, value in tensors(wanted.out).items())


@pytest.mark.parametrize("kind", ["mlp", "gpt2", "qwen3_moe", "vit", "bert"])
def test_models_of_any_kind_heal(kind):
    made = fitted(kind, target="modicum", **FAST)
    told = made.receipt["healing"]
    assert len(told["losses"]) == 6 and told["validation"]["after"] is not None
    assert told["taken"] == (told["validation"]["after"] < told["validation"]["before"])


def test_blocks_that_are_dropped_and_biases_that_are_added_heal_too():
    dropped = fitted(method="blocks count=1 | nearest bits=4", target="modicum", **FAST)
    assert dropped.receipt["healing"]["taken"]
    made = fitted("gpt2", method="flap keep=0.7", target="modicum", **FAST)
    assert len(made.receipt["healing"]["losses"]) == 6


def test_what_cannot_be_is_told_in_words():
    with pytest.raises(SettingError, match="heal_rate: must stand beside heal"):
        fitted(heal_rate=0.1)
    with pytest.raises(SettingError, match="must be one trained step"):
        fitted(heal=2, heal_with="gptq bits=3")


def test_memory_is_counted_and_too_little_is_refused_with_what_would_do():
    (model, batches), asked = zoo.build("llama"), {"heal_batch": 4, "heal_with": "norms, held"}
    scene = lambda ram: SimpleNamespace(
        request=SimpleNamespace(ram=ram, **asked), model=open_model(model), data=SimpleNamespace(calibration=batches)
    )
    least, whole = (healing._needed(scene(0), count) for count in (1, 4))
    assert healing._together(scene(None)) == healing._together(scene(2 * whole)) == 4
    with pytest.raises(BudgetError, match="to heal this model beside its original, got 1.000 kB"):
        healing._together(scene(1000))
    assert least < whole


def test_the_receipt_can_be_read_again():
    made = fitted(**FAST)
    again = json.loads((made.out / "receipt.json").read_text(encoding="utf-8"))
    assert again["healing"]["losses"] == made.receipt["healing"]["losses"]
    assert modicum.report(again).count("</html>") == 1 and not isinstance(made.receipt["healing"].get("unhealed"), Masked)


def test_rounds_prune_gradually_within_one_mask():
    words = {**FAST, "heal": 3}
    one, three = (fitted(method="magnitude keep=0.3", target="modicum", rounds=rounds, **words) for rounds in (1, 3))
    told = three.receipt["healing"]
    assert [each["options"] for each in told["rounds"]] == [[f"magnitude keep={0.3 ** (number / 3)}"] for number in (1, 2)]
    assert all(len(each["losses"]) == 3 for each in told["rounds"]) and "rounds" not in one.receipt["healing"]
    assert three.receipt["bytes"]["actual"] == one.receipt["bytes"]["actual"]
    weight = next(value for name, value in three.model.named_parameters() if "down_proj" in name)
    assert int((weight != 0).sum()) <= round(0.3 * weight.numel())


def test_rounds_are_resumed_and_refused_in_words(tmp_path, monkeypatch):
    words = {**FAST, "heal": 2, "method": "magnitude keep=0.5 | eora rank=2", "target": "modicum", "rounds": 2}
    wanted = fitted(**words)

    def dies(*given, **names):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "healed", dies)
    with pytest.raises(KeyboardInterrupt):
        fitted(out=tmp_path / "b", **words)
    monkeypatch.undo()
    made = fitted(out=tmp_path / "b", **words)
    assert all(torch.equal(value, tensors(made.out)[name]) for name, value in tensors(wanted.out).items())
    with pytest.raises(SettingError, match="must stand beside an option that prunes"):
        fitted(rounds=2, **FAST)
    with pytest.raises(SettingError, match="leaves no blocks"):
        fitted(rounds=2, method="blocks count=1 | magnitude keep=0.5", target="modicum", **FAST)
    with pytest.raises(SettingError, match="rounds: must stand beside heal"):
        fitted(rounds=2)


def test_the_page_and_the_card_tell_of_it():
    made = fitted(**FAST)
    page, card = modicum.report(made.receipt), (made.out / "README.md").read_text(encoding="utf-8")
    assert "<h2>Healing</h2>" in page and f"{made.receipt['healing']['trained']:,} numbers" in page and "Loss of 6 updates" in page
    assert "were trained in 6 updates to answer as the original" in card
    plain = fitted()
    assert "<h2>Healing</h2>" not in modicum.report(plain.receipt)


def test_a_trained_step_stands_last_in_an_option_and_its_bytes_count(method="lora rank=2"):
    words = {**FAST, "heal_with": "norms"}
    plain, repaired = fitted(target="modicum"), fitted(method="nearest bits=2 | eora rank=2", target="modicum")
    made = fitted(method=f"nearest bits=2 | {method}", target="modicum", **words)
    told, before, after = made.receipt["healing"], tensors(plain.out), tensors(made.out)
    assert told["taken"] and told["methods"][method] > 0 and set(told["methods"]) == {method, "norms"}
    assert told["before"]["mean"] == pytest.approx(plain.receipt["quality"]["mean"], rel=1e-3)  # what it begins with changes nothing
    assert made.receipt["quality"]["mean"] < told["before"]["mean"]
    assert made.receipt["bytes"]["actual"] == pytest.approx(repaired.receipt["bytes"]["actual"], rel=1e-3)
    codes = [name for name in before if name.endswith("codes")]
    assert codes and all(torch.equal(before[name], after[name.replace(":codes", ":0.codes")]) for name in codes)


@pytest.mark.parametrize(
    "method, words, said",
    [
        ("nearest bits=2 | lora rank=2", {}, "heal: must be 1 or more"),
        ("lora rank=2", FAST, "lora: is trained"),
        ("lora rank=2 | nearest bits=2", FAST, "lora: is trained"),
        ("nearest bits=2 | dora rank=2", FAST, "dora: must be what a file holds beside a compressed weight"),
        ("nearest bits=2 | ties", FAST, "ties: makes one model of several"),
    ],
)
def test_a_trained_step_elsewhere_is_told_in_words(method, words, said):
    with pytest.raises(SettingError, match=said):
        fitted(method=method, target="modicum", **words)


CLOSING = "nearest bits=2 | lora rank=2"


def test_a_trained_step_of_a_plan_is_kept_in_its_bytes(tmp_path):
    rule = f"model.layers.0.*: {CLOSING}"
    ruled = fitted(set=(rule,), target="modicum", **FAST)
    options = json.loads((ruled.out / "plan.json").read_text())["options"]
    assert {option for name, option in options.items() if "layers.0." in name} == {CLOSING}
    assert {option for name, option in options.items() if "layers.1." in name} == {"nearest bits=2"}
    assert ruled.receipt["healing"]["methods"]["lora rank=2"] > 0
    again = fitted(method=None, plan=ruled.out / "plan.json", target="modicum", **FAST)
    assert json.loads((again.out / "plan.json").read_text())["options"] == options
    assert again.receipt["bytes"]["actual"] == ruled.receipt["bytes"]["actual"]
    with pytest.raises(SettingError, match="heal: must be 1 or more"):
        fitted(set=(rule,), target="modicum")


@pytest.mark.slow
def test_a_trained_step_that_a_rule_asks_for_holds_a_budget():
    made = fitted(method=None, size=60_000, set=(f"model.layers.0.*: {CLOSING}",), target="modicum", **FAST)
    options = json.loads((made.out / "plan.json").read_text())["options"]
    assert {option for name, option in options.items() if "layers.0." in name} == {CLOSING}
    assert sum(file.stat().st_size for file in made.out.glob("*.safetensors")) == made.receipt["bytes"]["actual"] <= 60_000
    assert made.receipt["healing"]["methods"]["lora rank=2"] > 0
