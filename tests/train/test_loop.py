"""The loop: the loss per token is right whatever is computed together, and what was killed goes on to the last bit."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.train.killed import Killed

from modicum.core.errors import DataError, ModelError
from modicum.core.progress import Quiet
from modicum.sweep.ranks import LONE
from modicum.testing import zoo
from modicum.train import Loop
from modicum.train.loop import evaluate, single, train
from modicum.train.objectives import distillation, next_token
from modicum.train.trained import trained


def sequences(count=12, padded=False):
    draw = torch.Generator().manual_seed(0)
    lengths = [8 + (3 * place) % 7 for place in range(count)]
    rows = [{"input_ids": torch.randint(3, 100, (1, length), generator=draw)} for length in lengths]
    if not padded:
        return rows
    longest, found = max(lengths), []
    for row, length in zip(rows, lengths):
        more = longest - length
        found.append(
            {"input_ids": F.pad(row["input_ids"], (0, more)), "attention_mask": F.pad(torch.ones(1, length, dtype=torch.int64), (0, more))}
        )
    return found


def learnt(rows, loop, option="lora rank=2", **words):
    model, _ = zoo.build("llama")
    with trained(model, option, total=loop.steps) as t:
        return train(model, t, rows, loop, **words), {name: tensor.detach().clone() for name, tensor in t.named_parameters().items()}


@pytest.mark.parametrize("together", [0, 1, 3])
def test_padding_and_what_is_computed_together_change_nothing(together):
    wanted, _ = learnt(sequences(), Loop(steps=3, batch=6))
    found, _ = learnt(sequences(padded=True), Loop(steps=3, batch=6, together=together))
    assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("option", ["lora rank=2", "fish keep=0.05", "lora rank=1 | mezo"])
def test_ranks_learn_what_one_process_does(together, tmp_path, option):
    """Whatever is watched or estimated; each has all that was learnt, and the judged losses in their order. The first alone keeps."""
    models = [zoo.build("llama")[0] for _ in range(3)]

    def work(ranks):
        model, keep = models[ranks.count + ranks.rank - 1], tmp_path / f"{ranks.count} {ranks.rank}"
        keep.mkdir()
        with trained(model, option, total=3) as t:
            losses = train(model, t, sequences(), Loop(steps=3, batch=6, together=3), ranks=ranks, keep=keep)
            return losses, evaluate(model, sequences(5), ranks=ranks), [parameter.detach().clone() for parameter in t.parameters()]

    alone, (first, second) = work(LONE), together(work)
    assert first[:2] == second[:2] and all(torch.equal(one, other) for one, other in zip(first[2], second[2]))
    assert first[0] == pytest.approx(alone[0], rel=1e-5) and first[1][3] == pytest.approx(alone[1][3], rel=1e-4)
    assert [any(each.iterdir()) for each in sorted(tmp_path.iterdir())] == [True, True, False]


def test_the_first_loss_is_that_of_the_model_per_token():
    rows, (model, _) = sequences(6), zoo.build("llama")
    losses, _ = learnt(rows, Loop(steps=1, batch=6))
    sums = [float(F.cross_entropy(model(**row).logits[0, :-1], row["input_ids"][0, 1:], reduction="sum").detach()) for row in rows]
    assert losses[0] == pytest.approx(sum(sums) / sum(row["input_ids"].shape[1] - 1 for row in rows), rel=1e-5)
    assert [loss for loss, _ in evaluate(model, rows)] == pytest.approx(sums, rel=1e-5)


@pytest.mark.parametrize(
    "option",
    [
        "lora rank=2",
        "rigl keep=0.5 every=2",
        "vera rank=4",
        "adalora rank=1 first=2 every=1 warmup=0",
        "full | lisa layers=1 every=2",
        "lora rank=2 | mezo",
        "prompt tokens=2",
    ],
)
def test_what_was_killed_goes_on_to_the_last_bit(tmp_path, option):
    loop = Loop(steps=7, batch=3, every=2, rate=0.01)
    wanted, last = learnt(sequences(), loop, option)
    with pytest.raises(KeyboardInterrupt):
        learnt(sequences(), loop, option, keep=tmp_path, progress=Killed(4))
    losses, found = learnt(sequences(), loop, option, keep=tmp_path)
    assert losses == wanted and all(torch.equal(found[name], last[name]) for name in last)
    (tmp_path / "training.pt").write_bytes(b"half")
    assert learnt(sequences(), loop, option, keep=tmp_path)[0] == wanted, "what cannot be read is not gone on from"


def test_a_loss_that_is_no_number_ends_it_and_what_was_kept_stays(tmp_path):
    calls = []

    def objective(module, batch):
        loss, count = next_token(module, batch)
        calls.append(1)
        return (loss * float("nan") if len(calls) > 4 else loss), count

    with pytest.raises(ModelError, match="the loss must be a number, is nan at update 5"):
        learnt(sequences(), Loop(steps=9, batch=1, every=2), objective=objective, keep=tmp_path)
    assert len(torch.load(tmp_path / "training.pt")["losses"]) == 4


def test_the_rate_rises_and_falls():
    loop = Loop(steps=100, rate=1.0, warmup=0.1)
    rates = [loop.at(step) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == rates[10] == 1.0 and rates[-1] < 0.001 and max(rates) == 1.0


def test_nothing_to_learn_is_told():
    with pytest.raises(DataError, match="a sequence to train on"):
        learnt([], Loop(steps=1))
    rows = [{"input_ids": torch.ones(1, 4, dtype=torch.int64), "labels": torch.full((1, 4), -100)}]
    with pytest.raises(DataError, match="a token to learn"):
        learnt(rows, Loop(steps=1, batch=1))


def test_a_student_of_itself_has_nothing_to_learn():
    model, _ = zoo.build("llama")
    loss, count = distillation(copy.deepcopy(model))(model, sequences(1)[0])
    assert float(loss.detach().abs()) < 1e-4 and count == sequences(1)[0]["input_ids"].shape[1] - 1


def test_rows_lose_their_padding():
    batch = {"input_ids": torch.arange(8).reshape(2, 4), "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])}
    assert [row["input_ids"].tolist() for row in single([batch])] == [[[0, 1, 2, 3]], [[4, 5]]]


def test_a_full_disk_is_told_and_what_was_kept_stays(tmp_path, monkeypatch):
    loop = Loop(steps=6, batch=2, every=2)
    wanted, _ = learnt(sequences(), loop)
    with pytest.raises(KeyboardInterrupt):
        learnt(sequences(), loop, keep=tmp_path, progress=Killed(2))

    def full(*_):
        raise RuntimeError("unexpected pos")

    with monkeypatch.context() as patch:
        patch.setattr("torch.save", full)
        with pytest.raises(ModelError, match="cannot be written"):
            learnt(sequences(), loop, keep=tmp_path)
    assert learnt(sequences(), loop, keep=tmp_path)[0] == wanted


def test_a_training_of_another_model_is_not_gone_on_with(tmp_path):
    loop = Loop(steps=2, batch=2)
    wanted, _ = learnt(sequences(), loop, keep=tmp_path)
    body = torch.load(tmp_path / "training.pt", weights_only=True)
    body["losses"], body["shapes"] = [0.0, 0.0], {name: (1, 1) for name in body["shapes"]}
    torch.save(body, tmp_path / "training.pt")
    found, _ = learnt(sequences(), loop, keep=tmp_path)
    assert found == wanted


def test_a_stream_is_taken_as_it_comes_and_gone_on_with(tmp_path):
    """Batches of any number of rows, begun again where they end; what was killed passes over what it had."""
    rows = sequences(6)

    class Stream:
        def __iter__(self):
            yield from rows[:2]
            same = [{"input_ids": F.pad(row["input_ids"], (0, 20 - row["input_ids"].shape[1]))} for row in rows[2:4]]
            mask = [F.pad(torch.ones_like(row["input_ids"]), (0, 20 - row["input_ids"].shape[1])) for row in rows[2:4]]
            yield {"input_ids": torch.cat([each["input_ids"] for each in same]), "attention_mask": torch.cat(mask)}
            yield from rows[4:]

    loop = Loop(steps=4, batch=3, every=2)
    whole, told = learnt(Stream(), loop)[0], Told()
    killed = Killed(2)
    with pytest.raises(KeyboardInterrupt):
        learnt(Stream(), loop, keep=tmp_path, progress=killed)
    assert learnt(Stream(), loop, keep=tmp_path, progress=told)[0] == whole
    assert all("loss" in words and words.endswith("tokens/s") for words in told.words) and len(told.words) == 2
    with pytest.raises(DataError, match="begun again"):
        learnt(iter(rows), loop)


class Told(Quiet):
    def __init__(self):
        self.words = []

    def tell(self, words):
        self.words.append(words)
