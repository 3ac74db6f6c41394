"""The LlamaIndex retriever returns what a session expects after the same text."""

import asyncio
import threading

import pytest

pytest.importorskip("llama_index.core", reason="needs llama-index-core: pip install 'nextvec[integrations]'")

from llama_index.core.schema import MetadataMode

from nextvec.inference import Engine
from nextvec.integrations.llama_index import NextChunkRetriever

pytestmark = pytest.mark.integration


def test_the_nodes_are_the_expected_chunks(engine: Engine, read: str) -> None:
    session = engine.session()
    session.push_text(read)
    expected = session.predict(k=3)
    found = NextChunkRetriever(engine, k=3).retrieve(read)
    assert [each.node.get_content(MetadataMode.NONE) for each in found] == [each.text for each in expected]
    assert [each.score for each in found] == pytest.approx([each.score for each in expected], abs=1e-4)
    assert [each.metadata["row"] for each in found] == [each.row for each in expected]
    assert [each.metadata["document"] for each in found] == [each.document for each in expected]


def test_the_event_loop_does_not_compute(engine: Engine, read: str, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    original = engine.encode_chunks
    monkeypatch.setattr(engine, "encode_chunks", lambda chunks: (threads.append(threading.get_ident()), original(chunks))[1])
    retriever = NextChunkRetriever(engine, k=2)
    found = asyncio.run(retriever.aretrieve(read))
    assert [each.metadata["row"] for each in found] == [each.metadata["row"] for each in retriever.retrieve(read)]
    assert threads[0] != threading.get_ident()
