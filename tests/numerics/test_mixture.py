from collections import Counter

import numpy as np
import pytest
import torch

from modicum.core.errors import ModelError
from modicum.core.unit import Routed
from modicum.numerics.mixture import Mixture
from modicum.sweep.spill import SpillPool

TOKENS, EXPERTS, COLUMNS, ROWS = 600, 4, 5, 7


def mixture(chosen=2, seed=0, tokens=TOKENS, experts=EXPERTS, pieces=3, same=False, admit=lambda value: None):
    """Experts that each token meets ``chosen`` of, in micro-batches, and their weights; with the ``same`` inputs for all, or with their own."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.rand(tokens, experts, generator=generator).topk(chosen).indices
    gates = torch.rand(tokens, experts, generator=generator) + 0.2
    x = torch.randn(tokens, COLUMNS, generator=generator)
    parts = {}
    for expert in range(experts):
        met = (picks == expert).any(1).nonzero()[:, 0]
        own = torch.eye(COLUMNS) if same else torch.randn(COLUMNS, COLUMNS, generator=generator)
        parts[f"e{expert}"] = [Routed((x @ own)[mine], mine, gates[mine, expert]) for mine in met.tensor_split(pieces)]
    weights = {name: torch.randn(ROWS, COLUMNS, generator=generator) for name in parts}
    return Mixture(parts, admit), weights


def features(mixed, names, tokens=TOKENS):
    """Inputs of all tokens side by side, zero where a token did not meet an expert."""
    found = []
    for name in names:
        wide = torch.zeros(tokens, COLUMNS)
        wide[mixed.tokens(name)] = mixed.inputs(name)
        found.append(wide)
    return torch.cat(found, 1).double().numpy()


def exact(mixed, weights, gone, names, damping=0.0):
    """Squared error of the joint least squares over all features at once."""
    a, b = features(mixed, names), features(mixed, gone) @ np.concatenate([weights[name].double().numpy() for name in gone], 1).T
    ridge = [damping * np.mean(np.sum(a[:, at : at + COLUMNS] ** 2, 0)) for at in range(0, a.shape[1], COLUMNS)]
    solved = np.linalg.lstsq(a.T @ a + np.diag(np.repeat(ridge, COLUMNS)), a.T @ b, rcond=None)[0]
    return float(((b - a @ solved) ** 2).sum()), solved


@pytest.mark.parametrize("gone", [["e0"], ["e1", "e3"]], ids=["one", "two"])
@pytest.mark.parametrize("chosen", [1, 2, 3])
def test_between_the_joint_solution_and_none(chosen, gone):
    mixed, weights = mixture(chosen)
    left = [name for name in weights if name not in gone]
    found = mixed.refit({name: weights[name] for name in gone}, left, 1e-6, 2)
    best, _ = exact(mixed, weights, gone, left)
    none = float(np.square(features(mixed, gone) @ np.concatenate([weights[name].double().numpy() for name in gone], 1).T).sum())
    assert float(found.before.sum()) == pytest.approx(none, rel=1e-5)
    assert best * (1 - 1e-5) <= float(found.after.sum()) <= none * (1 + 1e-6)
    assert (float(found.after.sum()) < 0.99 * none) == (chosen > 1)  # nobody shares a token where each meets one expert


def test_one_of_two_a_token_is_the_joint_solution():
    mixed, weights = mixture(2)
    found = mixed.refit({"e0": weights["e0"]}, ["e1", "e2", "e3"], 1e-6, 8)
    best, solved = exact(mixed, weights, ["e0"], ["e1", "e2", "e3"])
    assert float(found.after.sum()) == pytest.approx(best, rel=1e-3)
    changes = torch.cat([found.changes[name] for name in ("e1", "e2", "e3")], 1).double().numpy().T
    assert np.linalg.norm(changes - solved) < 0.03 * np.linalg.norm(solved)  # the error is flat where it is least


def test_many_rounds_reach_the_damped_joint_solution():
    """Whose normal equations hold: every round pulls the whole change, not each step, towards zero."""
    mixed, weights = mixture(3)
    left = ["e1", "e2", "e3"]
    found, changes = mixed.refit({"e0": weights["e0"]}, left, 0.3, 1), {}
    residual, places = mixed._residual({"e0": weights["e0"]}, (at := mixed._places(["e0", *left]))), at
    for _ in range(60):
        for name in left:
            mixed._fit(name, residual, places[name], changes)
    _, solved = exact(mixed, weights, ["e0"], left, 0.3)
    np.testing.assert_allclose(torch.cat([changes[name] for name in left], 1).numpy().T, solved, atol=1e-4)
    assert float(residual.square().sum()) < float(found.after.sum()) < float(found.before.sum())


@pytest.mark.parametrize("damping", [1e-4, 0.01, 1.0, 10.0])
@pytest.mark.parametrize("seed", range(4))
def test_never_worse_on_what_was_fitted(seed, damping):
    """Nor with fewer tokens than columns; each round lowers the damped error, which begins without any."""
    for tokens in (6, 40, 400):
        mixed, weights = mixture(3, seed, tokens, 5)
        ends = [float(mixed.refit({"e0": weights["e0"]}, ["e1", "e2", "e3", "e4"], damping, rounds).after.sum()) for rounds in (1, 2, 4)]
        begin = float(mixed.refit({"e0": weights["e0"]}, [], damping, 1).after.sum())
        assert all(end <= begin * (1 + 1e-5) + 1e-6 for end in ends)


def test_what_remains_is_what_the_refit_says():
    mixed, weights = mixture(2)
    lost = {name: weights[name] for name in ("e0", "e2")}
    found = mixed.refit(lost, ["e1", "e3"], 0.01, 3)
    before, after = mixed.remaining(lost, found.changes)
    torch.testing.assert_close(before, found.before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after, found.after, rtol=1e-4, atol=1e-3)


def test_an_expert_without_tokens_stays():
    mixed, weights = mixture(2)
    mixed.parts["e1"], mixed.parts["e2"] = [], [Routed(torch.zeros(0, COLUMNS), torch.zeros(0, dtype=torch.long), torch.zeros(0))]
    assert set(mixed.refit({"e0": weights["e0"]}, ["e1", "e2", "e3"], 0.01, 2).changes) == {"e3"}
    lost = mixed.refit({"e1": weights["e1"], "e2": weights["e2"]}, ["e0", "e3"], 0.01, 2)
    assert lost.changes == {} and float(lost.before.sum()) == 0.0
    assert mixed.best_damping({"e1": weights["e1"]}, ["e0", "e3"], (0.01,)) == (None, 1.0)


def test_halves_hold_all_tokens_once():
    mixed, _ = mixture(2, pieces=1)
    first, second = mixed.halves()
    for name in mixed.parts:
        assert torch.equal(torch.cat([first.tokens(name), second.tokens(name)]), mixed.tokens(name))
        assert torch.equal(torch.cat([first.inputs(name), second.inputs(name)]), mixed.inputs(name))
        assert int(first.tokens(name).max()) < TOKENS // 2 <= int(second.tokens(name).min())
    assert first.parts["e0"][0].inputs.untyped_storage().data_ptr() == mixed.parts["e0"][0].inputs.untyped_storage().data_ptr()


def test_dampings_are_judged_on_tokens_held_out():
    """Experts that see the same can make up for each other and should; such as see independent things fit noise, unless held back."""
    dampings = (0.01, 1.0, 100.0)
    mixed, weights = mixture(2, same=True)
    damping, share = mixed.best_damping({"e0": weights["e0"]}, ["e1", "e2", "e3"], dampings)
    assert damping == 0.01 and share < 0.9
    generator = torch.Generator().manual_seed(3)
    for mine in mixed.parts.values():
        mine[:] = [Routed(torch.randn(part.inputs.shape, generator=generator), part.tokens, part.weights) for part in mine]
    _, noise = mixed.best_damping({"e0": weights["e0"]}, ["e1", "e2", "e3"], (0.01,))
    assert noise == 1.0 and mixed.best_damping({"e0": weights["e0"]}, ["e1", "e2", "e3"], dampings)[1] > 0.99


def test_nearest_share_most_tokens():
    mixed, _ = mixture(2, experts=6)
    pairs = Counter(
        {name: len(set(mixed.tokens("e0").tolist()) & set(mixed.tokens(name).tolist())) for name in mixed.parts if name != "e0"}
    )
    assert sorted(pairs[name] for name in mixed.nearest("e0", pairs, 3)) == sorted(count for _, count in pairs.most_common(3))
    assert mixed.nearest("e0", ["e4"], 3) == ["e4"] and mixture(1)[0].nearest("e0", ["e1", "e2"], 3) == []


def test_bits_depend_neither_on_threads_nor_on_spilling(tmp_path):
    def run(threads, pool):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            mixed, weights = mixture(2, tokens=20_000, admit=pool.admit)
            return mixed.refit({"e0": weights["e0"]}, ["e1", "e2", "e3"], 0.01, 2)
        finally:
            torch.set_num_threads(before)

    pool = SpillPool(0, tmp_path)
    plain, others = run(1, SpillPool(None)), [run(2, SpillPool(None)), run(1, pool)]
    assert pool.spilled > 0
    for other in others:
        assert torch.equal(plain.after, other.after) and all(
            torch.equal(plain.changes[name], other.changes[name]) for name in plain.changes
        )


def test_inputs_that_are_not_finite_are_told():
    mixed, weights = mixture(2)
    mixed.parts["e1"][0].inputs[0, 0] = float("nan")
    with pytest.raises(ModelError, match="must be finite"):
        mixed.refit({"e0": weights["e0"]}, ["e1"], 0.01, 1)
