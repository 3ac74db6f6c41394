"""Nearest rows of a bank: exact or approximate search, with filters and with rows that are added later."""

from nextvec.index.approximate import ApproximateIndex
from nextvec.index.exact import ExactIndex
from nextvec.index.inputs import allowed_rows
from nextvec.index.open import open_index
from nextvec.index.pooled import search_pooled
from nextvec.index.protocol import Index, Neighbours, RowMap

__all__ = ["ApproximateIndex", "ExactIndex", "Index", "Neighbours", "RowMap", "allowed_rows", "open_index", "search_pooled"]
