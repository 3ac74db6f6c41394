"""Nearest rows of a bank: exact, or approximate by a library; with filters, and with rows added while it serves."""

from nextvec.index.approximate import ApproximateIndex
from nextvec.index.exact import ExactIndex, Neighbours
from nextvec.index.inputs import allowed_rows
from nextvec.index.open import Index, open_index

__all__ = ["ApproximateIndex", "ExactIndex", "Index", "Neighbours", "allowed_rows", "open_index"]
