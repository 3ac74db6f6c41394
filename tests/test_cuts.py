"""Chunks: the same in windows as at once, at linear cost, and never longer than what their encoder reads."""

import importlib.util
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from semantic_text_splitter import TextSplitter

from nextvec.bank import Bank, BankWriter, VectorDocument
from nextvec.bank.tokens import token_facts
from nextvec.cli.main import main
from nextvec.encoders import CountsTokens, Encoded, Kind, MiniLM, SentenceTransformerEncoder, load_encoder
from nextvec.encoders.minilm_weights import model_folder
from nextvec.errors import DataError, SettingsError
from nextvec.evaluation.audit import audit
from nextvec.inference import Engine
from nextvec.inference.expected import encode_context
from nextvec.ingestion import Chunking, Document, chunking, cuts, documentation, ingest, texts
from nextvec.models.baselines import CopyLast

READ = 256  # tokens that MiniLM reads
ENGLISH = "The ferry lay at the other bank, and nobody came that evening because of the rain. "
SCRIPTS = {
    "chinese": "渡船停在河的对岸。那天晚上因为下雨没有人来。",
    "thai": "เรือข้ามฟากจอดอยู่อีกฝั่งหนึ่ง",
    "korean": "나룻배는 강 건너편에 있었다. 그날 저녁에는 아무도 오지 않았다. ",
    "emoji": "👩‍👩‍👧‍👦🚢🌧️",
    "marks": "e" + "\u0301" * 40 + " ",
    "digits": "1,2;3.4/5-6:7!8?9",
    "english": ENGLISH,
}


@pytest.fixture(scope="module")
def encoder() -> MiniLM:
    return MiniLM(workers=1)


class Counting(MiniLM):
    """MiniLM that remembers how many characters it was given to count, and computes no network."""

    def __init__(self) -> None:
        super().__init__(workers=1)
        self.characters = 0

    def count_tokens(self, texts: Sequence[str]) -> np.ndarray:
        self.characters += sum(map(len, texts))
        return super().count_tokens(texts)

    def encode(self, texts: Sequence[str], kind: Kind = "passage") -> Encoded:
        angles = np.arange(len(texts), dtype=np.float32)
        rows = np.zeros((len(texts), self.dim), np.float32)
        rows[:, 0], rows[:, 1] = np.cos(angles), np.sin(angles)
        return Encoded(rows, super().count_tokens(texts))

    def encode_reporting(self, texts: Sequence[str], kind: Kind, report: object) -> Encoded:
        return self.encode(texts, kind)


# The same cuts

PIECES = ["a", "bc", "Defg", " ", "  ", ". ", "! ", "? ", "\n", "\n\n", "\n\n\n", "日本", "é"]


def whole(text: str, size: int, overlap: int = 0) -> list[list[int]]:
    """The cuts of the splitter that reads all of the text at once."""
    found = TextSplitter(size, overlap=overlap).chunk_indices(text)
    return [[start, start + len(chunk)] for start, chunk in found if chunk.strip()]


@given(
    st.lists(
        st.sampled_from(["a", "bc", "Defg", " ", "  ", ". ", "! ", "\n", "\n\n", "\n\n\n", "日本", "é", "? "]), max_size=900
    ),
    st.integers(5, 40),
    st.sampled_from([0, 0.3]),
)
def test_windows_change_no_cut(pieces: list[str], size: int, overlap: float) -> None:
    text = "".join(pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuts, "SPARE", 40)
        patch.setattr(cuts, "WINDOW", 2)
        spans = Chunking(size, overlap=int(size * overlap)).splitter()(text)
    assert spans.tolist() == whole(text, size, int(size * overlap))


def test_the_cuts_of_ordinary_text_are_what_they_were(encoder: MiniLM) -> None:
    """Windows and the tokens that MiniLM reads leave English text as the splitter alone cuts it."""
    split = Chunking().splitter(encoder)
    for document in documentation(200_000):
        assert split(document.text).tolist() == whole(document.text, 300), document.id


@pytest.mark.slow
@pytest.mark.shared
def test_the_cuts_of_books_are_what_they_were(shared: Path) -> None:
    split = Chunking().splitter()
    for file in sorted((shared / "text").rglob("*.txt"))[::10]:
        text = file.read_text(encoding="utf-8")
        assert split(text).tolist() == whole(text, 300), file.name


# Linear cost


