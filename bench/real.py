"""Trained models out of registry packages against another commit, each run in a process of its own, one after the other.

`make interop` makes their environment; then `.venv-interop/bin/python -m bench.real PATH [sentences pitch voices]` with PATH a checkout of the
other commit (`git worktree add PATH 49a0363`). One thread each; a run that ends in an error is told with it.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.common import ROOT, show

# What a run does, in a process that sees one of the two trees: fit, and print what the task says of the result.
RUN = """
import json, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import torch, models, modicum

kind, out = sys.argv[1], Path(sys.argv[2])
if kind == "sentences":
    source = models.minilm(out / "source")
    receipt = modicum.fit(source, "8bpw", samples=32, tokens=128, out=out / "made").receipt
    told = f"error {receipt['quality']['mean']:.1e}"
elif kind.startswith("pitch"):
    model, (frames, pitches) = models.crepe(kind.split()[1]), models.tones()
    result = modicum.fit(model, "8bpw", data=frames.split(32), out=out / "made")
    told = f"{100 * models.pitches_right(result.model, frames[::4], pitches[::4]):.1f} % of pitches"
else:
    model, sounds = models.speaker_encoder(), models.voices()
    heard = models.spectrograms(sounds)
    made = modicum.fit(model, "8bpw", data=heard[:60].split(6), out=out / "made").model
    with torch.no_grad():
        told = f"cosine {float(torch.cosine_similarity(model(heard[60:]), made(heard[60:])).mean()):.5f}"
print(json.dumps([told, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000]))
"""
KINDS = {"sentences": ["sentences"], "pitch": ["pitch tiny", "pitch full"], "voices": ["voices"]}
LONGEST = 3600


def main(words: list[str] | None = None) -> None:
    if not words:
        print("real models: the path of another commit's checkout must be given, skipped")
        return
    other, chosen = Path(words[0]), words[1:] or list(KINDS)
    rows = []
    for kind in (kind for name in chosen for kind in KINDS[name]):
        theirs, ours = run(kind, other), run(kind, ROOT)
        shares = [f"{mine / its:.2f}" if theirs[0] == ours[0] == 0 else "" for mine, its in zip(ours[1:4], theirs[1:4])]
        for tree, found, told in ((other.name, theirs, [""] * 3), ("here", ours, shares)):
            cells = [f"{value:.0f} {unit} {share}".strip() for value, unit, share in zip(found[1:4], ("s", "s", "MB"), told)]
            rows.append((kind, tree, *cells, found[4]))
    head = ("model", "commit", "seconds", "seconds of one processor", "memory in all", "its own task")
    show("Real models: at 8 bits per weight, and shares of the other commit's", head, rows, "`python -m bench.real PATH`, one thread.")


def run(kind: str, tree: Path) -> tuple[int, float, float, float, str]:
    """Status, seconds, processor seconds, megabytes, and what the task says, or the error."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-W", "ignore", "-c", RUN, kind, out, str(ROOT / "tests" / "interop")]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LONGEST)
        except subprocess.TimeoutExpired:
            return 1, float(LONGEST), 0.0, 0.0, "not done"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "Error" in line]
        return done.returncode, time.monotonic() - begun, spent, 0.0, (errors or ["ended without a word"])[-1][:120]
    told, memory = json.loads(done.stdout.splitlines()[-1])
    return 0, time.monotonic() - begun, spent, memory, told


if __name__ == "__main__":
    main(sys.argv[1:])
