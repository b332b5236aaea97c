"""A trimmed model against its original: every number held against a plain loop over texts, tokens and probabilities."""

import json
import math
import shutil
from collections import Counter

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from modicum.cli.main import main
from modicum.core.errors import ModelError
from modicum.data import from_text
from modicum.data.text import shipped
from modicum.models.located import DEMO
from modicum.receipt import evaluate
from modicum.vocabulary import trim
from modicum.vocabulary.kept import kept_tokens

SMALL = {"compute": "bfloat16", "samples": 3, "tokens": 24}


@pytest.fixture(scope="module")
def trimmed(tmp_path_factory):
    """The demo with 500 of its 1,024 tokens, padded with zeros to 512."""
    out = tmp_path_factory.mktemp("trimmed") / "model"
    trim("demo", shipped("test")[:3], out, size=500, multiple=64)
    return out


@pytest.fixture(scope="module")
def worse(trimmed, tmp_path_factory):
    """The same with other weights in its head."""
    out = tmp_path_factory.mktemp("worse") / "model"
    shutil.copytree(trimmed, out)
    weights = load_file(out / "model.safetensors")
    head = weights["lm_head.weight"]
    head += 0.2 * head.std() * torch.randn(head.shape, generator=torch.Generator().manual_seed(0))
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    return out


class Twin:
    """The same numbers, a token at a time."""

    def __init__(self, folder):
        self.old, self.new = (AutoTokenizer.from_pretrained(path) for path in (DEMO, folder))
        self.original, self.model = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval() for path in (DEMO, folder))
        words = self.old.get_vocab()
        self.kept = [words[token] for token, _ in sorted(self.new.get_vocab().items(), key=lambda pair: pair[1])]
        splits = from_text(None, self.new, samples=1, tokens=24, test_samples=3)
        self.rows = [row.tolist() for batch in splits.test for row in batch["input_ids"]]

    @torch.no_grad()
    def probabilities(self, model, ids):
        return model(input_ids=torch.tensor([ids])).logits[0].double().softmax(-1)

    def on_kept(self, ids):
        """The original's probabilities of tokens that stayed, given that one of them comes."""
        found = self.probabilities(self.original, [self.kept[index] for index in ids])[:, self.kept]
        return found / found.sum(-1, keepdim=True)

    def divergence(self):
        found = []
        for row in self.rows:
            p, q = self.on_kept(row), self.probabilities(self.model, row)
            found.append(float((p * (p / q[:, :500]).log()).sum(-1).mean()))
        return sum(found) / len(found)

    def cost(self):
        size = positions = changed = 0
        lost, bits = 0.0, Counter()
        for row in self.rows:
            text = self.new.decode(row[:-1])
            old, new = (tokenizer(text, return_offsets_mapping=True) for tokenizer in (self.old, self.new))
            spelled = [Counter(zip(map(tuple, one["offset_mapping"]), one.tokens())) for one in (old, new)]
            changed += sum((spelled[0] - spelled[1]).values())
            size, positions = size + len(text.encode()), positions + len(old["input_ids"])
            before, after = ([tokenizer.eos_token_id, *one["input_ids"]] for tokenizer, one in zip((self.old, self.new), (old, new)))
            whole = self.probabilities(self.original, before)[:-1]
            lost += float((1 - whole[:, self.kept].sum(-1)).sum())
            for name, ids, found in (
                ("original", before, whole), ("kept tokens", after, self.on_kept(after)), ("model", after, self.probabilities(self.model, after))
            ):  # fmt: skip
                bits[name] -= sum(math.log2(float(found[place, token])) for place, token in enumerate(ids[1:]))
        return {"changed": changed / positions, "lost_mass": lost / positions, "bits": {name: value / size for name, value in bits.items()}}


def test_numbers_are_those_of_a_plain_loop(worse):
    found, twin = evaluate(worse, reference="demo", **SMALL), Twin(worse)
    vocabulary, expected = found["vocabulary"], twin.cost()
    assert found["quality"]["mean"] == pytest.approx(twin.divergence(), rel=1e-3) and found["quality"]["mean"] > 0.01
    assert (vocabulary["tokens"], vocabulary["of"]) == (500, 1024)
    assert vocabulary["changed"] == expected["changed"] > 0.02
    assert vocabulary["lost_mass"] == pytest.approx(expected["lost_mass"], rel=1e-3)
    assert vocabulary["bits_per_byte"] == pytest.approx(expected["bits"], rel=1e-3)
    bits = vocabulary["bits_per_byte"]
    assert bits["original"] < bits["kept tokens"] < bits["model"]
    assert json.loads(json.dumps(found)) == found


def test_a_trim_alone_differs_by_what_rows_of_zeros_take(trimmed):
    found = evaluate(trimmed, reference="demo", **SMALL)
    assert found["quality"]["mean"] == pytest.approx(Twin(trimmed).divergence(), rel=1e-3) and 0 < found["quality"]["mean"] < 0.01
    bits = found["vocabulary"]["bits_per_byte"]
    assert bits["kept tokens"] == pytest.approx(bits["model"], rel=1e-2) and bits["original"] < bits["model"]


def test_the_command_line_says_what_the_tokens_that_went_cost(trimmed):
    shown = CliRunner().invoke(main, ["eval", str(trimmed), "--reference", "demo", "--samples", "1", "--tokens", "16", "--quiet"])
    assert shown.exit_code == 0, shown.output
    for words in ("500 of 1,024 tokens kept", "of the text's tokens changed", "of the original's probability", "bits per byte:"):
        assert words in shown.output


def test_the_other_way_round_is_no_trim(trimmed):
    with pytest.raises(ModelError, match="must be that of the reference, .*, or what trim makes of it, and of its 1024 tokens"):
        evaluate("demo", reference=trimmed, **SMALL)


def test_a_trim_is_known_by_its_rules(trimmed, tmp_path):
    old, new = (AutoTokenizer.from_pretrained(path) for path in (DEMO, trimmed))
    kept = kept_tokens(old, new)
    assert kept == sorted(kept) and len(kept) == 500 and kept_tokens(old, old) is None
    body = json.loads((trimmed / "tokenizer.json").read_text(encoding="utf-8"))
    body["model"]["merges"] = body["model"]["merges"][::-1]
    shutil.copytree(trimmed, tmp_path / "other")
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(body), encoding="utf-8")
    assert kept_tokens(old, AutoTokenizer.from_pretrained(tmp_path / "other")) is None
