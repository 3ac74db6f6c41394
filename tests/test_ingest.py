"""From text to a bank: spans in place, the encoder's numbers, and nothing lost when it is killed."""

import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextvec.bank import Bank
from nextvec.cli.main import main
from nextvec.encoders import Encoded, Encoder, MiniLM, load_encoder
from nextvec.encoders.minilm_weights import MAX_TOKENS
from nextvec.errors import DataError, SettingsError
from nextvec.inference import Engine
from nextvec.inference.expected import encode_context
from nextvec.ingestion import Chunking, Document, docstrings, documentation, ingest, texts
from nextvec.models.baselines import CopyLast
from tests.waiting import until

SENTENCE = "The {} went to the market and bought {} apples before the rain began. "


def prose(seed: int, sentences: int) -> str:
    words = ["fox", "baker", "queen", "sailor", "child", "judge"]
    return "".join(SENTENCE.format(words[(seed + i * i) % 6], seed * 7 + i) for i in range(sentences))


@pytest.fixture(scope="module")
def encoder() -> MiniLM:
    return MiniLM(workers=2)


# Chunks


@given(st.text(alphabet=st.sampled_from("ab .\nñ日!?"), max_size=400), st.integers(5, 60))
def test_chunks_are_spans_in_order_that_hold_everything_but_blanks(text: str, size: int) -> None:
    spans = Chunking(size=size).splitter()(text)
    assert all(a < b <= c < d for (a, b), (c, d) in pairwise(spans))
    assert all(0 < b - a <= size for a, b in spans)
    assert "".join("".join(text[a:b] for a, b in spans).split()) == "".join(text.split())


def test_chunks_end_where_sentences_end() -> None:
    text = prose(1, 12)
    for a, b in Chunking(size=200).splitter()(text):
        assert text[a:b].rstrip().endswith(".")


def test_overlap_repeats_the_end_of_the_chunk_before() -> None:
    spans = Chunking(size=200, overlap=90).splitter()(prose(2, 20))
    assert any(next_start < stop for (_, stop), (next_start, _) in pairwise(spans))


def test_chunks_by_tokens_fit_the_encoder(encoder: MiniLM) -> None:
    text = prose(3, 40)
    spans = Chunking(size=50, unit="tokens").splitter(encoder)(text)
    counted = encoder.encode([text[a:b] for a, b in spans]).tokens
    assert 20 < counted.mean() <= counted.max() <= 52  # and the two that mark begin and end


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (10, 10), (10, -1)])
def test_impossible_chunks_are_refused(size: int, overlap: int) -> None:
    with pytest.raises(SettingsError):
        Chunking(size=size, overlap=overlap)


# The encoder


def test_the_encoder_gives_the_published_vectors(encoder: MiniLM) -> None:
    """The two sentences of the model card, as sentence-transformers encodes them."""
    rows = encoder.encode(["This is an example sentence", "Each sentence is converted"]).rows
    expected = [[0.06765693, 0.06349589, 0.04871311, 0.07930496], [0.08643863, 0.10276267, 0.00539455, 0.00204442]]
    np.testing.assert_allclose(rows[:, :4], expected, atol=2e-6)


def test_rows_have_unit_length_and_the_order_of_the_texts(encoder: MiniLM) -> None:
    texts = [prose(i, 1 + i % 4) for i in range(40)]
    together = encoder.encode(texts)
    np.testing.assert_allclose(np.linalg.norm(together.rows, axis=1), 1, atol=1e-6)
    for i in (0, 17, 39):
        np.testing.assert_allclose(together.rows[i], encoder.encode([texts[i]]).rows[0], atol=2e-6)


def test_the_bits_do_not_depend_on_the_number_of_workers(encoder: MiniLM) -> None:
    texts = [prose(i, 1 + i % 7) for i in range(60)]
    one, two = MiniLM(workers=1).encode(texts), encoder.encode(texts)
    assert (one.rows == two.rows).all()


def test_tokens_are_counted_before_they_are_cut(encoder: MiniLM) -> None:
    long = encoder.encode(["word " * 1000])
    assert long.tokens[0] == 1002 > MAX_TOKENS


def test_encoders_keep_the_protocol(encoder: MiniLM) -> None:
    assert isinstance(encoder, Encoder)
    assert load_encoder("all-MiniLM-L6-v2").fingerprint == encoder.fingerprint


# The whole way


def folder_of(path: Path, documents: int, sentences: int = 12) -> Path:
    path.mkdir()
    for m in range(documents):
        (path / f"doc_{m:02d}.txt").write_text(prose(m, sentences), encoding="utf-8")
    return path


def test_every_chunk_can_be_shown_in_its_place(tmp_path: Path, encoder: MiniLM) -> None:
    bank = ingest(folder_of(tmp_path / "texts", 4), tmp_path / "bank", encoder, Chunking(size=150))
    assert bank.ids == [f"doc_{m:02d}.txt" for m in range(4)]
    for m in range(4):
        text = prose(m, 12)
        shown = [bank.text(row) or "" for row in range(int(bank.offsets[m]), int(bank.offsets[m + 1]))]
        assert all(chunk in text for chunk in shown)
        assert "".join("".join(shown).split()) == "".join(text.split())
    assert bank.tokens is not None
    assert bank.tokens.min() > 2


class KilledError(Exception):
    pass


def broken_off(source: Path, bank: Path) -> None:
    """In this process: the second group raises."""

    class DiesSecond(MiniLM):
        calls = 0

        def encode_reporting(self, *given: Any) -> Encoded:
            self.calls += 1
            if self.calls == 2:
                raise KilledError
            return super().encode_reporting(*given)

    with pytest.raises(KilledError):
        ingest(source, bank, DiesSecond())


