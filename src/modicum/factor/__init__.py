"""Fewer numbers by thin factors, small ones and chains of them."""

from modicum.factor.kronecker_sum import KroneckerSum
from modicum.factor.svd import Svd
from modicum.factor.tensor_train import TensorTrain

__all__ = ["KroneckerSum", "Svd", "TensorTrain"]
