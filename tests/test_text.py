"""Bytes to text: what is refused, what is empty, and what Markdown says beside its text."""

import json
from pathlib import Path

import numpy as np
import pytest

from nextvec.cli.main import main
from nextvec.encoders import Encoded, Kind
from nextvec.errors import DataError
from nextvec.ingestion import Chunking, Document, ingest
from nextvec.ingestion.cuts import code_blocks
from nextvec.ingestion.text import blank, decode, front_matter

TEXT = "The ferry lay at the other bank. Nobody came that evening. "


class Lengths:
    """An encoder that counts no tokens; a vector holds the length of its text."""

    name, fingerprint, dim = "lengths", "lengths", 2

    def encode(self, texts: list[str], kind: Kind = "passage") -> Encoded:
        angles = np.array([len(text) for text in texts], np.float32) / 1000
        return Encoded(np.stack([np.cos(angles), np.sin(angles)], axis=1))


def chunks_of(path: Path, out: Path, size: int = 300) -> list[str]:
    bank = ingest(path, out, Lengths(), Chunking(size=size))  # type: ignore[arg-type]
    return [bank.text(row) or "" for row in range(len(bank))]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (TEXT.encode("utf-16-le"), "looks like UTF-16 without a byte order mark"),
        (TEXT.encode("utf-16-be"), "looks like UTF-16 without a byte order mark"),
        (TEXT.encode("utf-16"), "is UTF-16"),
        (TEXT.encode("utf-32"), "is UTF-32"),
        (TEXT.encode("utf-32-le"), "NUL"),
        (b"Good text, then\0rubbish." + TEXT.encode() * 3, "NUL at byte 15"),
        ("caf\xe9".encode("latin-1"), "not UTF-8 at byte 3"),
    ],
)
def test_bytes_that_are_not_utf8_text_are_refused_by_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes, reason: str
) -> None:
    (tmp_path / "bad.txt").write_bytes(data)
    assert main(["ingest", str(tmp_path / "bad.txt"), str(tmp_path / "bank")]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "bad.txt" in message
    assert reason in message
    assert [path.name for path in tmp_path.iterdir()] == ["bad.txt"]


def test_standard_input_and_json_lines_refuse_the_same(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="standard input looks like UTF-16"):
        decode(TEXT.encode("utf-16-le"), "standard input")
    lines = [json.dumps({"text": TEXT}), json.dumps({"text": "a\0b"})]
    (tmp_path / "nul.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match="line 2 holds a NUL at character 1"):
        ingest(tmp_path / "nul.jsonl", tmp_path / "bank", Lengths())  # type: ignore[arg-type]
    with pytest.raises(DataError, match="'a' holds a NUL"):
        ingest([Document("a", "a", "a\0b")], tmp_path / "bank", Lengths())  # type: ignore[arg-type]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "mark.txt").write_bytes(b"\xef\xbb\xbfFirst.\r\nSecond.")
    assert chunks_of(tmp_path / "mark.txt", tmp_path / "bank") == ["First.\nSecond."]


@pytest.mark.parametrize("text", ["\u200b", "\ufeff\u200b\u200d \n", "\u2060\u00ad", "\x07\x1b", "   "])
def test_text_that_cannot_be_seen_is_empty(tmp_path: Path, text: str) -> None:
    assert blank(text)
    (tmp_path / "empty.txt").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"empty\.txt is empty"):
        chunks_of(tmp_path / "empty.txt", tmp_path / "bank")
    assert not blank(f"{text}a")
    spans = Chunking(size=5).splitter()("aaaaa" + "\u200b" * 5 + "bbbbb")
    assert spans.tolist() == [[0, 5], [10, 15]]


# Markdown


def test_front_matter_gives_the_title_and_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "note.md").write_text(f'---\ntitle: "Ferries: a study"\ntags: [a, b]\n---\n{TEXT}', encoding="utf-8")
    bank = ingest(tmp_path / "note.md", tmp_path / "bank", Lengths())  # type: ignore[arg-type]
    assert bank.documents == [("note.md", "Ferries: a study")]
    assert bank.text(0) == TEXT.strip()


@pytest.mark.parametrize(
    ("text", "title", "body"),
    [
        ("---\ntitle: A\n...\nbody", "A", "body"),
        ("---\nauthor: B\n---\nbody", None, "body"),
        ("---\ntitle: 2024-99-99\n---\nbody", "2024-99-99", "body"),
        ("---\ntitle: [a]\n---\nbody", None, "body"),
        ("---\nA sentence between two rules.\n---\nbody", None, None),
        ("---\ntitle: never closed\nbody", None, None),
        ("---\na: [\n---\nbody", None, None),
        ("Text\n---\ntitle: A\n---\n", None, None),
    ],
)
def test_front_matter_is_a_closed_mapping_at_the_begin(text: str, title: str | None, body: str | None) -> None:
    assert front_matter(text) == (title, text if body is None else body)


def test_a_code_fence_that_fits_is_not_cut(tmp_path: Path) -> None:
    code = "```python\n" + "".join(f"value_{n} = compute({n})\n\n" for n in range(7)) + "```"
    assert 150 < len(code) <= 300
    text = "\n\n".join(TEXT * (n % 5 + 1) + "\n\n" + code.replace("value", f"value{n}") for n in range(12))
    (tmp_path / "code.md").write_text(text, encoding="utf-8")
    (tmp_path / "code.txt").write_text(text, encoding="utf-8")
    fences = [text[a:b] for a, b in code_blocks(text)]
    assert len(fences) == 12
    found = chunks_of(tmp_path / "code.md", tmp_path / "bank")
    assert all(sum(fence in chunk for chunk in found) == 1 for fence in fences)
    assert max(map(len, found)) <= 300
    assert "".join("".join(found).split()) == "".join(text.split())
    plain = chunks_of(tmp_path / "code.txt", tmp_path / "plain")
    assert not all(any(fence in chunk for chunk in plain) for fence in fences), "the text must be one that would be cut"


def test_fences_close_with_as_many_marks_of_their_kind() -> None:
    text = "````\n```\n~~~\n````\n~~~ text\nb\n~~~~\n``` not `closed`\n```\nc"
    assert [text[a:b] for a, b in code_blocks(text)] == ["````\n```\n~~~\n````", "~~~ text\nb\n~~~~"]


def test_a_code_fence_longer_than_a_chunk_is_cut(tmp_path: Path) -> None:
    text = f"{TEXT}\n```\n" + "line of code\n" * 60 + f"```\n{TEXT}"
    (tmp_path / "long.md").write_text(text, encoding="utf-8")
    found = chunks_of(tmp_path / "long.md", tmp_path / "bank")
    assert max(map(len, found)) <= 300
    assert "".join("".join(found).split()) == "".join(text.split())


# Ids of JSON lines


def test_null_ids_are_missing_ids(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text('{"id": null, "title": null, "text": "One."}\n{"text": "Two."}\n', encoding="utf-8")
    bank = ingest(file, tmp_path / "bank", Lengths())  # type: ignore[arg-type]
    assert bank.documents == [("00000001", "00000001"), ("00000002", "00000002")]
    file.write_text('{"id": "a", "text": "One."}\n{"id": null, "text": "Two."}\n', encoding="utf-8")
    with pytest.raises(DataError, match="line 2 has no id"):
        ingest(file, tmp_path / "other", Lengths())  # type: ignore[arg-type]