def killed(source: Path, bank: Path) -> None:
    """In a process of its own, which stands still after the first group until SIGKILL ends it."""
    code = """
import sys, time
from nextvec.bank import BankWriter
from nextvec.cli.main import main
from nextvec.ingestion import texts
texts.GROUP = 20
commit = BankWriter.commit
def stopping(self):
    commit(self)
    time.sleep(600)
BankWriter.commit = stopping
sys.exit(main(["ingest", *sys.argv[1:]]))
"""
    command = [sys.executable, "-c", code, str(source), str(bank)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: process.poll() is not None or bank.with_name(f"{bank.name}.partial").joinpath("journal.json").exists())
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"


@pytest.mark.parametrize("stop", [broken_off, pytest.param(killed, marks=pytest.mark.integration)])
def test_a_stopped_ingest_resumes_to_the_same_bytes(
    stop: Callable[[Path, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "GROUP", 20)
    source = folder_of(tmp_path / "texts", 12, sentences=14)
    assert main(["ingest", str(source), str(tmp_path / "whole")]) == 0
    stop(source, tmp_path / "stopped")
    assert not (tmp_path / "stopped").exists()
    assert (tmp_path / "stopped.partial" / "journal.json").exists()
    assert main(["ingest", str(source), str(tmp_path / "stopped")]) == 0
    for file in sorted((tmp_path / "whole").iterdir()):
        assert (tmp_path / "stopped" / file.name).read_bytes() == file.read_bytes(), file.name
    assert not (tmp_path / "stopped.partial").exists()


def test_an_ingest_is_not_continued_with_another_source(
    tmp_path: Path, encoder: MiniLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    class DiesSecond:
        name, fingerprint, dim, max_tokens = encoder.name, encoder.fingerprint, encoder.dim, encoder.max_tokens
        calls = 0

        def encode(self, texts: list[str], kind: str = "passage") -> object:
            self.calls += 1
            if self.calls == 2:
                raise KilledError
            return encoder.encode(texts)

    monkeypatch.setattr(texts, "GROUP", 20)
    documents = [Document(str(m), "", prose(m, 50)) for m in range(2)]
    with pytest.raises(KilledError):
        ingest(documents, tmp_path / "bank", DiesSecond(), Chunking(size=100))  # type: ignore[arg-type]
    other = [Document(str(m), "", prose(m + 5, 30)) for m in range(2)]
    with pytest.raises(DataError, match="begun with another source"):
        ingest(other, tmp_path / "bank", encoder, Chunking(size=100))


def test_documents_are_refused_before_anything_is_encoded(tmp_path: Path) -> None:
    class NeverAsked:
        name, fingerprint, dim, max_tokens = "t", "t", 8, 8

        def encode(self, texts: object, kind: object = "passage") -> object:
            raise AssertionError("encoded although a document is bad")

    documents = [Document("a", "", "Some text."), Document("a", "", "Other text.")]
    with pytest.raises(DataError, match="'a' appears twice"):
        ingest(documents, tmp_path / "bank", NeverAsked())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


class Dataset:
    """The shape of a Hugging Face ``datasets.Dataset``."""

    def __init__(self, **columns: list[object]) -> None:
        self.columns = columns
        self.column_names = list(columns)

    def __getitem__(self, column: str, /) -> list[object]:
        return self.columns[column]


def test_a_datasets_object_of_texts_or_vectors(tmp_path: Path, encoder: MiniLM) -> None:
    texts = Dataset(document=["b", "a", "a"], index=[0, 1, 0], text=["Third.", "Second.", "First."])
    bank = ingest(texts, tmp_path / "texts", encoder)
    assert bank.ids == ["a", "b"]
    assert (bank.text(0) or "").split() == ["First.", "Second."]
    vectors = Dataset(document=["b", "a"], index=[0, 0], vector=[[1.0, 0.0], [0.0, 2.0]])
    assert ingest(vectors, tmp_path / "vectors").rows.tolist() == [[0.0, 1.0], [1.0, 0.0]]
    with pytest.raises(DataError, match="want 'text', or 'vector'"):
        ingest(Dataset(body=["x"]), tmp_path / "none", encoder)


def test_documentation_is_real_text_in_file_order(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = documentation(300_000)
    assert sum(len(d.text) for d in documents) >= 200_000
    assert len({d.id for d in documents}) == len(documents)
    monkeypatch.setattr(docstrings, "PACKAGES", ("numpy", "jinja2", "rich"))
    assert documentation(300_000) == documentation(300_000)


def test_what_is_expected_next_leaves_out_what_was_read(tmp_path: Path, encoder: MiniLM) -> None:
    bank = ingest(folder_of(tmp_path / "texts", 3), tmp_path / "bank", encoder, Chunking(size=150))
    read = bank.text(0) or ""
    context = encode_context(read, encoder, Chunking(size=150))
    session = Engine(CopyLast(bank.dim), bank).session()
    session.push_text(read)
    found = session.predict(3)
    assert 0 not in [e.row for e in found]
    others = bank.rows.astype(np.float32) @ context[-1]
    others[others > 0.9999] = -1
    assert found[0].row == others.argmax()


def test_a_bank_in_memory_and_on_disk_agree(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((30, 6)).astype(np.float32)
    np.savez(tmp_path / "v.npz", vectors=rows, lengths=[10, 20])
    on_disk = ingest(tmp_path / "v.npz", tmp_path / "bank")
    np.testing.assert_array_equal(on_disk.rows, Bank.from_numpy(rows, [10, 20]).rows)
