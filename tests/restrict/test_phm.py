"""PHM: Hamilton's product among its products, and about 1/n of the numbers."""

import torch

from modicum.core.parametrization import Start, State, Step
from modicum.restrict import Phm

# Of 1, i, j, k: what each does from the left to the four parts of a quaternion.
RULES = torch.tensor(
    [
        [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
        [[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0]],
        [[0, 0, -1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, -1, 0, 0]],
        [[0, 0, 0, -1], [0, 0, -1, 0], [0, 1, 0, 0], [1, 0, 0, 0]],
    ],
    dtype=torch.float32,
)


def test_with_the_rules_of_quaternions_it_is_hamiltons_product():
    a, b = torch.randn(4), torch.randn(4)
    made = Phm(n=4).weight(None, State({"rules": RULES, "blocks": a.reshape(4, 1, 1)}), Step()) @ b
    w, x, y, z = a
    p, q, r, s = b
    wanted = [w * p - x * q - y * r - z * s, w * q + x * p + y * s - z * r, w * r - x * s + y * p + z * q, w * s + x * r - y * q + z * p]
    torch.testing.assert_close(made, torch.stack(wanted))


def test_it_has_about_a_quarter_of_the_numbers_and_learns(problem):
    (form,) = Phm(n=4).outlines({"w": (64, 128)}).values()
    assert form.values == 4**3 + 64 * 128 // 4 + 1
    quarter, _ = problem.learn("phm n=4", steps=300)
    none = problem.y.square().mean()
    assert quarter < 0.1 * none


def test_where_n_does_not_divide_the_next_smaller_serves():
    state = Phm(n=4).begin(Start("w", (6, 9), None, torch.Generator(), 0))
    assert state["rules"].shape == (3, 3, 3) and state["blocks"].shape == (3, 2, 3)
