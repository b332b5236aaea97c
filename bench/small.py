"""An update of each method that trains small models, against an update of plain dense training: processor time, and the optimizer's memory.

One process, one model and one batch, in turns: within a turn each method's updates stand beside the dense one's, and ratios are of a turn.
``python -m bench.small [METHOD ...]`` measures these.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.common import RESULTS, show

KEEP, TOKENS, ROWS, STEPS, TURNS, MORE = 0.25, 128, 4, 2, 5, 4
METHODS = {
    "dense": 0, f"random keep={KEEP}": 0, f"snip keep={KEEP}": 0, f"set keep={KEEP}": 100, f"rigl keep={KEEP}": 100, f"gradual keep={KEEP}": 20,
    f"freezenet keep={KEEP}": 0, "sr_ste n=2 m=8": 0, "gradient_flow n=2 m=8": 0, "lsq bits=4": 0, "bitnet": 0, "low_rank rank=32": 0, "phm n=4": 0,
    "sltrain rank=32": 0, f"activating keep={KEEP}": 20, f"pst keep={KEEP}": 0, f"smp keep={KEEP}": 0,
    f"dsl keep={KEEP}": 100, "lapp": 0, "wgsef": 0, "adaptive_precision": 50, "mpo bond=8": 0,
    f"stable_rps keep={KEEP}": 0, f"shapeshifter keep={KEEP}": 0, "widenet": 0,
}  # fmt: skip
AIM = 1.15
MASKS = {
    "sr_ste",
    "gradient_flow",
    "activating",
    "pst",
    "smp",
    "dsl",
    "lapp",
    "wgsef",
    "random",
    "snip",
    "set",
    "rigl",
    "gradual",
    "freezenet",
}


def main(asked: Sequence[str] = ()) -> None:
    """Ratios by method, of those that are ``asked`` for or all; rows of others stay. A renewal is spread over the steps between two."""
    head = ("method", "an update", "one that renews", "on the whole", f"of {MORE * ROWS * TOKENS:,} tokens", "optimizer's memory")
    rows = dict[str, Sequence[str]]()
    for method, every in METHODS.items():
        if asked and method.split()[0] not in asked:
            continue
        plain, renewing, memory = measured(method, every)
        ratio = statistics.median(plain)
        whole = ratio + (statistics.median(renewing) - ratio) / every if every else ratio
        longer = statistics.median(measured(method, 0, MORE * ROWS, 1)[0]) if whole > AIM else None
        told = (f"{statistics.median(renewing):.2f}" if renewing else "", f"{whole:.2f}", f"{longer:.2f}" if longer else "")
        rows[method] = (method, f"{ratio:.2f}", *told, f"{memory:.2f}")
    note = (
        f"A Llama of 3.4 million parameters, {ROWS} sequences of {TOKENS} tokens, AdamW with clipped gradients, all else dense; medians of {TURNS} "
        f"turns, times those of plain torch training in the same turn. The aim is {AIM} for masks, with what a renewal costs spread over the updates "
        f"between two. What is above is work on weights, which does not grow with tokens: of {MORE * ROWS * TOKENS:,}, as many as the command's own "
        "updates have, it is measured once more. Methods that choose once (`grasp`, `synflow`, `sbp_sr`) update as `snip` does."
    )
    rows = _known(head) | rows
    note += _floors([method for method in METHODS if method in rows and float(rows[method][3]) > AIM and method.split()[0] in MASKS])
    show("Updates of methods that train small", head, [rows[method] for method in METHODS if method in rows], note)


def _floors(above: Sequence[str]) -> str:
    """What passes over the weights take of masks that are above the aim, in words."""
    one, counted = pass_of_weights(), {method.split()[0]: passes(method) for method in above}
    told = ", ".join(f"{count:.1f} (`{name}`: {1 + one * count:.2f} at least)" for name, count in counted.items())
    return (
        f" One pass over the blocks' weights, read and written by an operation of torch alone, takes {one:.4f} of the dense update. Masks above the "
        f"aim need, beyond the dense update's, {told}; what they take more is the start of operations on many small weights, and numpy's selection "
        "where a share of a whole weight is kept."
    )


def _known(head: Sequence[str]) -> dict[str, Sequence[str]]:
    """Rows of the table as it is, by method."""
    path = RESULTS / "updates_of_methods_that_train_small.json"
    table = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"head": [], "rows": []}
    return {row[0]: row for row in table["rows"] if table["head"] == list(head)}


def measured(method: str, every: int, count: int = ROWS, steps: int = STEPS) -> tuple[list[float], list[float], float]:
    """Ratios of updates and of updates that renew, and of the optimizer's numbers."""
    from modicum.train.learning import plan_of
    from modicum.train.scoring import scored
    from modicum.train.trained import Trained

    ids = torch.randint(3, 1024, (count, TOKENS), generator=torch.Generator().manual_seed(0))
    plainly, model = built(), built()
    dense = torch.optim.AdamW(plainly.parameters(), lr=1e-4)
    with Trained(model, plan_of(model, method), total=1000, scratch=True) as t:
        scored(t, lambda: loss_of(model, ids))
        t.step = type(t.step)(249, 1000)
        if every:
            t.revise()
        optimizer = torch.optim.AdamW(t.parameters(), lr=1e-4)
        first = lambda: update(plainly, ids, dense, list(plainly.parameters()))
        second = lambda: update(model, ids, optimizer, t.parameters(), t)
        first(), second()
        plain, renewing = [], []
        for _ in range(TURNS):
            base, mine = timed(first, steps), timed(second, steps)
            plain.append(mine / base)
            if every:
                t.step = type(t.step)(300 - 1, 1000)
                renewing.append(timed(second, 1) / base)
        size = lambda made: sum(value.numel() for state in made.state.values() for value in state.values() if value.ndim)
        return plain, renewing, size(optimizer) / size(dense)


