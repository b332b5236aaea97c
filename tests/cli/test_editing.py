"""edit and forget as a shell runs them, on a tiny model: a delta that is applied and taken back to the byte, a receipt, and slips in a sentence."""

import dataclasses
import json
import shutil

import pytest
import torch
import transformers
from click.testing import CliRunner

from modicum.cli.main import main
from modicum.data.text import shipped
from modicum.models.located import DEMO
from modicum.models.quiet import hushed
from modicum.testing.facts import invented

FEW = ("--samples", 4, "--tokens", 32, "--test-samples", 4)


def run(*words):
    result = CliRunner().invoke(main, [str(word) for word in words], prog_name="modicum")
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint of two blocks in bfloat16, facts, and rows."""
    folder = tmp_path_factory.mktemp("editing")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=1024, tie_word_embeddings=False
    )
    with hushed():
        transformers.LlamaForCausalLM(config).bfloat16().save_pretrained(folder / "model")
    for file in DEMO.glob("tokenizer*"):
        shutil.copy(file, folder / "model")
    rows = [{name: value for name, value in dataclasses.asdict(fact).items() if name != "where"} for fact in invented(3)]
    (folder / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in zip(("one", "two"), shipped("test")):
        (folder / f"{name}.txt").write_text(text[:4000])
    (folder / "gone.jsonl").write_text("".join(json.dumps({"text": f"secret number {n} is here"}) + "\n" for n in range(4)))
    (folder / "stay.jsonl").write_text("".join(json.dumps({"prompt": f"line {n}", "completion": " goes on"}) + "\n" for n in range(6)))
    return folder


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_an_edit_is_applied_and_taken_back_to_the_byte(place):
    code, said, _ = run(
        "edit", place / "model", "--facts", place / "facts.jsonl", "--method", "ultraedit rounds=3", "--out", place / "d", *FEW
    )
    receipt = json.loads((place / "d" / "receipt.json").read_text())
    assert code == 0 and "3 facts in" in said and "perplexity of other text" in said
    assert receipt["efficacy"]["after"]["count"] == 3 and receipt["generalisation"]["after"]["count"] == 12 and len(receipt["each"]) == 3
    assert run("apply", place / "model", place / "d", "--out", place / "taught")[0] == 0
    assert weights(place / "taught") != weights(place / "model")
    assert run("revert", place / "taught", "--out", place / "again")[0] == 0
    assert weights(place / "again") == weights(place / "model")


def test_a_compressed_model_is_edited_over_its_codes(place):
    fit = ("--method", "nearest bits=4 group=32", "--target", "modicum", "--allow-broken", "--quiet", *FEW)
    assert run("fit", place / "model", *fit, "--out", place / "small")[0] == 0
    words = ("edit", place / "small", "--facts", place / "facts.jsonl", "--method", "ultraedit rounds=3", "--out", place / "over", *FEW)
    assert run(*words)[0] == 0
    assert run("apply", place / "small", place / "over", "--out", place / "small-taught")[0] == 0
    assert weights(place / "small-taught") != weights(place / "small")
    assert run("revert", place / "small-taught", "--out", place / "small-again")[0] == 0
    assert weights(place / "small-again") == weights(place / "small")


def test_the_same_edit_has_the_same_bytes(place):
    words = ("edit", place / "model", "--facts", place / "facts.jsonl", "--method", "memit steps=2", *FEW)
    assert [run(*words, "--out", place / name)[0] for name in ("one", "two")] == [0, 0]
    assert (place / "one" / "delta.safetensors").read_bytes() == (place / "two" / "delta.safetensors").read_bytes()


def test_forgetting_is_applied_as_any_delta(place):
    words = ("forget", place / "model", "--forget", place / "gone.jsonl", "--retain", place / "stay.jsonl", "--tokens", 32)
    code, said, _ = run(*words, "--method", "ascent steps=2 rate=0.001", "--no-relapse", "--out", place / "f")
    assert code == 0 and "forget: loss" in said
    assert run("apply", place / "model", place / "f", "--out", place / "less")[0] == 0 and weights(place / "less") != weights(
        place / "model"
    )


def test_texts_are_learnt_one_after_the_other(place):
    words = ("learn", place / "model", place / "one.txt", place / "two.txt", "--method", "clr steps=3", "--tokens", 16, "--samples", 8)
    code, said, error = run(*words, "--test-samples", 2, "--out", place / "learnt")
    assert code == 0, error
    assert "the same bits at the end" in said and (place / "learnt" / "expert-1" / "delta.json").exists()
    receipt = json.loads((place / "learnt" / "receipt.json").read_text())
    assert receipt["tasks"] == ["one", "two"] and receipt["score"] == "loss" and all(receipt["same bits"].values())


def test_a_model_that_predicts_no_next_token_is_refused(place):
    shape = {"vocab_size": 1024, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    for number, cls in enumerate((transformers.BertModel, transformers.BertForMaskedLM)):
        with hushed():
            cls(transformers.BertConfig(**shape)).save_pretrained(place / f"bert{number}")
        for file in DEMO.glob("tokenizer*"):
            shutil.copy(file, place / f"bert{number}")
        rows = ("--forget", place / "gone.jsonl", "--retain", place / "stay.jsonl")
        for words in (
            ("edit", place / f"bert{number}", "--facts", place / "facts.jsonl", *FEW),
            ("forget", place / f"bert{number}", *rows, "--tokens", 32),
            ("forget", place / "model", *rows, "--tokens", 32, "--reference", place / f"bert{number}"),
            ("learn", place / f"bert{number}", place / "one.txt", "--tokens", 16),
        ):
            code, _, error = run(*words, "--out", place / "never")
            assert code == 2 and f"must be a causal language model, is a {cls.__name__}" in error


def test_more_tokens_than_a_model_has_positions_for_are_refused(place):
    with hushed():
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=1024, n_embd=16, n_layer=2, n_head=2, n_positions=64)
        ).save_pretrained(place / "short")
    for file in DEMO.glob("tokenizer*"):
        shutil.copy(file, place / "short")
    (place / "long.jsonl").write_text(json.dumps({"prompt": "abc def " * 60, "target": " x"}) + "\n")
    (place / "many.jsonl").write_text("".join(json.dumps({"text": f"line {number}"}) + "\n" for number in range(3)))
    for words, wanted in (
        (("edit", place / "short", "--facts", place / "long.jsonl", *FEW), "at most the 64 tokens that the model has positions for"),
        (("edit", place / "short", "--facts", place / "facts.jsonl"), "at most the 64 that"),
        (("forget", place / "short", "--forget", place / "gone.jsonl", "--retain", place / "many.jsonl"), "at most the 64 that"),
        (("learn", place / "short", place / "one.txt"), "at most the 64 that"),
    ):
        code, _, error = run(*words, "--out", place / "never")
        assert code == 2 and wanted in error and len(error.splitlines()) == 1
    assert run("edit", place / "short", "--facts", place / "facts.jsonl", "--method", "rome steps=2", "--out", place / "r", *FEW)[0] == 0
    assert json.loads((place / "r" / "receipt.json").read_text())["changed"], "not the last block, whose outputs at a subject nobody sees"


def test_bad_input_is_one_sentence_and_nothing_is_written(place):
    (place / "odd.jsonl").write_text('{"prompt": "a", "target": "b"}\n{"prompt": "a", "target": "c"}\n')
    (place / "few.jsonl").write_text('{"text": "one row"}\n' * 3)
    edit = ("edit", place / "model", "--out", place / "never", *FEW)
    forget = ("forget", place / "model", "--forget", place / "gone.jsonl", "--out", place / "never", "--tokens", 32)
    for words, wanted in (
        ((*edit, "--facts", place / "odd.jsonl"), "must not contradict each other"),
        ((*edit, "--facts", place / "facts.jsonl", "--longest", 1), "must have a target of 1 to 1 tokens"),
        ((*edit, "--facts", place / "facts.jsonl", "--longest", 0), "longest: must be at least 1, got 0"),
        ((*edit, "--tokens", 1, "--facts", place / "facts.jsonl"), "tokens: must be at least 2"),
        (
            (*edit, "--quiet", "--facts", place / "facts.jsonl", "--method", "rome layers=*.1.*"),
            "must depend on what a layer gives at the subject's last",
        ),
        ((*edit, "--facts", place / "facts.jsonl", "--method", "gptq"), "is not one of edit"),
        ((*forget, "--retain", place / "stay.jsonl", "--goal", "nan"), "goal: must be a number of nats, got nan"),
        ((*forget, "--retain", place / "few.jsonl"), "at least 3 different rows to retain, 1 came"),
        (("learn", place / "model", place / "none.txt", "--out", place / "never"), "none is there"),
        (
            ("learn", place / "model", place / "one.txt", "--method", "probe", "--out", place / "never", "--quiet", *FEW[2:]),
            "must be a classifier",
        ),
        ((*forget, "--retain", place / "gone.jsonl"), "4 of the 4 rows to forget must not be among those to retain"),
    ):
        code, _, error = run(*words)
        assert code == 2 and wanted in error and len(error.splitlines()) == 1
    assert not (place / "never").exists()
