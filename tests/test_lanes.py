"""Codes, tables and labels: what goes in comes out, and what makes no sense is one line."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextvec.bank import Bank
from nextvec.errors import DataError, SettingsError
from nextvec.lanes import DEFAULT, DOMAINS, MODIFIERS, TASKS, Code, Table, Term, read_labels, read_table
from tests.conftest import walk_bank

TWO = '[[lane]]\nname = "A"\ndescription = "About a."\n[[lane]]\nname = "B"\ndescription = "About b."\n'


def written(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def test_every_code_comes_back_and_every_odd_one_is_refused() -> None:
    seen: set[Code] = set()
    for bits in range(1 << 16):
        if bits & 1:
            with pytest.raises(DataError, match="bit 0 is spare"):
                Code.unpack(bits)
        else:
            code = Code.unpack(bits)
            assert code.pack() == bits
            seen.add(code)
    assert len(seen) == 16 * 32 * 64


def test_the_layout_is_domain_task_modifier() -> None:
    assert Code(15, 0, 0).pack() == 0xF000
    assert Code(0, 31, 0).pack() == 0x0F80
    assert Code(0, 0, 63).pack() == 0x007E
    assert str(Code(11, 12, 6)) == "Law / Argument Evaluation / Legal"


@pytest.mark.parametrize("bits", [-2, 1 << 16, 1 << 40])
def test_what_has_not_16_bits_is_no_code(bits: int) -> None:
    with pytest.raises(DataError, match="16 bits"):
        Code.unpack(bits)


@pytest.mark.parametrize("code", [(16, 0, 0), (0, 32, 0), (0, 0, 64), (-1, 0, 0)])
def test_numbers_that_no_table_has_are_refused(code: tuple[int, int, int]) -> None:
    with pytest.raises(DataError, match=r"there is no (domain|task|modifier)"):
        Code(*code)


def test_the_taxonomy_is_whole_and_frozen() -> None:
    assert [len(terms) for terms in (DOMAINS, TASKS, MODIFIERS)] == [16, 32, 64]
    for terms in (DOMAINS, TASKS, MODIFIERS):
        assert len({term.name for term in terms}) == len({term.description for term in terms}) == len(terms)
        assert all(term.name.strip() and term.description.endswith(".") for term in terms)
    # Numbers that other people's files hold: ends and a few between.
    assert [DOMAINS[n].name for n in (0, 8, 11, 15)] == ["Science", "Literature", "Law", "Software"]
    assert [TASKS[n].name for n in (0, 14, 31)] == ["Fact Retrieval", "Code Generation", "Prompt Completion"]
    assert [MODIFIERS[n].name for n in (0, 16, 32, 48, 63)] == [
        "Biochemical", "Temporal", "Strategic", "Localized", "Compression-optimized",
    ]  # fmt: skip
    assert DEFAULT.lanes == DOMAINS


def test_a_table_is_read(tmp_path: Path) -> None:
    table = read_table(written(tmp_path / "t.toml", TWO + 'examples = ["B it is.", "And b again."]\n'))
    assert table.lanes == (Term("A", "About a."), Term("B", "About b.", ("B it is.", "And b again.")))
    assert table.lanes[1].sentences == ("About b.", "B it is.", "And b again.")
    assert table.number("B") == 1
    with pytest.raises(SettingsError, match="no lane 'b'"):
        table.number("b")


def test_the_digest_tells_tables_apart() -> None:
    a, b = Term("A", "About a."), Term("B", "About b.")
    digests = {Table(lanes).digest for lanes in ((a, b), (b, a), (a, Term("B", "About b.", ("More.",))))}
    assert len(digests) == 3
    assert Table((a, b)).digest == Table((Term("A", "About a."), b)).digest


BAD_TABLES = {
    "not toml": ("[[lane", "not TOML"),
    "nothing": ("", "write at least two"),
    "one lane": ('[[lane]]\nname = "A"\ndescription = "About a."\n', "2 to 16 of them, not 1"),
    "seventeen": ("".join(f'[[lane]]\nname = "{n}"\ndescription = "About {n}."\n' for n in range(17)), "not 17"),
    "a name twice": (TWO.replace('"B"', '"a"'), "two lanes have the name 'A'"),
    "a description twice": (TWO.replace("About b.", "About A."), "two lanes have the description"),
    "an empty name": (TWO.replace('"A"', '"  "'), "lane 1: name is empty"),
    "no description": (TWO.replace('description = "About b."', ""), "lane 2: description is missing"),
    "an empty description": (TWO.replace("About b.", ""), "lane 2: description is empty"),
    "an unknown key": (TWO + 'exampels = ["x"]\n', "did you mean 'examples'"),
    "an unknown section": ("[lanes]\n" + TWO, "did you mean 'lane'"),
    "examples that are no list": (TWO + 'examples = "x"\n', "must be a list"),
    "an empty example": (TWO + 'examples = ["x", ""]\n', "lane 2: example is empty"),
    "a number for a name": (TWO.replace('"A"', "1"), "lane 1: name is empty or no text"),
    "lane is no list": ("lane = 3\n", "write at least two"),
    "lane is a list of numbers": ("lane = [1, 2]\n", "lane 1 must be a table"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables_get_one_line(name: str, tmp_path: Path) -> None:
    content, says = BAD_TABLES[name]
    with pytest.raises(SettingsError, match=says) as caught:
        read_table(written(tmp_path / "t.toml", content))
    assert "\n" not in str(caught.value)
    assert "t.toml" in str(caught.value)


@given(st.lists(st.tuples(st.integers(0, 11), st.sampled_from("xyz")), min_size=1, unique_by=lambda pair: pair[0]))
def test_labels_come_back(pairs: list[tuple[int, str]]) -> None:
    bank = walk_bank()
    with tempfile.TemporaryDirectory() as folder:
        content = "document,lane\n" + "".join(f"{m:06d},{lane}\n" for m, lane in pairs)
        labels = read_labels(written(Path(folder) / "l.csv", content), bank)
    assert {m: labels.names[lane] for m, lane in enumerate(labels.lane) if lane >= 0} == dict(pairs)
    assert labels.names == tuple(sorted({lane for _, lane in pairs}))
    rows = labels.of_rows(bank)
    assert all((rows[bank.offsets[m] : bank.offsets[m + 1]] == labels.lane[m]).all() for m in range(12))


def test_labels_of_a_table_keep_its_numbers(bank: Bank, tmp_path: Path) -> None:
    path = written(tmp_path / "l.csv", "document,lane\n000003,Law\n000001,Science\n")
    labels = read_labels(path, bank, DEFAULT.names)
    assert labels.names == DEFAULT.names
    assert np.flatnonzero(labels.lane >= 0).tolist() == [1, 3]
    assert labels.lane[[1, 3]].tolist() == [0, 11]


BAD_LABELS = {
    "no header": ("000000,Law\n", "want 'document,lane'"),
    "other columns": ("lane,document\nLaw,000000\n", "want 'document,lane'"),
    "empty": ("", "want 'document,lane'"),
    "no rows": ("document,lane\n", "labels no document"),
    "one column": ("document,lane\n000000\n", "line 2: want a document and its lane"),
    "three columns": ("document,lane\n000000,Law,x\n", "line 2"),
    "an empty lane": ("document,lane\n000000, \n", "line 2"),
    "twice": ("document,lane\n000000,Law\n000000,Art\n", "line 3: document '000000' has a lane already"),
    "a foreign document": ("document,lane\nnobody,Law\n", "no document 'nobody'"),
    "a foreign lane": ("document,lane\n000000,Lore\n", "no lane 'Lore'"),
    "an open quote": ('document,lane\n"000000,Law\n', "cannot be read as CSV"),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_bad_labels_get_one_line(name: str, bank: Bank, tmp_path: Path) -> None:
    content, says = BAD_LABELS[name]
    with pytest.raises(DataError, match=says) as caught:
        read_labels(written(tmp_path / "l.csv", content), bank, DEFAULT.names)
    assert "\n" not in str(caught.value)


def test_labels_that_are_no_text_are_refused(bank: Bank, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes(b"document,lane\n\xff,Law\n")
    with pytest.raises(DataError, match="cannot be read as CSV"):
        read_labels(tmp_path / "l.csv", bank)
