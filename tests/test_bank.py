"""The bank: what goes in comes out, bad rows never get in, and a crash loses nothing that was committed."""

import fcntl
import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextvec.bank import Bank, BankWriter, VectorDocument, census, layout, verification
from nextvec.bank.arrays import open_npz
from nextvec.bank.documents import byte_spans
from nextvec.bank.exchange import write_windows
from nextvec.errors import DataError
from tests.conftest import walk_bank


def vectors(n: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def writer(path: Path, dim: int = 8, **settings: object) -> BankWriter:
    return BankWriter(path, encoder="test", encoder_fingerprint="test:1", dim=dim, **settings)  # type: ignore[arg-type]


def test_rows_come_back_as_unit_rows_in_document_order(tmp_path: Path) -> None:
    a, b = vectors(5), vectors(3, seed=1)
    with writer(tmp_path / "bank", dtype="float32") as bank_writer:
        bank_writer.append(VectorDocument("a", "A", 3 * a))
        bank_writer.append(VectorDocument("b", "B", b))
        bank = bank_writer.finish()
    expected = a / np.linalg.norm(a, axis=1, keepdims=True)
    np.testing.assert_allclose(bank.document(0), expected, rtol=1e-6)
    assert bank.offsets.tolist() == [0, 5, 8]
    assert bank.documents == [("a", "A"), ("b", "B")]
    assert bank.document_of(np.array([0, 4, 5, 7])).tolist() == [0, 0, 1, 1]


def test_a_document_is_a_view(tmp_path: Path) -> None:
    bank = walk_bank()
    assert np.shares_memory(bank.document(1), bank.rows)


@given(st.text(min_size=1, max_size=40), st.integers(0, 39), st.integers(0, 39))
def test_byte_spans_cut_the_same_text_as_character_spans(text: str, a: int, b: int) -> None:
    text = text.encode("utf-8", "ignore").decode("utf-8")
    start, stop = sorted((min(a, len(text)), min(b, len(text))))
    ((first, last),) = byte_spans(text, [(start, stop)]).tolist()
    assert text.encode()[first:last].decode() == text[start:stop]


def test_chunk_texts_are_shown_from_their_place(tmp_path: Path) -> None:
    text = "Grüße aus Köln. Привет! 日本語 end"
    spans = [(0, 15), (16, 23), (24, 31)]
    with writer(tmp_path / "bank", text=True) as bank_writer:
        bank_writer.append(VectorDocument("first", "", vectors(1), "other", [(0, 5)], [1]))
        bank_writer.append(VectorDocument("second", "", vectors(3, seed=2), text, spans, [4, 3, 2]))
        bank = bank_writer.finish()
    assert [bank.text(row) for row in range(4)] == ["other", *(text[a:b] for a, b in spans)]
    assert bank.tokens is not None
    assert bank.tokens.tolist() == [1, 4, 3, 2]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (VectorDocument("d", "", np.full((2, 8), np.nan, np.float32)), r"document 'd', row 0: not a finite"),
        (VectorDocument("d", "", np.vstack([vectors(2), np.zeros((1, 8), np.float32)])), r"row 2: a zero vector"),
        (VectorDocument("d", "", vectors(2, dim=7)), "vectors are 7 wide; want 8"),
        (VectorDocument("d", "", np.empty((0, 8), np.float32)), "document 'd' is empty"),
        (VectorDocument("d", "", vectors(8)[0]), "want \\[rows, 8\\]"),
        (VectorDocument("good", "", vectors(2)), "'good' appears twice"),
    ],
)
def test_bad_documents_are_named_and_leave_nothing_behind(tmp_path: Path, document: VectorDocument, message: str) -> None:
    bank_writer = writer(tmp_path / "bank")
    with pytest.raises(DataError, match=message), bank_writer:
        bank_writer.append(VectorDocument("good", "", vectors(2)))
        bank_writer.commit()
        bank_writer.append(document)
    assert list(tmp_path.iterdir()) == []


