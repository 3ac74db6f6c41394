"""Sessions answer what the model answers, whatever the road: one vector at a time, many, many sessions, restored."""

import itertools
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import nextvec as nv
from nextvec.bank import Bank
from nextvec.cli.main import main
from nextvec.errors import DataError, NotFiniteError
from nextvec.inference import Engine, Session, batch, snapshot
from nextvec.kernels.weights import FORMATS, WeightFormat
from nextvec.models import GRU, LSTM, Hierarchical, LinearRecurrence, MemoryGRU, Pooled, Recurrent, Transformer
from nextvec.models.baselines import CopyLast
from nextvec.models.packed import pack
from nextvec.models.space import InSpace, Space
from nextvec.reproduction.expert_gru import ExpertGRU
from nextvec.reproduction.lane_scores import RandomLanes
from tests.conftest import unchecked, walk_bank
from tests.waiting import until

DIM = 16
CENTRE = torch.zeros(DIM)
MODELS: dict[str, Any] = {
    "gru": lambda: GRU(CENTRE, 0.5, hidden=160, layers=2),
    "lstm": lambda: LSTM(CENTRE, 0.5, hidden=160),
    "transformer": lambda: Transformer(CENTRE, 0.5, hidden=128, layers=2, heads=4, window=12),
    "memory": lambda: MemoryGRU(CENTRE, 0.5, hidden=160, slots=1024, working=10),
    "hierarchical": lambda: Hierarchical(CENTRE, 0.5, hidden=160, chunk=7),
    "linear": lambda: LinearRecurrence(CENTRE, 0.5, hidden=160),
    "pooled": lambda: InSpace(Space(0.1 * torch.randn(DIM), torch.randn(DIM, DIM)), Pooled(DIM, 0.5, working=14)),
    "experts": lambda: ExpertGRU(MemoryGRU(CENTRE, 0.5, hidden=64, slots=64, working=10), RandomLanes(DIM, "position"), 64),
}


