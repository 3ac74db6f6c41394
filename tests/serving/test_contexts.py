"""The log of contexts: what was acknowledged is there, whatever happens to the process or the disk."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nextvec.errors import ServingError
from nextvec.serving.context_log import SUFFIX, FullError
from nextvec.serving.context_record import HEAD, NOTHING, OPEN, WHOLE, Record
from nextvec.serving.context_view import ConflictError, first_record, narrow, rewritten
from nextvec.serving.contexts import Contexts
from nextvec.serving.payload import Vectors, decode, from_rows
from nextvec.wire.media import F16

DIM = 3


def rows_of(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)


def vectors(count: int = 1, seed: int = 0) -> Vectors:
    return from_rows(rows_of(count, seed))


@pytest.fixture
def contexts(tmp_path: Path) -> Iterator[Contexts]:
    held = Contexts(tmp_path / "s", DIM, "e")
    yield held
    held.close()


def restore(contexts: Contexts, session: str, rows: np.ndarray, seq: int, digest: bytes) -> bool:
    before = contexts.view(session) if session in contexts else None
    whole = first_record(session, rows, seq, digest, before)
    if whole is not None:
        contexts.restore(whole, before)
    return whole is not None


def compact(contexts: Contexts) -> None:
    for session in contexts.oldest():
        view = contexts.view(session)
        contexts.rewrite(rewritten(session, view), view)
    contexts.remove_oldest()


def test_only_the_next_append_applies_and_the_last_may_come_again(contexts: Contexts) -> None:
    contexts.open("a")
    assert contexts.append("a", vectors(2, 1), 1)
    assert contexts.append("a", vectors(1, 2), 2)
    assert not contexts.append("a", vectors(1, 2), 2)
    for seq, payload in ((2, vectors(1, 3)), (1, vectors(2, 1)), (4, vectors(1, 4)), (99, vectors(1, 4))):
        with pytest.raises(ConflictError) as conflict:
            contexts.append("a", payload, seq)
        assert conflict.value.head.seq == 2
    assert contexts.head("a").length == 3
    np.testing.assert_array_equal(contexts.view("a").read(), np.concatenate([rows_of(2, 1), rows_of(1, 2)]))


def test_a_restored_context_is_there_whole_or_not_at_all_wherever_the_log_is_cut(tmp_path: Path) -> None:
    held = Contexts(tmp_path / "s", DIM, "e")
    held.open("a")
    before, digest, rows = held.log.bytes, bytes(range(16)), rows_of(5, 1)
    assert restore(held, "b", rows, 3, digest)
    assert not restore(held, "b", rows, 3, digest)  # the same again
    for other in ((rows, 2, digest), (rows, 3, bytes(16)), (rows[:4], 3, digest), (-rows, 3, digest)):
        with pytest.raises(ConflictError, match="not empty"):
            restore(held, "b", *other)
    whole = held.log.bytes
    held.close()
    (log,) = (tmp_path / "s").glob(f"*{SUFFIX}")
    data = log.read_bytes()
    for stop in range(before, whole + 1):
        log.write_bytes(data[:stop])
        again = Contexts(tmp_path / "s", DIM, "e")
        assert set(again) == ({"a", "b"} if stop == whole else {"a"})
        if stop == whole:
            head = again.head("b")
            assert (head.seq, head.length, head.digest) == (3, 5, digest)
            np.testing.assert_array_equal(again.view("b").read(), rows)
            again.append("b", vectors(2, 7), 4)
            np.testing.assert_array_equal(again.view("b").read(), np.concatenate([rows, rows_of(2, 7)]))
        again.close()


def test_a_context_that_was_made_ready_before_another_write_is_not_restored(contexts: Contexts) -> None:
    contexts.open("a")
    before = contexts.view("a")
    whole = first_record("a", rows_of(4, 1), 2, bytes(16), before)
    assert whole is not None
    contexts.append("a", vectors(1, 2), 1)
    with pytest.raises(ConflictError, match="not empty"):
        contexts.restore(whole, before)
    np.testing.assert_array_equal(contexts.view("a").read(), rows_of(1, 2))


def test_an_empty_session_that_takes_a_context_is_the_same_session(contexts: Contexts) -> None:
    contexts.open("a")
    incarnation = contexts.head("a").incarnation
    halves = rows_of(4, 1).astype(np.float16).astype(np.float32)
    assert restore(contexts, "a", narrow(halves), 2, bytes(16))
    assert contexts.head("a").incarnation == incarnation
    assert contexts.head("a").bytes == HEAD.size + 1 + halves.size * 2  # as halves: nothing is lost
    np.testing.assert_array_equal(contexts.view("a").read(), halves)
    contexts.log.failure = "a test"
    with pytest.raises(FullError):
        restore(contexts, "b", halves, 2, bytes(16))
    assert "b" not in contexts


def test_a_session_made_again_is_another_one_whatever_the_log_went_through(tmp_path: Path) -> None:
    held = Contexts(tmp_path, DIM, "e", segment_bytes=300)
    held.open("a")
    first = held.head("a").incarnation
    held.delete("a")
    held.open("a")
    second = held.head("a").incarnation
    assert first != second
    with pytest.raises(ConflictError, match="made again"):
        held.append("a", vectors(), 1, first)
    assert held.append("a", vectors(1, 1), 1, second)
    assert not held.append("a", vectors(1, 1), 1, second)
    written = held.head("a").first
    compact(held)
    assert held.head("a").first > written  # again, as one record
    held.close()
    again = Contexts(tmp_path, DIM, "e", segment_bytes=300)
    assert again.head("a").incarnation == second
    np.testing.assert_array_equal(again.view("a").read(), rows_of(1, 1))
    again.close()


def test_a_log_from_before_incarnations_opens(tmp_path: Path) -> None:
    held = Contexts(tmp_path, DIM, "e")
    # A session's first record pointed to nothing then, and so did one that was written again as a whole.
    held._write(Record(OPEN, "a", False, 0, 0, 0, NOTHING, bytes(16), b"", 0))
    held.append("a", vectors(2, 1), 1)
    whole = vectors(3, 2)
    held._write(Record(WHOLE, "b", False, 3, 2, 3, NOTHING, whole.digest, whole.payload, 0))
    held.close()
    again = Contexts(tmp_path, DIM, "e")
    assert (again.head("a").incarnation, again.head("b").incarnation) == (NOTHING, NOTHING)
    assert again.append("a", vectors(1, 3), 2, NOTHING)
    np.testing.assert_array_equal(again.view("a").read(), np.concatenate([rows_of(2, 1), rows_of(1, 3)]))
    np.testing.assert_array_equal(again.view("b").read(), rows_of(3, 2))
    again.delete("a")
    again.open("a")
    assert again.head("a").incarnation != NOTHING
    again.close()


def test_a_context_is_read_from_anywhere_in_whatever_format_it_came(contexts: Contexts) -> None:
    contexts.open("a")
    want = []
    for seed in range(20):
        rows = rows_of(1 + seed % 4, seed).astype("<f2" if seed % 2 else "<f4")
        contexts.append("a", decode(rows.tobytes(), F16, DIM) if seed % 2 else from_rows(rows))
        want.append(rows.astype(np.float32))
    whole = np.concatenate(want)
    for start in range(len(whole) + 1):
        np.testing.assert_array_equal(contexts.view("a").read(start), whole[start:])


def test_opening_again_finds_everything(tmp_path: Path) -> None:
    for _ in range(3):
        held = Contexts(tmp_path, DIM, "e", segment_bytes=500)
        for name in "abc":
            held.open(name)
            held.append(name, vectors(5, len(held)))
        before = {name: held.head(name) for name in "abc"}
        held.close()
    again = Contexts(tmp_path, DIM, "e", segment_bytes=500)
    assert {name: again.head(name) for name in "abc"} == before
    assert again.head("a").length == 15
    assert len(list(tmp_path.glob(f"*{SUFFIX}"))) > 1
    again.close()


@pytest.mark.parametrize("cut", [1, HEAD.size - 1, HEAD.size, HEAD.size + 5])
def test_a_torn_tail_is_put_aside_and_the_rest_is_kept(tmp_path: Path, cut: int) -> None:
    held = Contexts(tmp_path, DIM, "e")
    held.open("a")
    held.append("a", vectors(2, 1))
    held.append("a", vectors(2, 2))
    held.close()
    (file,) = tmp_path.glob(f"*{SUFFIX}")
    os.truncate(file, file.stat().st_size - cut)
    again = Contexts(tmp_path, DIM, "e")
    assert again.head("a").seq == 1
    assert again.log.cut > 0
    assert len(list(tmp_path.glob("*.cut-*"))) == 1
    assert again.append("a", vectors(2, 2), 2)
    np.testing.assert_array_equal(again.view("a").read(), np.concatenate([rows_of(2, 1), rows_of(2, 2)]))
    again.close()


def test_any_flipped_bit_is_found(tmp_path: Path) -> None:
    held = Contexts(tmp_path, DIM, "e")
    held.open("a")
    held.append("a", vectors(2, 1))
    held.close()
    (file,) = tmp_path.glob(f"*{SUFFIX}")
    sound = file.read_bytes()
    first = HEAD.size + 1
    for position in range(first, len(sound)):  # of the append
        file.write_bytes(sound[:position] + bytes([sound[position] ^ 4]) + sound[position + 1 :])
        again = Contexts(tmp_path, DIM, "e")
        assert again.head("a").length == 0, position
        again.close()


def test_damage_before_the_last_segment_stops_the_start(tmp_path: Path) -> None:
    held = Contexts(tmp_path, DIM, "e", segment_bytes=300)
    held.open("a")
    for seed in range(20):
        held.append("a", vectors(2, seed))
    held.close()
    first = min(tmp_path.glob(f"*{SUFFIX}"))
    data = bytearray(first.read_bytes())
    data[150] ^= 1
    first.write_bytes(data)
    with pytest.raises(ServingError, match="damaged at byte"):
        Contexts(tmp_path, DIM, "e")


def test_another_model_or_another_server_is_refused(tmp_path: Path) -> None:
    held = Contexts(tmp_path, DIM, "e")
    with pytest.raises(ServingError, match="another server"):
        Contexts(tmp_path, DIM, "e")
    held.close()
    for dim, encoder in ((DIM + 1, "e"), (DIM, "f")):
        with pytest.raises(ServingError, match="another --sessions"):
            Contexts(tmp_path, dim, encoder)
    Contexts(tmp_path, DIM, "e").close()


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from nextvec.serving.context_log import FullError
from nextvec.serving.contexts import Contexts
from nextvec.serving.payload import from_rows
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
held = Contexts(Path(sys.argv[1]), 3, "e")
held.open("a")
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, resource.RLIM_INFINITY))
done = 0
for _ in range(1_000):
    try:
        held.append("a", from_rows(np.full((2, 3), done + 1, np.float32)))
        done += 1
    except FullError:
        break
read = held.view("a").read()
assert len(read) == 2 * done and (read[-1] == done).all()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
held.append("a", from_rows(np.full((2, 3), done + 1, np.float32)))
print(done + 1)
"""


