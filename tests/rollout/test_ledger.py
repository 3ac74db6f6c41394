"""The ledger: nothing is written that should not be, and nothing that was written changes unseen."""

import json
import random
import resource
import shutil
import sqlite3
import threading
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextvec.errors import ServingError
from nextvec.rollout.ledger import Ledger
from nextvec.rollout.opening import open_ledger
from nextvec.rollout.postgres import PostgresDatabase
from nextvec.rollout.records import ConflictError, Decision, Entry, LedgerError, Record
from nextvec.rollout.schema import GENESIS
from nextvec.rollout.sqlite import SqliteDatabase
from tests.conftest import examples
from tests.rollout import postgres

DRAFT = Entry("", "DRAFT", "drafted", {"plan": [5.0, 10.0]}, "ann")


@pytest.fixture(scope="module")
def socket() -> Generator[str]:
    with postgres.server() as folder:
        yield folder


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.integration)])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new ledger can be made, of either kind."""
    if request.param == "sqlite":
        return str(tmp_path / "ledger.db")
    return postgres.database(request.getfixturevalue("socket"))


@pytest.fixture
def ledger(where: str) -> Generator[Ledger]:
    opened = open_ledger(where)
    yield opened
    opened.close()


def moved(to: str, evidence: Any = None, ends: bool = False, actor: str = "controller") -> Any:
    """A decision to move, whatever the record."""

    def decide(record: Record, reports: list[Any]) -> Decision:
        return Decision(record.watched, record.last_unit, reports, Entry(record.state, to, "because", evidence, actor, ends))

    return decide


def still(record: Record, reports: list[Any]) -> Decision:
    return Decision(record.watched + 1, record.last_unit, [*(record.evidence or []), *reports], None)


def ladder(where: str, names: tuple[str, ...] = ("SHADOW", "CANARY(0)", "CANARY(1)", "ROLLING_BACK")) -> None:
    """A ledger of five rows."""
    ledger = open_ledger(where)
    token = ledger.acquire(ledger.create("r", "main", DRAFT), "one")
    for name in names:
        ledger.tick("r", token, moved(name, {"units": 3, "text": "ü" * 200}))
    ledger.close()


def execute(where: str, *statements: str) -> None:
    """Behind the ledger's back."""
    if where.startswith("postgresql://"):
        import psycopg

        with psycopg.connect(where) as remote:
            for statement in statements:
                remote.execute(statement.encode())
    else:
        with closing(sqlite3.connect(where)) as local, local:
            for statement in statements:
                local.execute(statement)


def test_rows_are_chained_and_the_state_is_the_last(ledger: Ledger) -> None:
    record = ledger.create("r", "main", DRAFT)
    assert (record.state, record.epoch, record.active, record.holder) == ("DRAFT", 1, True, "")
    token = ledger.acquire(record, "one")
    after = ledger.tick("r", token, moved("SHADOW", {"units": 7}, actor="bob"))
    first, second = ledger.rows("r")
    assert (first.prev_hash, second.prev_hash) == (GENESIS, first.hash)
    assert (after.row, after.state, after.epoch) == (second, "SHADOW", 2)
    said = second.to_json()
    assert {name: said[name] for name in ("seq", "epoch", "from", "to", "cause", "evidence", "actor")} == {
        "seq": 2,
        "epoch": 2,
        "from": "DRAFT",
        "to": "SHADOW",
        "cause": "because",
        "evidence": {"units": 7},
        "actor": "bob",
    }
    assert list(ledger.export()) == [row.to_json() for row in ledger.rows()]
    assert ledger.verify() == 2


def test_what_was_written_is_there_after_reopening(where: str) -> None:
    ladder(where)
    opened = open_ledger(where)
    assert [row.after for row in opened.rows()] == ["DRAFT", "SHADOW", "CANARY(0)", "CANARY(1)", "ROLLING_BACK"]
    opened.close()


def test_a_stale_token_writes_nothing(ledger: Ledger) -> None:
    record = ledger.create("r", "main", DRAFT)
    old = ledger.acquire(record, "one")
    new = ledger.acquire(ledger.record("r"), "two")
    before = ledger.record("r")
    with pytest.raises(ConflictError, match=f"token {old} of rollout 'r' is stale: 'two' holds {new}"):
        ledger.tick("r", old, moved("SHADOW"))
    ledger.release("r", old)
    assert ledger.record("r") == before
    assert ledger.tick("r", new, moved("SHADOW")).state == "SHADOW"


