"""MiniLM in int8: close to float32, the same bits in any batch, and never mixed with it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest

from nextvec.encoders import DEFAULT, Encoded, Kind, MiniLM, MiniLMInt8, load_encoder, max_tokens
from nextvec.encoders.minilm_int8 import BATCH_TOKENS, READ
from nextvec.errors import DataError
from nextvec.ingestion import Chunking, ingest, texts
from nextvec.ingestion.document import Document


@pytest.fixture(scope="module")
def int8() -> MiniLMInt8:
    return MiniLMInt8(workers=2)


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    """Real sentences: of the language reference that comes with Python."""
    text = " ".join(" ".join(topics[name].split()) for name in ("objects", "typesfunctions", "with", "compound", "assignment"))
    return [text[a:b] for a, b in Chunking(size=100).splitter()(text)][: READ + 44]


def test_int8_is_close_to_float32(int8: MiniLMInt8, sentences: list[str]) -> None:
    exact, rounded = MiniLM(workers=1).encode(sentences), int8.encode(sentences)
    assert rounded.rows.dtype == np.float32 and rounded.rows.shape == (READ + 44, 384)
    assert np.abs(np.linalg.norm(rounded.rows, axis=1) - 1).max() < 1e-6
    cosines = (exact.rows * rounded.rows).sum(1)
    assert 0.999 <= np.percentile(cosines, 1) < cosines.max() < 1
    assert np.array_equal(rounded.tokens, exact.tokens)


def test_the_bits_depend_on_the_text_alone(int8: MiniLMInt8, sentences: list[str]) -> None:
    """In any order, in any batch, with any number of workers."""
    some = ["", *sentences[:40], "long " * BATCH_TOKENS]
    together = int8.encode(some)
    turned = MiniLMInt8(workers=1).encode(some[::-1])
    assert np.array_equal(together.rows, turned.rows[::-1]) and np.array_equal(together.tokens, turned.tokens[::-1])
    for n in (0, 7, len(some) - 1):
        assert np.array_equal(int8.encode([some[n]]).rows[0], together.rows[n])


def test_tokens_beyond_the_limit_change_nothing_and_are_counted(int8: MiniLMInt8) -> None:
    limit = max_tokens(int8)
    assert limit == 256
    long, longer = int8.encode(["word " * (limit - 2)]), int8.encode(["word " * (limit + 9)])
    assert np.array_equal(long.rows, longer.rows)
    assert (int(long.tokens[0]), int(longer.tokens[0])) == (limit, limit + 11)
    assert int8.count_tokens(["word " * (limit + 9)]).tolist() == [limit + 11]


def test_progress_ends_at_one_and_no_text_gives_no_row(int8: MiniLMInt8, sentences: list[str]) -> None:
    shares: list[float] = []
    int8.encode_reporting(sentences[:20], "passage", shares.append)
    assert shares == sorted(shares) and shares[-1] == 1 and len(shares) > 1
    assert int8.encode([]).rows.shape == (0, 384)


def test_int8_is_chosen_by_its_name_and_not_the_default(int8: MiniLMInt8) -> None:
    assert isinstance(load_encoder(), MiniLM) and DEFAULT == "all-MiniLM-L6-v2"
    chosen = load_encoder("all-MiniLM-L6-v2-int8")
    assert isinstance(chosen, MiniLMInt8)
    assert chosen.fingerprint == int8.fingerprint != MiniLM.fingerprint
    assert "int8" in chosen.fingerprint


def test_a_bank_states_its_precision_and_reads_text_with_it(tmp_path: Path) -> None:
    bank = ingest(["A first sentence. A second one, about boats."], tmp_path / "b", MiniLMInt8.name, Chunking(size=20))
    assert (bank.manifest.encoder, bank.manifest.encoder_fingerprint) == (MiniLMInt8.name, MiniLMInt8.fingerprint)
    again = load_encoder(bank.manifest.encoder).encode([bank.text(row) or "" for row in range(len(bank))])
    assert np.array_equal(again.rows.astype(np.float16), bank.rows)


class BrokenError(Exception):
    pass


def test_an_ingest_is_not_continued_in_another_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class DiesSecond(MiniLMInt8):
        calls = 0

        def encode_reporting(self, texts: Sequence[str], kind: Kind, report: Callable[[float], None]) -> Encoded:
            self.calls += 1
            if self.calls == 2:
                raise BrokenError
            return super().encode_reporting(texts, kind, report)

    monkeypatch.setattr(texts, "GROUP", 2)
    documents = [Document(str(m), "", "One sentence. Another one. And a third.") for m in range(2)]
    with pytest.raises(BrokenError):
        ingest(documents, tmp_path / "bank", DiesSecond(workers=1), Chunking(size=20))
    with pytest.raises(DataError, match="begun with another encoder"):
        ingest(documents, tmp_path / "bank", MiniLM(workers=1), Chunking(size=20))
    ingest(documents, tmp_path / "bank", MiniLMInt8.name, Chunking(size=20))
