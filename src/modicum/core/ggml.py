"""Block types of llama.cpp's tensors: how many columns a block of each has, and how many bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockType:
    """A row is cut into blocks of ``columns`` numbers, each of which takes ``bytes``; ``number`` is what a file calls the type."""

    name: str
    number: int
    columns: int
    bytes: int

    @property
    def bits(self) -> float:
        """Bits per weight."""
        return 8 * self.bytes / self.columns

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row. Raises ``ValueError`` where blocks do not fill it."""
        if columns % self.columns:
            raise ValueError(f"rows of {columns} are not whole blocks of {self.columns}")
        return columns // self.columns * self.bytes


TYPES = {
    name: BlockType(name, number, columns, size)
    for name, number, columns, size in (
        ("q1_0", 41, 128, 18),
        ("q2_0", 42, 64, 18),
        ("iq2_s", 22, 256, 82),
        ("q2_k", 10, 256, 84),
        ("q3_k", 11, 256, 110),
        ("iq3_s", 21, 256, 110),
        ("iq4_xs", 23, 256, 136),
        ("q4_k", 12, 256, 144),
        ("iq4_nl", 20, 32, 18),
        ("q4_0", 2, 32, 18),
        ("q4_1", 3, 32, 20),
        ("q5_k", 13, 256, 176),
        ("q5_0", 6, 32, 22),
        ("q5_1", 7, 32, 24),
        ("q6_k", 14, 256, 210),
        ("q8_0", 8, 32, 34),
    )
}


def fitting(columns: int) -> list[str]:
    """Types whose blocks fill rows of so many columns, by rising bits."""
    return [name for name, type in TYPES.items() if columns and columns % type.columns == 0]
