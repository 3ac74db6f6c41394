"""Ingestion: files, tables and Python objects become documents, chunks, vectors, and a bank."""

from nextvec.ingestion.chunking import Chunking
from nextvec.ingestion.docstrings import documentation
from nextvec.ingestion.document import Document
from nextvec.ingestion.ingest import ingest

__all__ = ["Chunking", "Document", "documentation", "ingest"]
