"""A LangChain retriever of the chunks that are expected next; needs ``langchain-core``."""

from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import Field, PrivateAttr

from nextvec.inference import Engine
from nextvec.integrations.reading import TextReader


class NextChunkRetriever(BaseRetriever):
    """Retrieves the chunks that are expected after the text that was read so far, which is the query.

    A query that continues an earlier one costs only its new text::

        retriever = NextChunkRetriever(engine=nv.Engine.open("books.bank"), k=5)
        retriever.invoke("All that the reader has read so far …")

    A document has ``row``, ``score``, ``document`` (its title) and ``count`` of :class:`~nextvec.inference.Expected` in its
    metadata.

    Attributes:
        engine: of a bank with text.
        k: number of chunks.
    """

    engine: Engine
    k: int = Field(default=5, ge=1)
    _reader: TextReader = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        self._reader = TextReader(self.engine)

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:  # noqa: ARG002
        bank = self.engine.bank.fingerprint[:12]
        return [
            Document(
                page_content=chunk.text or "",
                id=f"{bank}:{chunk.row}",
                metadata={"row": chunk.row, "score": chunk.score, "document": chunk.document, "count": chunk.count},
            )
            for chunk in self._reader.expected(query, self.k)
        ]