LONG_LINES = {
    "blanks": "word " * 60_000,
    "no blank": "w" * 300_000,
    "chinese": "河" * 300_000,
    "lines": "five words in a line\n" * 15_000 + "\n\n\nThe end.",
    "nothing but blanks": "x" + " " * 300_000 + "y",
}


class Reader:
    """A splitter that remembers how many characters it was given at once."""

    def __init__(self) -> None:
        self.splitter, self.read = TextSplitter(300), list[int]()

    def chunk_indices(self, text: str) -> list[tuple[int, str]]:
        self.read.append(len(text))
        return self.splitter.chunk_indices(text)


@pytest.mark.parametrize("name", LONG_LINES)
def test_the_splitter_reads_little_more_than_the_text(name: str) -> None:
    """The splitter may cost the square of what it reads at once. So that is bounded, and the sum of it is linear."""
    text, reader = LONG_LINES[name], Reader()
    unchecked: Any = inspect.unwrap(cuts.cut)  # the tests' type checker would refuse the reader
    spans = list(unchecked(reader, text, 300))
    assert "".join("".join(text[a:b] for a, b in spans).split()) == "".join(text.split())
    assert max(b - a for a, b in spans) <= 300
    assert sum(reader.read) < 1.5 * len(text) or name == "nothing but blanks"
    assert sum(reader.read) < 4 * len(text)
    assert max(reader.read) < 10_000 or name == "nothing but blanks"


