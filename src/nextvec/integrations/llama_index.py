"""A LlamaIndex retriever of the chunks that are expected next; needs ``llama-index-core``."""

import asyncio

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from nextvec.inference import Engine
from nextvec.integrations.reading import TextReader


class NextChunkRetriever(BaseRetriever):
    """Retrieves the chunks that are expected after the text that was read so far, which is the query.

    A query that continues an earlier one costs only its new text::

        retriever = NextChunkRetriever(nv.Engine.open("books.bank"), k=5)
        retriever.retrieve("All that the reader has read so far …")

    A node has the score of the model, and ``row``, ``document`` (its title) and ``count`` of
    :class:`~nextvec.inference.Expected` in its metadata.

    Args:
        engine: of a bank with text.
        k: number of chunks.
    """

    def __init__(self, engine: Engine, k: int = 5) -> None:
        super().__init__()
        self._bank = engine.bank.fingerprint[:12]
        self._k = k
        self._reader = TextReader(engine)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [
            NodeWithScore(
                node=TextNode(
                    id_=f"{self._bank}:{chunk.row}",
                    text=chunk.text or "",
                    metadata={"row": chunk.row, "document": chunk.document, "count": chunk.count},
                ),
                score=chunk.score,
            )
            for chunk in self._reader.expected(query_bundle.query_str, self._k)
        ]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """In a thread: the base class would compute on the event loop."""
        return await asyncio.to_thread(self._retrieve, query_bundle)
