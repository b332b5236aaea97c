"""What a batch must be, and whose an error is."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import modicum
from modicum.core.errors import DataError
from modicum.data import from_batches
from modicum.data.forward import LABELS_LEFT_OUT, described, require_tokens, without_labels


class Head(nn.Module):
    """One argument in."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(64, 8)

    def forward(self, x):
        return self.net(x)


class Pair(Head):
    def forward(self, x, other):
        return self.net(x) + other[:, None]


class Features(Head):
    """One dict in, by position."""

    def forward(self, features):
        return self.net(features["x"])


def loader(labels, count=5):
    torch.manual_seed(0)
    return [(torch.randn(4, 64), labels(4)) for _ in range(count)]


def whole(count):
    return torch.randint(0, 8, (count,))


def test_labels_beside_inputs_are_left_out_and_the_receipt_says_so(tmp_path):
    receipt = modicum.fit(Head(), method="nearest bits=8", data=loader(whole), out=tmp_path / "out").receipt
    assert receipt["data"]["notes"] == [LABELS_LEFT_OUT]
    found = modicum.evaluate(Head(), reference=Head(), data=iter(loader(whole)))
    assert found["data"]["notes"] == [LABELS_LEFT_OUT]


def test_a_second_tensor_that_forward_can_take_stays():
    splits = from_batches(loader(whole))
    assert without_labels(Pair(), splits) is splits
    assert all(len(batch) == 1 for batch in without_labels(Head(), splits).test)


@pytest.mark.parametrize(
    "module, batches, said",
    [
        (Head(), loader(lambda n: torch.randn(n)), "takes? from 2 .*|positional"),
        (Head(), [{"pixels": x} for x, _ in loader(whole)], "here x; leave labels out"),
        (Head(), [x[:, :7] for x, _ in loader(whole)], r"float32 \[4, 7\] came, and it raises RuntimeError"),
        (Head(), [x.double() for x, _ in loader(whole)], r"float64 \[4, 64\] came"),
        (Features(), [{"x": x} for x, _ in loader(whole)], "here features"),
    ],
    ids=["float labels", "another key", "another width", "another type", "a dict for one argument"],
)
def test_what_forward_does_not_take_is_told_in_one_sentence(module, batches, said, tmp_path):
    name = type(module).__name__
    with pytest.raises(DataError, match=f"(?s)^{name}: its forward must take .*({said})"):
        modicum.fit(module, method="nearest bits=8", data=batches, out=tmp_path / "out")
    with pytest.raises(DataError, match=f"^{name}: its forward must take"):
        modicum.evaluate(module, reference=module, data=batches)
    assert not (tmp_path / "out").exists()


def test_an_error_of_a_forward_deep_inside_names_the_module_and_its_first_line(tmp_path):
    class Raising(Head):
        def forward(self, x):
            raise KeyError("my own\nand more")

    with pytest.raises(DataError, match="Raising: its forward .* raises KeyError: 'my own"):
        modicum.fit(Raising(), method="nearest bits=8", data=[x for x, _ in loader(whole)], out=tmp_path / "out")


def test_a_batch_in_words():
    assert described((torch.zeros(2, 3),)) == "float32 [2, 3]"
    assert described({"a": torch.zeros(1), "b": torch.ones(2).bool()}) == "a dict of a float32 [1], b bool [2]"
    assert described(tuple(torch.zeros(1) for _ in range(11))).endswith(" and 3 more")


def test_tokens_that_a_model_does_not_know_and_sequences_that_it_cannot_take_are_told():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    row = lambda count, top=31: {"input_ids": torch.tensor([[top] * count])}
    require_tokens(model, [row(8), row(3)])
    with pytest.raises(DataError, match="among the 32 that the model knows, one is number 32"):
        require_tokens(model, [row(3), {"rejected_ids": row(3, 32)["input_ids"]}])
    with pytest.raises(DataError, match="longest sequence must suit GPT2LMHeadModel, has 9 tokens, on which it raises IndexError"):
        require_tokens(model, [row(9), row(3)])
    require_tokens(Head(), [(torch.zeros(1, 64),)])
