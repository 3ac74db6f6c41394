"""Text → documents → chunks → encoder → bank."""

from nextvec.ingest.chunking import Chunking
from nextvec.ingest.docstrings import documentation
from nextvec.ingest.document import Document
from nextvec.ingest.ingest import ingest

__all__ = ["Chunking", "Document", "documentation", "ingest"]
