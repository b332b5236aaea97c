"""A budget of multiply-adds: what is written takes no more of them, as torch's own counter says, and what cannot be is told before any work."""

import json

import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

import modicum
from modicum.cli import show
from modicum.cli.main import main
from modicum.core.budget import Budget
from modicum.receipt import report
from modicum.testing import zoo


def judged(module, batch):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(**batch)
    return counter.get_total_flops() // 2


@pytest.fixture(scope="module")
def scene():
    module, batches = zoo.build("llama")
    module.set_attn_implementation("eager")  # torch counts no fused attention of a processor
    return module, batches


@pytest.fixture(scope="module")
def fitted(scene, tmp_path_factory):
    """A fit to 60 % of the multiply-adds, from a measurement."""
    folder = tmp_path_factory.mktemp("macs")
    module, batches = scene
    measured = modicum.measure(
        module,
        data=batches,
        menu="nearest bits=4,nearest bits=8,ziplm keep=0.75,ziplm keep=0.5,blocks",
        harm="error",
        search_time=0.0,
        target="modicum",
        out=folder / "measured",
    )
    return modicum.fit(measured=measured, macs="60%", out=folder / "out"), folder, measured


def test_what_is_written_takes_no_more_than_was_asked_for(fitted, scene):
    result, (module, _) = fitted[0], scene
    found = result.receipt["macs"]
    row = {"input_ids": torch.ones(found["pass"]["input_ids"], dtype=torch.int64)}
    assert found["original"] == judged(module, row) and found["allowed"] == 0.6 * found["original"]
    loaded = result.model
    loaded.set_attn_implementation("eager")
    assert judged(loaded, row) == found["actual"] <= found["allowed"]
    assert found["actual"] > 0.3 * found["original"], "what is allowed is used"
    assert found["pass"]["input_ids"][0] == 1, "it is of one row"


def test_the_number_itself_can_be_asked_for_and_what_cannot_be_is_told_with_the_smallest(fitted):
    result, folder, measured = fitted
    again = modicum.fit(measured=measured, macs=result.receipt["macs"]["allowed"], dry_run=True)
    assert again.receipt["fits"] is True
    with pytest.raises(
        modicum.BudgetError, match=r"cannot be reached, the smallest .* multiply-adds, \d+\.\d% of the original's\. Only cuts"
    ):
        modicum.fit(measured=measured, macs=1000, out=folder / "none")
    assert not (folder / "none.partial").exists()


def test_fewer_bits_save_none(scene, tmp_path):
    module, batches = scene
    found = modicum.fit(module, method="nearest bits=4 group=16", data=batches, target="modicum", out=tmp_path / "out").receipt["macs"]
    assert found["actual"] == found["original"] and found["allowed"] is None


def test_the_table_of_before_and_after_is_shown(fitted):
    receipt = fitted[0].receipt
    rows = {name: rest for name, *rest in show.before_and_after(receipt)}
    assert rows["multiply-adds"] == [f"{receipt['macs']['original']:,}", f"{receipt['macs']['actual']:,}", rows["multiply-adds"][2]]
    assert set(rows) == {"parameters", "multiply-adds", "bytes"}
    page = report(receipt)
    assert f"{receipt['macs']['actual']:,}" in page and "Multiply-adds of one forward pass" in page
    earlier = {name: value for name, value in receipt.items() if name not in ("macs", "values")}
    assert [name for name, *_ in show.before_and_after(earlier)] == ["bytes"] and "Multiply-adds" not in report(earlier)


def test_shares_and_numbers_are_read_and_what_may_be_either_is_refused():
    read = lambda text: Budget.of(macs=text).macs
    assert [read(text) for text in ("60%", "0.6", "5e9", "5G", "1.5 T", "2500k")] == [0.6, 0.6, 5e9, 5e9, 1.5e12, 2.5e6]
    assert str(Budget(macs=0.6)) == "60 % of multiply-adds" and str(Budget(macs=5e9)) == "5.000 G multiply-adds"
    for text, said in [("7", "Write 7% if that is meant"), ("150%", "at most the original's"), ("many", "must be a share such as 60%")]:
        done = CliRunner().invoke(main, ["fit", "demo", "--macs", text])
        assert done.exit_code == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_a_dry_run_of_files_says_that_it_cannot_tell():
    done = CliRunner().invoke(main, ["fit", "demo", "--macs", "60%", "--dry-run", "--json", "--target", "modicum"], catch_exceptions=False)
    found = json.loads(done.stdout)
    assert found["fits"] is None and "multiply-adds are only known once" in found["why"]
