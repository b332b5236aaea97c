"""Trimmed vocabularies: same tokens, same logits, all other bytes as they were; and everything that is refused."""

import json
import random
import shutil

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import modicum
from modicum.core.errors import BudgetError, DataError, ModelError, SettingError
from modicum.data.text import shipped
from modicum.models.located import DEMO
from modicum.vocabulary import _rows, _tokenizer, trim
from modicum.vocabulary._tokenizer import (
    ancestors,
    choose,
    closure,
    pieces,
    renumbered_config,
    renumbered_tokenizer,
    required,
    with_defaults,
)

SYLLABLES = [
    "the",
    "mo",
    "ther",
    "of",
    "bo",
    "her",
    "mot",
    "hat",
    "sho",
    "cat",
    "sca",
    "bab",
    "aba",
    "cus",
    "at",
    "ter",
    "rot",
    "som",
    "ash",
    "ote",
]
WORDS = ["".join(random.Random(seed).choices(SYLLABLES, k=1 + seed % 4)) for seed in range(150)] + ["mother", "cat", "the", "of", "a", "b"]
SENTENCES = [" ".join(random.Random(seed).choices(WORDS, k=12)) for seed in range(60)]
CORPUS = ["the mother of the cat", "a cat at the motherof"]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


# Small tokenizers of every kind


def byte_level(size=320, **settings):
    made = Tokenizer(models.BPE(**settings))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False))
    return made


def by_character(**settings):
    made = Tokenizer(models.BPE(unk_token="<unk>", **settings))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Whitespace(), decoders.Fuse()
    if "end_of_word_suffix" in settings:
        made.decoder = decoders.BPEDecoder()
    if "continuing_subword_prefix" in settings:
        made.decoder = decoders.WordPiece()
    marks = {name: text for name, text in settings.items() if name in ("continuing_subword_prefix", "end_of_word_suffix")}
    made.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=90, special_tokens=SPECIAL, show_progress=False, **marks))
    return made


def every_split():
    """As converted from SentencePiece: bytes for unknown characters, and of each token every pair of tokens that makes it."""
    vocab = pieces(json.loads(by_character().to_str()))
    listed = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *(piece for piece in vocab if piece not in SPECIAL), "▁", "▁t", "▁the"]
    vocab = {piece: index for index, piece in enumerate(listed)}
    merges = [(p[:k], p[k:]) for p in listed[260:] for k in range(1, len(p)) if p[:k] in vocab and p[k:] in vocab]
    made = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return made


def word_piece(size=90):
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(SENTENCES, trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False))
    made.post_processor = processors.BertProcessing(*((token, made.token_to_id(token)) for token in ("[SEP]", "[CLS]")))
    return made


def unigram(**settings):
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False)
    made.train_from_iterator(SENTENCES, trainer)
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", made.token_to_id("</s>"))])
    return made


KINDS = {
    "byte level": byte_level,
    "whole words first": lambda: byte_level(ignore_merges=True),
    "characters": by_character,
    "end of word": lambda: by_character(end_of_word_suffix="</w>"),
    "inside a word": lambda: by_character(continuing_subword_prefix="##"),
    "every split": every_split,
    "word piece": word_piece,
    "unigram": unigram,
}
MADE = {name: make() for name, make in KINDS.items()}
each_kind = pytest.mark.parametrize("kind", KINDS)


def trimmed_tokenizer(tokenizer, counts, size=None):
    body = json.loads(tokenizer.to_str())
    kept = choose(required(body), counts, ancestors(body), size, "test")
    table = {before: after for after, before in enumerate(kept)}
    return Tokenizer.from_str(json.dumps(renumbered_tokenizer(body, table))), table


# Laws of the tokenizer


letters = st.text("abchemorst ", max_size=24)
words = st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join)
anything = st.text(max_size=12)


