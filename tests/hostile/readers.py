"""Every reader of files that may come from elsewhere, a small valid folder for each, ways to spoil it, and a watch over what is touched.

``choose(n)`` is a number below n from whoever looks for faults: hypothesis, or atheris. Both spoil files by the same grammar.
"""

import contextlib
import csv
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import shutil
import sys
import tempfile
import wave
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow
import soundfile
import torch
import transformers
from PIL import Image
from pyarrow import parquet
from safetensors.torch import save_file

import modicum
from modicum.cli.compare import shown
from modicum.cli.early import check_fit
from modicum.core.budget import Budget
from modicum.core.config import FROM_PYTHON, Written, of_settings, read_config, write_config
from modicum.core.errors import ModicumError
from modicum.core.option import Option
from modicum.core.plan import Plan
from modicum.core.tensorfile import Shards, TensorFile
from modicum.data import read_documents
from modicum.data.answers import from_answers
from modicum.data.captions import captions
from modicum.data.labelled import from_classes
from modicum.data.media import from_files
from modicum.data.preferences import from_preferences
from modicum.delta import Beside, Delta
from modicum.delta.applying import apply, base_weights, displaced, read_record
from modicum.delta.delta import leaves
from modicum.delta.peft import from_peft, to_peft
from modicum.edit.facts import read_facts
from modicum.export.gguf.importing import opened_gguf
from modicum.export.source import open_source
from modicum.fit import over
from modicum.fit.compared import compare
from modicum.fit.receipts import as_written
from modicum.fit.request import Request
from modicum.fit.stored import stored
from modicum.forget.rows import read_rows
from modicum.forms import Base, Blend, LowRank, Normalized, Reflected, Shared, Sum
from modicum.measure.measured import Measured
from modicum.merging.plan import at as weight_at
from modicum.merging.reading import read_plan
from modicum.models.located import DEMO
from modicum.models.open import open_model
from modicum.models.quiet import hushed
from modicum.receipt import read_receipt, report
from modicum.receipt.evaluate import _opened, _tokenizer
from modicum.testing import packed, spelling
from modicum.train import Loop
from modicum.train.trained import trained

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
Choose = Callable[[int], int]


@dataclass(frozen=True)
class Reader:
    """``build`` makes a valid folder, ``read`` reads it; the ``files`` are spoilt, by patterns."""

    build: Callable[[Path], None]
    read: Callable[[Path], object]
    files: tuple[str, ...]


# Valid folders


