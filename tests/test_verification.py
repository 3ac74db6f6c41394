"""A run, an index, lanes or an experiment that meets a bank meets the one that it was made of, or refuses it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nextvec.bank import Bank, census, layout, verification
from nextvec.cli.main import main
from nextvec.cli.serving import open_run
from nextvec.errors import DataError, RunError
from nextvec.inference import Engine
from tests.conftest import walk_bank
from tests.test_cli import FLAGS, write_bank


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank, a run of it, its index and lanes, and another bank of the same width and encoder."""
    folder = tmp_path_factory.mktemp("verification")
    bank = str(write_bank(folder / "bank", walk_bank(documents=24)))
    write_bank(folder / "other", walk_bank(documents=24, seed=1))
    assert main(["train", "memory", str(folder / "run"), "--bank", bank, *FLAGS, "--json"]) == 0
    assert main(["index", bank, str(folder / "index")]) == 0
    assert main(["lanes", bank, "--clusters", "3", "--out", str(folder / "lanes")]) == 0
    return folder


@pytest.fixture
def reordered(place: Path) -> Any:
    """The bank with its rows in another order, in place; put right afterwards."""
    rows = place / "bank" / layout.ROWS
    content = rows.read_bytes()
    bank = Bank.open(place / "bank")
    rows.write_bytes(np.ascontiguousarray(bank.rows[::-1]).tobytes())
    yield place
    rows.write_bytes(content)


@pytest.fixture
def swapped(place: Path) -> Any:
    """Another bank where the run's bank lay; put right afterwards."""
    (place / "bank").rename(place / "kept")
    shutil.copytree(place / "other", place / "bank")
    yield place
    shutil.rmtree(place / "bank")
    (place / "kept").rename(place / "bank")


def lines(place: Path, out: Path) -> dict[str, list[str]]:
    """Every verb that opens the bank, on its own or through a run."""
    run, bank = str(place / "run"), str(place / "bank")
    return {
        "evaluate": ["evaluate", run, "--pool", "30"],
        "evaluate whole": ["evaluate", run, "--pool", "30", "--split", "all", "--bank", bank],
        "surprise": ["surprise", run],
        "predict": ["predict", run, "--input", bank, "--output", str(out / "expected.parquet")],
        "latency": ["latency", run, "--contexts", "3"],
        "export a run": ["export", run, str(out / "onnx")],
        "export a bank": ["export", bank, str(out / "bank.parquet")],
        "compare": ["compare", run, run, "--pool", "30"],
        "gate": ["gate", run, "seed"],
        "train": ["train", "memory", run, "--bank", bank, *FLAGS],
        "index": ["index", bank, str(out / "index")],
        "lanes": ["lanes", bank, "--clusters", "3"],
        "inspect": ["inspect", bank],
        "sweep": ["sweep", "memory", "--bank", bank, "--out", str(out / "sweep"), "--over", "lr=1e-3", *FLAGS],
        "phases": ["phases", str(out / "phases"), "--bank", bank, "--recipes", "phase1", *FLAGS],
        "experiment": ["experiment", "context", "--bank", bank, "--out", str(out / "context"), "--contexts", "3,5", *FLAGS],
    }