def test_tokens_are_counted_for_little_more_than_the_text() -> None:
    """A chunk is measured a few times, but never the line that it begins."""
    for unit, size in (("tokens", 100), ("characters", 300)):
        costs = []
        for length in (40_000, 160_000):
            counting = Counting()
            Chunking(size, unit).splitter(counting)("word and " * (length // 9))  # type: ignore[arg-type]
            costs.append(counting.characters)
        assert costs[1] < 4.4 * costs[0], unit


def test_a_document_is_cut_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut: list[int] = []
    before = cuts.cut

    def counted(splitter: TextSplitter, text: str, *rest: int) -> object:
        cut.append(len(text))
        return before(splitter, text, *rest)

    monkeypatch.setattr(cuts, "cut", counted)
    documents = [Document(str(m), "", ENGLISH * (m + 3)) for m in range(5)]
    ingest(documents, tmp_path / "bank", Counting())
    assert cut == [len(document.text) for document in documents]


def test_a_long_document_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "COUNTED", 32)
    monkeypatch.setattr(texts, "LONG", 50_000)
    monkeypatch.setattr(texts, "PIECE", 64)
    seen: dict[str, list[tuple[int, int]]] = {}

    def progress(what: str, done: int, total: int) -> None:
        seen.setdefault(what, []).append((done, total))

    text = ENGLISH * 700
    ingest([Document("a", "a", text)], tmp_path / "bank", Counting(), progress=progress)
    for what, chunks in (("cutting characters", 32), ("encoding characters", 64)):
        done = [at[0] for at in seen[what]]
        assert {at[1] for at in seen[what]} == {len(text)}
        assert done == sorted(done)
        assert done[-1] == len(text)
        assert max(np.diff([0, *done])) <= chunks * 300, what


# No chunk is longer than what its encoder reads


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(("size", "unit"), [(300, "characters"), (5_000, "characters"), (254, "tokens")])
def test_no_chunk_is_truncated(encoder: MiniLM, script: str, size: int, unit: str) -> None:
    text = SCRIPTS[script] * (6_000 // len(SCRIPTS[script]))
    spans = Chunking(size, unit).splitter(encoder)(text)  # type: ignore[arg-type]
    tokens = encoder.count_tokens([text[a:b] for a, b in spans])
    assert tokens.max() <= READ
    assert "".join("".join(text[a:b] for a, b in spans).split()) == "".join(text.split())


def test_chunks_of_tokens_are_full(encoder: MiniLM) -> None:
    """128 and more tokens were one chunk, because the tokenizer's own truncation hid the rest."""
    text = ENGLISH * 270
    for size in (127, 128, 200, 254):
        tokens = encoder.count_tokens([text[a:b] for a, b in Chunking(size, "tokens").splitter(encoder)(text)]) - 2
        assert size - 20 < np.median(tokens) <= tokens.max() <= size


def test_a_chunk_that_is_too_long_is_cut_at_sentences(encoder: MiniLM) -> None:
    text = ENGLISH * 40
    spans = Chunking(3_000).splitter(encoder)(text)
    assert all(text[a:b].endswith("rain.") for a, b in spans)


def test_more_tokens_than_the_encoder_reads_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text(ENGLISH, encoding="utf-8")
    assert main(["ingest", str(tmp_path / "a.txt"), str(tmp_path / "bank"), "--unit", "tokens", "--size", "255"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "the largest size is 254" in message
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_context_is_cut_as_a_bank_is(encoder: MiniLM) -> None:
    text = SCRIPTS["chinese"] * 20
    context = encode_context(text, encoder, Chunking())
    spans = Chunking().splitter(encoder)(text)
    assert len(context) == len(spans) > -(-len(text) // 300)
    with pytest.raises(DataError, match="empty"):
        encode_context("\u200b", encoder, Chunking())


# Encoders of users


class Silent:
    """An encoder that says nothing of tokens."""

    name, fingerprint, dim = "silent", "silent", 2

    def encode(self, texts: list[str], kind: Kind = "passage") -> Encoded:
        angles = np.array([len(text) for text in texts], np.float32) / 1000
        return Encoded(np.stack([np.cos(angles), np.sin(angles)], axis=1))


class Letters(Silent):
    """An encoder that reads 20 letters and two marks of its own, and counts while it encodes."""

    name, fingerprint, max_tokens = "letters", "letters", 22

    def encode(self, texts: list[str], kind: Kind = "passage") -> Encoded:
        return Encoded(super().encode(texts).rows, np.array([len(text) + 2 for text in texts], np.int32))


class CountedLetters(Letters):
    """The same, but it counts beforehand."""

    def count_tokens(self, texts: list[str]) -> np.ndarray:
        return np.array([len(text) + 2 for text in texts], np.int32)


def test_an_encoder_that_counts_no_tokens_has_an_unknown_number(tmp_path: Path) -> None:
    bank = ingest([Document("a", "a", ENGLISH)], tmp_path / "bank", Silent())  # type: ignore[arg-type]
    facts = token_facts(bank)
    assert facts["tokens_most"] == facts["encoder_reads_tokens"] == facts["truncated_share"] == "unknown"
    assert audit(bank)["truncated"].passed
    assert audit(bank)["truncated"].says.startswith("not known")
    assert audit(bank)["unreadable"].says == "not known: 'silent' is not an encoder that can be loaded by its name"
    with pytest.raises(SettingsError, match="silent does not count tokens"):
        ingest([Document("a", "a", ENGLISH)], tmp_path / "other", Silent(), Chunking(20, "tokens"))  # type: ignore[arg-type]


def test_an_encoder_that_counts_too_late_refuses_what_it_would_truncate(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'a', chunk \d has \d+ tokens and letters reads 22"):
        ingest([Document("a", "a", ENGLISH)], tmp_path / "bank", Letters())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_counts_gets_what_it_reads(tmp_path: Path) -> None:
    bank = ingest([Document("a", "a", ENGLISH)], tmp_path / "bank", CountedLetters())  # type: ignore[arg-type]
    facts = token_facts(bank)
    assert isinstance(CountedLetters(), CountsTokens)
    assert 18 <= facts["tokens_most"] <= 22 == facts["encoder_reads_tokens"]
    assert facts["truncated_share"] == 0.0
    assert "".join((bank.text(row) or "") for row in range(len(bank))).split() != []


def test_one_letter_longer_than_the_encoder_reads_is_refused_by_document(tmp_path: Path) -> None:
    class Bytes(CountedLetters):
        max_tokens = 5

        def count_tokens(self, texts: list[str]) -> np.ndarray:
            return np.array([len(text.encode()) + 2 for text in texts], np.int32)

    with pytest.raises(DataError, match=r"document 'b': '🚢' at character 2 has 4 tokens and letters reads 3"):
        ingest([Document("a", "a", "abc"), Document("b", "b", "ab🚢")], tmp_path / "bank", Bytes())  # type: ignore[arg-type]


# What a bank says


def test_inspect_states_tokens(tmp_path: Path, encoder: MiniLM, capsys: pytest.CaptureFixture[str]) -> None:
    text = ENGLISH * 30 + SCRIPTS["chinese"] * 30
    bank = ingest([Document("a", "a", text)], tmp_path / "bank", encoder)
    tokens = encoder.count_tokens([bank.text(row) or "" for row in range(len(bank))])
    facts = token_facts(bank)
    assert (facts["tokens_most"], facts["encoder_reads_tokens"]) == (tokens.max(), READ)
    assert (facts["tokens_median"], facts["truncated_share"]) == (round(np.median(tokens)), 0.0)
    assert facts["tokens_95_percent"] == round(np.quantile(tokens, 0.95))
    assert audit(bank)["truncated"].passed
    assert main(["inspect", str(tmp_path / "bank")]) == 0
    shown = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in capsys.readouterr().out.splitlines()}
    assert (shown["encoder reads tokens"], shown["truncated share"]) == ("256", "0.0")


def bank_of(path: Path, encoder: MiniLM, chunks: list[str], chunking: str = "300 characters, overlap 0") -> Bank:
    """A bank as earlier versions made it: chunks longer than the encoder reads, and no limit in the manifest."""
    encoded = encoder.encode(chunks)
    text = "".join(chunks)
    ends = np.cumsum([len(chunk) for chunk in chunks])
    spans = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)
    made = {
        "encoder": encoder.name,
        "encoder_fingerprint": encoder.fingerprint,
        "dim": encoder.dim,
        "text": True,
        "chunking": chunking,
    }
    with BankWriter(path, **made) as writer:  # type: ignore[arg-type]
        writer.append(VectorDocument("a", "a", encoded.rows, text, spans, encoded.tokens))
        return writer.finish()


def test_audit_finds_truncated_chunks_of_an_old_bank(tmp_path: Path, encoder: MiniLM) -> None:
    bank = bank_of(tmp_path / "bank", encoder, [ENGLISH, ENGLISH * 40, ENGLISH * 2, "The end."])
    finding = audit(bank)["truncated"]
    assert not finding.passed
    assert finding.figures["truncated_share"] == 0.25
    assert token_facts(bank)["truncated_share"] == 0.25
    assert audit(bank)["unreadable"].passed


@pytest.mark.parametrize(
    ("chunking", "reason"),
    [("300 tokens, overlap 0", "the largest size is 254 tokens; ingest its text again"), ("none", "chunking as 'none'")],
)
def test_text_is_refused_where_the_bank_was_cut_otherwise(tmp_path: Path, encoder: MiniLM, chunking: str, reason: str) -> None:
    bank = bank_of(tmp_path / "bank", encoder, [ENGLISH, "The end."], chunking)
    with pytest.raises(DataError, match=reason):
        Engine(CopyLast(bank.dim), bank).encode(ENGLISH)


def test_audit_finds_a_script_that_the_encoder_lacks(tmp_path: Path, encoder: MiniLM) -> None:
    thai = SCRIPTS["thai"] * 10
    assert encoder.count_tokens([thai[:300]]).tolist() == [3], "start, unknown, end"
    bank = ingest([Document("a", "a", thai), Document("b", "b", ENGLISH * 10)], tmp_path / "bank", encoder)
    finding = audit(bank)["unreadable"]
    assert not finding.passed
    assert 0 < finding.figures["unreadable_share"] < 1  # type: ignore[operator]
    assert finding.figures["worst_row"] == 0
    assert encoder.unknown_share([thai, ENGLISH, f"{ENGLISH}{thai}", "", " "]).round(2).tolist()[0::3] == [1.0, 0.0]


@pytest.mark.skipif(importlib.util.find_spec("sentence_transformers") is None, reason="sentence-transformers is not installed")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_sentence_transformers_count_as_they_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: MiniLM) -> None:
    from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]
    from sentence_transformers.models import StaticEmbedding  # pyright: ignore[reportMissingImports]
    from tokenizers import Tokenizer

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    some = [ENGLISH, SCRIPTS["chinese"] * 20, SCRIPTS["thai"], ""]
    same = SentenceTransformerEncoder(str(model_folder()))
    assert same.max_tokens == READ
    np.testing.assert_array_equal(same.count_tokens(some), encoder.count_tokens(some))
    np.testing.assert_array_equal(same.unknown_share(some), encoder.unknown_share(some))
    static = StaticEmbedding(Tokenizer.from_file(str(model_folder() / "tokenizer.json")), embedding_dim=16)
    SentenceTransformer(modules=[static]).save(str(tmp_path / "static"))
    loaded = load_encoder(str(tmp_path / "static"))
    assert isinstance(loaded, CountsTokens)
    assert loaded.max_tokens == 128, "the tokenizer truncates, although the model has no limit"
    np.testing.assert_array_equal(loaded.count_tokens(some), encoder.count_tokens(some) - 2)