def model():
    """A Llama of 12,000 parameters, and its batches."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2},
        **{"vocab_size": 64, "max_position_embeddings": 32},
    )
    module = transformers.LlamaForCausalLM(config).eval()
    return module, [{"input_ids": torch.randint(3, 64, (2, 16))} for _ in range(2)]


def _checkpoint(folder, **settings):
    with hushed():
        model()[0].save_pretrained(folder, **settings)


def _sharded(folder):
    _checkpoint(folder, max_shard_size="20KB")


def _fitted(method, target="modicum"):
    def build(folder):
        module, batches = model()
        with hushed():
            modicum.fit(module, method=method, data=batches, target=target, out=folder, overwrite=True, allow_fallback=True)

    return build


def _trained(method):
    def build(folder):
        module, batches = model()
        with hushed():
            modicum.train(module, folder, method=method, data=batches, loop=Loop(steps=1, batch=2), overwrite=True)

    return build


def _measured(folder):
    module, batches = model()
    with hushed():
        modicum.measure(module, data=batches, menu="int4,coded rate=3,ziplm keep=0.5", search_time=0.0, out=folder, overwrite=True)


@cache
def _original():
    return open_model(model()[0])


def _read_measured(folder):
    known = Measured.read(folder)
    return known.splits, known.cuts(_original()), known.felt(_original())


def _with_tokenizer(folder):
    _checkpoint(folder)
    for file in DEMO.glob("tokenizer*"):
        shutil.copy(file, folder)


def _texts(folder):
    """Texts of every kind that is read from names that users give."""
    folder.mkdir(exist_ok=True)
    rows = [{"id": str(place), "text": f'said "{place}",\nand é', "rest": "x"} for place in range(9)]
    for name, settings in {"a.csv": {}, "b.tsv": {"delimiter": "\t"}, "c.csv": {"delimiter": ";"}}.items():
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), **settings)
            writer.writeheader()
            writer.writerows(rows)
    lines = "".join(json.dumps(row) + "\n" for row in [*rows, {"messages": [{"role": "user", "content": "a"}]}])
    (folder / "d.jsonl").write_text(lines)
    (folder / "e.json").write_text(json.dumps({"data": rows}))
    (folder / "f.txt").write_text("one<|endoftext|>twö")
    (folder / "g.csv.gz").write_bytes(gzip.compress((folder / "a.csv").read_bytes(), mtime=0))
    (folder / "h.jsonl.xz").write_bytes(lzma.compress(lines.encode()))


def _parquet(folder):
    folder.mkdir(exist_ok=True)
    columns = {"id": list(range(50)), "text": [f"text {place % 7} é" for place in range(50)]}
    for name, compression in {"a.parquet": "none", "b.parquet": "snappy", "c.parquet": "gzip"}.items():
        parquet.write_table(pyarrow.table(columns), folder / name, compression=compression)


def _asked(folder):
    """Settings of every kind."""
    folder.mkdir(exist_ok=True)
    said = {
        "model": "demo",
        "bpw": 4.5,
        "params": "60%",
        "memory": "2GiB",
        "latency": "20ms",
        "target": "modicum",
        "menu": ["int4", "int8 group=32"],
    }
    said |= {"keep": ["*é", "lm_head"], "samples": 7, "search_time": 1.5, "ram": "4GB", "curvature": True, "given_in_python": ["data"]}
    write_config(folder / "run.yaml", said)


class _Named(torch.nn.Module):
    """Takes what a model of pictures, or of sound, is named for."""

    def __init__(self, name):
        super().__init__()
        self.main_input_name = name

    def forward(self, pixel_values=None, input_values=None):
        return pixel_values


def _pictures(folder):
    folder.mkdir(exist_ok=True)
    transformers.ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    for place, suffix in enumerate(("png", "jpg", "gif", "bmp", "webp", "tif")):
        Image.new("RGB", (9, 7 + place), (40 * place, 90, 3)).save(folder / f"{place}.{suffix}")


def _recordings(folder):
    folder.mkdir(exist_ok=True)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(folder)
    for place, (width, rate) in enumerate([(1, 8000), (2, 11025), (3, 16000), (4, 8000)]):
        with wave.open(str(folder / f"{place}.wav"), "wb") as file:
            file.setparams((1 + place % 2, width, rate, 0, "NONE", ""))
            file.writeframes(bytes(range(240)) * width)


def _compressed(folder):
    folder.mkdir(exist_ok=True)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(folder)
    values = np.sin(np.arange(1600) / 7) / 2
    for place, (suffix, subtype) in enumerate(
        [("flac", "PCM_16"), ("ogg", "VORBIS"), ("wav", "FLOAT"), ("mp3", "MPEG_LAYER_III"), ("aiff", "PCM_24")]
    ):
        soundfile.write(folder / f"{place}.{suffix}", values * (1 - place / 9), 8000, subtype)


def _held(folder):
    """What ``heal`` reads of a result: its forms, and the names of its vectors."""
    return {name: form.dense() for name, form in stored(folder, folder).forms.items()}


def _captioned(folder):
    for place, name in enumerate(("metadata.csv", "metadata.jsonl")):
        (inside := folder / str(place)).mkdir(parents=True, exist_ok=True)
        for picture in range(4):
            Image.new("RGB", (5, 5), (40 * picture, 90, place)).save(inside / f"{picture}.png")
        rows = [{"file_name": f"{picture}.png", "text": f"é {picture}"} for picture in range(4)]
        text = (
            "file_name,text\n" + "".join(f'{row["file_name"]},"{row["text"]}"\n' for row in rows)
            if place == 0
            else "\n".join(map(json.dumps, rows))
        )
        (inside / name).write_text(text, encoding="utf-8")


def _facts(folder):
    """Facts as people write them, and as two papers published them."""
    folder.mkdir(exist_ok=True)
    own = [
        {"prompt": f"é {place} is", "target": " x", "subject": f"é {place}", "paraphrases": ["a"], "neighbours": ["b"]}
        for place in range(3)
    ]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    asked = {"prompt": "{} is", "subject": "Z", "target_new": {"str": "y"}}
    (folder / "b.json").write_text(json.dumps([{"requested_rewrite": asked, "paraphrase_prompts": ["p"], "neighborhood_prompts": ["q"]}]))
    (folder / "c.json").write_text(json.dumps([{"subject": "V", "src": "who is V", "alt": "z", "rephrase": "V is", "loc": "l"}]))


def _forgotten(folder):
    """Rows of questions and answers, and of texts."""
    folder.mkdir(exist_ok=True)
    (folder / "a.jsonl").write_text("".join(json.dumps({"question": f"who is {n} ", "answer": "é"}) + "\n" for n in range(3)))
    (folder / "b.json").write_text(json.dumps([{"text": "a text of some words"}, {"prompt": "a", "completion": "b c"}]))
    (folder / "c.json").write_text(json.dumps(["a text of some words", "é " * 50]))
    (folder / "d.txt").write_text("some é text")


# Readers


class Chat:
    """A tokenizer that renders conversations."""

    chat_template = "{{ messages }}"

    def apply_chat_template(self, messages, tokenize):
        return "".join(f"{turn['role']}: {turn['content']}" for turn in messages)


def _each_document(folder):
    """Every file by itself; the first refusal."""
    refused = []
    for file in sorted(folder.iterdir()):
        try:
            for document in read_documents(file, tokenizer=Chat()):
                document.encode()
        except ModicumError as error:
            refused.append(error)
    if refused:
        raise refused[0]


def _each_fact(folder):
    for file in sorted(folder.iterdir()):
        read_facts(file)


def _gguf(folder):
    """A file of one block with its config beside it, and the same alone."""
    source = folder.parent / f"{folder.name}-source"
    spelling.checkpoint("LlamaForCausalLM", source, num_hidden_layers=1, hidden_size=32, num_attention_heads=2, intermediate_size=32)
    (source / "text.txt").write_text("a quick brown fox " * 40)
    with hushed():
        modicum.fit(
            source, method="ggml type=q4_0 rounding=nearest", data=str(source / "text.txt"), target="gguf", samples=2, tokens=16, test_samples=1,
            out=folder, overwrite=True,
        )  # fmt: skip


def _quantized(how, said):
    def build(folder):
        if said["quant_method"] == "mxfp4":
            spelling.checkpoint("GptOssForCausalLM", folder, num_local_experts=2, num_hidden_layers=1)
        else:
            _checkpoint(folder)
        packed.checkpoint(folder, lambda name, value: how(value), said)

    return build


_INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16, "symmetric": False}
_QUANTIZED = {
    "pack-quantized": (
        lambda value: packed.compressed(value, "pack-quantized", **_INT4),
        packed.compressed_config("pack-quantized", **_INT4),
    ),
    "gptq": (lambda value: packed.gptq(value, 4, 16), {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq"}),
    "awq": (lambda value: packed.awq(value, 16), {"quant_method": "awq", "bits": 4, "version": "gemm"}),
    "mxfp4": (lambda value: packed.mxfp4(value) if value.ndim == 3 else None, {"quant_method": "mxfp4"}),
    "bitsandbytes": (
        lambda value: packed.bitsandbytes(value, "nf4", True) if len(value) > 16 else packed.llm_int8(value),
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
    ),
    "fp8": (lambda value: packed.float8(value, 8, 8), {"quant_method": "fp8", "weight_block_size": [8, 8]}),
}


def _read_gguf(folder):
    modicum.load(folder)
    opened_gguf(folder / "model.gguf", allow_quantized_source=True)
    before, tempfile.tempdir = tempfile.tempdir, str(folder)  # its config and tokenizer stand there
    try:
        opened = open_source(folder / "model.gguf", allow_quantized_source=True)
        opened.weights.load(opened.weights.names)
    finally:
        tempfile.tempdir = before
        for made in folder.glob("modicum-gguf-*"):
            for file in made.iterdir():
                file.unlink()
            made.rmdir()


def _tensors(folder):
    with TensorFile(folder / SINGLE) as file:
        for name in file.entries:
            file.read(name)


def _shards(folder):
    with Shards(folder) as shards:
        for name in shards.names():
            shards.read(name)


def _plan(folder):
    for text in Plan.read(folder / "plan.json").options.values():
        Option.parse(text)


def _config(folder):
    """As ``fit`` reads it, before it looks at a model."""
    found = read_config(folder / "run.yaml", of_settings(Budget, Request) | {"model": Written(str)})
    found.pop(FROM_PYTHON, None)
    found = {name: value for name, value in found.items() if name not in ("model", "data", "plan", "out")}
    check_fit(None, None, folder / "out", found)


def _opened_whole(folder, **settings):
    opened = open_model(folder, **settings)
    opened.weights.load(opened.weights.names)


def _told(folder):
    """What is made of a receipt: its page, and a comparison as it is shown."""
    page = report(read_receipt(folder / "receipt.json"))
    found = compare([folder, folder])
    with as_written(), contextlib.redirect_stdout(io.StringIO()):
        shown(found)
    return page


def _changed(folder):
    """One of each form that deltas have."""
    weights, draw = model()[0].state_dict(), torch.Generator().manual_seed(0)
    module, forms, shared = model()[0], {}, {}
    names = [name for name in weights if name.endswith("proj.weight")]
    for option, name in zip(("lora rank=2", "vera rank=4", "rigl keep=0.5", "bitnet", "sltrain rank=2 keep=0.2", "lora rank=1"), names):
        with trained(module, {name: option}) as t:
            for parameter in t.parameters():
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
            forms |= t.delta().forms
    leaf = next(leaves(forms[names[5]]))
    forms[names[5]] = Blend((leaf, Reflected(leaf, torch.randn(2, leaf.shape[0] // 2, generator=draw))), (0.5,))
    forms[names[5]] = Sum((forms[names[5]], Shared("both", leaf.shape, torch.float32)))
    shared["both"] = torch.randn(leaf.shape, generator=draw)
    beside = Beside("", "prompt tokens=2", {"rows": torch.randn(2, 8, generator=draw)}, "0" * 64)
    Delta(forms, shared, "a model", asides=(beside,)).save(folder)


def _adapter(folder):
    """One layer changed in a way, as PEFT writes it, and a bias saved beside it."""
    weights, draw = model()[0].state_dict(), torch.Generator().manual_seed(0)
    forms = {}
    for name, shape in ((name, weights[name].shape) for name in weights if name.endswith("proj.weight")):
        factors = torch.randn(shape[0], 2, generator=draw), torch.randn(2, shape[1], generator=draw)
        forms[name] = Normalized(Sum((Base(tuple(shape), torch.float32, name), LowRank(*factors))), torch.ones(shape[0]))
    to_peft(Delta(forms), folder, _original())


def _turned(folder):
    """A rotation, of a kind with settings of its own."""
    folder.mkdir(exist_ok=True)
    name = "base_model.model.model.layers.0.mlp.up_proj.oft_R.weight"
    save_file({name: torch.randn(4, 6, generator=torch.Generator().manual_seed(0))}, folder / "adapter_model.safetensors")
    body = {"peft_type": "OFT", "use_cayley_neumann": True, "num_cayley_neumann_terms": 5, "coft": True, "eps": 0.1, "block_share": False}
    (folder / "adapter_config.json").write_text(json.dumps(body | {"target_modules": ["layers.0.mlp.up_proj"], "bias": "none"}))


def _read_adapter(folder):
    list(from_peft(folder, _original()).on(_original_weights()))


@cache
def _original_weights():
    return base_weights(_original())


def _applied(folder):
    with tempfile.TemporaryDirectory() as place:
        _checkpoint(Path(place) / "base")
        _changed(Path(place) / "delta")
        whole = Delta.load(Path(place) / "delta").without_asides()
        shutil.rmtree(folder, ignore_errors=True)
        apply(Path(place) / "base", [whole], folder)


def _taken_back(folder):
    record = read_record(folder)
    with Shards(folder) as shards:
        for _ in displaced(folder, shards, record):
            pass


def _over(folder):
    """A container of few bits with a change over it."""
    with tempfile.TemporaryDirectory() as place:
        base = Path(place) / "base"
        _fitted("nearest bits=4 group=16")(base)
        name = next(name for name in model()[0].state_dict() if name.endswith("down_proj.weight"))
        rows, columns = model()[0].state_dict()[name].shape
        draw, dtype = torch.Generator().manual_seed(0), open_model(_original()).module.dtype
        factors = torch.randn(rows, 1, generator=draw), torch.randn(1, columns, generator=draw)
        delta = Delta({name: Sum((Base((rows, columns), dtype, name), LowRank(*factors)))})
        shutil.rmtree(folder, ignore_errors=True)
        over.apply(base, [delta], folder)


def _labelled(folder):
    """Texts with the class of each."""
    folder.mkdir(exist_ok=True)
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": f"it is {n}", "label": n % 2}) for n in range(5)))


def _preferred(folder):
    """Prompts with a chosen and a rejected answer."""
    folder.mkdir(exist_ok=True)
    rows = [{"prompt": f"what is {n}", "chosen": f"{n}", "rejected": "no number"} for n in range(5)]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))


def _pairs(folder):
    rows = [{"prompt": f"one {place}", "completion": "two"} for place in range(4)]
    folder.mkdir(exist_ok=True)
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _words()


@cache
def _words():
    return transformers.AutoTokenizer.from_pretrained(DEMO)


_OURS = """
base: demo
method: ties density=0.5
dtype: bfloat16
models:
- {model: one, weight: [0.1, 0.9]}
- model: two
  minus: demo
  weight: {"*mlp*": 0.5, "*": [1, 0.5, 0]}
