"""Banks: vectors on disk once, memory-mapped, with documents as offsets and a fingerprint of the content."""

from nextvec.bank.bank import Bank
from nextvec.bank.census import Census, census
from nextvec.bank.distinct import Distinct
from nextvec.bank.documents import VectorDocument
from nextvec.bank.hashing import row_hashes
from nextvec.bank.item_writer import ItemWriter
from nextvec.bank.writer import BankWriter

__all__ = ["Bank", "BankWriter", "Census", "Distinct", "ItemWriter", "VectorDocument", "census", "row_hashes"]
