"""Fewer numbers by thin factors."""

from modicum.factor.svd import Svd

__all__ = ["Svd"]
