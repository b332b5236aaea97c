"""Below four bits: what is chosen at equal bytes, beside earlier code, on trained models of different architecture.

python -m bench.below_four [MODEL ...]    # MODICUM_EARLIER=/path/to/an/earlier/src; models: demo, or directories (bench.trained makes two)

In our own container the whole file counts, at 2 to 4 bits per weight. For Transformers nothing is cut on either side, at the bytes of plain options.
Each code chooses from its own measurement; the earlier one needs a second, of the options that it has for Transformers without cuts. What is done
already is kept in build/bench/below_four.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from bench.common import ROOT, interval, show

HOME = ROOT / "build" / "bench" / "below_four"
RATES = ("2", "2.5", "3", "4")
PLAIN = {
    "2 bits, a scale for each row": "gptq bits=2 group=0 symmetric=true",
    "2 bits, groups of 64": "gptq bits=2 group=64 symmetric=true",
    "3 bits, groups of 64": "gptq bits=3 group=64 symmetric=true",
    "4 bits, groups of 64": "gptq bits=4 group=64 symmetric=true",
}
# The earlier code held some bytes back for headers, and refused a budget that its own file then met.
EARLIER = 1.002
SHARED = ("--samples", "32", "--test-samples", "32")
CODES = {"now": str(ROOT / "src"), "49a0363": os.environ.get("MODICUM_EARLIER", "")}


def main(models: Sequence[str] = ("demo",)) -> None:
    for model in models:
        known(model, "now")
    container, plain = [], []
    for model in models:
        name = Path(model).name
        for rate in RATES:
            pair = [chosen(model, code, "modicum", ("--bpw", rate), rate) for code in CODES]
            container.append((name, rate, *_beside(*pair)))
        for told, method in PLAIN.items():
            if not (size := plain_bytes(model, method)):
                plain.append((name, told, "", "held on no layer", "", "", ""))
                continue
            allowed = {code: size * (1 if code == "now" else EARLIER) for code in CODES}
            pair = [
                chosen(model, code, "transformers", ("--size", f"{most / 1e6:.6f}MB", "--menu", uncut(model, code)), told)
                for code, most in allowed.items()
            ]
            plain.append((name, told, *_beside(*pair)))
    columns = ("bytes", "KL", "bytes of 49a0363", "its KL", "of its")
    note = "32 × 512 calibration tokens, 32 test sequences. `MODICUM_EARLIER=EARLIER/src python -m bench.below_four MODEL ...`."
    show(
        "Below four bits in the container: mean KL at equal bytes, the whole file counted",
        ("model", "bits per weight", *columns),
        container,
        note,
    )
    show(
        "Below four bits for Transformers: mean KL at the bytes of a plain option, nothing cut",
        ("model", "bytes of", *columns),
        plain,
        note,
    )


def chosen(model: str, code: str, target: str, words: tuple[str, ...], told: str) -> dict[str, Any] | None:
    """The receipt of one choice from a measurement; nothing where that code has nothing within the budget."""
    if not CODES[code]:
        return None
    kept = HOME / Path(model).name / code / f"{target} {told}.json".replace(" ", "_").replace(",", "")
    if not kept.exists():
        out = kept.with_suffix(".out")
        words = (*words, "--target", target, "--allow-broken") if code == "now" else (*words, "--target", target)
        done = run(code, "fit", "--from", str(known(model, code, target)), *words, "--out", str(out), "--overwrite", "--json")
        kept.write_text(done.stdout if done.returncode == 0 else json.dumps({"refused": done.stderr[-600:]}))
    receipt = json.loads(kept.read_text())
    print(f"{model} {code} {target} {told}: {_told(receipt)}", flush=True)
    return receipt


def known(model: str, code: str, target: str = "modicum") -> Path:
    """A measurement by one code."""
    own = target == "transformers" and code != "now"
    out = HOME / Path(model).name / code / ("measured_uncut" if own else "measured")
    if CODES[code] and not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        words = ("--target", target, "--menu", uncut(model, code)) if own else ()
        done = run(code, "measure", model, *SHARED, *words, "--out", str(out), "--json")
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
    return out


@cache
def uncut(model: str, code: str) -> str:
    """The options of a code's own menu for Transformers that cut nothing."""
    done = run(code, "fit", model, "--bpw", "8", "--target", "transformers", "--dry-run", "--json", *SHARED, "--out", str(HOME / "none"))
    return ",".join(sorted({option for site in json.loads(done.stdout)["sites"] for option in site["options"]} - {"keep"}))


@cache
def plain_bytes(model: str, method: str) -> int:
    """Bytes of one option on every layer, for Transformers; 0 where that holds it on none."""
    words = (
        "--method",
        method,
        "--target",
        "transformers",
        "--samples",
        "1",
        "--test-samples",
        "2",
        "--allow-broken",
        "--overwrite",
        "--json",
    )
    done = run("now", "fit", model, *words, "--out", str(HOME / Path(model).name / "plain.out"))
    return int(json.loads(done.stdout)["bytes"]["actual"]) if done.returncode == 0 else 0


def run(code: str, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "modicum", *words]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": CODES[code]}, capture_output=True, text=True)


def _beside(now: dict[str, Any] | None, earlier: dict[str, Any] | None) -> tuple[str, ...]:
    figures = []
    for receipt in (now, earlier):
        found = receipt is not None and "quality" in receipt
        figures += [str(receipt["bytes"]["actual"]), interval(receipt["quality"])] if found and receipt else ["", "none within"]
    both = now is not None and earlier is not None and "quality" in now and "quality" in earlier
    return (*figures, f"{now['quality']['mean'] / earlier['quality']['mean']:.2f}" if both and now and earlier else "")


def _told(receipt: dict[str, Any]) -> str:
    return f"{receipt['bytes']['actual']} {interval(receipt['quality'])}" if "quality" in receipt else receipt["refused"][-200:]


if __name__ == "__main__":
    main(sys.argv[1:] or ("demo",))
