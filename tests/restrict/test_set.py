"""SET: places that are drawn anew find what a mask that stays misses."""


def test_places_that_move_do_better_than_those_that_stay(problem):
    moved, _ = problem.learn("set keep=0.1 every=10", steps=300)
    stayed, _ = problem.learn("random keep=0.1", steps=300)
    assert moved < 0.5 * stayed


def test_it_moves_as_often_as_it_says_and_stops(problem):
    places = {}

    def each(number, t, optimizer):
        places[number] = t.places["0.weight"].state["places"].tolist()

    problem.learn("set keep=0.1 every=10 until=0.5", steps=60, each=each)
    assert [number for number in range(2, 61) if places[number] != places[number - 1]] == [10, 20]