WRITE_SLOWLY = """
import sys, numpy as np
from nextvec.bank import BankWriter, VectorDocument
with BankWriter(sys.argv[1], encoder="t", encoder_fingerprint="t", dim=8, text=True) as w:
    for m in range(w.documents, 300):
        rows = np.random.default_rng(m).standard_normal((1 + m % 7, 8)).astype(np.float32)
        w.append(VectorDocument(f"d{m}", "", rows, "x" * len(rows), [(i, i + 1) for i in range(len(rows))], [1] * len(rows)))
        if m % 5 == 4:
            w.commit()
            print(m, flush=True)
        if m == int(sys.argv[2]):
            sys.stdin.read()
    w.finish()
"""


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_writer_killed_anywhere_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([sys.executable, "-c", WRITE_SLOWLY, whole, "-1"], check=True, stdout=subprocess.DEVNULL)
    for document in (7, 51, 153):  # at which it stands still, after the commit before it
        command = [sys.executable, "-c", WRITE_SLOWLY, killed, str(document)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            while int(process.stdout.readline()) < document - 5:
                pass
            process.kill()
            assert process.wait() == -signal.SIGKILL
        assert not killed.exists()
    # What a crash leaves after the last commit must not survive.
    with open(tmp_path / "killed.partial" / "rows.bin", "ab") as rows:
        rows.write(b"torn")
    (tmp_path / "killed.partial" / ".journal.json.1.tmp").write_bytes(b"torn")
    subprocess.run([sys.executable, "-c", WRITE_SLOWLY, killed, "-1"], check=True, stdout=subprocess.DEVNULL)
    assert files(killed) == files(whole)


def test_a_bank_begun_with_other_settings_is_not_continued(tmp_path: Path) -> None:
    begun = writer(tmp_path / "bank")
    begun.append(VectorDocument("a", "", vectors(2)))
    begun.commit()
    begun.close()
    with pytest.raises(DataError, match="begun with another dtype"):
        writer(tmp_path / "bank", dtype="float32")


@pytest.mark.parametrize("when", ["before a commit", "before the end", "while duplicates are counted"])
def test_a_second_writer_of_a_name_is_refused_and_changes_nothing(tmp_path: Path, when: str) -> None:
    refused: list[str] = []

    def second(moment: str) -> None:
        if moment == when:
            with pytest.raises(DataError, match=r"bank\.partial is being written by another process"):
                writer(tmp_path / "bank")
            refused.append(moment)

    with writer(tmp_path / "bank") as first:
        first.append(VectorDocument("a", "", vectors(4)))
        second("before a commit")
        first.commit()
        second("before the end")
        first.finish(lambda *_: second("while duplicates are counted"))
    assert refused
    assert Bank.open(tmp_path / "bank", "always").ids == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["bank"]
    assert not {"journal.json", "writer.lock"} & {*files(tmp_path / "bank")}


@pytest.mark.parametrize("published", [True, False])
def test_a_lock_of_a_folder_that_was_published_or_discarded_since_is_none(
    tmp_path: Path, published: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first writer ends after the second one opened the lock's file and before it locks it."""
    first = writer(tmp_path / "bank")
    first.append(VectorDocument("a", "", vectors(4)))
    real, ended = fcntl.flock, list[bool]()

    def flock(*arguments: Any) -> None:
        if not ended:
            ended.append(True)
            if published:
                first.finish()
            else:
                first.discard()
        real(*arguments)

    monkeypatch.setattr(fcntl, "flock", flock)
    if published:
        with pytest.raises(DataError, match="already exists"):
            writer(tmp_path / "bank")
    else:
        with writer(tmp_path / "bank") as second:
            second.append(VectorDocument("b", "", vectors(4)))
            first.discard()
            second.finish()
    assert Bank.open(tmp_path / "bank", "always").ids == ["a" if published else "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["bank"]


def test_a_truncated_bank_is_refused(tmp_path: Path) -> None:
    with writer(tmp_path / "bank") as bank_writer:
        bank_writer.append(VectorDocument("a", "", vectors(4)))
        bank_writer.finish()
    with open(tmp_path / "bank" / "rows.bin", "r+b") as rows:
        rows.truncate(10)
    with pytest.raises(DataError, match="10 bytes where the manifest says 64 bytes"):
        Bank.open(tmp_path / "bank")


def test_opening_ten_million_rows_that_were_verified_reads_none_of_them(tmp_path: Path) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    rows, dim = 10_000_000, 384
    with open(folder / "rows.bin", "wb") as file:
        file.truncate(rows * dim * 2)  # sparse: no disk is used
    np.array([0, rows], np.int64).tofile(folder / "offsets.bin")
    (folder / "documents.jsonl").write_text('{"id": "a", "title": "a"}\n')
    manifest = {
        "rows": rows, "dim": dim, "documents": 1, "dtype": "float16", "encoder": "t", "encoder_fingerprint": "t",
        "fingerprint": "t", "text": False, "chunking": "none", "source": "t", "format": 1,
    }  # fmt: skip
    (folder / "bank.json").write_text(json.dumps(manifest))
    files = verification._files(folder, layout.Manifest.read(folder))  # pyright: ignore[reportPrivateUsage]
    hashed = {"fingerprint": "t", "encoder_fingerprint": "t", "dtype": "float16", "dim": dim}
    (folder / "verified.json").write_text(json.dumps({**hashed, "files": files}))
    memory = textwrap.dedent("""
        import resource, sys
        from nextvec.bank import Bank
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        bank = Bank.open(sys.argv[1])
        assert len(bank) == 10_000_000
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """)
    grown = subprocess.run([sys.executable, "-c", memory, folder], check=True, capture_output=True, text=True)
    assert int(grown.stdout) < 8_000  # KiB, where the rows hold 7.5 million


def test_windows_of_the_predecessor_come_in_and_go_out(tmp_path: Path) -> None:
    bank = walk_bank(documents=3, length=40)
    count = write_windows(bank, tmp_path / "windows.npz", context=10, stride=5)
    again = Bank.from_documents(open_npz(tmp_path / "windows.npz").documents(), encoder="t")
    assert again.num_documents == count == sum(1 + (n - 11) // 5 for n in bank.lengths.tolist())
    assert set(again.lengths.tolist()) == {11}
    np.testing.assert_array_equal(again.document(0), bank.document(0)[:11])
    np.testing.assert_array_equal(again.document(1), bank.document(0)[5:16])


def test_no_window_of_the_export_crosses_a_document(tmp_path: Path) -> None:
    bank = walk_bank(documents=4, length=30)
    write_windows(bank, tmp_path / "windows.npz", context=8, stride=1)
    inside = {
        np.ascontiguousarray(w).tobytes()
        for m in range(4)
        for w in np.lib.stride_tricks.sliding_window_view(bank.document(m), 9, axis=0).transpose(0, 2, 1)
    }
    exported = Bank.from_documents(open_npz(tmp_path / "windows.npz").documents(), encoder="t")
    assert all(np.ascontiguousarray(exported.document(m)).tobytes() in inside for m in range(exported.num_documents))


def test_a_copied_session_is_found_though_every_item_is_common() -> None:
    rng = np.random.default_rng(0)
    catalogue = rng.standard_normal((400, 16)).astype(np.float32)
    sessions = [rng.integers(0, 400, 20) for _ in range(2000)]
    sessions[1999] = sessions[0]
    bank = Bank.from_numpy(catalogue[np.concatenate(sessions)], [20] * 2000)
    assert census(bank).document_groups == ((0, 1999),)


def test_an_id_twice_is_refused_in_memory_too() -> None:
    with pytest.raises(DataError, match="'a' appears twice"):
        Bank.from_numpy(vectors(4), [2, 2], ["a", "a"])


def test_the_census_finds_what_brute_force_finds() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((400, 32)).astype(np.float32)
    rows[200:260] = rows[100:160] + 0.01 * rng.standard_normal((60, 32))  # cosine about .9999
    rows[300:320] = rows[10:30]
    bank = Bank.from_numpy(rows, [100] * 4)
    unit = bank.rows.astype(np.float32)
    cosines = np.triu(unit @ unit.T, 1)
    found = census(bank)
    assert found.exact_duplicates == 20
    distinct = np.setdiff1d(np.arange(400), np.arange(300, 320))
    near = (cosines[np.ix_(distinct, distinct)] >= 0.995).any(axis=0).sum()
    assert found.near_duplicates == near == 60


def test_documents_that_share_half_their_rows_are_grouped() -> None:
    rng = np.random.default_rng(1)
    a, b, c = (rng.standard_normal((20, 32)).astype(np.float32) for _ in range(3))
    copy = np.concatenate([a[:11] + 0.005 * rng.standard_normal((11, 32)).astype(np.float32), c[:9] * -1])
    partly = np.concatenate([b[:9], rng.standard_normal((11, 32)).astype(np.float32)])
    bank = Bank.from_numpy(np.concatenate([a, b, c, copy, partly]), [20] * 5)
    assert census(bank).document_groups == ((0, 3),)