@each_kind
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(words | letters | anything, max_size=6), st.randoms(use_true_random=False))
def test_a_text_whose_tokens_all_stay_is_encoded_as_before(kind, texts, chance):
    tokenizer = MADE[kind]
    counts = dict.fromkeys((index for text in texts[:2] for index in tokenizer.encode(text).ids), 1)
    counts |= dict.fromkeys(chance.sample(range(tokenizer.get_vocab_size()), chance.randrange(tokenizer.get_vocab_size())), 1)
    smaller, table = trimmed_tokenizer(tokenizer, counts)
    joined = [tokenizer.decode(chance.choices(list(table), k=4)) for _ in range(8)]
    for text in [*texts, *joined, *WORDS]:
        before = tokenizer.encode(text).ids
        if all(index in table for index in before):
            assert smaller.encode(text).ids == [table[index] for index in before]


@each_kind
@given(words | letters | anything)
def test_any_text_can_still_be_written(kind, text):
    tokenizer = MADE[kind]
    smaller, table = trimmed_tokenizer(tokenizer, {})
    assert len(table) < tokenizer.get_vocab_size()
    unknown = {"<unk>", "[UNK]"}
    if not unknown.intersection(tokenizer.encode(text).tokens):
        assert not unknown.intersection(smaller.encode(text).tokens)
        assert smaller.decode(smaller.encode(text).ids) == tokenizer.decode(tokenizer.encode(text).ids)


@each_kind
def test_every_token_that_stays_can_still_be_reached(kind):
    tokenizer = MADE[kind]
    reached = {index for text in SENTENCES for index in tokenizer.encode(text).ids}
    for index in reached:
        smaller, table = trimmed_tokenizer(tokenizer, {index: 1})
        assert smaller.id_to_token(table[index]) == tokenizer.id_to_token(index)
    smaller, table = trimmed_tokenizer(tokenizer, dict.fromkeys(reached, 1))
    assert {index for text in SENTENCES for index in smaller.encode(text).ids} == {table[index] for index in reached}


def test_without_ancestors_a_token_would_be_lost():
    tokenizer = MADE["byte level"]
    body = json.loads(tokenizer.to_str())
    word = max((word for word in WORDS if len(tokenizer.encode(word).ids) == 1), key=len)
    (index,) = tokenizer.encode(word).ids
    alone = sorted(required(body) | {index})
    broken = Tokenizer.from_str(json.dumps(renumbered_tokenizer(body, {before: after for after, before in enumerate(alone)})))
    assert len(word) > 2 and len(broken.encode(word).ids) == len(word)
    smaller, table = trimmed_tokenizer(tokenizer, {index: 1})
    assert smaller.encode(word).ids == [table[index]]
    assert set(word) <= {tokenizer.id_to_token(i) for i in closure([index], ancestors(body))}


def test_size_keeps_the_most_frequent_with_their_ancestors_and_ties_by_id():
    parents = {7: {5, 6}, 9: {8}}
    counts = {7: 9, 9: 5, 3: 5, 4: 1}
    assert choose({0}, counts, parents, None, "test") == [0, 3, 4, 5, 6, 7, 8, 9]
    assert choose({0}, counts, parents, 5, "test") == [0, 3, 5, 6, 7]
    assert choose({0}, counts, parents, 3, "test") == [0, 3, 4], "7 needs three places, 9 two; what fits comes in their stead"
    with pytest.raises(BudgetError, match=r"test: a vocabulary must have at least 1 tokens.*size is 0"):
        choose({0}, counts, parents, 0, "test")


def test_the_cost_of_an_unknown_character_stays_what_it_was():
    # Unknown characters cost 10 nats more than the rarest piece. Without "zzz" they would cost 55 instead of 110, and one beat two "ab".
    vocab = [("<unk>", 0.0), ("a", -1.0), ("ab", -45.0), ("aba", -1.0), ("z", -2.0), ("zzz", -100.0), ("zz", -3.0)]
    tokenizer = Tokenizer(models.Unigram(vocab, 0))
    smaller, table = trimmed_tokenizer(tokenizer, {2: 1, 3: 1})
    assert tokenizer.encode("abab").tokens == smaller.encode("abab").tokens == ["ab", "ab"]
    assert list(table) == [0, 1, 2, 3, 4, 5]
    cheaper = Tokenizer(models.Unigram(vocab[:5], 0))
    assert cheaper.encode("abab").tokens == ["aba", "b"], "otherwise this shows nothing"


