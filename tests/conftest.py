"""What all tests share: seeds, hypothesis without chance or deadlines, and one linear layer with inputs to compress."""

import gc
import os
import random
import shutil
import tempfile
import threading
from multiprocessing.util import Finalize

import hypothesis
import numpy as np
import pytest
import torch
from torch import distributed

from modicum.core.method import Need
from modicum.core.option import Option
from modicum.core.slopes import Slopes
from modicum.core.unit import Site, Stats, Unit
from modicum.data import splits
from modicum.forms import Dense
from modicum.sweep.ranks import connected

hypothesis.settings.register_profile("modicum", deadline=None, derandomize=True, database=None, max_examples=40)
hypothesis.settings.load_profile("modicum")


def pytest_configure(config):
    # Test files are named by what they test, so two folders may hold one name (numerics/test_svd.py, factor/test_svd.py).
    config.option.importmode = "importlib"
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    # What tests leave in the temporary folder, and what is timed on this machine, which is kept in the user's cache, goes when they have ended:
    # that of their processes too. What pytest itself puts there stays where people look for it.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    place = tempfile.mkdtemp(prefix="modicum-tests-")
    os.environ |= {"TMPDIR": place, "XDG_CACHE_HOME": f"{place}/cache"}
    tempfile.tempdir = None
    Finalize(None, shutil.rmtree, (place, True), exitpriority=-1000)  # behind multiprocessing, whose own folder is there


@pytest.fixture(autouse=True, scope="module")
def _swept():
    """What libraries and other tests have left is not looked through whenever a run frees its circles."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _unflushed():
    """No machine loses its power within a test, so that nothing waits for a disk; the tests of faults count what their processes flush."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _tokenized_once():
    """The texts in the package take seconds to tokenize, and no test changes them: each tokenizer does it once."""
    kept, encode = {}, splits.encode

    def once(documents, tokenizer):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or sum(map(len, documents)) < 100_000:
            return encode(documents, tokenizer)
        key = hash((backend.to_str(), tokenizer.eos_token_id, *documents))
        if key not in kept:
            kept[key] = encode(documents, tokenizer)
        return kept[key].clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "encode", once)
        yield


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)  # it is the global state that is seeded
    torch.manual_seed(0)


class Layer:
    """A weight (rows, columns) and inputs (tokens, columns), strongly correlated or white, and what a method makes of them."""

    def __init__(self, rows=24, columns=96, *, tokens=400, correlated=True, scales=None, dtype=torch.float32, seed=0):
        chance = torch.Generator().manual_seed(seed)
        self.inputs = torch.randn(tokens, columns, generator=chance)
        if correlated:
            common = torch.randn(columns // 4, columns, generator=chance)
            self.inputs = torch.randn(tokens, columns // 4, generator=chance) @ common / columns**0.5 * 2 + 0.2 * self.inputs
        if scales is not None:
            self.inputs = self.inputs * scales
        self.weight = torch.randn(rows, columns, generator=chance).to(dtype)
        # Gradients of the outputs (tokens, rows): some rows are felt more than others.
        self.felt = torch.linspace(0.1, 1.0, rows) * torch.randn(tokens, rows, generator=chance)
        self.unit = Unit("layer.weight", "layer.weight", "layer", "linear", (rows, columns), (rows, columns), dtype)

    def stats(self, needs=frozenset(Need)):
        """Statistics that hold what is declared in ``needs`` and nothing else."""
        x, has = self.inputs, lambda *wanted: bool(set(wanted) & set(needs))
        return Stats(
            count=len(x), reference=self.weight, site_seed=7,
            total=x.sum(0) if has(Need.MEANS, Need.VARIANCES) else None,
            square=x.square().sum(0) if has(Need.NORMS, Need.VARIANCES) else None,
            covariance=x.T @ x if has(Need.COVARIANCE) else None,
            inputs=[x] if has(Need.INPUTS) else None,
            slopes=self.slopes(has(Need.WINDOW)) if has(Need.SLOPES, Need.WINDOW, Need.GENERAL) else None,
        )  # fmt: skip

    def slopes(self, window=True, sequences=8):
        """Gradients by weight of so many sequences."""
        each = torch.stack([g.T @ x for g, x in zip(self.felt.chunk(sequences), self.inputs.chunk(sequences))])
        return Slopes(sequences, each.sum(0), each.square().sum(0), each.bfloat16() if window else None, each.square().mean(0).flip(1))

    def apply(self, *steps, current=None, stats=None, unit=None):
        """The form that the steps, one after the other, make of the weight (or of the form ``current``)."""
        option, unit = Option(steps), unit or self.unit
        stats = stats or self.stats(option.needs)
        return option.apply(Site("site", "unit", (unit,)), {unit.name: stats}, {unit.name: current or Dense(self.weight)}).forms[unit.name]

    def error(self, form):
        """Squared error of the outputs, relative to their energy."""
        weight = self.weight.float()
        lost = self.inputs @ (form.dense().float() - weight).T
        return float(lost.square().sum() / (self.inputs @ weight.T).square().sum())


@pytest.fixture
def layer():
    """The class of synthetic layers; call it for one."""
    return Layer


@pytest.fixture(scope="session")
def together():
    """Runs ``work(ranks)`` on some ranks side by side, each a thread with connections of its own; what each gave or raised, by rank."""

    def run(work, count=2):
        store, found = distributed.HashStore(), [None] * count

        def one(rank):
            try:
                with connected(store, rank, count) as ranks:
                    found[rank] = work(ranks)
            except Exception as error:
                found[rank] = error

        threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not any(thread.is_alive() for thread in threads), "a rank waits for one that does not come"
        return found

    return run
