"""What tests of pages share: a reader of HTML that knows text, tags, addresses, and whether every tag is closed; and a receipt with a frontier."""

from html.parser import HTMLParser

import pytest

BLOCKS, POINTS = 4, 5
OPTIONS = ["gptq bits=2", "gptq bits=4", "keep", "ziplm keep=0.5", "gone"]


class Page(HTMLParser):
    """Text outside the charts and scripts, tags, addresses, and whether every tag is closed."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.addresses, self.open, self.words = set(), [], [], []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag not in ("meta", "br", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in ("href", "src", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"svg", "style", "script"} & set(self.open):
            self.words.append(data)


@pytest.fixture
def read():
    """The class of pages; call it with HTML."""
    return Page


def _runs(weights):
    """From two bits to four at the third point, to what it was at the last."""
    return [[0, 0, weights // 4, 0.02, 0.5], [2, 1, weights // 2, 0.002, 0.25], [4, 2, 2 * weights, 0.0, None]]


@pytest.fixture(scope="module")
def chosen():
    """A receipt whose plan was chosen at the third of five points, of a model of four blocks with an attention and a feed-forward layer each."""
    sizes = {f"model.layers.{block}.{name}": weights for block in range(BLOCKS) for name, weights in (("attn.q", 1000), ("mlp.up", 2000))}
    sites = [
        {"site": name, "kind": "unit", "option": OPTIONS[1], "weights": weights, "data_free": "", "original_bytes": 2 * weights,
         "bytes": weights // 2, "harm": 0.002, "beyond": 0.25} for name, weights in sizes.items()
    ]  # fmt: skip
    points = [
        {"bytes": size, "harm": harm} for size, harm in ((7_000, 0.16), (8_000, 0.08), (10_000, 0.016), (14_000, 0.01), (28_000, 0.0))
    ]
    runs = {"all blocks:ffn": [[0, 3, 0, 0.01, None], [3, 2, 0, 0.0, None]]} | {name: _runs(size) for name, size in sizes.items()}
    quality = {"metric": "mean KL per token", "mean": 0.032, "low": 0.03, "high": 0.034, "sequences": 8, "tokens": 128}
    return {
        "format": "modicum-receipt", "version": 1,
        "model": {"name": "toy", "class": "Toy", "parameters": 14_000, "dtype": "bfloat16", "blocks": BLOCKS, "units": 8, "hash": "ab" * 32,
                  "notes": []},
        "asked": {"model": "a toy", "size": "10kB", "keep": ["*.q", "x y"], "allow_fallback": True},
        "request": {"budget": "10 kB", "method": None, "target": "modicum", "menu": OPTIONS[:2], "plan": False, "allocator": "auto", "keep": []},
        "data": {"source": "shipped", "notes": [], "hashes": {"test": "ef" * 32}, "calibration_tokens": 128, "test_tokens": 128}, "seed": 3,
        "versions": {"modicum": "0.1.0"},
        "bytes": {"original": 28_000, "predicted": 10_000, "actual": 10_000, "allowed": 10_000, "bits_per_weight": 5.7,
                  "files": {"model.safetensors": {"bytes": 10_000, "sha256": "01" * 32}}},
        "coverage": {"treated_bytes": 24_000, "layer_bytes": 28_000, "share": 0.857,
                     "untreated": [{"unit": "embed.weight", "bytes": 4_000, "reason": "target: embedding"}]},
        "sites": sites, "search": {}, "predicted_harm": 0.016, "quality": quality, "verdict": "a small loss (0.032 nats per token).",
        "frontier": {"points": points, "chosen": 2, "options": OPTIONS,
                     "sites": runs},
        "by_block": {"sequences": 8, "tokens": 512, "rows": [
            {"block": f"model.layers.{block}", "before": 0.1 * (block + 1), "after": 0.02 * (block + 1) if block != 2 else None}
            for block in range(BLOCKS)
        ]},
        "texts": [{"prompt": "def f(x):", "original": "return x", "compressed": "return y"}],
        "verification": {"loader": "modicum.load"}, "events": [], "stages": {"open": {"seconds": 1.0, "peak_bytes": 1}},
    }  # fmt: skip


@pytest.fixture(scope="session")
def taught():
    """A receipt of an edit."""
    share = lambda share, count: {"share": share, "interval": [share - 0.05, min(1.0, share + 0.04)], "count": count}
    facts = [
        {
            "prompt": f"class {name}(",
            "target": "Thread):",
            "before": False,
            "after": name != "Vek",
            "paraphrases": [True, True, False, True],
            "neighbours": [False],
        }
        for name in ("<b>Zor", "Vek", "Zornivekquabli")
    ]
    return {
        "format": "modicum-edited", "version": 1, "model": "demo", "method": "ultraedit", "facts": 3, "batch": 0, "seed": 0, "bytes": 123456,
        "changed": {f"model.layers.{n}.mlp.down_proj.weight": [1.0 + n, 0.01 * (n + 1)] for n in range(4)}, "seconds": 12.3,
        "efficacy": {"before": share(0.0, 3), "after": share(0.95, 3)}, "generalisation": {"before": share(0.0, 12), "after": share(0.8, 12)},
        "locality": {"after": share(0.5, 3)},
        "perplexity": {"before": 9.8, "after": 9.9, "change": 0.009, "interval": [0.005, 0.013], "sequences": 24},
        "each": facts,
    }  # fmt: skip


@pytest.fixture(scope="session")
def lost():
    """A receipt of what was forgotten."""
    told = lambda forget, retain: {
        "forget": {"loss": forget, "interval": [forget - 0.1, forget + 0.1], "accuracy": 0.2, "rows": 10},
        "retain": {"loss": retain, "interval": [retain - 0.1, retain + 0.1], "accuracy": 0.9, "rows": 40},
        "unseen": {"loss": None, "interval": None, "accuracy": None, "rows": 0},
    }
    return {
        "format": "modicum-forgotten", "version": 1, "model": "Net", "method": "ssd", "goal": 2.0, "overlap": 0, "seed": 0, "bytes": 2048,
        "changed": {"layers.0.weight": [0.5, 0.02], "layers.1.weight": [1.5, 0.2]}, "seconds": 0.5, "before": told(0.1, 0.2),
        "after": told(2.5, 0.3), "attack": {"after": 0.52, "reference": 0.5}, "reference": told(2.8, 0.22),
        "layers": {"layers.0": {"forget": 0.3, "retain": 0.2}, "layers.1": {"forget": 2.2, "retain": 0.28}},
        "comes back": {"4 bits": told(2.4, 0.35), "50 updates": told(1.9, 0.15)},
    }  # fmt: skip


@pytest.fixture(scope="session")
def course():
    """A receipt of three tasks, one after the other."""
    tasks = ["sources", "prose <b>", "capitals"]
    return {
        "format": "modicum-learnt", "version": 1, "model": "Net", "method": "sfr", "seed": 0, "promises old answers": False, "looks back": False,
        "tasks": tasks, "experts": dict(zip(tasks, range(3))), "bytes": [2048, 2048, 1024], "parameters": 1000, "seconds": 1.5, "score": "loss",
        "matrix": [[3.0, 4.0, 5.0], [1.5, 3.9, 4.8], [1.6, 2.0, 4.7], [1.75, 2.0, 2.25]], "mean": 2.0,
        "lost": {name: {"mean": lost, "interval": [lost - 0.1, lost + 0.1], "rows": 32} for name, lost in zip(tasks, (0.25, 0.0, 0.0))},
        "same bits": dict(zip(tasks, (False, True, True))),
    }  # fmt: skip