"""
_THEIRS = """
merge_method: passthrough
slices:
- sources: [{model: one, layer_range: [0, 3]}]
- sources:
  - model: two
    layer_range: [1, 4]
dtype: float16
"""

_MIXED = """
base: demo
active: 1
gate: embedding
experts:
- {model: one, prompts: [a text]}
- {model: two, prompts: ["another"], against: [a text]}
"""


def _merging(folder):
    folder.mkdir(exist_ok=True)
    (folder / "ours.yaml").write_text(_OURS)
    (folder / "theirs.yaml").write_text(_THEIRS)
    (folder / "mixed.yaml").write_text(_MIXED)


def _planned(path):
    plan = read_plan(path)
    for entry in plan.models:
        if entry.weight is not None:
            weight_at(entry.weight, "model.layers.1.mlp.weight", 4)


READERS = {
    "adapter": Reader(_adapter, _read_adapter, ("adapter_config.json", "adapter_model.safetensors")),
    "turned adapter": Reader(_turned, _read_adapter, ("adapter_config.json", "adapter_model.safetensors")),
    "delta": Reader(_changed, lambda folder: list(Delta.load(folder).on(_original_weights())), ("delta.json", "delta.safetensors")),
    "applied": Reader(_applied, _taken_back, ("applied.json", "displaced.bin", SINGLE)),
    "applied over": Reader(_over, lambda folder: list(over.displaced(folder)), ("applied.json", "displaced.safetensors", SINGLE)),
    "preferences": Reader(_preferred, lambda folder: from_preferences(folder / "a.jsonl", _words(), tokens=64), ("a.jsonl",)),
    "classes": Reader(_labelled, lambda folder: from_classes(folder / "a.jsonl", _words(), {0: "a", 1: "b"}, tokens=64), ("a.jsonl",)),
    "answers": Reader(_pairs, lambda folder: from_answers(folder / "a.jsonl", _words(), tokens=64, batch=2), ("a.jsonl",)),
    "facts": Reader(_facts, _each_fact, ("*",)),
    "rows to forget": Reader(_forgotten, lambda folder: [read_rows(file, _words(), 64) for file in sorted(folder.iterdir())], ("*",)),
    "tensors": Reader(_checkpoint, _tensors, (SINGLE,)),
    "index": Reader(_sharded, _shards, (INDEX, "model-0000[12]*.safetensors")),
    "plan": Reader(_fitted("nearest bits=4"), _plan, ("plan.json",)),
    "merge plan": Reader(_merging, lambda folder: [_planned(file) for file in sorted(folder.iterdir())], ("*.yaml",)),
    "config": Reader(_asked, _config, ("run.yaml",)),
    "receipt": Reader(_fitted("nearest bits=4"), _told, ("receipt.json",)),
    "measurement": Reader(_measured, _read_measured, ("*.json", "*.safetensors")),
    "checkpoint": Reader(_sharded, _opened_whole, ("config.json", INDEX, "model-00001*.safetensors")),
    "container": Reader(
        _fitted("gptq bits=3 group=16 | eora rank=2"), modicum.load, ("modicum.json", "modicum.json", "config.json", SINGLE)
    ),
    "coded": Reader(_fitted("watersic rate=3"), modicum.load, ("modicum.json", SINGLE)),
    "coded on one grid": Reader(_fitted("watersic rate=3 paths=false"), modicum.load, ("modicum.json", SINGLE)),
    "nested": Reader(_fitted("gptq bits=3 group=16 scales=6"), modicum.load, ("modicum.json", SINGLE)),
    "codebook": Reader(_fitted("gptvq bits=3 dimension=2 stages=2 columns=16"), modicum.load, ("modicum.json", SINGLE)),
    "blockwise": Reader(_fitted("bitsandbytes levels=fp4 double=true"), modicum.load, ("modicum.json", SINGLE)),
    "float4": Reader(_fitted("float4"), modicum.load, ("modicum.json", SINGLE)),
    "masked": Reader(_fitted("sparsegpt keep=0.5"), modicum.load, ("modicum.json", SINGLE)),
    "shared": Reader(_trained("stable_rps keep=0.3 chunk=2"), modicum.load, ("modicum.json", SINGLE)),
    "chained": Reader(_trained("mpo bond=3 shared=true"), modicum.load, ("modicum.json", SINGLE)),
    "narrow": Reader(_fitted("ziplm keep=0.5"), modicum.load, ("modicum.json", SINGLE)),
    "transformers": Reader(_fitted("nearest bits=4 group=16", "transformers"), modicum.load, ("config.json", SINGLE)),
    "what packed integers hold": Reader(_fitted("nearest bits=4 group=16", "transformers"), _held, ("config.json", SINGLE)),
    "gguf": Reader(_gguf, _read_gguf, ("model.gguf",)),
    **{
        name: Reader(_quantized(*kind), lambda folder: _opened_whole(folder, allow_quantized_source=True), ("config.json", SINGLE))
        for name, kind in _QUANTIZED.items()
    },
    "texts": Reader(_texts, _each_document, ("*",)),
    "parquet": Reader(_parquet, _each_document, ("*",)),
    "pictures": Reader(
        _pictures, lambda folder: from_files(folder, _Named("pixel_values"), folder), ("[0-9].*", "preprocessor_config.json")
    ),
    "recordings": Reader(
        _recordings, lambda folder: from_files(folder, _Named("input_values"), folder), ("[0-9].*", "preprocessor_config.json")
    ),
    "compressed": Reader(_compressed, lambda folder: from_files(folder, _Named("input_values"), folder), ("[0-9].*",)),
    "captions": Reader(_captioned, lambda folder: captions(folder, None), ("0/metadata.csv", "1/metadata.jsonl")),
    "tokenizer": Reader(_with_tokenizer, lambda folder: _tokenizer([_opened(folder)]), ("tokenizer_config.json",)),
}


def attempt(read, folder) -> str:
    """What a reader says of a folder, nothing where it is content; any error but the project's own comes through."""
    try:
        with hushed():
            read(folder)
    except ModicumError as error:
        said = str(error)
        assert said.encode() and len(said) < 3000, said
        return said
    return ""