def alive(make: Any) -> Recurrent[Any]:
    """A model whose every part speaks: zero weights are filled."""
    torch.manual_seed(3)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.abs().sum():
                parameter.normal_(0, 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def bank() -> Bank:
    return walk_bank(documents=6, dim=DIM)


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def same(a: Session, b: Session) -> bool:
    return a.snapshot() == b.snapshot()


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_a_session_says_what_the_model_says(name: str, weights: WeightFormat, bank: Bank) -> None:
    packed = pack(alive(MODELS[name]), weights)
    engine = Engine(packed, bank)
    read = vectors(33)
    with torch.inference_mode():
        expected = packed(torch.from_numpy(unit(read))[None])[0].numpy()
    one, many = engine.session(), engine.session()
    for t, vector in enumerate(read):
        np.testing.assert_allclose(one.push(vector.astype(np.float64)), expected[t], atol=2e-5)
    np.testing.assert_allclose(many.push_many(read), expected[-1], atol=2e-5)
    assert one.length == many.length == 33


@pytest.mark.parametrize("name", MODELS)
@given(lengths=st.lists(st.integers(0, 20), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_many_sessions_step_as_each_alone(name: str, lengths: list[int], seed: int) -> None:
    engine = Engine(pack(alive(MODELS[name]), "float32"), walk_bank(documents=2, dim=DIM))
    together, alone = [engine.session() for _ in lengths], [engine.session() for _ in lengths]
    for a, b, length in zip(together, alone, lengths, strict=True):
        for session in (a, b):
            if length:
                session.push_many(vectors(length, seed + length))
    coming = vectors(len(lengths), seed)
    for _ in range(2):
        predicted = engine.step(together, coming)
        for session, vector, row in zip(alone, coming, predicted, strict=True):
            np.testing.assert_allclose(session.push(vector), row, atol=2e-5)
    assert [s.length for s in together] == [n + 2 for n in lengths]


def test_a_session_owns_its_state(bank: Bank) -> None:
    engine = Engine(pack(alive(MODELS["gru"]), "float32"), bank)
    sessions = [engine.session() for _ in range(8)]
    engine.step(sessions, vectors(8))
    for leaf in sessions[0].state:
        assert leaf.untyped_storage().nbytes() == leaf.numel() * leaf.element_size()


BAD = {
    "NaN": (np.array([np.nan] * DIM, np.float32), "not a finite"),
    "infinity": (np.array([np.inf] + [0.0] * (DIM - 1)), "not a finite"),
    "zero": (np.zeros(DIM, np.float16), "zero"),
    "too wide": (np.ones(DIM + 1, np.float32), rf"{DIM + 1} wide; want {DIM}"),
    "two at once": (np.ones((2, DIM), np.float32), rf"want \[rows, {DIM}\]"),
    "truth values": (np.ones(DIM, bool), "want floats or whole numbers"),
    "words": (np.array(["a"] * DIM), "want floats or whole numbers"),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("bad", BAD)
def test_what_cannot_be_read_leaves_the_session_as_it_was(name: str, bad: str, bank: Bank) -> None:
    engine = Engine(pack(alive(MODELS[name]), "float32"), bank)
    session, other = engine.session(), engine.session()
    session.push_many(vectors(5))
    before, told = session.snapshot(), session.predict(3)
    vector, message = BAD[bad]
    with pytest.raises(DataError, match=message):
        session.push(vector)
    with pytest.raises(DataError, match=message):
        session.push_many(vector[None])
    if vector.shape == (DIM,) and vector.dtype.kind == "f":
        with pytest.raises(DataError, match=message):
            engine.step([other, session], np.stack([vectors(1)[0], vector]))
    assert other.length == 0
    assert session.snapshot() == before
    assert session.predict(3) == told


def test_misuse_of_a_session_is_one_line(bank: Bank) -> None:
    engine = Engine(pack(alive(MODELS["gru"]), "float32"), bank)
    session = engine.session()
    with pytest.raises(DataError, match="push a vector first"):
        session.predict()
    with pytest.raises(DataError, match="at least one"):
        session.push_many(np.empty((0, DIM), np.float32))
    with pytest.raises(DataError, match="each session once"):
        engine.step([session, session], vectors(2))
    with pytest.raises(DataError, match="vectors of encoder other@1"):
        engine.session(encoder="other@1")
    with pytest.raises(DataError, match="holds vectors only"):
        session.push_text("words")
    session.push(vectors(1)[0])
    with pytest.raises(DataError, match="no document 99"):
        session.predict(documents=[99])
    with pytest.raises(DataError, match="width 16, the bank holds width 4"):
        Engine(alive(MODELS["gru"]), walk_bank(dim=4))


def test_a_broken_model_moves_nobody(bank: Bank) -> None:
    model = alive(MODELS["gru"])
    engine = Engine(pack(model, "float32"), bank)
    session = engine.session()
    session.push_many(vectors(4))
    before = session.snapshot()
    engine.model.get_parameter("trunk.scale").fill_(float("nan"))
    for move in (lambda: session.push(vectors(1)[0]), lambda: session.push_many(vectors(3))):
        with pytest.raises(NotFiniteError, match="not finite"):
            move()
    assert session.length == 4
    assert session.snapshot() == before


def brute_force(
    bank: Bank, context: np.ndarray, prediction: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> list[int]:
    """The distinct vectors that the context does not hold, best first, each by its first allowed row."""
    first: dict[bytes, int] = {}
    for row in np.flatnonzero(np.ones(len(bank), bool) if allowed is None else allowed).tolist():
        first.setdefault(bank.rows[row].tobytes(), row)
    read = {bank.rows[int(np.argmax(unit(bank.rows.astype(np.float32)) @ vector))].tobytes() for vector in context}
    left = [row for bits, row in first.items() if bits not in read]
    scores = bank.rows.astype(np.float32) @ prediction
    return sorted(left, key=lambda row: -scores[row])[:k]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 4)), min_size=1, max_size=6), st.integers(0, 10))
def test_what_was_read_is_left_out(reads: list[tuple[int, int]], seed: int) -> None:
    """The context is rows of a bank in which each row stands three times, read in turns of predicting and pushing."""
    rng = np.random.default_rng(seed)
    rows = np.tile(unit(rng.standard_normal((12, DIM))), (3, 1)).astype(np.float32)
    bank = Bank.from_numpy(rows, [18, 18])
    session = Engine(CopyLast(DIM), bank).session()
    context = np.empty((0, DIM), np.float32)
    for first, count in reads:
        new = rows[first : first + count]
        session.push_many(new)
        context = np.concatenate([context, new])
        assert session.prediction is not None
        assert [e.row for e in session.predict(7)] == brute_force(bank, context, session.prediction, 7)
        allowed = np.arange(36) < 18
        assert [e.row for e in session.predict(7, documents=[0])] == brute_force(bank, context, session.prediction, 7, allowed)


def session_after_reading(name: str, bank: Bank) -> Session:
    session = Engine(pack(alive(MODELS[name]), "int8"), bank).session()
    session.push_many(vectors(20))
    return session


@pytest.fixture(scope="module")
def restored(bank: Bank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the snapshots of all models answer in another process, one file for each."""
    folder = tmp_path_factory.mktemp("snapshots")
    for name in MODELS:
        (folder / name).write_bytes(session_after_reading(name, bank).snapshot())
    code = """
import sys, numpy as np, torch
torch.set_num_threads(1)
sys.path.insert(0, ".")
from tests.test_inference import MODELS, Engine, alive, pack, vectors, walk_bank, DIM
for name in MODELS:
    engine = Engine(pack(alive(MODELS[name]), "int8"), walk_bank(documents=6, dim=DIM))
    session = engine.restore(open(f"{sys.argv[1]}/{name}", "rb").read())
    predicted = [session.push(v) for v in vectors(5, seed=9)]
    found = session.predict(4)
    scores = [e.score for e in found]
    np.savez(f"{sys.argv[1]}/{name}.npz", predicted=predicted, rows=[e.row for e in found], scores=scores)
"""
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=Path(__file__).parent.parent)
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_a_snapshot_goes_on_in_another_process_to_the_bit(name: str, bank: Bank, restored: Path) -> None:
    session = session_after_reading(name, bank)
    answers = np.load(restored / f"{name}.npz")
    assert (answers["predicted"] == np.array([session.push(v) for v in vectors(5, seed=9)])).all()
    assert answers["rows"].tolist() == [e.row for e in session.predict(4)]
    assert answers["scores"].tolist() == [e.score for e in session.predict(4)]


@given(st.data())
def test_a_damaged_snapshot_is_refused(data: st.DataObject) -> None:
    engine = Engine(CopyLast(DIM), walk_bank(documents=2, dim=DIM))
    session = engine.session()
    session.push_many(vectors(3))
    whole = session.snapshot()
    if data.draw(st.booleans()):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        flipped = bytearray(whole)
        flipped[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        damaged = bytes(flipped)
    with pytest.raises(DataError, match="snapshot"):
        engine.restore(damaged)


def test_a_snapshot_of_another_model_or_bank_is_refused(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    model = alive(MODELS["gru"])
    engine = Engine(pack(model, "float32"), bank)
    session = engine.session()
    session.push(vectors(1)[0])
    data = session.snapshot()
    assert same(engine.restore(data), session)
    with pytest.raises(DataError, match="is of model"):
        Engine(pack(model, "bfloat16"), bank).restore(data)
    with pytest.raises(DataError, match="goes with bank"):
        Engine(pack(model, "float32"), walk_bank(documents=3, dim=DIM)).restore(data)
    monkeypatch.setattr(snapshot, "LARGEST", len(data))
    with pytest.raises(DataError, match="at most"):
        engine.restore(data + b"\0")


@pytest.mark.parametrize("name", MODELS)
def test_a_state_of_another_form_is_refused_before_compiled_code_reads_it(name: str, bank: Bank) -> None:
    """Its hash fits: anyone can compute it. Lengths on both sides of every window, read at once and by steps."""
    engine = Engine(pack(alive(MODELS[name]), "float32"), bank)
    for length in (0, 1, 5, 13, 300):
        session = engine.session()
        if length > 20:
            session.push_many(vectors(length))
        else:
            for vector in vectors(length):
                session.push(vector)
        data = session.snapshot()
        assert same(engine.restore(data), session)
        facts, tensors = snapshot._opened(data)
        for part in [name for name in tensors if name.startswith("state.")]:
            whole = tensors[part]
            others = [torch.cat([whole, whole[..., :1]], dim=-1), whole[..., 1:], whole.unsqueeze(0), whole.double()]
            others += [torch.cat([whole, whole[:1]]), torch.full_like(whole.float(), torch.nan)]
            for other in others:
                if other.shape != whole.shape or other.dtype != whole.dtype or other.numel():
                    with pytest.raises(DataError, match="another form"):
                        engine.restore(snapshot._packed({**tensors, part: other.clone().contiguous()}, facts))
        for number in facts["numbers"]:
            for value in (-1, length + 1, 2**70, True, "1", None):
                with pytest.raises(DataError, match="another form"):
                    engine.restore(snapshot._packed(tensors, {**facts, "numbers": {**facts["numbers"], number: value}}))


def test_facts_and_rows_that_contradict_the_bank_are_refused(bank: Bank) -> None:
    engine = Engine(pack(alive(MODELS["gru"]), "float32"), bank)
    session = engine.session()
    session.push_many(np.asarray(bank.rows[:3], np.float32))
    facts, tensors = snapshot._opened(session.snapshot())
    for wrong in (
        {"seen": torch.tensor([len(bank)])},
        {"seen": torch.tensor([-1])},
        {"seen": torch.tensor([0.0])},
        {"seen": torch.tensor([1, 0])},
        {"seen": torch.tensor([1, 1])},
        {"prediction": torch.zeros(DIM + 1)},
        {"prediction": torch.full((DIM,), torch.inf)},
    ):
        with pytest.raises(DataError, match="not written by nextvec"):
            engine.restore(snapshot._packed({**tensors, **wrong}, facts))
    for change in ({"length": -1}, {"length": "3"}, {"length": None}, {"numbers": None}):
        with pytest.raises(DataError, match="not written by nextvec"):
            engine.restore(snapshot._packed(tensors, {**facts, **change}))
    for left_out in ("seen", "prediction"):
        with pytest.raises(DataError, match="not written by nextvec"):
            engine.restore(snapshot._packed({n: t for n, t in tensors.items() if n != left_out}, facts))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    bank = walk_bank(documents=16, length=40, dim=DIM)
    table = {
        "vector": list(np.asarray(bank.rows, np.float32)),
        "document": [f"d{m:02}" for m in bank.document_of(np.arange(len(bank)))],
        "index": np.arange(len(bank)),
    }
    pq.write_table(pa.table(table), folder / "rows.parquet")
    nv.ingest(folder / "rows.parquet", folder / "bank")
    small = nv.TrainSettings.of(context=20, batch=4, updates=20, hidden=16, slots=16, pool=50)
    run = nv.begin(folder / "run", "default", small, nv.Bank.open(folder / "bank"))
    for _ in nv.train(run, nv.Bank.open(folder / "bank")):
        pass
    return folder


def predict(folder: Path, *arguments: str) -> list[str]:
    return ["predict", str(folder / "run"), *arguments]


def test_a_file_of_contexts_gets_what_sessions_get(trained: Path, tmp_path: Path) -> None:
    engine = Engine.open(trained / "run")
    bank = engine.bank
    expected: list[tuple[int, int, np.ndarray | None, Any]] = []
    for m in range(bank.num_documents):
        session = engine.session()
        for t, vector in enumerate(bank.document(m)):
            session.push(vector)
            expected.append((m, t, session.prediction, session.predict(4)))
    for source, at in (("bank", "every"), ("rows.parquet", "last"), ("rows.parquet", "every")):
        out = tmp_path / f"{source}-{at}.parquet"
        arguments = ("--input", str(trained / source), "--output", str(out), "--at", at, "-k", "4", "--vectors")
        assert main(predict(trained, *arguments)) == 0
        table = pq.read_table(out).to_pylist()
        answers = [answer for answer in expected if at == "every" or answer[1] == bank.lengths[answer[0]] - 1]
        assert len(table) == len(answers)
        for line, (m, t, prediction, found) in zip(table, answers, strict=True):
            start = int(bank.offsets[m])
            assert line["document"] == bank.ids[m]
            assert line["index"] == t + (start if source == "rows.parquet" else 0)
            np.testing.assert_allclose(line["vector"], prediction, atol=2e-5)
            np.testing.assert_allclose(line["score"], [e.score for e in found], atol=2e-5)
            assert line["expected"] == [e.row for e in found]
            assert not set(line["expected"]) & set(range(start, start + t + 1))


Stop = Callable[[Path, list[str], Path], None]


def broken_off(folder: Path, arguments: list[str], parts: Path) -> None:
    """In this process: the fourth part raises."""
    table, calls = batch._table, itertools.count()

    def breaking(*given: Any) -> pa.Table:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return table(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "_table", breaking)
        assert main(arguments) == 130


def killed(folder: Path, arguments: list[str], parts: Path) -> None:
    """In a process of its own, which stands still after three parts until SIGKILL ends it."""
    code = """
import itertools, sys, time
from nextvec.inference import batch
batch.PART = 60
table, calls = batch._table, itertools.count()
def stopping(*given):
    if next(calls) == 3:
        time.sleep(600)
    return table(*given)
batch._table = stopping
from nextvec.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: process.poll() is not None or len(list(parts.glob("*.parquet"))) >= 3)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"


@pytest.mark.parametrize("stop", [broken_off, pytest.param(killed, marks=pytest.mark.integration)])
def test_a_stopped_batch_goes_on_and_ends_the_same(
    stop: Stop, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(batch, "PART", 60)
    outs = [tmp_path / "whole.parquet", tmp_path / "stopped.parquet"]
    whole, stopped = (predict(trained, "--input", str(trained / "bank"), "--output", str(out)) for out in outs)
    assert main(whole) == 0
    parts = tmp_path / ".stopped.parquet.parts"
    stop(tmp_path, stopped, parts)
    assert not outs[1].exists()
    kept = {file: file.stat().st_mtime_ns for file in parts.glob("*.parquet")}
    assert len(kept) == 3
    capsys.readouterr()
    assert main([*stopped, "-k", "3"]) == 2
    assert "other settings" in capsys.readouterr().err
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert main(stopped) == 0
    assert outs[1].read_bytes() == outs[0].read_bytes()
    assert not parts.exists()
    capsys.readouterr()
    assert main(stopped) == 0
    assert "predictions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"document": ["a", "b", "a"], "index": [0, 0, 1]}, "continues after another began"),
        ({"document": ["a", "a", "a"], "index": [0, 2, 1]}, "index 1 after 2"),
        ({"document": ["a", "a", "a"], "index": [0.5, 1.5, 2.5]}, "want whole numbers"),
        ({"document": ["a", None, "b"], "index": [0, 1, 2]}, "row 1: no document"),
        ({"document": ["a", "a", "b"], "index": [0, None, 2]}, "row 1: no index"),
        ({"document": ["a", "a", "b"]}, "no column 'index'"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(
    trained: Path, tmp_path: Path, columns: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [unit(v).tolist() for v in vectors(3)]
    pq.write_table(pa.table({**columns, "vector": rows}), tmp_path / "in.parquet")
    refused(trained, tmp_path, message, capsys)


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (None, "row 1: the vector is missing"),
        ([1.0] * (DIM - 1) + [None], "row 1: a number of the vector is missing"),
        ([1.0, 2.0], "row 1: the vector has 2 numbers"),
        ([float("nan")] * DIM, "not a finite"),
        ([0.0] * DIM, "a zero vector"),
    ],
)
def test_a_file_with_a_bad_vector_names_its_document(
    trained: Path, tmp_path: Path, vector: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [vectors(1)[0].tolist(), vector]
    pq.write_table(pa.table({"document": ["a", "b"], "index": [0, 0], "vector": rows}), tmp_path / "in.parquet")
    refused(trained, tmp_path, f"document 'b': .*{message}|document 'b'.*{message}", capsys)


def refused(trained: Path, folder: Path, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(predict(trained, "--input", str(folder / "in.parquet"), "--output", str(folder / "out.parquet"))) == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert re.search(message, said)
    assert not (folder / "out.parquet").exists()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("length", [1, 7, 300])
def test_a_session_keeps_its_state_and_not_the_passage(bank: Bank, name: str, length: int) -> None:
    engine = Engine(pack(alive(MODELS[name]), "float32"), bank)
    once, stepped = engine.session(), engine.session()
    once.push_many(vectors(length))
    for n, row in enumerate(vectors(length)):
        with unchecked() if n >= 7 else nullcontext():
            stepped.push(row)
    assert once.num_bytes <= 1.5 * stepped.num_bytes
