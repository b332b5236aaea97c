"""Float4: E2M1 numbers, as NVFP4 and MXFP4 have them."""

from __future__ import annotations

from modicum.forms.minifloat import Minifloat


class Float4(Minifloat):
    """Two significant bits under a scale for 16 columns (NVFP4) or 32 (MXFP4)."""

    kind, bits = "float4", 4
