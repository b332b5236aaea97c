"""Sweep every architecture that Transformers builds tiny to 8 bits, and keep what came of it in ``docs/architectures.json``.

python scripts/architectures.py                              # causal language models, for plain from_pretrained: what is not known yet
python scripts/architectures.py --target modicum             # all other heads of Transformers, timm and diffusers, for our container
python scripts/architectures.py --again NAME NAME            # these again
python scripts/architectures.py --again wrong late error     # all that came out so again

Each runs in a process of its own with a time limit. `make docs` writes the page from the kept results.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import json
import multiprocessing
import re
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "architectures.json"
METHOD = "nearest bits=8 group=32"
# Seconds that one architecture may take.
LIMIT = 240
BATCHES = 8
# How far what is seen outside may be from what the receipt says: by the order of sums, and by noise where next to nothing is lost.
LEEWAY, ROUNDING = 0.05, 1e-6


def one(name: str, target: str) -> dict[str, Any]:
    """What comes of one architecture: its outcome, and the share treated or the reason."""
    import torch
    import transformers

    import modicum

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="architecture-") as folder:
        source, out = Path(folder) / "source", Path(folder) / "out"
        try:
            model, batches = _made(name, target)
            original = _original(model, source, batches[0])
        except Exception as error:
            return {"outcome": "not built", "why": _said(error)}
        given = source if source.exists() else model
        try:
            found = modicum.fit(given, method=METHOD, target=target, data=batches, out=out, search_time=0)
        except modicum.ModicumError as error:
            return {"outcome": "late" if out.with_name("out.partial").exists() else "refused", "why": _said(error)}
        except Exception as error:
            return {"outcome": "error", "why": _said(error)}
        return _judged(found.receipt, original, _reloaded(model, out, target), batches)


def _made(name: str, target: str) -> tuple[Any, list[Any]]:
    """A tiny model of the class, and batches for it."""
    import torch

    from modicum.testing import elsewhere, tiny

    if target == "transformers":
        model = tiny.build(name)
        return model, tiny.batches(model, BATCHES)
    model, make = elsewhere.made_elsewhere(name) if "." in name else tiny.made(name)
    generator = torch.Generator().manual_seed(3)
    return model, [make(generator) for _ in range(BATCHES)]


def _original(model: Any, source: Path, batch: Any) -> Any:
    """The model as plain ``from_pretrained`` gives it back, which must be what was saved."""
    from torch.utils._pytree import tree_leaves

    from modicum.testing.outside import run

    if not hasattr(type(model), "config_class"):
        return model
    model.save_pretrained(source)
    again = type(model).from_pretrained(source).eval()
    leaves = [[leaf for leaf in tree_leaves(run(each, batch)) if _floating(leaf)] for each in (model, again)]
    gap = max(((one - other).nan_to_num(0, 0, 0).norm() / one.nan_to_num(0, 0, 0).norm().clamp_min(1e-9)) for one, other in zip(*leaves))
    if not gap <= 1e-3:
        raise ValueError(f"saved and loaded again by Transformers alone its outputs differ by {gap:.2g} of their size")
    return again


def _floating(leaf: Any) -> bool:
    return hasattr(leaf, "is_floating_point") and leaf.is_floating_point()


def _reloaded(model: Any, out: Path, target: str) -> Any:
    import modicum

    if target == "transformers":
        return type(model).from_pretrained(out).eval()
    return modicum.load(out, into=None if hasattr(type(model), "config_class") else copy.deepcopy(model))


def _judged(receipt: dict[str, Any], original: Any, candidate: Any, batches: list[Any]) -> dict[str, Any]:
    """Right where plain modules, the original and what was loaded, differ by what the receipt says, on the batches that it says it of."""
    from modicum.testing import outside

    coverage, quality = receipt["coverage"], receipt["quality"]
    reasons: Counter[str] = Counter()
    for each in coverage["untreated"]:
        reasons[each["reason"]] += each["bytes"]
    seen = outside.divergence(quality, original, candidate, outside.judged_batches(batches))
    right = abs(seen - quality["mean"]) <= LEEWAY * max(seen, quality["mean"]) + ROUNDING
    found = {
        "share": round(coverage["share_of_all"], 3),
        "left": dict(reasons.most_common()),
        "bits": round(receipt["bytes"]["bits_per_weight"], 2),
    }
    found |= {"metric": quality["metric"], "receipt": float(f"{quality['mean']:.3g}"), "outside": float(f"{seen:.3g}")}
    events = [event for event in receipt["events"] if "probe" in event or "target" in event]
    return {"outcome": "right" if right else "wrong", **found, "events": events}


def _said(error: BaseException) -> str:
    """An error's first words, without the folder it happened in."""
    text = f"{'' if type(error).__module__.startswith('modicum') else type(error).__name__ + ': '}{error}"
    return re.sub(r"\S*architecture-\w+/\S*", "the model", " ".join(text.split()))[:400]


def sweep(names: list[str], target: str, results: dict[str, Any], path: Path, seconds: float) -> None:
    """Run each in a process of its own, and keep what is known after each."""
    end = time.monotonic() + seconds
    for number, name in enumerate(names, 1):
        if (start := time.monotonic()) > end:
            return
        found = apart(name, target) | {"seconds": round(time.monotonic() - start)}
        results.setdefault(target, {})[name] = found | {"code": code()}
        results["versions"] = versions()
        path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(f"{number}/{len(names)} {name}: {found['outcome']} {found.get('share', '')} {found.get('why', '')[:200]}", flush=True)


def apart(name: str, target: str) -> dict[str, Any]:
    """What comes of one in a process of its own, which shares what this one has imported."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=lambda: there.send(one(name, target)))
    process.start()
    there.close()  # so that the other end closes with the process
    try:
        if here.poll(LIMIT):
            return here.recv()
        return {"outcome": "no answer", "why": f"took more than {LIMIT} s"}
    except EOFError:
        return {"outcome": "error", "why": "the process ended"}
    finally:
        process.kill()
        process.join()


@functools.cache
def code() -> str:
    """The commit of the code that a row was made with, and its day."""
    command = ["git", "log", "-1", "--format=%h of %cs", "--", ":/src"]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=RESULTS.parent).stdout.strip()


def versions() -> dict[str, str]:
    """Versions of what the results depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("modicum", "torch", "transformers", "compressed-tensors", "timm", "diffusers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def mixed(many: list[str], few: list[str]) -> list[str]:
    """Both lists in one, the few spread among the first of the many, so that an unfinished sweep has some of all."""
    pairs = itertools.zip_longest(many, few)
    return [name for pair in pairs for name in pair if name is not None]


def chosen(names: list[str], known: dict[str, Any], again: list[str]) -> list[str]:
    """Names to run: those not known yet, or those that ``again`` asks for by name or by outcome."""
    if not again:
        return [name for name in names if name not in known]
    return [name for name in names if name in again or known.get(name, {}).get("outcome") in again]


def main() -> None:
    """Run one, or all that are not known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="transformers", choices=("transformers", "modicum"))
    parser.add_argument("--again", nargs="*", default=[], help="names or outcomes to run again")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no other after so many")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file of results")
    given = parser.parse_args()
    import modicum
    from modicum.testing import elsewhere, heads, tiny

    modicum.fit  # noqa: B018  imported once for all
    results = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
    names = tiny.causal_names() if given.target == "transformers" else mixed(heads.other_names(), elsewhere.elsewhere_names())
    results.setdefault("listed", {})[given.target] = len(names)
    sweep(chosen(names, results.get(given.target, {}), given.again), given.target, results, given.out, given.seconds)


if __name__ == "__main__":
    main()