def test_pieces_that_nothing_else_could_spell_stay():
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2, "ab": 3, "a§": 4}, unk_token="[UNK]"))
    assert required(json.loads(tokenizer.to_str())) == {0, 1, 2, 4}


def test_ids_in_templates_paddings_and_old_files_are_renumbered():
    tokenizer = word_piece()
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    tokenizer.add_tokens([AddedToken("<new>", special=False)])
    body = json.loads(tokenizer.to_str())
    template = {"type": "TemplateProcessing", "special_tokens": {"[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}}
    body["post_processor"] = {
        "type": "Sequence",
        "processors": [template, {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}],
    }
    table = {0: 5, 1: 6, 2: 7, 3: 8, 4: 9, tokenizer.token_to_id("<new>"): 10}
    made = renumbered_tokenizer(body, table)
    first, second = made["post_processor"]["processors"]
    assert first["special_tokens"]["[SEP]"]["ids"] == [8] and (second["sep"], second["cls"]) == (["[SEP]", 8], ["[CLS]", 7])
    assert made["padding"]["pad_id"] == 5 and [token["id"] for token in made["added_tokens"]] == [5, 6, 7, 8, 9, 10]
    assert set(table) <= required(body)


def test_ids_in_configs_are_renumbered():
    table = {2: 0, 5: 1, 7: 2}
    raw = {
        "eos_token_id": [5, 7], "pad_token_id": None, "vocab_size": 7, "num_hidden_layers": 2, "use_token_id": True,
        "text_config": {"bos_token_id": 2, "image_token_index": 7}, "suppress_tokens": [2, 3, 5], "bad_words_ids": [[2, 3], [5]],
        "forced_decoder_ids": [[1, 5], [2, None]], "lang_to_id": {"en": 7}, "decoder_start_token_id": -1,
    }  # fmt: skip
    made = renumbered_config(raw, lambda index: table.get(index, index), table.__contains__)
    assert made == {
        "eos_token_id": [1, 2], "pad_token_id": None, "vocab_size": 7, "num_hidden_layers": 2, "use_token_id": True,
        "text_config": {"bos_token_id": 0, "image_token_index": 2}, "suppress_tokens": [0, 1], "bad_words_ids": [[1]],
        "forced_decoder_ids": [[1, 1], [2, None]], "lang_to_id": {"en": 2}, "decoder_start_token_id": -1,
    }  # fmt: skip


# Checkpoints


def checkpoint(folder, cls, tokenizer, *, shard=None, names=None, special=None, **settings):
    """A tiny random model of Transformers with a tokenizer; one row of the embedding more than there are tokens."""
    special = special or {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    ids = {f"{name}_id": fast.convert_tokens_to_ids(token) for name, token in special.items() if name != "unk_token"}
    cls = getattr(transformers, cls)
    model = cls(cls.config_class(**{"vocab_size": len(fast) + 1, "initializer_range": 0.1, **ids, **settings})).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("bias"):
            tensor.normal_()
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    fast.save_pretrained(folder)
    return folder


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}
CODER = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
WIDE = {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
BERT_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
T5_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def llama(folder, **settings):
    return checkpoint(folder, "LlamaForCausalLM", by_character(), **{**SMALL, **settings})


def load(directory):
    return getattr(transformers, json.loads((directory / "config.json").read_text())["architectures"][0]).from_pretrained(directory).eval()


def logits(model, ids):
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **more).logits


def table_of(before, after):
    """Old id of every token in the trimmed directory, by new id."""
    old, new = AutoTokenizer.from_pretrained(before).get_vocab(), AutoTokenizer.from_pretrained(after).get_vocab()
    return [old[token] for token in sorted(new, key=new.get)]


def require_equal(before, after, text, rows=None):
    """The two promises: the same tokens, and bit-equal logits for each that stayed."""
    kept = table_of(before, after)
    old, new = (AutoTokenizer.from_pretrained(path)(text, return_tensors="pt")["input_ids"] for path in (before, after))
    assert torch.equal(torch.tensor(kept)[new], old)
    ours, theirs = logits(load(before), old), logits(load(after), new)
    assert theirs.shape[-1] == (rows or len(kept))
    assert torch.equal(ours[..., kept], theirs[..., : len(kept)])
    return ours, theirs, kept


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "trimmed"
    return trim("demo", shipped("test")[:3], out), out


def test_the_demo_keeps_tokens_logits_and_bytes(demo):
    report, out = demo
    assert report.out == out and report.before == 1024 and report.kept == report.rows < 1000
    assert (report.changed, report.difference, report.left_out) == (0, 0, ())
    ours, theirs, kept = require_equal(DEMO, out, shipped("test")[1][:1500])
    assert ours.dtype == torch.bfloat16
    with safe_open(DEMO / "model.safetensors", "pt") as old, safe_open(out / "model.safetensors", "pt") as new:
        for name in old.keys():  # noqa: SIM118
            a, b = old.get_tensor(name), new.get_tensor(name)
            assert torch.equal(a[kept] if name in ("model.embed_tokens.weight", "lm_head.weight") else a, b)
    sizes = [(path / "model.safetensors").stat().st_size for path in (DEMO, out)]
    assert report.saved == sizes[0] - sizes[1] > 2 * 2 * 256 * (1024 - report.kept) - 100
    configs = [json.loads((path / "config.json").read_text()) for path in (DEMO, out)]
    assert configs[1] == configs[0] | {"vocab_size": report.kept}


def test_probabilities_are_those_given_that_a_kept_token_comes(demo):
    ours, theirs, kept = require_equal(DEMO, demo[1], shipped("test")[2][:600])
    log = ours.double().log_softmax(-1)[..., kept]
    torch.testing.assert_close(theirs.double().log_softmax(-1), log - log.logsumexp(-1, keepdim=True))
    assert (log.logsumexp(-1) < -1e-6).any(), "the tokens that went had some mass"


def test_fit_accepts_the_result(demo):
    receipt = modicum.fit(demo[1], "4bpw", dry_run=True, samples=1, tokens=32, allocator="integer_program").receipt
    assert receipt["parameters"] == modicum.open_model("demo").parameters - 2 * 256 * (1024 - demo[0].kept) and receipt["fits"]


def test_size_is_an_upper_bound_and_what_is_cut_is_told(tmp_path):
    texts = shipped("test")[:3]
    report = trim("demo", texts, tmp_path / "a", size=600, multiple=64)
    assert (report.kept, report.rows) == (600, 640) and 0 < report.changed < 0.2
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        made = load_file(tmp_path / "a" / "model.safetensors")[name]
        assert made.shape[0] == 640 and not made[600:].any() and made[:600].any(1).all()
    text = texts[0]
    tokenizers = [AutoTokenizer.from_pretrained(path) for path in (DEMO, tmp_path / "a")]
    old, new = (tokenizer(text)["input_ids"] for tokenizer in tokenizers)
    assert len(new) > len(old) and tokenizers[1].decode(new) == text
    kept = table_of(DEMO, tmp_path / "a")
    ids = torch.tensor([[index for index in old if index in set(kept)][:100]])
    new_ids = torch.searchsorted(torch.tensor(kept), ids)
    assert torch.equal(logits(load(DEMO), ids)[..., kept], logits(load(tmp_path / "a"), new_ids)[..., :600])


def test_the_error_names_the_smallest_size(tmp_path):
    with pytest.raises(BudgetError, match="at least 257 tokens, .* and size is 100"):
        trim("demo", CORPUS, tmp_path / "a", size=100)
    report = trim("demo", CORPUS, tmp_path / "a", size=257)
    assert report.kept == 257 and report.changed > 0.3


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_heads(tmp_path, tied, monkeypatch):
    monkeypatch.setattr(_rows, "_STEP", 16)  # rows are read in several steps
    source = llama(tmp_path / "a", tie_word_embeddings=tied, bos_token_id=88, eos_token_id=[2, 87])
    report = trim(source, CORPUS, tmp_path / "b")
    ours, theirs, kept = require_equal(source, tmp_path / "b", CORPUS[0], rows=report.rows)
    assert kept[-2:] == [87, 88] and len(kept) == report.kept < 70
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (len(kept) - 1, [2, len(kept) - 2])
    per_row = 4 * 32 * (1 if tied else 2)
    assert 0 <= report.saved - per_row * (report.before - report.rows) < 64


def test_ids_left_to_the_config_class_are_written_out_where_they_change(tmp_path):
    source = llama(tmp_path / "a")
    body = json.loads((source / "config.json").read_text())
    default = transformers.LlamaConfig().eos_token_id
    assert default == 2
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    del body["eos_token_id"]
    (source / "config.json").write_text(json.dumps(body))
    assert [token["id"] for token in tokenizer["added_tokens"]] == [0, 1, 2, 3]
    trim(source, CORPUS, tmp_path / "b")
    assert "eos_token_id" not in json.loads((tmp_path / "b" / "config.json").read_text())
    assert transformers.AutoConfig.from_pretrained(tmp_path / "b").eos_token_id == 2
    resolved = {"eos_token_id": 2, "text_config": {"pad_token_id": 7, "hidden_size": 3}}
    assert with_defaults({"x": 1}, resolved, lambda index: index) == {"x": 1}
    assert with_defaults({"x": 1}, resolved, lambda index: index - 1) == {"x": 1, "eos_token_id": 2, "text_config": {"pad_token_id": 7}}
    assert with_defaults({"eos_token_id": None}, {"eos_token_id": 2}, lambda index: index - 1) == {"eos_token_id": None}


def test_bert_with_its_own_tokenizer_class_its_bias_and_vocab_txt(tmp_path):
    tokenizer = word_piece()
    source = checkpoint(tmp_path / "a", "BertForMaskedLM", tokenizer, special=BERT_TOKENS, **SMALL)
    vocab = tokenizer.get_vocab()
    (source / "vocab.txt").write_text("".join(f"{token}\n" for token in sorted(vocab, key=vocab.get)))
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "BertTokenizer"}))
    report = trim(source, CORPUS, tmp_path / "b")
    assert type(AutoTokenizer.from_pretrained(tmp_path / "b")).__name__ == "BertTokenizer"
    _, _, kept = require_equal(source, tmp_path / "b", CORPUS[1], rows=report.rows)
    old, new = (load_file(path / "model.safetensors") for path in (source, tmp_path / "b"))
    assert torch.equal(old["cls.predictions.bias"][kept], new["cls.predictions.bias"])
    lines = (tmp_path / "b" / "vocab.txt").read_text().splitlines()
    assert lines == [tokenizer.id_to_token(index) for index in kept]
    assert Tokenizer(models.WordPiece.from_file(str(tmp_path / "b" / "vocab.txt"))).get_vocab_size() == report.kept
    encoded = AutoTokenizer.from_pretrained(tmp_path / "b")("the cat")
    assert [lines[index] for index in encoded["input_ids"]][:1] == ["[CLS]"]