def test_who_beats_is_not_taken_over(ledger: Ledger) -> None:
    seen = ledger.create("r", "main", DRAFT)
    token = ledger.acquire(seen, "one")
    with pytest.raises(ConflictError, match="is held by 'one'"):
        ledger.acquire(seen, "two")
    seen = ledger.record("r")
    ledger.tick("r", token, still)
    with pytest.raises(ConflictError, match="is held by 'one'"):
        ledger.acquire(seen, "two")


def test_a_person_changes_only_the_epoch_that_was_seen(ledger: Ledger) -> None:
    ledger.create("r", "main", DRAFT)
    paused = Entry("DRAFT", "PAUSED", "pause", None, "ann")
    with pytest.raises(ConflictError, match="'r' is DRAFT in epoch 1, not in epoch 2"):
        ledger.intervene("r", lambda _: paused, epoch=2)
    assert ledger.intervene("r", lambda _: paused, epoch=1).state == "PAUSED"
    with pytest.raises(ConflictError, match="in epoch 2, not in epoch 1"):  # the same request, sent again
        ledger.intervene("r", lambda _: paused, epoch=1)
    assert ledger.verify() == 2


def test_a_route_has_one_rollout_at_a_time(ledger: Ledger) -> None:
    token = ledger.acquire(ledger.create("r", "main", DRAFT), "one")
    with pytest.raises(ConflictError, match="route 'main' has the active rollout 'r'; end it first"):
        ledger.create("s", "main", DRAFT)
    with pytest.raises(ConflictError, match="rollout 'r' exists"):
        ledger.create("r", "other", DRAFT)
    ledger.create("t", "other", DRAFT)
    ledger.tick("r", token, moved("REJECTED", ends=True))
    assert ledger.active("main") is None
    ledger.create("s", "main", DRAFT)
    assert [ledger.active(route).row.rollout for route in ("main", "other")] == ["s", "t"]  # type: ignore[union-attr]
    assert ledger.verify() == 4


def test_the_database_itself_allows_one_active_rollout_and_no_double_step(where: str) -> None:
    ladder(where)
    with pytest.raises(Exception, match=r"(?i)unique"):
        execute(where, "INSERT INTO rollouts SELECT 's', route, 1, 1, '', '', 0, 0, 0, 0, '' FROM rollouts")
    with pytest.raises(Exception, match=r"(?i)unique"):
        execute(where, "INSERT INTO ledger SELECT 6, rollout, epoch, '', '', '', '', '', '', '', '' FROM ledger WHERE seq = 5")


def test_an_unknown_rollout_is_named(ledger: Ledger) -> None:
    for ask in (lambda: ledger.record("x"), lambda: ledger.exchange("x", "a", 0), lambda: ledger.tick("x", 1, still)):
        with pytest.raises(ServingError, match="has no rollout 'x'"):
            ask()
    assert ledger.rows("x") == []


def test_a_report_is_taken_once(ledger: Ledger) -> None:
    token = ledger.acquire(ledger.create("r", "main", DRAFT), "one")
    for _ in range(3):  # a router that did not hear that it was heard
        ledger.exchange("r", "a", 1, 1, {"n": 1})
    ledger.exchange("r", "b", 1, 1, {"n": 10})
    assert ledger.tick("r", token, still).evidence == [{"n": 1}, {"n": 10}]
    ledger.exchange("r", "a", 1, 1, {"n": 1})
    ledger.exchange("r", "a", 1, 2, {"n": 2})
    assert ledger.tick("r", token, still).evidence == [{"n": 1}, {"n": 10}, {"n": 2}]


def test_a_decision_that_fails_takes_nothing(ledger: Ledger) -> None:
    token = ledger.acquire(ledger.create("r", "main", DRAFT), "one")
    ledger.exchange("r", "a", 1, 1, {"n": 1})
    before = ledger.record("r")

    def broken(record: Record, reports: list[Any]) -> Decision:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ledger.tick("r", token, broken)
    assert ledger.record("r") == before
    assert ledger.tick("r", token, still).evidence == [{"n": 1}]


def test_an_ended_rollout_takes_no_reports(ledger: Ledger) -> None:
    token = ledger.acquire(ledger.create("r", "main", DRAFT), "one")
    ledger.tick("r", token, moved("REJECTED", ends=True))
    ledger.exchange("r", "a", 2, 1, {"n": 1})
    assert ledger.tick("r", token, still).evidence == []


def test_the_slowest_router_is_known(ledger: Ledger) -> None:
    assert ledger.create("r", "main", DRAFT).slowest is None
    ledger.exchange("r", "a", 3)
    assert ledger.exchange("r", "b", 2).slowest == 2
    assert ledger.exchange("r", "b", 5).slowest == 3
    ledger.leave("r", "a")
    assert ledger.record("r").slowest == 5


