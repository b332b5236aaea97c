"""What llama.cpp makes of a file, by its Python binding: logits of given tokens, tokens of a text, and how it goes on."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def opened(package, path, context=512, adapter=None):
    """A file's model as a function from tokens (a list) to logits [tokens, vocabulary], beside an adapter where one is named; and its vocabulary."""
    wanted = package.llama_model_default_params()
    wanted.use_extra_bufts, wanted.n_gpu_layers = False, 0  # repacked weights of some processors crash in this version
    model = package.llama_model_load_from_file(str(path).encode(), wanted)
    assert model, f"llama.cpp cannot load {path}: {said(package)}"
    settings = package.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = context
    settings.n_threads = settings.n_threads_batch = 1
    running = package.llama_init_from_model(model, settings)
    assert running, f"llama.cpp cannot run {path}"
    if adapter is not None:
        beside = package.llama_adapter_lora_init(model, str(adapter).encode())
        assert beside, f"llama.cpp cannot load {adapter}: {said(package)}"
        assert package.llama_set_adapters_lora(running, (type(beside) * 1)(beside), 1, (ctypes.c_float * 1)(1.0)) == 0
    vocabulary = package.llama_model_get_vocab(model)
    width = package.llama_vocab_n_tokens(vocabulary)

    def logits(tokens, first=0):
        if not first:
            package.llama_memory_clear(package.llama_get_memory(running), True)
        batch = package.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for place, token in enumerate(tokens):
            batch.token[place], batch.pos[place], batch.logits[place] = int(token), first + place, 1
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        assert package.llama_decode(running, batch) == 0
        found = np.ctypeslib.as_array(package.llama_get_logits(running), (len(tokens), width)).copy()
        package.llama_batch_free(batch)
        return torch.from_numpy(found)

    try:
        yield logits, vocabulary
    finally:
        package.llama_free(running)
        package.llama_model_free(model)


_SAID: list[str] = []


def said(package):
    return " ".join(_SAID[-5:])


def listen(package):
    """Keep what llama.cpp says, instead of having it on stderr."""
    heard = package.llama_log_callback(lambda level, text, data: _SAID.append(text.decode(errors="replace")))
    package.llama_log_set(heard, ctypes.c_void_p(0))
    return heard  # to be kept: the library holds no reference


def tokens(package, vocabulary, text):
    """Tokens of a text, without marks."""
    raw = text.encode()
    found = (package.llama_token * (len(raw) + 8))()
    count = package.llama_tokenize(vocabulary, raw, len(raw), found, len(found), False, False)
    assert count >= 0
    return list(found[:count])


def divergence(ours, theirs):
    """Kullback–Leibler divergence of each token's prediction."""
    ours, theirs = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)
    return (ours.exp() * (ours - theirs)).sum(-1)