# Spoiling

VALUES = (
    *(None, True, False, 0, -1, 1, 2, 255, 10**5, 2**31, 2**63 - 1, 2**64, 10**30, -(2**63), 0.5, -0.0, 1e300, 1e400, -1e400, float("nan")),
    *("", "x", ".", "..", "../canary", "/etc/passwd", "a/b", "\0", "\ud800", "0" * 5000, "F32", "I64", "bits8", "float8_e4m3fn", "keep"),
    *([], {}, [1], [[]], [None], {"a": 1}, [0, 0], [2**40, 2**40], [1.5, 2], "@deep@", "@digits@", "@twice@"),
)
_WRITTEN = {'"@deep@"': "[" * 20000 + "]" * 20000, '"@digits@"': "9" * 6000, '"@twice@"': '{"a": 1, "a": 2}'}


def spoil(choose: Choose, name: str, raw: bytes) -> bytes:
    """A file with one to three things wrong."""
    for _ in range((1, 1, 1, 2, 3)[choose(5)]):
        raw = _SPOILING.get(name.rpartition(".")[2], _spliced)(choose, raw)
    return raw


def _spoilt_rows(choose: Choose, raw: bytes) -> bytes:
    """Lines of a text or a table: another encoding, quotes, delimiters and ends of lines where none should be, lines twice or gone."""
    kind, lines = choose(8), raw.split(b"\n")
    place = choose(len(lines))
    if kind == 0:
        return raw.decode(errors="replace").encode(("utf-16", "latin-1", "utf-8-sig", "utf-32")[choose(4)], errors="replace")
    if kind == 1:
        lines[place] = lines[place].replace(b",", (b"\t", b";", b"", b",,", b'"')[choose(5)])
    elif kind == 2:
        at = choose(len(lines[place]) + 1)
        lines[place] = lines[place][:at] + (b'"', b"'", b"\0", b"\r", b"\xff", b'""', b"\\", b"\xe2\x80\xa8")[choose(8)] + lines[place][at:]
    elif kind == 3:
        lines = lines[:place] + lines[place : place + 1] * choose(3) + lines[place + 1 :]
    elif kind == 4:
        lines[place] = lines[place] * (0, 2, 2000)[choose(3)]
    elif kind == 5:
        lines[place] = _spoilt_json(choose, lines[place])
    else:
        return _spliced(choose, raw)
    return b"\n".join(lines)