def test_threads_share_a_ledger(ledger: Ledger) -> None:
    token = ledger.acquire(ledger.create("r", "main", DRAFT), "one")

    def work(router: str) -> None:
        for n in range(1, 11):
            ledger.exchange("r", router, n, n, [router, n])

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    taken: list[Any] = []
    while any(thread.is_alive() for thread in threads):
        taken += ledger.tick("r", token, moved("SHADOW")).evidence
    taken += ledger.tick("r", token, moved("SHADOW")).evidence
    assert sorted(taken) == sorted([name, n] for name in "abc" for n in range(1, 11))
    ledger.verify()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("UPDATE ledger SET cause = 'other' WHERE seq = 3", "row 3 is not what was written"),
        ("UPDATE ledger SET actor = 'eve' WHERE seq = 1", "row 1 is not what was written"),
        ("UPDATE ledger SET time = '2020-01-01' WHERE seq = 5", "row 5 is not what was written"),
        ("UPDATE ledger SET evidence = '{}' WHERE seq = 2", "row 2 is not what was written"),
        ("UPDATE ledger SET evidence = '{' WHERE seq = 2", "row 2 cannot be read"),
        ("UPDATE ledger SET after = 'FULL' WHERE seq = 4", "row 4 is not what was written"),
        ("UPDATE ledger SET hash = prev_hash WHERE seq = 4", "row 4 is not what was written"),
        ("UPDATE ledger SET prev_hash = hash WHERE seq = 4", "row 4 is not linked to the row before it"),
        ("DELETE FROM ledger WHERE seq = 3", "row 3 cannot be read: it is missing"),
        ("DELETE FROM ledger WHERE seq = 5", "row 5 cannot be read: it is missing"),
        ("UPDATE head SET seq = 4, hash = (SELECT hash FROM ledger WHERE seq = 4)", "the head is not the last row"),
        ("UPDATE head SET hash = ''", "the head is not the last row"),
        ("DELETE FROM head", "the head cannot be read: it is missing"),
        ("UPDATE rollouts SET state = 'CANARY(1)'", "the state of rollout 'r' is not that of row 5"),
        ("UPDATE rollouts SET epoch = 4", "the state of rollout 'r' is not that of row 5"),
        ("DELETE FROM rollouts", "the state of rollout 'r' is not that of row 5"),
        ("UPDATE rollouts SET rollout = 's'", "the state of rollout 'r' is not that of row 5"),
    ],
)
def test_tampering_stops_the_start_and_is_named(where: str, fault: str, message: str) -> None:
    ladder(where)
    execute(where, fault)
    with pytest.raises(LedgerError, match=message):
        open_ledger(where)


def test_a_forged_row_with_a_sound_hash_is_refused(where: str) -> None:
    """Who can compute a hash can append a row; not one that follows from nothing."""
    ladder(where)
    opened = open_ledger(where)
    last = opened.rows()[-1]
    forged = replace(last, seq=6, epoch=9, before="FULL", after="PROMOTED", evidence=None, prev_hash=last.hash)
    opened.close()
    values = [6, "r", 9, "FULL", "PROMOTED", last.cause, "null", last.actor, last.time, last.hash, forged.content_hash()]
    literals = ", ".join(repr(value) for value in values)
    execute(where, f"INSERT INTO ledger VALUES ({literals})", f"UPDATE head SET seq = 6, hash = '{forged.content_hash()}'")
    with pytest.raises(LedgerError, match="row 6 does not follow epoch 5 of rollout 'r'"):
        open_ledger(where)


def test_a_damaged_ledger_can_be_exported(where: str) -> None:
    ladder(where)
    execute(where, "UPDATE ledger SET evidence = '{' WHERE seq = 2", "DELETE FROM ledger WHERE seq = 4")
    damaged = (
        Ledger(PostgresDatabase(where)) if where.startswith("postgresql") else Ledger(SqliteDatabase(where, read_only=True))
    )
    rows = list(damaged.export())
    assert [row["seq"] for row in rows] == [1, 2, 3, 4, 5]
    assert ["damaged" in row for row in rows] == [False, True, False, True, False]
    damaged.close()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "ledger.db"
    ladder(str(path))
    return path


def contents(path: Path) -> tuple[list[dict[str, Any]], Record]:
    opened = open_ledger(path)
    try:
        return [row.to_json() for row in opened.rows()], opened.record("r")
    finally:
        opened.close()


