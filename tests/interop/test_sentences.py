"""A sentence encoder on a quarter of its bytes finds the same sentences, in the library that its users open it with."""

import subprocess
import sys

import models
import pytest
import torch

import modicum

PLAIN = "import sys, transformers\ntransformers.AutoModel.from_pretrained(sys.argv[1])"


def run(*words):
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=3000)


@pytest.fixture(scope="module")
def directories(package, tmp_path_factory):
    package("all_minilm_l6_v2")
    folder = tmp_path_factory.mktemp("sentences")
    source, out = models.minilm(folder / "source"), folder / "out"
    done = run("-m", "modicum", "fit", source, "--bpw", 8, "--samples", 32, "--tokens", 128, "--out", out)
    assert done.returncode == 0, done.stderr
    return source, out


def files(directory):
    """Name and size of all that stands beside the weights, the config and what a run adds."""
    found = {path.relative_to(directory).as_posix(): path.stat().st_size for path in directory.rglob("*") if path.is_file()}
    return {name: size for name, size in found.items() if not name.endswith(".safetensors") and name != "config.json"}


def test_a_quarter_of_the_bytes(directories):
    before, after = ((each / "model.safetensors").stat().st_size for each in directories)
    assert before > 90e6 and after <= 22.72e6


def test_the_same_embeddings_and_neighbours_in_sentence_transformers(directories, package):
    package("sentence_transformers")
    before, after = map(models.embedded, directories)
    assert after.shape == before.shape == (len(models.SENTENCES), 384)
    assert float(torch.cosine_similarity(before, after).min()) >= 0.9997
    nearest = [(table @ table.T - 2 * torch.eye(len(table))).argmax(1) for table in (before, after)]
    assert torch.equal(*nearest)


def test_it_says_how_close_it_is_itself(directories):
    from transformers import AutoModel, AutoTokenizer

    source, out = directories
    tokens = AutoTokenizer.from_pretrained(out)(models.SENTENCES, return_tensors="pt", padding=True)
    with torch.no_grad():
        here, loaded, original = (
            model(**tokens).last_hidden_state[tokens["attention_mask"].bool()]
            for model in (AutoModel.from_pretrained(out), modicum.load(out), AutoModel.from_pretrained(source))
        )
    assert torch.equal(here, loaded)
    assert float((here - original).square().sum() / original.square().sum()) < 1e-3


def test_what_stood_beside_the_weights_stands_there_still(directories):
    source, out = directories
    beside = files(source)
    assert {"1_Pooling/config.json", "modules.json", "sentence_bert_config.json", "tokenizer.json"} <= beside.keys()
    assert beside.items() <= files(out).items()


def test_without_modicum_it_is_refused_by_name(directories):
    done = run("-c", PLAIN, directories[1])
    assert done.returncode != 0 and "modicum container" in done.stderr