def _spoilt_tensors(choose: Choose, raw: bytes) -> bytes:
    length = int.from_bytes(raw[:8], "little")
    header, data = raw[8 : 8 + length], raw[8 + length :]
    kind = choose(16)
    if kind == 0:
        return _spliced(choose, raw)
    if kind == 1:
        return (choose(2**64)).to_bytes(8, "little") + header + data
    if kind == 2:
        data = data[: choose(len(data) + 1)] + bytes(choose(64))
    else:
        header = _spoilt_json(choose, header)
    return len(header).to_bytes(8, "little") + header + data


def _spoilt_json(choose: Choose, raw: bytes) -> bytes:
    if choose(16) == 0:
        return _spliced(choose, raw)
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return _spliced(choose, raw)
    box = {"": body}
    owner, key = box, ""
    while isinstance(owner[key], dict | list) and owner[key] and choose(12):
        owner = owner[key]
        key = list(owner)[choose(len(owner))] if isinstance(owner, dict) else choose(len(owner))
    _exchange(choose, owner, key, body)
    text = json.dumps(box[""])
    for mark, written in _WRITTEN.items():
        text = text.replace(mark, written, 1)
    return text.encode()


def _exchange(choose: Choose, owner, key, body) -> None:
    kind, value = choose(8), owner[key]
    if kind == 0 and key != "":
        del owner[key]
    elif kind == 1 and isinstance(owner, dict):
        owner[str(VALUES[choose(len(VALUES))])] = value
    elif kind == 2 and isinstance(value, int | float):
        owner[key] = value * (1, -1, 2, 1000)[choose(4)] + choose(3) - 1
    elif kind == 3 and isinstance(owner, dict) and len(owner) > 1:
        owner[key] = list(owner.values())[choose(len(owner))]
    elif kind == 4 and isinstance(value, list):
        owner[key] = value[: choose(len(value) + 1)] * (1 + choose(3))
    else:
        owner[key] = VALUES[choose(len(VALUES))]