def test_a_model_without_a_head_keeps_its_hidden_states(tmp_path):
    source = checkpoint(tmp_path / "a", "BertModel", word_piece(), special=BERT_TOKENS, **SMALL)
    report = trim(source, CORPUS, tmp_path / "b")
    assert report.difference == 0 and report.kept < report.before
    states = []
    for path in (source, tmp_path / "b"):
        with torch.no_grad():
            states.append(load(path)(**AutoTokenizer.from_pretrained(path)(CORPUS[0], return_tensors="pt")).last_hidden_state)
    assert torch.equal(*states)


@pytest.mark.parametrize("tied", [True, False])
def test_t5_with_unigram(tmp_path, tied):
    special = {"special": T5_TOKENS, "tie_word_embeddings": tied}
    source = checkpoint(tmp_path / "a", "T5ForConditionalGeneration", unigram(), **special, **T5)
    report = trim(source, CORPUS, tmp_path / "b")
    require_equal(source, tmp_path / "b", CORPUS[0], rows=report.rows)
    assert report.kept < report.before and report.changed == 0
    config = transformers.AutoConfig.from_pretrained(tmp_path / "b")
    assert (config.pad_token_id, config.eos_token_id, config.decoder_start_token_id) == (0, 1, 0)


def test_a_bias_whose_second_axis_is_the_vocabulary(tmp_path):
    source = checkpoint(tmp_path / "a", "BartForConditionalGeneration", by_character(), decoder_start_token_id=2, **CODER, **WIDE)
    report = trim(source, CORPUS, tmp_path / "b")
    _, _, kept = require_equal(source, tmp_path / "b", CORPUS[0], rows=report.rows)
    old, new = (load_file(path / "model.safetensors")["final_logits_bias"] for path in (source, tmp_path / "b"))
    assert old.any() and torch.equal(old[:, kept], new[:, : len(kept)])


