"""Float6: E2M3 or E3M2 numbers, as MXFP6 has them."""

from __future__ import annotations

from modicum.forms.minifloat import Minifloat


class Float6(Minifloat):
    """Four significant bits up to 7.5, or three up to 28, under a power of two for 32 columns."""

    kind, bits = "float6", 6
