"""Models of other vocabularies: rows follow their tokens' texts, the tokenizer has them all, and the logits are those of the models."""

import json
import shutil

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import modicum
from modicum.core.errors import ModelError, SettingError

LETTERS = [chr(ord("a") + place) for place in range(20)]
OTHERS = ["c", "a", "b", *LETTERS[3:], "ab", "z"]


def checkpoint(folder, tokens, merges=(), special=(), seed=0):
    vocabulary = {token: place for place, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges), unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=len(tokens) + len(special), bos_token_id=0,
        eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def two(tmp_path):
    base = checkpoint(tmp_path / "base", LETTERS, special=["<end>"])
    return base, checkpoint(tmp_path / "other", OTHERS, [("a", "b")], ["<end>", "<tool>"], seed=1)


@torch.no_grad()
def logits(folder, tokens):
    """Of texts token by token, by the text of what comes next."""
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(folder), LlamaForCausalLM.from_pretrained(folder).eval()
    names = tokenizer.get_vocab()
    found = model(input_ids=torch.tensor([[names[token] for token in tokens]])).logits[0]
    return {token: found[:, row] for token, row in names.items()}


@pytest.mark.parametrize("kind", ["union", "base", "other"])
def test_rows_follow_their_tokens(two, tmp_path, monkeypatch, kind):
    base, other = two
    monkeypatch.chdir(tmp_path)
    made = modicum.merge("base", ["other"], "out", method="task_arithmetic", weights=[1.0], tokenizer=kind)
    names = transformers.AutoTokenizer.from_pretrained(made.out).get_vocab()
    mine, theirs = ({*transformers.AutoTokenizer.from_pretrained(each).get_vocab()} for each in (base, other))
    assert {*names} == {"union": mine | theirs, "base": mine, "other": theirs}[kind]
    both = ["b", "c", "<end>", "d"]
    found, wanted = logits(made.out, both), logits(other, both)
    for token in {*names} & theirs:
        torch.testing.assert_close(found[token], wanted[token], rtol=1e-4, atol=1e-5)
    assert json.loads((made.out / "config.json").read_text())["vocab_size"] == len(names)
    if kind != "base":
        text = transformers.AutoTokenizer.from_pretrained(made.out)
        assert text.convert_ids_to_tokens(text("b<tool>c")["input_ids"]) == ["b", "<tool>", "c"]


def test_a_token_that_only_the_base_has_stays_the_bases(two, tmp_path):
    base, other = two
    made = modicum.merge(other, [base], tmp_path / "out", method="average", tokenizer="union", verify=False)
    names = transformers.AutoTokenizer.from_pretrained(made.out).get_vocab()
    rows = lambda folder: LlamaForCausalLM.from_pretrained(folder).get_input_embeddings().weight
    known = transformers.AutoTokenizer.from_pretrained(other).get_vocab()
    assert torch.equal(rows(made.out)[names["<tool>"]], rows(other)[known["<tool>"]])


def test_without_a_rule_they_are_refused(two, tmp_path):
    base, other = two
    with pytest.raises(ModelError, match="its vocabulary must be the base's.*--tokenizer union or base"):
        modicum.merge(base, [other], tmp_path / "out")
    with pytest.raises(SettingError, match="must be base, union or one of the models"):
        modicum.merge(base, [other], tmp_path / "out", tokenizer="mine")
    shutil.copytree(other, tmp_path / "bare")
    (tmp_path / "bare/tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"must hold tokenizer\.json"):
        modicum.merge(base, [tmp_path / "bare"], tmp_path / "out", tokenizer="union")
