"""How calibration, validation and test data reach the library: texts read, tokenized and split, or batches split as they are."""

from modicum.data.splits import Batch, Splits, call, count_tokens, from_batches, from_text, slice_rows
from modicum.data.text import encode, read_documents, shipped, windows

__all__ = [
    "Batch",
    "Splits",
    "call",
    "count_tokens",
    "encode",
    "from_batches",
    "from_text",
    "read_documents",
    "shipped",
    "slice_rows",
    "windows",
]