def test_a_full_disk_refuses_appends_keeps_reads_and_passes(tmp_path: Path) -> None:
    """In a process of its own: the limit on file sizes that stands for a full disk holds for all of it."""
    ran = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    again = Contexts(tmp_path, DIM, "e")
    assert again.head("a").seq == int(ran.stdout)
    assert again.log.cut == 0
    again.close()


def test_after_a_failed_sync_nothing_is_written(contexts: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts.open("a")

    def broken(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    contexts.log.sync(contexts.log.unsynced())
    with pytest.raises(FullError, match="Input/output"):
        contexts.append("a", vectors())
    assert contexts.head("a").seq == 0


KILLED = """
import sys
from pathlib import Path
import numpy as np
from nextvec.serving.contexts import Contexts
from nextvec.serving.payload import from_rows
held = Contexts(Path(sys.argv[1]), 3, "e", segment_bytes=4_000)
held.open("a")
while True:
    held.append("a", from_rows(np.full((2, 3), held.head("a").seq + 1, np.float32)))
    print(held.head("a").seq, flush=True)
"""


def test_a_killed_process_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    last = 0
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            acknowledged = [int(process.stdout.readline()) for _ in range(300)]
            process.send_signal(signal.SIGKILL)
            acknowledged += [int(line) for line in process.stdout if line.endswith("\n")]
        assert acknowledged[0] == last + 1
        held = Contexts(tmp_path, DIM, "e", segment_bytes=4_000)
        last = held.head("a").seq
        assert acknowledged[-1] <= last <= acknowledged[-1] + 1
        np.testing.assert_array_equal(held.view("a").read(), np.repeat(np.arange(1, last + 1), 2)[:, None] * np.ones((1, 3)))
        held.close()


def test_a_reader_keeps_its_context_while_it_is_rewritten_and_given_up(tmp_path: Path) -> None:
    held = Contexts(tmp_path, DIM, "e", segment_bytes=1_000)
    held.open("a")
    for seed in range(50):
        held.append("a", vectors(2, seed))
    want = held.view("a").read()
    view, found = held.view("a"), []
    reader = threading.Thread(target=lambda: found.extend(view.read() for _ in range(50)))
    reader.start()
    while len(held.log.segments) > 2:
        compact(held)
        held.append("a", vectors(1, 0))
    reader.join()
    assert len(found) == 50
    for rows in found:
        np.testing.assert_array_equal(rows, want)
    held.close()


class Log(RuleBasedStateMachine):
    """Against a dictionary of lists, over appends, retries, deletions, compaction and reopening."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.truth: dict[str, list[np.ndarray]] = {}
        self.held = self._opened()
        self.seed = 0

    def _opened(self) -> Contexts:
        return Contexts(Path(self.folder.name), DIM, "e", segment_bytes=600)

    names = st.sampled_from(["a", "b", "c"])

    @rule(name=names)
    def open(self, name: str) -> None:
        assert self.held.open(name) == (name not in self.truth)
        self.truth.setdefault(name, [])

    @rule(name=names, count=st.integers(1, 6))
    def append(self, name: str, count: int) -> None:
        self.seed += 1
        if name not in self.truth:
            with pytest.raises(KeyError):
                self.held.append(name, vectors(count, self.seed))
            return
        assert self.held.append(name, vectors(count, self.seed), len(self.truth[name]) + 1)
        self.truth[name].append(rows_of(count, self.seed))

    @rule(name=names)
    def again(self, name: str) -> None:
        if self.truth.get(name):
            assert not self.held.append(name, from_rows(self.truth[name][-1]), len(self.truth[name]))

    @rule(name=names)
    def delete(self, name: str) -> None:
        assert self.held.delete(name) == (self.truth.pop(name, None) is not None)

    @precondition(lambda self: len(self.held.log.segments) > 1)
    @rule()
    def compact(self) -> None:
        compact(self.held)

    @rule()
    def reopen(self) -> None:
        self.held.close()
        self.held = self._opened()
        assert self.held.log.cut == 0

    @invariant()
    def equal(self) -> None:
        assert len(self.held) == len(self.truth)
        live = 0
        for name, parts in self.truth.items():
            head = self.held.head(name)
            assert (head.seq, head.length) == (len(parts), sum(map(len, parts)))
            live += head.bytes
            if parts:
                np.testing.assert_array_equal(self.held.view(name).read(), np.concatenate(parts))
        assert self.held._live == live
        assert self.held.log.bytes >= live

    def teardown(self) -> None:
        self.held.close()
        self.folder.cleanup()


TestLog = Log.TestCase
TestLog.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_waste_is_seen_and_given_back(tmp_path: Path) -> None:
    held = Contexts(tmp_path, DIM, "e", segment_bytes=2_000)
    for n in range(60):
        held.open(f"s{n}")
        held.append(f"s{n}", vectors(4, n))
    assert not held.wasteful()
    for n in range(55):
        held.delete(f"s{n}")
    most = held.log.bytes
    while held.wasteful():
        compact(held)
    assert held.log.bytes < most / 2
    np.testing.assert_array_equal(held.view("s59").read(), rows_of(4, 59))
    held.close()
