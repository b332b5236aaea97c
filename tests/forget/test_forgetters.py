"""What every forgetter keeps, and what each is for, on a net that learnt four classes."""

import copy
import json

import pytest
import torch
import transformers

import modicum
from modicum.core.errors import DataError, SettingError
from modicum.core.recipe import recipe, recipes
from modicum.forget.forgetter import Rows
from modicum.forget.forgetting import forget
from modicum.forget.judged import attacked
from modicum.forget.rows import distinct, overlap, read_rows
from modicum.forget.slug import front
from modicum.forget.ssd import importance
from modicum.train.rows import losses, row_loss

METHODS = {
    "ssd": "ssd alpha=1 dampen=0.3", "slug": "slug", "ascent": "ascent rate=0.01", "npo": "npo rate=0.01 steps=60", "sparse": "sparse steps=200",
    "retrain": "retrain steps=100",
}  # fmt: skip
each = pytest.mark.parametrize("method", [METHODS.get(name, name) for name in sorted(recipes("forget"))])


def accuracy(net, rows):
    x, y = (torch.cat(part) for part in zip(*rows))
    return float((net(x).argmax(1) == y).float().mean())


@each
def test_what_is_forgotten_is_no_longer_known_and_the_rest_is(case, method):
    net, gone, stay, _ = case
    before = copy.deepcopy(net.state_dict())
    made = forget(net, gone, stay, method=method, relapse=False, goal=4.0)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items()), "the caller's module is left alone"
    assert accuracy(net, gone) > 0.9
    if not method.startswith("sparse"):  # which never sees what is to be forgotten; fine-tuning alone forgets little in so small a net
        assert accuracy(made.module, gone) < 0.5
    assert accuracy(made.module, stay) > 0.75
    assert made.receipt["after"]["forget"]["loss"] > made.receipt["before"]["forget"]["loss"] * 0.9


@each
def test_same_seed_same_bits_and_the_delta_gives_the_module(case, method):
    net, gone, stay, _ = case
    one, other = (forget(net, gone, stay, method=method, relapse=False) for _ in range(2))
    assert all(torch.equal(value, other.module.state_dict()[name]) for name, value in one.module.state_dict().items())
    for name, parameter in net.named_parameters():
        base = parameter.detach() if parameter.ndim > 1 else parameter.detach()[None]
        made = one.delta.weight(name, base).reshape(parameter.shape) if name in one.delta.forms else parameter.detach()
        assert torch.allclose(made, one.module.get_parameter(name), atol=1e-6)


@each
def test_forgetting_nothing_changes_nothing(case, method):
    net, _, stay, _ = case
    made = forget(net, [], stay, method=method)
    assert not made.delta.forms and all(torch.equal(value, made.module.state_dict()[name]) for name, value in net.state_dict().items())


def test_importance_does_not_depend_on_the_batch_and_is_the_sum_of_squared_gradients(case):
    net, gone, _, _ = case
    found = importance(net, gone[:6], row_loss)
    wanted = {name: torch.zeros_like(parameter) for name, parameter in net.named_parameters()}
    for x, y in gone[:6]:
        net.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        for name, parameter in net.named_parameters():
            wanted[name] += parameter.grad.square() / 6
    net.zero_grad(set_to_none=True)
    assert all(torch.allclose(found[name], wanted[name], atol=1e-7) for name in wanted)


def test_nothing_is_dampened_where_everything_must_matter_endlessly_more(case):
    net, gone, stay, _ = case
    assert not forget(net, gone, stay, method="ssd alpha=1e9", relapse=False).delta.forms


def test_one_gradient_changes_one_layer(case):
    net, gone, stay, _ = case
    made = forget(net, gone, stay, method="slug", relapse=False)
    assert len(made.delta.forms) == 1


def test_the_front_is_of_those_that_none_surpasses():
    assert front({"a": (3.0, 0.1), "b": (2.0, 0.05), "c": (2.0, 0.2), "d": (1.0, 0.5)}) == ["a", "b"]


def test_the_receipt_holds_it_against_a_model_that_never_saw_the_rows(case, tmp_path):
    net, gone, stay, other = case
    unseen = [(x + 0.1, y) for x, y in gone]
    made = forget(net, gone, stay, tmp_path / "out", method="ssd alpha=1.5", unseen=unseen, reference=other)
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_text())
    assert receipt["attack"].keys() == {"after", "reference"} and 0 <= receipt["attack"]["after"] <= 1
    assert receipt["distance"]["retain"] >= 0 and receipt["comes back"].keys() == {"4 bits", "50 updates"}
    assert modicum.Delta.load(tmp_path / "out").forms.keys() == made.delta.forms.keys()


def test_an_attack_tells_what_was_seen_from_what_was_not():
    loss = lambda module, batch: batch[0][:, 0]
    low, high = [(torch.tensor([[float(n)]]), torch.tensor([0])) for n in range(5)], [(torch.tensor([[9.0]]), torch.tensor([0]))]
    assert attacked(None, low, high, loss) == 1 and attacked(None, low, low, loss) == 0.5


