"""What was done, for people and for machines: the receipt's report, its reader, the frontier, and the quality of models already written."""

from modicum.fit.receipts import read_receipt
from modicum.receipt.cited import Cited, cited
from modicum.receipt.evaluate import evaluate
from modicum.receipt.frontier import frontier
from modicum.receipt.report import report

__all__ = ["Cited", "cited", "evaluate", "frontier", "read_receipt", "report"]
