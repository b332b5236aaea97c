"""A training step of LoRA here, and of peft in a plain torch loop: one model, data, rank, dtype and optimizer, in turns.

Both run in processes of their own, of the interpreter that is told (``PEER``, made by ``python -m venv .venv-peft`` and ``pip install torch==2.13.0
peft`` in it, then ``pip install -e .``); where it is absent, peft is left out and the table says so.
``python -m bench.adapters float32`` runs one dtype, ``python -m bench.adapters float32 2`` two blocks of twelve and as much less of the head, once.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys

from bench.common import RESULTS, ROOT, show
from bench.sweep import LARGE, VOCABULARY

PEER = ROOT / ".venv-peft" / "bin" / "python"
RANK, ROWS, TOKENS, STEPS, TURNS = 8, 4, 256, 5, 2
DTYPES = ("float32", "bfloat16")
KEPT = RESULTS / "training_step_of_lora.json"

STEP = """
import gc, json, resource, sys, threading, time
import psutil, torch, transformers

who, dtype, shape = sys.argv[1], getattr(torch, sys.argv[2]), json.loads(sys.argv[3])
rank, rows, tokens, steps, least = json.loads(sys.argv[4])
torch.manual_seed(0)
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)).to(dtype)
data = [torch.randint(3, shape["vocab_size"], (rows, tokens)) for _ in range(steps + 1)]
process, peak, stop = psutil.Process(), [0], threading.Event()
gc.collect()
before = process.memory_info().rss

def watch():
    while not stop.wait(0.005):
        peak[0] = max(peak[0], process.memory_info().rss)

def timed(step):
    step(data[0])
    threading.Thread(target=watch, daemon=True).start()
    found = []
    for ids in data[1:]:
        started, worked = time.perf_counter(), time.process_time()
        loss = step(ids)
        found.append((time.perf_counter() - started, time.process_time() - worked))
    stop.set()
    wall, work = (sorted(each)[0 if least else len(found) // 2] for each in zip(*found))
    print(json.dumps({"wall": wall, "work": work, "extra": peak[0] - before, "trained": sum(p.numel() for p in learnt), "loss": loss}))

def update(loss):
    loss.backward()
    torch.nn.utils.clip_grad_norm_(learnt, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())

if who == "peft":
    import peft
    config = peft.LoraConfig(r=rank, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(model, config).train()
    learnt = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=1e-4)
    timed(lambda ids: update(wrapped(input_ids=ids, labels=ids, use_cache=False).loss))
elif who == "floor":
    from modicum.train.objectives import next_token
    model.requires_grad_(False).train()
    model.get_input_embeddings().register_forward_hook(lambda _, given, made: made.requires_grad_())
    learnt = []
    def step(ids):
        loss, count = next_token(model, {"input_ids": ids})
        (loss.sum() / count).backward()
        return float(loss.detach().sum() / count)
    timed(step)
else:
    from modicum.train.objectives import next_token
    from modicum.train.trained import trained
    with trained(model.train(), f"lora rank={rank}") as t:
        learnt = t.parameters()
        optimizer = torch.optim.AdamW(learnt, lr=1e-4)
        def step(ids):
            loss, count = next_token(model, {"input_ids": ids})
            found = update(loss.sum() / count)
            t.revise(optimizer)
            return found
        timed(step)
"""


def main() -> None:
    """Medians over the turns, in float32 and bfloat16."""
    interpreter = str(PEER) if PEER.exists() else sys.executable
    sides = ("modicum", "peft", "floor") if PEER.exists() else ("modicum", "floor")
    blocks = next((int(word) for word in sys.argv[1:] if word.isdigit()), None)
    asked = tuple(word for word in sys.argv[1:] if word in DTYPES) or DTYPES
    kept = KEPT if blocks is None else KEPT.with_stem(f"{KEPT.stem}_by_blocks")
    known = json.loads(kept.read_text(encoding="utf-8"))["rows"] if kept.exists() else []
    rows = [tuple(row) for row in known if row[0] not in asked]
    for dtype in asked:
        found: dict[str, list[dict]] = {side: [] for side in sides}
        for _ in range(TURNS if blocks is None else 1):
            for side in sides:
                found[side].append(run(interpreter, side, dtype, blocks))
        middle = {side: {key: statistics.median(one[key] for one in runs) for key in runs[0]} for side, runs in found.items()}
        first = middle.get("peft")
        for side, each in middle.items():
            ratio = lambda key, each=each: f" ({each[key] / first[key]:.2f})" if first else ""
            cells = (
                f"{each['wall']:.2f} s{ratio('wall')}",
                f"{each['work']:.2f} s{ratio('work')}",
                f"{each['extra'] / 1e6:.0f} MB{ratio('extra')}",
            )
            rows.append((dtype, side, *cells, f"{each['trained']:,.0f}", f"{each['loss']:.3f}"))
    head = ("dtype", "tool", "a step", "seconds of one processor", "extra memory", "trained", "last loss")
    note = (
        f"160 million parameters, LoRA of rank {RANK} on all linear layers, {ROWS} sequences of {TOKENS} tokens, AdamW, gradients clipped; "
        f"medians of {STEPS} steps and {TURNS} turns; in brackets against peft. The aim is 0.9 in float32, 0.8 with bfloat16 units, at 0.7 of the "
        "extra memory. "
        "Extra memory is the peak above the loaded model. The floor is the frozen model alone, forward, its loss, and backward to its inputs: what "
        "any exact gradient of adapters on all layers passes through."
    )
    if blocks is not None:
        note = f"{blocks} of twelve blocks of the model of the table above, with as much less of its head; the least of {STEPS} steps, one turn."
    title = "Training step of LoRA" + (" by blocks" if blocks is not None else "")
    show(title, head, sorted(rows, key=lambda row: DTYPES.index(row[0])), note)


def run(interpreter: str, side: str, dtype: str, blocks: int | None = None) -> dict:
    """One process of one side."""
    whole = LARGE["num_hidden_layers"]
    less = {} if blocks is None else {"num_hidden_layers": blocks, "vocab_size": VOCABULARY * blocks // whole}
    words = [json.dumps(LARGE | {"vocab_size": VOCABULARY} | less), json.dumps([RANK, ROWS, TOKENS, STEPS, blocks is not None])]
    made = subprocess.run(
        [interpreter, "-c", STEP, side, dtype, *words], check=True, capture_output=True, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    return json.loads(made.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