@pytest.mark.parametrize("name", lines(Path(), Path()))
def test_rows_reordered_in_place_are_refused_by_every_verb(
    name: str, reordered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(lines(reordered, tmp_path)[name]) == 2
    said = capsys.readouterr()
    recorded = json.loads((reordered / "bank" / "bank.json").read_text())["fingerprint"][:12]
    found = verification.content_fingerprint(reordered / "bank", layout.Manifest.read(reordered / "bank"))[:12]
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "changed after it was written" in said.err
    assert recorded in said.err
    assert found in said.err
    assert list(tmp_path.iterdir()) == []


THROUGH_A_RUN = ("evaluate", "surprise", "predict", "latency", "export a run", "compare", "gate")


@pytest.mark.parametrize("name", THROUGH_A_RUN)
def test_another_bank_where_the_runs_bank_lay_is_refused_unless_it_is_named(
    name: str, swapped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(lines(swapped, tmp_path)[name]) == 2
    said = capsys.readouterr().err
    prints = [json.loads((swapped / bank / "bank.json").read_text())["fingerprint"][:12] for bank in ("kept", "bank")]
    assert all(fingerprint in said for fingerprint in prints), said
    assert "use another on purpose: --bank PATH" in said
    assert list(tmp_path.iterdir()) == []


def test_an_engine_refuses_it_too(swapped: Path) -> None:
    for opened in (lambda: Engine.open(swapped / "run"), lambda: open_run(None, "float32", "once", swapped / "run")):
        with pytest.raises(RunError, match="now holds bank"):
            opened()
    assert open_run(swapped / "bank", "float32", "once", swapped / "run").bank.path == swapped / "bank"


def test_another_bank_that_is_named_is_used_and_said(swapped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank = str(swapped / "bank")
    fingerprint = json.loads((swapped / "bank" / "bank.json").read_text())["fingerprint"]
    line = lines(swapped, tmp_path)["predict"]
    assert main([*line, "--bank", bank]) == 0
    assert f"using bank {fingerprint[:12]} at {bank}" in capsys.readouterr().err
    assert main(["evaluate", str(swapped / "run"), "--pool", "30", "--split", "all", "--bank", bank, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["exam"]["bank"] == fingerprint
    assert any(fingerprint[:12] in note and "the run was trained on bank" in note for note in report["notes"])


# Hashed once, remembered by size, inode and times


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders whose content was hashed, in order; files count as settled at once."""
    calls: list[Path] = []
    real = verification.content_fingerprint

    def counted(folder: Path, *arguments: Any) -> str:
        calls.append(folder)
        return real(folder, *arguments)

    monkeypatch.setattr(verification, "content_fingerprint", counted)
    monkeypatch.setattr(verification, "SETTLED_NS", -(10**18))
    monkeypatch.setattr(verification, "_verified", {})
    return calls


def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what this process knows, as another process would not know it."""
    monkeypatch.setattr(verification, "_verified", {})


def test_content_is_hashed_once_and_again_when_a_file_changes(
    hashed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = write_bank(tmp_path / "bank", walk_bank())
    for _ in range(2):
        Bank.open(bank)
    anew(monkeypatch)
    Bank.open(bank)
    assert len(hashed) == 1
    Bank.open(bank, "always")
    assert len(hashed) == 2
    os.utime(bank / layout.OFFSETS, ns=(0, 0))
    Bank.open(bank)
    assert len(hashed) == 3
    copy = tmp_path / "copy"
    shutil.copytree(bank, copy)  # files of the same times, other inodes
    Bank.open(copy)
    assert len(hashed) == 4
    Bank.open(copy, "never")
    assert len(hashed) == 4


def test_files_that_changed_a_moment_ago_are_not_trusted_yet(
    hashed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second change within a tick of the file system's clock leaves every time as it was."""
    bank = write_bank(tmp_path / "bank", walk_bank())
    monkeypatch.setattr(verification, "SETTLED_NS", 10**18)
    Bank.open(bank)
    Bank.open(bank)
    assert len(hashed) == 2
    assert not (bank / layout.VERIFIED).exists()


def test_what_no_stamp_shows_is_found_by_verify_and_by_audit(
    hashed: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank = write_bank(tmp_path / "bank", walk_bank())
    Bank.open(bank)
    rows = bytearray((bank / layout.ROWS).read_bytes())
    rows[:32], rows[32:64] = rows[32:64], rows[:32]
    (bank / layout.ROWS).write_bytes(rows)
    # As if the file system had shown no change.
    remembered = json.loads((bank / layout.VERIFIED).read_text())
    files = verification._files(bank, layout.Manifest.read(bank))  # pyright: ignore[reportPrivateUsage]
    (bank / layout.VERIFIED).write_text(json.dumps({**remembered, "files": files}))
    Bank.open(bank)
    with pytest.raises(DataError, match="changed after it was written"):
        Bank.open(bank, "always")
    assert main(["inspect", str(bank)]) == 0
    assert main(["inspect", str(bank), "--verify"]) == 2
    capsys.readouterr()
    assert main(["audit", str(bank), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["detectors"]["fingerprint"]["passed"] is False


@pytest.mark.parametrize(
    ("name", "use"),
    [(layout.VERIFIED, lambda path: Bank.open(path)), (layout.CENSUS, lambda path: census(Bank.open(path)))],
)
def test_a_folder_that_cannot_be_written_is_hashed_once_a_process(
    name: str, use: Callable[[Path], object], hashed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = write_bank(tmp_path / "bank", walk_bank())
    (bank / layout.CENSUS).unlink()
    (bank / f".{name}.{os.getpid()}.tmp").mkdir()  # where the file would be written
    for _ in range(2):
        use(bank)
    assert not (bank / name).exists()
    assert len(hashed) == 1
    if name == layout.VERIFIED:
        anew(monkeypatch)
        use(bank)
        assert len(hashed) == 2


def test_a_damaged_memory_is_no_proof(hashed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = write_bank(tmp_path / "bank", walk_bank())
    for content in ("", "{", "[]", '{"fingerprint": "0", "files": {}}'):
        (bank / layout.VERIFIED).write_text(content)
        anew(monkeypatch)
        Bank.open(bank)
    assert len(hashed) == 4


@pytest.mark.parametrize(
    "edit",
    [
        {"encoder_fingerprint": "another"},
        {"dtype": "float32", "dim": 4},  # as many bytes
        {"fingerprint": "0" * 64},
    ],
    ids=lambda edit: next(iter(edit)),
)
@pytest.mark.parametrize("where", ["in this process", "on disk"])
def test_a_manifest_that_changed_is_not_trusted(
    where: str, edit: dict[str, Any], hashed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = write_bank(tmp_path / "bank", walk_bank(dim=8))
    Bank.open(bank)
    manifest = bank / layout.MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **edit}))
    if where == "on disk":
        anew(monkeypatch)
    with pytest.raises(DataError, match="changed after it was written"):
        Bank.open(bank)
    assert main(["inspect", str(bank)]) == 2