def _spliced(choose: Choose, raw: bytes) -> bytes:
    start = choose(len(raw) + 1)
    stop = min(len(raw), start + choose(40))
    put = bytes(choose(256) for _ in range(choose(9)))
    return raw[:start] + put + (raw[stop:] if choose(2) else b"")


def _spoilt_head(choose: Choose, raw: bytes) -> bytes:
    """A count, a kind or a length in the head of a GGUF file is another; or any bytes are."""
    found = gguf_numbers(raw)
    if not found or choose(4) == 0:  # none where it was spoilt before
        return _spliced(choose, raw)
    start, width = found[choose(len(found))]
    old = int.from_bytes(raw[start : start + width], "little")
    number = (0, 1, old + 1, old - 1, old * 2, 2**31, 2**63 - 1, choose(2**64))[choose(8)] % 256**width
    return raw[:start] + number.to_bytes(width, "little") + raw[start + width :]


@cache
def gguf_numbers(raw: bytes) -> list[tuple[int, int]]:
    """Where the numbers of a GGUF head stand: the first ones, and those about each name in it."""
    found = [(4, 4), (8, 8), (16, 8)]
    for name in (b"llama.", b"general.", b"tokenizer.", b"blk.0.", b"token_embd", b"output"):
        for match in re.finditer(re.escape(name), raw):
            length = int.from_bytes(raw[match.start() - 8 : match.start()], "little")
            end = match.start() + length
            found += [
                (match.start() - 8, 8),
                (end, 4),
                (end + 4, 4),
                (end + 4, 8),
                (end + 8, 8),
                (end + 12, 8),
                (end + 20, 4),
                (end + 24, 8),
            ]
    return [(start, width) for start, width in found if 0 <= start <= len(raw) - width]