def test_rows_in_both_sets_are_counted_and_refused(case):
    net, gone, stay, _ = case
    with pytest.raises(DataError, match=r"2 of the 10 rows to forget must not be among those to retain, are.*--allow-overlap"):
        forget(net, gone[:10], [*stay, *gone[:2]])
    assert overlap(gone[:10], [*stay, *gone[:2]]) == 2
    assert forget(net, gone[:10], [*stay, *gone[:2]], allow_overlap=True, relapse=False).receipt["overlap"] == 2


def test_slips_are_said(case):
    net, gone, stay, _ = case
    with pytest.raises(SettingError, match="is not one of forget"):
        recipe("forget", "sdd")
    with pytest.raises(DataError, match="different rows to retain"):
        forget(net, gone, [])
    with pytest.raises(SettingError, match="must be a list of batches"):
        forget(net, "rows.jsonl", stay)


def test_npo_is_ascent_that_slows_down(case):
    net, gone, stay, _ = case
    rows = Rows(gone, stay, row_loss, goal=1.4)
    small, large = (copy.deepcopy(net) for _ in range(2))
    recipe("forget", "npo beta=0.01 rate=0.003 steps=60 retain=0").forget(small, rows)
    recipe("forget", "npo beta=5 rate=0.003 steps=60 retain=0").forget(large, rows)
    assert losses(small, gone, row_loss).mean() > losses(large, gone, row_loss).mean() > losses(net, gone, row_loss).mean()


def test_tables_are_read(tmp_path):
    words = lambda text, add_special_tokens=True: {"input_ids": [len(word) for word in text.split()]}
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "who is it", "answer": "nobody at all"}\n{"text": "some text"}\n')
    one, two = read_rows(path, words, 8)
    assert one["labels"].tolist() == [[-100, -100, -100, 6, 2, 3, -100, -100]] and one["attention_mask"].sum() == 6
    assert two["labels"][0, :2].tolist() == [4, 4]
    path.write_text('{"prompt": "' + "a " * 8 + '", "completion": "b"}\n')
    with pytest.raises(DataError, match=r"line 1 must have 2 to 8 tokens, has 9"):
        read_rows(path, words, 8)


def test_published_files_are_read_as_they_are(tmp_path):
    words = lambda text, add_special_tokens=True: {"input_ids": [len(word) for word in text.split()]}
    tofu = {"question": "who is it", "answer": "nobody", "paraphrased_answer": "no one", "perturbed_answer": ["he", "she"]}
    published = {
        "forget10.json": json.dumps(tofu) + "\n" + json.dumps(tofu | {"question": "where"}) + "\n",  # TOFU
        "forget_qa.json": json.dumps([{"question": "who is it", "answer": "nobody"}] * 2),  # MUSE, knowmem
        "verbmem.json": json.dumps([{"prompt": "the first part", "gt": "and the second"}]),
        "privleak.json": json.dumps(["one text of " + "many " * 13 + "words", "another text"]),
        "raw.txt": "a book " * 9,
    }  # fmt: skip
    for name, body in published.items():
        (tmp_path / name).write_text(body)
    rows = {name: read_rows(tmp_path / name, words, 8) for name in published}
    assert [len(found) for found in rows.values()] == [2, 2, 1, 3, 3]
    counted = [[int((row["labels"] != -100).sum()) for row in found] for found in rows.values()]
    assert counted == [[1, 1], [1, 1], [3], [8, 8, 2], [8, 8, 2]]


def test_the_same_tokens_are_one_row_however_they_are_written(tmp_path, tokenizer):
    (tmp_path / "one.jsonl").write_text('{"text": "line 1 goes on"}\n')
    (tmp_path / "two.json").write_text('[{"prompt": "line 1", "completion": " goes on"}, {"text": "another"}]')
    one, two = (read_rows(tmp_path / name, tokenizer, 16) for name in ("one.jsonl", "two.json"))
    assert overlap(one, two) == 1 and distinct([*one, *two]) == 2
    (tmp_path / "odd.json").write_text('{\n "text": "one"\n}')
    with pytest.raises(DataError, match=r"odd\.json, line 1, must be one JSON object"):
        read_rows(tmp_path / "odd.json", tokenizer, 16)


def test_a_language_model_is_trained_anew_from_its_config(tokenizer):
    config = transformers.LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    module = transformers.LlamaForCausalLM(config)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    row = lambda start: {"input_ids": torch.arange(start, start + 8)[None], "attention_mask": torch.ones(1, 8, dtype=torch.int64)}
    data = [{**row(start), "labels": row(start)["input_ids"]} for start in range(4)]
    one, other = (forget(module, data[:1], data[1:], method="retrain steps=30", relapse=False, seed=1) for _ in range(2))
    assert one.receipt["after"]["retain"]["loss"] < 0.6 * one.receipt["before"]["retain"]["loss"]
    assert all(torch.equal(value, other.module.state_dict()[name]) for name, value in one.module.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
