"""Text that the model writes itself calibrates, and nothing is judged on it."""

import pytest
import torch

import modicum
from modicum.core.errors import DataError, SettingError
from modicum.data.own import written
from modicum.data.splits import from_text
from modicum.models.open import open_model
from modicum.testing import zoo


@pytest.fixture(scope="module")
def module():
    return zoo.build("llama")[0]


def test_a_window_is_drawn_from_the_models_own_distribution(module):
    with torch.random.fork_rng():
        torch.manual_seed(7)
        before = torch.get_rng_state()
        rows = written(module, 5, 12, begin=3, seed=1, batch=2)
        assert torch.equal(torch.get_rng_state(), before)
    assert rows.shape == (5, 12) and bool((rows[:, 0] == 3).all())
    assert torch.equal(rows, written(module, 5, 12, begin=3, seed=1, batch=2)) and not torch.equal(
        rows, written(module, 5, 12, begin=3, seed=2)
    )
    assert written(module, 2, 1, begin=3).tolist() == [[3], [3]]
    many = written(module, 4096, 2, begin=3, batch=4096)[:, 1]
    with torch.no_grad():
        wanted = module(input_ids=torch.tensor([[3]])).logits[0, -1].softmax(-1)
    found = torch.bincount(many, minlength=256) / len(many)
    assert float((found - wanted).abs().sum()) < 3 * (256 / 4096) ** 0.5  # what chance leaves of a draw from it is 0.8 of that root


def test_alone_it_is_judged_on_the_shipped_texts_and_among_others_on_theirs(tmp_path):
    tokenizer = open_model("demo").tokenizer
    own = lambda windows: torch.full((windows, 16), 5)
    found = from_text("self", tokenizer, samples=6, tokens=16, test_samples=8, write=own)
    assert (
        all(bool((batch["input_ids"] == 5).all()) for batch in found.calibration)
        and sum(map(len, (b["input_ids"] for b in found.calibration))) == 6
    )
    plain = from_text(None, tokenizer, samples=6, tokens=16, test_samples=8)
    rows = lambda part: {tuple(row.tolist()) for batch in part for row in batch["input_ids"]}
    assert rows(found.test) == rows(plain.test) and rows(found.validation) == rows(plain.validation)
    assert "written by the model itself" in " ".join(found.notes)
    (tmp_path / "letters.txt").write_text("<|endoftext|>".join(f"word {number} " * 40 for number in range(60)))
    mixed = from_text(f"{tmp_path}/letters.txt=3,self=1", tokenizer, samples=8, tokens=16, test_samples=8, write=own)
    assert [each["calibration"] for each in mixed.taken["sources"]] == [6, 2] and [each["test"] for each in mixed.taken["sources"]] == [
        8,
        0,
    ]
    with pytest.raises(DataError, match="there is no model that could"):
        from_text("self", tokenizer, samples=2, tokens=16)


def test_what_cannot_write_is_told_in_a_sentence(tmp_path):
    with pytest.raises(SettingError, match="has no generate"):
        written(torch.nn.Linear(2, 2), 1, 4, begin=0)
    zoo.build("bert")[0].save_pretrained(tmp_path / "bert")
    open_model("demo").tokenizer.save_pretrained(tmp_path / "bert")
    with pytest.raises(SettingError, match="data self: .* must be a causal language model to write text"):
        modicum.fit(tmp_path / "bert", data="self", method="nearest bits=4", tokens=16)
    receipt = modicum.fit("demo", data="self", method="nearest bits=8", samples=2, tokens=16, test_samples=2, dry_run=False).receipt
    assert receipt["data"]["source"] == "self"
