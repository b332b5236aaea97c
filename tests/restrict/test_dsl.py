"""Dynamic sparse learning: never more than the budget, and entries go to the weights that need them."""


def test_the_budget_holds_at_every_step_and_entries_move_between_weights(problem):
    counts = {}

    def each(number, t, optimizer):
        counts[number] = {name: len(place.state["values"]) for name, place in t.places.items()}
        assert all(state["exp_avg"].shape == parameter.shape for parameter, state in optimizer.state.items())

    moved, weights = problem.learn("dsl keep=0.1 every=10", steps=300, each=each)
    stayed, _ = problem.learn("random keep=0.1 layers=uniform", steps=300)
    budget = round(0.1 * (64 * 16 + 16 * 8))
    assert all(sum(each.values()) == budget for each in counts.values())
    assert counts[300]["2.weight"] != counts[1]["2.weight"], "sparsity is redistributed"
    assert moved < 0.5 * stayed
    first = (weights["0.weight"] != 0).float()
    assert first[:, :4].mean() > 2 * first[:, 4:].mean()
