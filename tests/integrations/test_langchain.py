"""The LangChain retriever returns what a session expects after the same text."""

import asyncio

import pytest

pytest.importorskip("langchain_core", reason="needs langchain-core: pip install 'nextvec[integrations]'")

from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from pydantic import ValidationError

from nextvec.inference import Engine, Expected
from nextvec.integrations.langchain import NextChunkRetriever

pytestmark = pytest.mark.integration


@pytest.fixture
def expected(engine: Engine, read: str) -> list[Expected]:
    session = engine.session()
    session.push_text(read)
    return session.predict(k=3)


def test_the_documents_are_the_expected_chunks(engine: Engine, read: str, expected: list[Expected]) -> None:
    found = NextChunkRetriever(engine=engine, k=3).invoke(read)
    assert [document.page_content for document in found] == [each.text for each in expected]
    assert [document.metadata["row"] for document in found] == [each.row for each in expected]
    assert [document.metadata["score"] for document in found] == pytest.approx([each.score for each in expected], abs=1e-4)
    assert [document.metadata["document"] for document in found] == [each.document for each in expected]
    assert [document.id for document in found] == [f"{engine.bank.fingerprint[:12]}:{each.row}" for each in expected]


def test_batches_threads_and_chains_give_the_same_documents(engine: Engine, read: str) -> None:
    retriever = NextChunkRetriever(engine=engine, k=2)
    texts = [read, read[: len(read) // 2]]
    rows = [[document.metadata["row"] for document in retriever.invoke(text)] for text in texts]

    def numbers(documents: list[Document]) -> list[int]:
        return [document.metadata["row"] for document in documents]

    chain = retriever | RunnableLambda(numbers)
    assert chain.batch(texts) == rows

    async def together() -> list[list[Document]]:
        return await asyncio.gather(*map(retriever.ainvoke, texts))

    assert list(map(numbers, asyncio.run(together()))) == rows


def test_a_number_of_chunks_below_one_is_refused(engine: Engine) -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        NextChunkRetriever(engine=engine, k=0)