class Counted(TorchDispatchMode):
    """How many numbers operations read and write."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not (func.is_view or "empty" in str(func) or "detach" in str(func)):
            self.numbers += sum(each.numel() for each in tree_leaves((args, kwargs, out)) if isinstance(each, torch.Tensor))
        return out


def passes(method: str) -> float:
    """How often an update reads and writes all restricted weights to make them, to take their gradients back, and for the penalty.

    Beyond dense training: 1.5 is what reading the gradients that are given here takes.
    """
    from modicum.train.learning import plan_of
    from modicum.train.trained import Trained

    model = built()
    with Trained(model, plan_of(model, method), total=1000, scratch=True) as t:
        t.step = type(t.step)(249, 1000)
        places = {name: place for name, place in t.places.items() if place.unit.shape[0] > 1}
        given = {name: torch.zeros(place.unit.shape) for name, place in places.items()}
        with Counted() as counted:
            made = [t.weight(name) for name in places]
            penalty = t.penalty()
            ends, gradients = (
                [*made, *([] if penalty is None else [penalty])],
                [*given.values(), *([] if penalty is None else [torch.ones(())])],
            )
            torch.autograd.backward(ends, gradients)
    return counted.numbers / 2 / sum(each.numel() for each in given.values()) - 1.5


def pass_of_weights() -> float:
    """What one pass over the blocks' weights takes, of a dense update that comes before it."""
    model = built()
    optimizer, ids = torch.optim.AdamW(model.parameters(), lr=1e-4), torch.randint(3, 1024, (ROWS, TOKENS))
    weights, found = [each.detach() for name, each in model.named_parameters() if "_proj" in name], list[float]()
    whole = lambda: update(model, ids, optimizer, list(model.parameters()))
    whole()
    for _ in range(2 * TURNS):
        base = timed(whole, 1)
        found.append(timed(lambda: [each * 2.0 for each in weights], 1) / base)
    return statistics.median(found)


def built() -> Any:
    """The model, the same each time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=1024, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=512, tie_word_embeddings=True,
    )).train()  # fmt: skip


def loss_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The next token's, per token."""
    return torch.nn.functional.cross_entropy(model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def update(model: Any, ids: torch.Tensor, optimizer: Any, parameters: list, t: Any = None) -> None:
    """One update."""
    optimizer.zero_grad()
    loss = loss_of(model, ids)
    if t is not None and (penalty := t.penalty()) is not None:
        loss = loss + penalty
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    if t is not None:
        t.revise(optimizer)


def timed(work: Callable[[], None], steps: int) -> float:
    """Processor seconds of one."""
    started = time.process_time()
    for _ in range(steps):
        work()
    return (time.process_time() - started) / steps


if __name__ == "__main__":
    main(sys.argv[1:])
