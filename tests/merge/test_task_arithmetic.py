"""What a model learnt is added, and taken away again."""


def test_what_was_added_is_taken_away(tensors, merged, same):
    base, (one, other) = tensors(2)
    both = merged("task_arithmetic", base, [one, other])
    same(both, {name: one[name] + other[name] - base[name] for name in base})
    same(
        merged("task_arithmetic scale=0.5", base, [one, other], [2.0, -2.0]), {name: base[name] + one[name] - other[name] for name in base}
    )
    same(merged("task_arithmetic", both, [merged("task_arithmetic", both, [one], [-1.0])], [0.0]), both)
    same(merged("task_arithmetic", merged("task_arithmetic", base, [one], [0.7]), [one, base], [-0.7, 0.7]), base)
    taken = {name: both[name] - (other[name] - base[name]) for name in base}
    same(taken, one)