def test_shards_stay_shards(tmp_path):
    source = llama(tmp_path / "a", shard="40KB")
    index = "model.safetensors.index.json"
    before = json.loads((source / index).read_text())
    assert len(set(before["weight_map"].values())) > 1
    report = trim(source, CORPUS, tmp_path / "b")
    after = json.loads((tmp_path / "b" / index).read_text())
    assert after["weight_map"] == before["weight_map"]
    stored = [tensor for path in (tmp_path / "b").glob("*.safetensors") for tensor in load_file(path).values()]
    assert after["metadata"]["total_size"] == sum(tensor.numel() * 4 for tensor in stored)
    old, new = (sum(path.stat().st_size for path in folder.glob("*.safetensors")) for folder in (source, tmp_path / "b"))
    assert report.saved == old - new
    require_equal(source, tmp_path / "b", CORPUS[0], rows=report.rows)


def test_files_beside_it_follow_and_foreign_vocabularies_are_left_out(tmp_path):
    source = llama(tmp_path / "a")
    body = json.loads((source / "tokenizer.json").read_text())
    vocab, merges = body["model"]["vocab"], body["model"]["merges"]
    (source / "vocab.json").write_text(json.dumps(vocab))
    (source / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    (source / "added_tokens.json").write_text(json.dumps({"</s>": 2}))
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": 88, "suppress_tokens": [2, 88, *range(60, 80)]}))
    settings = json.loads((source / "tokenizer_config.json").read_text())
    decoder = {"2": {"content": "</s>", "special": True}}
    (source / "tokenizer_config.json").write_text(json.dumps(settings | {"added_tokens_decoder": decoder}))
    for name in ("tokenizer.model", "receipt.json", "README.md", "chat_template.jinja", "pytorch_model.bin"):
        (source / name).write_text("{}")
    report = trim(source, CORPUS, out := tmp_path / "b")
    assert report.left_out == ("receipt.json", "tokenizer.model")
    assert not any((out / name).exists() for name in ("receipt.json", "tokenizer.model", "pytorch_model.bin"))
    assert (out / "README.md").read_text() == (out / "chat_template.jinja").read_text() == "{}"
    made = json.loads((out / "tokenizer.json").read_text())["model"]
    assert json.loads((out / "vocab.json").read_text()) == made["vocab"]
    read = Tokenizer(models.BPE.from_file(str(out / "vocab.json"), str(out / "merges.txt"), unk_token="<unk>"))
    read.pre_tokenizer = pre_tokenizers.Whitespace()
    assert read.encode(CORPUS[0]).ids == AutoTokenizer.from_pretrained(out)(CORPUS[0])["input_ids"]
    kept = table_of(source, out)
    generation = json.loads((out / "generation_config.json").read_text())
    assert [kept[index] for index in [generation["eos_token_id"], *generation["suppress_tokens"]]] == [
        88, *(index for index in [2, 88, *range(60, 80)] if index in kept)
    ]  # fmt: skip
    assert json.loads((out / "added_tokens.json").read_text()) == {"</s>": 2}
    assert json.loads((out / "tokenizer_config.json").read_text())["added_tokens_decoder"] == decoder


def test_a_corpus_that_uses_every_token_gives_a_copy(tmp_path):
    source = llama(tmp_path / "a", vocab_size=90)
    everything = AutoTokenizer.from_pretrained(source).get_vocab()
    body = json.loads((source / "tokenizer.json").read_text())
    body["added_tokens"] += [{**body["added_tokens"][0], "id": i, "content": t} for t, i in everything.items() if i > 3]
    (source / "tokenizer.json").write_text(json.dumps(body))
    report = trim(source, CORPUS, tmp_path / "b")
    assert (report.kept, report.rows, report.saved) == (90, 90, 0)
    assert (source / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert json.loads((source / "config.json").read_text()) == json.loads((tmp_path / "b" / "config.json").read_text())


def test_a_corpus_may_be_a_path_or_a_generator(tmp_path):
    (tmp_path / "corpus.txt").write_text("\n".join(CORPUS))
    source = llama(tmp_path / "a")
    by_path, by_texts = (trim(source, corpus, tmp_path / name) for name, corpus in [("b", tmp_path / "corpus.txt"), ("c", iter(CORPUS))])
    assert by_path.kept == by_texts.kept
    assert (tmp_path / "b" / "tokenizer.json").read_bytes() == (tmp_path / "c" / "tokenizer.json").read_bytes()


# What is refused


def alone(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("corpus", "words"),
    [([], "must hold text, none was found"), (["", ""], "must hold text"), ([b"bytes"], "bytes came"), (["a\ud800"], "valid Unicode")],
)
def test_a_corpus_without_text(tmp_path, corpus, words):
    with pytest.raises(DataError, match=words):
        trim("demo", corpus, tmp_path / "out")
    assert alone(tmp_path) == []


def test_counts_below_one(tmp_path):
    for setting in ({"size": 0}, {"multiple": 0}):
        with pytest.raises(SettingError, match="must be at least 1"):
            trim("demo", CORPUS, tmp_path / "out", **setting)


def test_an_out_that_exists_is_replaced_only_where_asked(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("")
    with pytest.raises(SettingError, match="exists already. Choose another --out, or pass --overwrite"):
        trim("demo", CORPUS, out)
    with pytest.raises(SettingError, match="is not replaced: no run wrote it, and it holds mine"):
        trim("demo", CORPUS, out, overwrite=True)
    assert alone(out) == ["mine"]
    (out / "mine").unlink()
    for _ in range(2):  # an empty folder, then what the first has written
        trim("demo", CORPUS, out, overwrite=True)
    assert "model.safetensors" in alone(out) and alone(tmp_path) == ["out"]
    with pytest.raises(SettingError, match="must not be what is read"):
        trim(out, CORPUS, out, overwrite=True)


def test_an_out_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match="must be writable"):
        trim("demo", CORPUS, tmp_path / "file" / "out")


def test_without_a_tokenizer_or_safetensors(tmp_path):
    shutil.copytree(DEMO, tmp_path / "a")
    (tmp_path / "a" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"must hold tokenizer\.json, does not"):
        trim(tmp_path / "a", CORPUS, tmp_path / "b")
    (tmp_path / "a" / "model.safetensors").rename(tmp_path / "a" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="must hold safetensors, holds none. Load the model with Transformers and save it anew"):
        trim(tmp_path / "a", CORPUS, tmp_path / "b")


def edited(folder, change):
    """A tiny Llama whose ``tokenizer.json`` went through ``change``."""
    source = llama(folder)
    body = json.loads((source / "tokenizer.json").read_text())
    change(body)
    (source / "tokenizer.json").write_text(json.dumps(body))
    return source


def test_tokenizers_that_cannot_be_trimmed(tmp_path):
    words = edited(tmp_path / "a", lambda body: body.update(model={"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}))
    with pytest.raises(ModelError, match="must be BPE, Unigram or WordPiece, is WordLevel"):
        trim(words, CORPUS, tmp_path / "out")
    chance = edited(tmp_path / "b", lambda body: body["model"].update(dropout=0.1))
    with pytest.raises(ModelError, match=r"encode a text in one way, has a dropout of 0\.1"):
        trim(chance, CORPUS, tmp_path / "out")
    (tmp_path / "b" / "tokenizer.json").write_text("[]")
    with pytest.raises(ModelError, match="must hold a JSON object, holds list"):
        trim(tmp_path / "b", CORPUS, tmp_path / "out")


def test_a_tokenizer_larger_than_the_embedding(tmp_path):
    source = llama(tmp_path / "a", vocab_size=60)
    with pytest.raises(ModelError, match="must be below the 60 tokens of its embedding"):
        trim(source, SENTENCES, tmp_path / "b")


def test_two_vocabularies(tmp_path):
    source = llama(tmp_path / "a")
    body = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(body | {"second_vocab_size": 50}))
    with pytest.raises(
        ModelError, match="must have one vocabulary, its input embedding has 91 tokens and its config says second_vocab_size = 50"
    ):
        trim(source, CORPUS, tmp_path / "b")


def test_a_tensor_of_no_part_that_may_be_the_vocabularys(tmp_path):
    source = llama(tmp_path / "a")
    tensors = load_file(source / "model.safetensors")
    save_file(tensors | {"other": torch.zeros(7), "statistics": torch.zeros(91, 3)}, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="statistics is no part of LlamaForCausalLM and has an axis of 91"):
        trim(source, CORPUS, tmp_path / "b")
    save_file(tensors | {"other": torch.zeros(7)}, source / "model.safetensors", {"format": "pt"})
    trim(source, CORPUS, tmp_path / "b")
    assert "other" in load_file(tmp_path / "b" / "model.safetensors")


def test_a_model_without_an_embedding_of_tokens(tmp_path):
    settings = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 32}
    source = checkpoint(tmp_path / "a", "ViTForImageClassification", by_character(), **settings)
    with pytest.raises(ModelError, match="must have one input embedding of tokens, ViTForImageClassification tells of none"):
        trim(source, CORPUS, tmp_path / "b")


def test_a_model_that_reckons_with_ids_is_found_out(tmp_path):
    # RoBERTa counts positions from the number of its padding token: with another number every position moves.
    tokenizer = by_character()
    tokenizer.add_special_tokens(["<padding>"])
    special = {"pad_token": "<padding>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    source = checkpoint(
        tmp_path / "a",
        "RobertaForMaskedLM",
        tokenizer,
        special=special,
        **SMALL | {"max_position_embeddings": 200, "initializer_range": 0.5},
    )
    with pytest.raises(ModelError, match="uses the numbers of tokens for more than rows"):
        trim(source, CORPUS, tmp_path / "b")
    assert alone(tmp_path) == ["a"], "nothing is left behind"


def test_rows_in_the_wrong_places_are_found_out(tmp_path, monkeypatch):
    gathered = _rows._gathered
    monkeypatch.setattr(_rows, "_gathered", lambda *arguments: gathered(*arguments).roll(1, 0))
    with pytest.raises(ModelError, match="outputs for kept tokens must stay as they were, differ by"):
        trim("demo", CORPUS, tmp_path / "out")
    assert alone(tmp_path) == []


def test_a_tokenizer_that_encodes_otherwise_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr(_tokenizer, "ancestors", lambda body: {})
    with pytest.raises(ModelError, match="texts whose tokens all stay must be encoded as before, 'the mother of the cat' is not"):
        trim(llama(tmp_path / "a"), CORPUS, tmp_path / "out")
