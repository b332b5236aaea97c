"""Tickets: pruned in cycles, wound back to where they began, better than a random mask."""


def test_a_ticket_begins_where_it_began_and_beats_a_random_mask(problem):
    seen = {}

    def each(number, t, optimizer):
        state = t.places["0.weight"].state
        seen[number] = (state["values"].detach() == state["first"][state["places"]]).float().mean().item(), t.count

    ticket, _ = problem.learn("tickets keep=0.15 cycles=3", each=each)
    random, _ = problem.learn("random keep=0.15")
    size = 64 * 16 + 16 * 8
    assert [seen[number][0] for number in (25, 50, 75)] == [1.0, 1.0, 1.0] and seen[74][0] < 0.1
    assert seen[150][1] == round(0.15 * size) and abs(seen[30][1] - size * 0.15 ** (1 / 3)) < 3
    assert ticket < 0.5 * random