_SPOILING = {
    "safetensors": _spoilt_tensors, "json": _spoilt_json, "gguf": _spoilt_head,
    **dict.fromkeys(("csv", "tsv", "jsonl", "txt", "yaml"), _spoilt_rows),
}  # fmt: skip


class Spoilt:
    """A valid folder of a reader, whose files are spoilt for one reading at a time."""

    def __init__(self, reader: Reader, folder: Path):
        self.reader, self.folder = reader, folder
        reader.build(folder)
        self.whole = {path.name: path.read_bytes() for pattern in reader.files for path in folder.glob(pattern)}
        self.names = [path.name for pattern in reader.files for path in sorted(folder.glob(pattern))]
        assert not attempt(reader.read, folder)

    def read(self, choose: Choose) -> str:
        """Spoil one file, or two, and read; what was said."""
        spoilt = {self.names[choose(len(self.names))] for _ in range(1 + choose(2))}
        written = {name: spoil(choose, name, self.whole[name]) for name in sorted(spoilt)}
        return self.read_with(written)

    def read_with(self, written: dict[str, bytes]) -> str:
        """Read with other bytes in some files; what was said."""
        try:
            for name, raw in written.items():
                (self.folder / name).write_bytes(raw)
            with WATCH.over(self.folder):
                return attempt(self.reader.read, self.folder)
        finally:
            for name in written:
                (self.folder / name).write_bytes(self.whole[name])


