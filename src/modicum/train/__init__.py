"""Training of parametrizations: any module's weights made of fewer numbers for a while, without surgery."""

from modicum.train.settings import Loop

__all__ = ["Loop"]
