"""A saved index answers as the one that was built, and refuses what it was not built of."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nextvec.bank import Bank
from nextvec.cli.main import main
from nextvec.errors import DataError
from nextvec.index import ApproximateIndex, ExactIndex, open_index
from nextvec.kernels.scan_rows import FORMATS, RowFormat
from tests.conftest import walk_bank
from tests.test_cli import printed, write_bank

QUERIES = torch.randn(7, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_bank(tmp_path / "bank", walk_bank())
    return tmp_path


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("added", [0, 5])
def test_a_saved_index_answers_the_same(place: Path, form: RowFormat, added: int) -> None:
    bank = Bank.open(place / "bank")
    index = ExactIndex.build(bank, form)
    if added:
        index.add(np.random.default_rng(0).standard_normal((added, 16)))
    index.save(place / "index")
    opened = open_index(place / "index", Bank.open(place / "bank"))
    assert isinstance(opened, ExactIndex) and opened.form == form and len(opened) == len(bank) + added
    for searched in (index.search(QUERIES, 9), index.search(QUERIES, len(bank) + added)):
        found = opened.search(QUERIES, searched.rows.shape[1])
        assert (found.rows == searched.rows).all() and (found.scores == searched.scores).all()
    assert opened.add(np.ones((1, 16))).tolist() == [len(bank) + added]
    assert sorted(path.name for path in place.iterdir()) == ["bank", "index"], "nothing half-written stays"


def test_rows_are_not_copied(place: Path) -> None:
    ExactIndex.build(Bank.open(place / "bank")).save(place / "index")
    assert sum(path.stat().st_size for path in (place / "index").iterdir()) < 2_000


def test_another_bank_is_refused(place: Path) -> None:
    ExactIndex.build(Bank.open(place / "bank")).save(place / "index")
    with pytest.raises(DataError, match="not of this one"):
        open_index(place / "index", walk_bank(seed=1))
    write_bank(place / "other", walk_bank(), "another encoder")
    with pytest.raises(DataError, match="another encoder"):
        open_index(place / "index", Bank.open(place / "other"))


@pytest.mark.parametrize("name", ["codes.bin", "scales.bin", "errors.bin", "added.bin", "index.json"])
def test_truncated_files_are_refused(place: Path, name: str) -> None:
    bank = Bank.open(place / "bank")
    index = ExactIndex.build(bank, "int8")
    index.add(np.ones((2, 16)))
    index.save(place / "index")
    path = place / "index" / name
    for size in (path.stat().st_size - 2, 0):
        with open(path, "r+b") as file:
            file.truncate(size)
        with pytest.raises(DataError, match=f"{name} is damaged"):
            open_index(place / "index", bank)
    path.unlink()
    with pytest.raises(DataError, match=name):
        open_index(place / "index", bank)


@pytest.mark.parametrize("name", ["scales.bin", "errors.bin", "added.bin"])
def test_a_changed_byte_of_a_small_file_is_refused(place: Path, name: str) -> None:
    bank = Bank.open(place / "bank")
    index = ExactIndex.build(bank, "int8")
    index.add(np.ones((2, 16)))
    index.save(place / "index")
    path = place / "index" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="its content was changed"):
        open_index(place / "index", bank)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "format 2"),
        ({"form": "int4"}, "damaged"),
        ({"kind": "best"}, "damaged"),
        ({"rows": 3}, "damaged"),
        ({"colour": 1}, "damaged"),
    ],
)
def test_a_foreign_manifest_is_refused(place: Path, change: dict[str, Any], says: str) -> None:
    bank = Bank.open(place / "bank")
    ExactIndex.build(bank).save(place / "index")
    path = place / "index" / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=says):
        open_index(place / "index", bank)


def test_what_cannot_be_saved_is_refused(place: Path) -> None:
    with pytest.raises(DataError, match="built from a bank"):
        ExactIndex(np.eye(3, dtype=np.float32)).save(place / "index")
    assert not (place / "index").exists()
    index = ExactIndex.build(Bank.open(place / "bank"))
    index.save(place / "index")
    with pytest.raises(DataError, match="already exists"):
        index.save(place / "index")


def test_the_kinds_are_told_apart(place: Path) -> None:
    bank = Bank.open(place / "bank")
    ExactIndex.build(bank).save(place / "index")
    with pytest.raises(DataError, match="not an approximate one"):
        ApproximateIndex.open(place / "index", bank)


@pytest.mark.parametrize("form", [None, *FORMATS])
def test_the_verb(place: Path, capsys: pytest.CaptureFixture[str], form: str | None) -> None:
    flags = [] if form is None else ["--format", form]
    facts = printed(capsys, "index", str(place / "bank"), str(place / "index"), *flags)
    bank = Bank.open(place / "bank")
    assert (facts["kind"], facts["format"], facts["rows"], facts["dim"]) == ("exact", form or "float16", len(bank), 16)
    assert facts["bytes"] == sum(path.stat().st_size for path in (place / "index").iterdir())
    assert (open_index(place / "index", bank).search(QUERIES, 5).rows >= 0).all()
    assert main(["index", str(place / "bank"), str(place / "index")]) == 2
    out = capsys.readouterr()
    assert out.err.count("\n") == 1 and "already exists" in out.err


def test_the_verb_refuses_a_format_that_a_graph_does_not_read(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["index", str(place / "bank"), str(place / "index"), "--kind", "approximate", "--format", "int8"]
    assert main(arguments) == 2
    assert "reads float16" in capsys.readouterr().err
    assert not (place / "index").exists()


@pytest.mark.parametrize("form", [None, "int8"])
def test_an_index_of_a_bank_whose_rows_repeat(tmp_path: Path, form: RowFormat | None) -> None:
    walk = walk_bank(documents=2, length=20)
    rows = np.tile(walk.rows.astype(np.float32), (4, 1))
    write_bank(tmp_path / "bank", Bank.from_numpy(rows, [len(walk)] * 4))
    bank = Bank.open(tmp_path / "bank")
    index = ExactIndex.build(bank, form)
    index.save(tmp_path / "index")
    opened = open_index(tmp_path / "index", bank)
    found, wanted = opened.search(QUERIES, len(walk) + 1), index.search(QUERIES, len(walk) + 1)
    assert (found.rows == wanted.rows).all() and (found.scores == wanted.scores).all()
    assert (np.sort(found.rows, axis=1) == np.arange(-1, len(walk))).all(), "each vector once, by its first row"
    if form is not None:  # codes of every row, as an earlier version wrote them
        path = tmp_path / "index" / "index.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "distinct"}))
        with pytest.raises(DataError, match="build the index again"):
            open_index(tmp_path / "index", bank)
