"""Laws over modules that nobody chose: whatever the grammar composes is right, or refused in one sentence before any measuring."""

import collections
import copy
import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

import modicum
from modicum.core.progress import Quiet
from modicum.data.splits import from_batches

_spec = importlib.util.spec_from_file_location("modicum_grammar", Path(__file__).with_name("grammar.py"))
grammar = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = grammar
_spec.loader.exec_module(grammar)

_WORK = {"measure", "gradients", "assemble", "export", "verify", "judge", "choose", "spans", "scales"}

_PARTS, _EACH = 16, 130
_RESULT, _UNTRIED = "result", "torch itself cannot run it"


class Stages(Quiet):
    """Remembers which stages began."""

    def __init__(self):
        self.begun = []

    def start(self, stage, total):
        self.begun.append(stage)


def called(module, batch):
    arguments = batch if isinstance(batch, tuple) else (batch,)
    with torch.no_grad():
        output = module(**batch) if isinstance(batch, dict) else module(*arguments)
    return (
        output
        if hasattr(output, "logits")
        else [leaf for leaf in tree_leaves(output) if torch.is_tensor(leaf) and leaf.is_floating_point()]
    )


def heeds(module, batches, said):
    """Whether outputs change where the masks of batches say that all tokens are real: a module may pay them no heed."""
    key, full = "padding" if isinstance(batches[0], dict) else 1, grammar.said_as(torch.ones(4, grammar.TIME, dtype=torch.bool), said)
    others = [{**batch, key: full} if isinstance(batch, dict) else (batch[0], full) for batch in batches]
    pairs = [tree_leaves([getattr(output, "logits", output) for output in (called(module, one), called(module, other))])
             for one, other in zip(batches, others)]  # fmt: skip
    return any(not torch.equal(one, other) for pair in pairs for one, other in zip(pair[: len(pair) // 2], pair[len(pair) // 2 :]))


def real(batch, said):
    """Which tokens of a batch are no padding (rows, tokens); None where all are, or where nothing is ``said`` of them."""
    return grammar.reality(batch["padding"] if isinstance(batch, dict) else batch[1], said) if said else None


def squared_errors(original, candidate):
    """Relative to each row's energy; of single numbers, one of which may be next to nothing, to that of the batch."""
    energy = original.square().sum(1)
    return ((original - candidate).square().sum(1) / (energy.mean() if original.shape[1] == 1 else energy)).tolist()


def divergence(original, candidate, batches, said=""):
    """By hand: of scores the mean divergence of their classes, of all else the relative squared error of the worst output, by row."""
    found = []
    for batch in batches:
        one, other = called(original, batch), called(candidate, batch)
        axis = 1 if not isinstance(one, list) and one.logits.ndim == 4 else -1
        if not isinstance(one, list) and one.logits.shape[axis] > 1:
            p, q = (scores.logits.float().log_softmax(axis) for scores in (one, other))
            each = (p.exp() * (p - q)).sum(axis)
            mask = real(batch, said)
            kept = each if mask is None or mask.shape != each.shape else [row[tokens] for row, tokens in zip(each, mask)]
            found += [max(float(row.mean()), 0.0) for row in kept]
        else:
            mask = real(batch, said)
            pairs = zip(*((output if isinstance(output, list) else [output.logits]) for output in (one, other)))
            if mask is not None:
                pairs = [[value * mask[..., None] if value.shape[:2] == mask.shape else value for value in pair] for pair in pairs]
            errors = [squared_errors(x.double().flatten(1), y.double().flatten(1)) for x, y in pairs]
            found += [max(each) for each in zip(*errors)]
    return sum(found) / len(found)


def state(module):
    """What must be as it was: weights, modes, attributes, hooks, and torch's own state."""
    parts = {name: (part.training, sorted(vars(part)), len(part._forward_hooks)) for name, part in module.named_modules()}
    torch_state = (torch.get_rng_state().tolist(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_default_dtype())
    return (
        parts,
        {name: value.clone() for name, value in module.state_dict().items()},
        torch_state,
        torch.backends.mha.get_fastpath_enabled(),
    )


def same(before, after):
    values = before[1].keys() == after[1].keys() and all(torch.equal(before[1][name], after[1][name]) for name in before[1])
    ours = {name: (mode, [key for key in keys if key not in ("kept", "skip")], hooks) for name, (mode, keys, hooks) in before[0].items()}
    theirs = {name: (mode, [key for key in keys if key not in ("kept", "skip")], hooks) for name, (mode, keys, hooks) in after[0].items()}
    return values and ours == theirs and before[2:] == after[2:]


def attempt(module, batches, **asked):
    """The result of a fit, or the words of its refusal, which must come before any work."""
    stages = Stages()
    try:
        return modicum.fit(module, data=batches, target="modicum", search_time=0, progress=stages, **asked), ""
    except modicum.ModicumError as error:
        assert not _WORK & set(stages.begun), f"refused after {stages.begun}: {error}"
        return None, str(error)


def computed(module, batches, receipt):
    """The module and its batches in the dtype that the receipt says was computed in, which holds all that the stored one does."""
    dtypes = receipt["compute"]
    if dtypes["forward"] == dtypes["stored"]:
        return module, batches
    dtype = getattr(torch, dtypes["forward"])
    widened = lambda leaf: leaf.to(dtype) if torch.is_tensor(leaf) and leaf.is_floating_point() else leaf
    return copy.deepcopy(module).to(dtype), [tree_map(widened, batch) for batch in batches]


def judge(seed, menu=None):
    """Hold all four laws on the module of a number; why it was refused, or an empty string. None where torch itself cannot run it."""
    sentence = grammar.compose(seed)
    plain = copy.deepcopy(sentence.module).eval()
    try:
        called(plain, sentence.batches[0])
    except Exception:
        return None
    before = state(sentence.module)
    result, refusal = attempt(sentence.module, sentence.batches, method="nearest bits=8 group=0")
    assert same(before, state(sentence.module)), "the caller's module is not as it was"
    if result is None:
        return refusal
    test = from_batches(sentence.batches, seed=0).test
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        said = sentence.masked if sentence.masked and heeds(plain, sentence.batches, sentence.masked) else ""
        wide, wider = computed(plain, test, result.receipt)
        found = divergence(wide, computed(result.model, (), result.receipt)[0], wider, said)
        assert result.receipt["quality"]["mean"] == pytest.approx(found, rel=2e-2, abs=1e-6), (
            "the receipt's divergence is not that of the outputs"
        )
        # Under a budget of bytes alone that is so wide nothing but rounding is measured: of every third all that is offered is.
        room = {"size": sum(p.nbytes for p in plain.parameters()) * 4 + 100_000} | ({} if seed % 3 else {"params": 1})
        whole, refusal = attempt(sentence.module, sentence.batches, menu=menu, **room)
        if whole is not None:
            assert divergence(plain, whole.model, test) <= 1e-7, "with room for all the model is not the original"
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return refusal


def survey(numbers, menu=None):
    """Judge the modules of many numbers: what was wrong by number, and how often what was refused."""
    wrong, found = {}, collections.Counter()
    for number in numbers:
        try:
            refusal = judge(number, menu)
        except Exception as error:
            wrong[number] = f"{grammar.compose(number).words}: {type(error).__name__} {str(error)[:160]}"
            continue
        found[_UNTRIED if refusal is None else refusal.partition(":")[2][:60] or _RESULT] += 1
    return wrong, found


def enough(found, share):
    """Whether that share of what torch can run gave a result."""
    return found[_RESULT] >= share * (sum(found.values()) - found[_UNTRIED])


# Of these each once was wrong: outputs that a tuple only numbers under a mask, a cut of no harm though there is room for all, and a mask that other
# layers beside attention do not obey.
_ONCE_WRONG = (2353, 2040, 1523, 1550, 2284, 2476)
# Of each family one that takes little time; the long form takes all that is offered by itself.
_QUICK = "nearest bits=3 group=0,float8,svd keep=0.5,wanda keep=0.5,ziplm keep=0.5,blocks count=1"


def test_composed_modules_are_right_or_refused():
    wrong, found = survey([*range(6), *_ONCE_WRONG], _QUICK)
    assert not wrong, "\n".join(f"{number} {said}" for number, said in wrong.items())
    assert enough(found, 0.7), found


@pytest.fixture(scope="session")
def ledger(tmp_path_factory):
    """A folder that all processes of this run of the tests share, for what each part found."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "laws"
    place.mkdir(exist_ok=True)
    return place


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(_PARTS))
def test_two_thousand_composed_modules(part, ledger):
    """Each part by itself nearly as good as the whole must be; whichever comes last counts all of them together."""
    wrong, found = survey(range(1000 + part * _EACH, 1000 + (part + 1) * _EACH))
    assert not wrong, "\n".join(f"{number} {said}" for number, said in wrong.items())
    assert enough(found, 0.7), found
    (ledger / f"{part}.json").write_text(json.dumps(found))
    parts = [collections.Counter(json.loads(path.read_text())) for path in ledger.glob("*.json")]
    whole = sum(parts, collections.Counter())
    print(f"{len(parts)} of {_PARTS} parts:", *(f"{count:5} {said}" for said, count in whole.most_common()), sep="\n")
    if len(parts) == _PARTS:
        assert sum(whole.values()) - whole[_UNTRIED] >= 2000
        assert enough(whole, 0.8), whole
