"""Taylor: absolute gradients of masks, which do not cancel between sequences."""

import pytest
import torch

from modicum.drop import FisherMasks, Taylor


def test_sequences_do_not_cancel_and_sites_may_be_normed():
    gradients = torch.tensor([[3.0, 1.0], [-3.0, 1.0]])
    assert Taylor().importance(gradients).tolist() == [9.0, 1.0]
    assert float(Taylor(normed=True).importance(gradients).sum()) == pytest.approx(1.0)
    assert Taylor(normed=True).importance(torch.zeros(2, 2)).tolist() == [0.0, 0.0]


def test_it_differs_from_the_second_order_where_one_sequence_feels_it_all():
    gradients = torch.tensor([[4.0, 2.5], [0.0, -2.5]])
    assert Taylor().importance(gradients).argmin() == 0
    assert FisherMasks().importance(gradients).argmin() == 1
