"""A text is read from where an earlier text ended, and the answer is that of a session which reads all of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from nextvec.errors import DataError
from nextvec.inference import Engine
from nextvec.integrations.reading import TextReader


@pytest.fixture
def encoded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Chunks of each call of the encoder."""
    counts: list[int] = []
    original = engine.encode_chunks

    def counting(chunks: Sequence[str]) -> Any:
        counts.append(len(chunks))
        return original(chunks)

    monkeypatch.setattr(engine, "encode_chunks", counting)
    return counts


def test_a_text_that_continues_costs_its_new_chunks_and_answers_like_one_session(
    engine: Engine, read: str, encoded: list[int]
) -> None:
    reader = TextReader(engine)
    for share in (3, 5, 5, 8):
        text = read[: len(read) * share // 8]
        found = reader.expected(text, 4)
        session = engine.session()
        session.push_many(engine.encoder.encode(engine.cut(text)).rows)
        alone = session.predict(4)
        assert [each.row for each in found] == [each.row for each in alone]
        np.testing.assert_allclose([e.score for e in found], [e.score for e in alone], rtol=0, atol=1e-4)
    chunks = [len(engine.cut(read[: len(read) * share // 8])) for share in (3, 5, 5, 8)]
    # The last chunk of the earlier text may have grown, so it is read again.
    assert encoded == [chunks[0], chunks[1] - chunks[0] + 1, 1, chunks[3] - chunks[2] + 1]


def test_another_text_is_read_from_its_start(engine: Engine, read: str, encoded: list[int]) -> None:
    reader = TextReader(engine)
    reader.expected(read, 1)
    reader.expected(f"A word. {read}", 1)
    assert encoded == [len(engine.cut(read)), len(engine.cut(f"A word. {read}"))]


def test_the_least_recently_used_session_is_dropped(engine: Engine, read: str, encoded: list[int]) -> None:
    reader = TextReader(engine, remembered=1)
    for text in (read, f"A word. {read}", read):
        reader.expected(text, 1)
    assert encoded[2] == encoded[0]


def test_an_empty_text_is_refused(engine: Engine) -> None:
    with pytest.raises(DataError, match="the text is empty"):
        TextReader(engine).expected(" ", 1)