@settings(max_examples=examples(150))
@given(data=st.data())
def test_a_flipped_bit_is_refused_or_changes_nothing_that_is_chained(
    sound: Path, tmp_path_factory: Any, data: st.DataObject
) -> None:
    damaged = tmp_path_factory.mktemp("flip") / "ledger.db"
    raw = bytearray(sound.read_bytes())
    pages = len(raw) // 4096
    page = data.draw(st.integers(0, pages - 1))
    content = [n for n in range(4096 * page, 4096 * (page + 1)) if raw[n]]
    raw[data.draw(st.sampled_from(content))] ^= 1 << data.draw(st.integers(0, 7))
    damaged.write_bytes(raw)
    try:
        rows, record = contents(damaged)
    except LedgerError:
        assert_exportable(damaged)
    else:
        expected, was = contents(sound)
        assert rows == expected
        assert (record.state, record.epoch) == (was.state, was.epoch)


@settings(max_examples=examples(40))
@given(length=st.integers(1, 60_000))
def test_a_torn_file_is_refused(sound: Path, tmp_path_factory: Any, length: int) -> None:
    raw = sound.read_bytes()
    torn = tmp_path_factory.mktemp("torn") / "ledger.db"
    torn.write_bytes(raw[: min(length, len(raw) - 1)])
    with pytest.raises(LedgerError):
        open_ledger(torn)
    assert_exportable(torn)


def assert_exportable(path: Path) -> None:
    """What is left comes out, or one clear error does."""
    try:
        opened = Ledger(SqliteDatabase(path, read_only=True))
    except LedgerError:
        return
    try:
        json.dumps(list(opened.export()))
    except LedgerError:
        pass
    finally:
        opened.close()


def test_a_torn_row_is_named_by_its_number(sound: Path, tmp_path: Path) -> None:
    """Garbage over the page that holds the last rows: the first row that is lost is named, those before come out."""
    path = tmp_path / "ledger.db"
    shutil.copy(sound, path)
    names = [row["hash"].encode() for row in contents(sound)[0]]
    raw = bytearray(path.read_bytes())
    start = 4096 * (raw.index(names[3]) // 4096)
    raw[start : start + 4096] = random.Random(0).randbytes(4096)
    path.write_bytes(raw)
    with pytest.raises(LedgerError, match=r"row \d+ cannot be read"):
        open_ledger(path)


def test_a_full_disk_is_one_line_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    opened = Ledger(SqliteDatabase(path))
    token = opened.acquire(opened.create("r", "main", DRAFT), "one")
    before = opened.record("r")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (Path(f"{path}-wal").stat().st_size, hard))
    try:
        with pytest.raises(LedgerError, match=r"ledger\.db: "):
            opened.tick("r", token, moved("SHADOW"))
        assert opened.record("r") == before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert opened.tick("r", token, moved("SHADOW")).state == "SHADOW"
    assert opened.verify() == 2
    opened.close()


def test_a_ledger_opened_to_read_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ladder(str(path))
    opened = Ledger(SqliteDatabase(path, read_only=True))
    assert opened.verify() == 5
    with pytest.raises(LedgerError, match="readonly"):
        opened.tick("r", 1, moved("FULL"))
    opened.close()


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("a text\n" * 100)
    with pytest.raises(LedgerError, match="not a database"):
        open_ledger(tmp_path / "text.db")
    with pytest.raises(LedgerError, match="unable to open"):
        open_ledger(tmp_path / "no" / "ledger.db")
    with pytest.raises(LedgerError, match=r"PostgreSQL database .none.: "):
        pytest.importorskip("psycopg")
        open_ledger(f"postgresql:///none?host={tmp_path}")


@pytest.mark.integration
def test_a_lost_connection_is_made_anew(socket: str) -> None:
    where = postgres.database(socket)
    opened = open_ledger(where)
    token = opened.acquire(opened.create("r", "main", DRAFT), "one")
    execute(
        where,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()",
    )
    with pytest.raises(LedgerError, match=r"terminat|closed|lost"):
        opened.tick("r", token, still)
    assert opened.tick("r", token, moved("SHADOW")).state == "SHADOW"
    opened.close()


@pytest.mark.integration
def test_a_commit_is_on_disk_before_it_counts(tmp_path: Path, socket: str) -> None:
    local = SqliteDatabase(tmp_path / "ledger.db")
    assert local.run("PRAGMA synchronous") == [(2,)]
    assert local.run("PRAGMA journal_mode") == [("wal",)]
    local.close()
    remote = PostgresDatabase(postgres.database(socket))
    with remote.transaction(write=False):
        assert remote.run("SHOW synchronous_commit") == [("on",)]
        assert remote.run("SHOW fsync") == [("on",)]
    remote.close()
