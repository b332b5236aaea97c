"""Tiny random models of real architectures and random checkpoints of any size, for tests and benchmarks without a network."""

from modicum.testing import zoo
from modicum.testing.zoo import random_checkpoint

__all__ = ["random_checkpoint", "zoo"]