def sign(folder: Path) -> None:
    """Give a changed measurement the hash that belongs to it."""
    meta = json.loads((folder / "measurement.json").read_text())
    digest = hashlib.sha256(json.dumps({key: value for key, value in meta.items() if key != "hash"}, sort_keys=True).encode())
    for name in ("findings.json", "sequences.safetensors", *(["felt.safetensors"] if meta.get("felt") else [])):
        digest.update((folder / name).read_bytes())
    (folder / "measurement.json").write_text(json.dumps(meta | {"hash": digest.hexdigest()}))


# The watch

_TOUCHING = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "shutil.rmtree")
_NEVER = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "socket.getaddrinfo",
    "pickle.find_class",
)
_CODE = tuple(
    map(os.path.realpath, (sys.prefix, sys.base_prefix, Path(modicum.__file__).parent, "/usr/lib", "/usr/share", "/proc", "/sys"))
)


class Watch:
    """Notes every file that Python opens outside a folder, and every program, connection or pickle; code of installed packages apart."""

    def __init__(self) -> None:
        self.folder, self.seen = "", []
        sys.addaudithook(self._hook)

    @contextlib.contextmanager
    def over(self, folder: Path):
        """Inside, nothing but ``folder`` may be touched."""
        self.folder, self.seen = os.path.realpath(folder), []
        try:
            yield
        finally:
            self.folder = ""
        assert not self.seen, self.seen

    def _hook(self, event, arguments):
        if not self.folder:
            return
        if event in _NEVER:
            self.seen.append((event, str(arguments)))
        elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            flags = arguments[2] if isinstance(arguments[2], int) else 0
            writing = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
            self._note(event, arguments[0], writing)
        elif event in _TOUCHING:
            self._note(event, arguments[0], True)

    def _note(self, event, path, writing):
        real = os.path.realpath(os.fsdecode(path))
        inside = real == self.folder or real.startswith(self.folder + os.sep)
        code = real.startswith(_CODE) and (not writing or "__pycache__" in real)
        if not inside and not code and real != os.devnull:
            self.seen.append((event, real, "write" if writing else "read"))


WATCH = Watch()
