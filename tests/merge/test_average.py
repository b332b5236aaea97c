"""The mean is nearer to what models scatter about than any of them."""


def test_the_mean_is_nearer_to_the_centre(tensors, merged, same):
    base, others = tensors(8)
    found = merged("average", base, others)
    distance = lambda one: float(sum((one[name] - base[name]).square().sum() for name in base)) ** 0.5
    assert distance(found) < 0.5 * min(map(distance, others))
    weights = [1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0]
    same(merged("average", base, others, weights), {name: sum(w * o[name] for w, o in zip(weights, others)) / 10 for name in base})
