"""Traffic, time, people, crashes and a second controller in any order: every promise holds after each event."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nextvec.rollout.controller import Controller
from nextvec.rollout.guardrails import WORSE
from nextvec.rollout.lifecycle import fold, intervene
from nextvec.rollout.opening import open_ledger
from nextvec.rollout.records import ConflictError
from nextvec.rollout.state import LIVE, TERMINAL, Phase, State
from nextvec.rollout.transition import Command, Readings, transition
from tests.conftest import examples
from tests.rollout.drive import alike
from tests.rollout.interrupted import Interrupted
from tests.rollout.rollouts import ALLOWED, MEMORY, Clock, climb, drafted, follower, said


class Killed(BaseException):
    """Stands for SIGKILL at a point of a transaction: nothing after it runs."""


def killed() -> None:
    raise Killed


class RolloutMachine(RuleBasedStateMachine):
    """Traffic, time, people, crashes and a second controller, in any order."""

    @initialize(at=st.sampled_from(["DRAFT", "SHADOW", "CANARY(0)", "CANARY(3)", "FULL"]))
    def begin(self, at: str) -> None:
        self.folder = TemporaryDirectory(dir=MEMORY)
        self.path = Path(self.folder.name) / "l.db"
        self.clock = Clock()
        self.ledger = drafted(self.path, start=at != "DRAFT")
        if at != "DRAFT":
            climb(self.ledger, self.clock, at)
        self.deadly = Interrupted(self.ledger.database, None, killed)
        self.ledger.database = self.deadly
        self.start_processes()

    def start_processes(self) -> None:
        self.born = getattr(self, "born", 0) + 1
        self.controllers = [Controller(self.ledger, "r", name, self.clock) for name in ("one", "two")]
        self.router = follower(self.ledger, self.clock, f"router {self.born}")

    @property
    def state(self) -> State:
        return fold(self.ledger.rows("r"))

    @rule(seconds=st.sampled_from([1.0, 5.0, 11.0, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(which=st.integers(0, 1), point=st.sampled_from([None, None, None, "before_begin", "before_commit", "after_commit"]))
    def tick(self, which: int, point: str | None) -> None:
        self.deadly.arm(point)
        try:
            self.controllers[which].tick()
        except Killed:
            self.start_processes()
        finally:
            self.deadly.arm(None)

    @rule(worse=st.sampled_from([1.0, 1.0, 1.0, 1.0, 3.0]), sessions=st.sampled_from([100, 40_000]))
    def traffic(self, worse: float, sessions: int) -> None:
        if self.router.snapshot.canary is not None:
            for event in alike(self.router.snapshot.weight, sessions, worse):
                self.router.observe(event)

    @rule()
    def poll(self) -> None:
        self.router.poll()

    @rule()
    def go_on(self) -> None:
        """What happens most of the time."""
        self.poll()
        self.traffic(1.0, 40_000)
        self.clock.now += 11
        self.poll()
        self.tick(0, None)
        self.tick(1, None)

    @rule()
    @precondition(lambda self: self.state.phase in LIVE)
    def alarm(self) -> None:
        if self.born % 5 == 0:
            self.router.alarm("NaN")

    @rule(verb=st.sampled_from(["pause", "resume"]))
    def hold(self, verb: Any) -> None:
        before = self.state
        try:
            intervene(self.ledger, "r", Command(verb, "ann"))
        except ConflictError:
            assert str(before) not in ALLOWED[verb]
            assert self.state == before
        else:
            assert str(before) in ALLOWED[verb]

    @rule(verb=st.sampled_from(["start", "promote", "abort"]))
    def steer(self, verb: Any) -> None:
        self.hold(verb)

    @rule()
    def reopen(self) -> None:
        before = self.state
        self.ledger.close()
        self.ledger = open_ledger(self.path)
        self.deadly = Interrupted(self.ledger.database, None, killed)
        self.ledger.database = self.deadly
        assert self.state == before
        self.start_processes()

    @invariant()
    def every_promise_holds(self) -> None:
        self.ledger.verify()
        rows, record = self.ledger.rows("r"), self.ledger.record("r")
        state = fold(rows)
        # The state is what the rows add up to, and only some have a weight.
        assert (str(state), state.epoch, state.ended) == (record.state, record.epoch, not record.active)
        assert (state.weight > 0) == (state.active_phase in (Phase.CANARY, Phase.FULL))
        # The weight rises on evidence, or by name.
        for row in rows[1:]:
            before, after = row.evidence["weight"]
            by_name = row.evidence["override"] == row.actor == "ann"
            enough = row.evidence["watched"] >= 10 and row.evidence["units"] >= 1_000
            assert after <= before or ((by_name or enough) and WORSE not in row.evidence["verdict"].values())
        # What is worse has no weight.
        assert state.weight == 0 or WORSE not in record.evidence["verdict"].values()
        # The way back is open, and the end is the end.
        if state.phase in LIVE:
            assert transition(state, Readings(said(), 0, command=Command("abort", "ann")))[0].weight == 0
        assert not {row.after for row in rows[:-1]} & {str(phase) for phase in TERMINAL}

    def teardown(self) -> None:
        self.ledger.close()
        self.folder.cleanup()


TestRolloutMachine = RolloutMachine.TestCase
TestRolloutMachine.settings = settings(max_examples=examples(30), stateful_step_count=20)
