"""What the server does, without HTTP: sessions, arms, and one answer per question, whoever gives it.

A context is the truth (:mod:`nextvec.serving.contexts`), a model state a cache
of it (:mod:`nextvec.serving.states`). So a switch of arms, a reload, an
eviction and a restart are all one thing: a state that is missing, made anew.
"""

# Axes: T vectors, D width.

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from weakref import WeakValueDictionary

import numpy as np
import torch
from jaxtyping import Float32

from nextvec.errors import NextvecError, NotFiniteError, ServingError
from nextvec.inference import Engine, Expected, Session
from nextvec.serving.contexts import ConflictError, Contexts, FullError, View
from nextvec.serving.line import Job, Line
from nextvec.serving.metrics import Metrics
from nextvec.serving.router import BUCKETS, LONGEST_SALT, Arm, Lineup, Route, Served, Snapshot, bucket, route
from nextvec.serving.states import States
from nextvec.serving.wire import RefusedError, Vectors

Stream = Literal["assign", "fail", "slow", "miss", "unlabelled"]
T = TypeVar("T")

SYNC_SECONDS = 0.05
INLINE = 16  # vectors that a state may be behind and still catch up in the loop
MOST_LENGTH = 100_000  # vectors of one session
WARMING, WARMING_SECONDS = "canary warming", 30.0
LATE = 2.0  # times the budget; a canary that takes longer is answered for by stable


@dataclass(frozen=True)
class Limits:
    """What one process may use.

    Attributes:
        state_bytes: of model states; contexts are on disk.
        budget: seconds that a request may wait before new ones are refused.
        deadline: seconds of a request that names none.
    """

    state_bytes: int = 1 << 30
    budget: float = 0.1
    deadline: float = 1.0


@dataclass(frozen=True)
class Asking:
    """What a router may know of a request.

    Attributes:
        key: what sticks: the session.
        headers: names in lower case.
        rights: of the caller's key.
    """

    key: str
    lane: str | None
    headers: Mapping[str, str]
    rights: frozenset[str]


@dataclass(frozen=True)
class Seen:
    """What happened to one request whose arm a coin has chosen; the judge decides which of these count.

    Attributes:
        stream: ``assign``, ``fail`` and ``slow`` once a request, ``miss`` once a label, ``unlabelled`` once a prediction.
        weight: percent that went to the canary when the arm was chosen.
        value: seconds for ``slow``; for others 1.0 bad or 0.0 good.
        vectors: of the context.
    """

    stream: Stream
    arm: Arm
    session: str
    weight: float
    value: float
    vectors: int


@dataclass(frozen=True)
class Pair:
    """Both arms were asked the same, and stable's answer was given."""

    stream: Literal["fail", "miss"]
    session: str
    stable_bad: bool
    canary_bad: bool
    vectors: int


@dataclass(frozen=True)
class Closed:
    """A session has ended."""

    session: str


Event = Seen | Pair | Closed


@dataclass(frozen=True)
class Settled:
    """A prediction whose truth has come, or never will.

    Attributes:
        time: when it was asked for, in seconds since 1970; for replays, nothing is decided by it.
        vectors: of the context.
        seconds: that it took.
        failed: the model on trial could not answer.
        hit: whether what was appended next was among the predicted; None where nothing was appended.
    """

    session: str
    time: float
    vectors: int
    seconds: float
    failed: bool
    hit: bool | None


@dataclass(frozen=True)
class Answer:
    """What is expected next, and who says so."""

    expected: Sequence[Expected]
    arm: Arm
    model: str
    reason: str
    digest: str
    seq: int | None
    length: int


@dataclass(frozen=True)
class Model:
    """A run opened for serving; a reload replaces it whole."""

    name: str
    run: Path
    engine: Engine
    line: Line


@dataclass
class _Promise:
    """The last prediction of a session; its next append says whether it was right."""

    arm: Arm
    rows: frozenset[int]
    vectors: int
    weight: float
    counted: bool
    mirrored: frozenset[int] | None = None
    time: float = 0.0
    seconds: float = 0.0
    failed: bool = False


class Service:
    """One process's models and sessions. Made and used inside a running loop.

    ``snapshot`` says who answers (at first: the first model, always); ``observe`` hears how it went.
    """

    def __init__(self, runs: Mapping[str, Path], open_run: Callable[[Path], Engine], sessions: Path, limits: Limits) -> None:
        self.metrics = Metrics()
        self.limits, self._open_run = limits, open_run
        self.stable = next(iter(runs))
        self.models = {name: self._model(name, run, open_run(run)) for name, run in runs.items()}
        first = self.models[self.stable].engine
        self.dim, self.encoder = first.dim, first.encoder_fingerprint
        for model in self.models.values():
            self._check(model.name, model.engine)
        self.contexts = Contexts(sessions, self.dim, self.encoder)
        self.states = States(limits.state_bytes)
        self.snapshot = Snapshot(0, Lineup(Served(self.stable), Served(self.stable)))
        self.mirror = 0.0  # percent of sessions whose questions a canary is asked too, while one is there
        self.observe: Callable[[Event], None] = lambda _: None
        self.alarm: Callable[[str], None] = lambda _: None  # what needs no statistics
        self.record: Callable[[Settled], None] | None = None  # hears of every prediction, canary or not
        self.ready = True
        self.apart = 0  # requests that wait for a thread, not for the loop
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._promises: dict[str, _Promise] = {}
        self._working: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._reloading = asyncio.Lock()
        # One thread, so that rebuilding takes one core at most from those who answer.
        self._aside = ThreadPoolExecutor(1, "aside")
        self._disk = ThreadPoolExecutor(1, "disk")
        self._keeper = asyncio.get_running_loop().create_task(self._keep(), name="keeper")
        if first.bank.manifest.text:
            self._aside.submit(_load_encoder, first)

    # Sessions

    async def open(self, session: str) -> bool:
        """Begin a session; False where there is one."""
        async with self._turn(session):
            return self._logged(lambda: self.contexts.open(session))

    async def delete(self, session: str) -> bool:
        """Forget a session and its states; False where there is none."""
        async with self._turn(session):
            gone = self._logged(lambda: self.contexts.delete(session))
            self.states.drop(session=session)
            self.lapse(session)
            return gone

    async def append(self, session: str, vectors: Vectors, seq: int | None, k: int, asking: Asking, deadline: float) -> Answer:
        """Write vectors at the end of a session's context, then say what comes next if ``k`` is not 0.

        The last append again changes nothing and is answered as before: a prediction is a function of the context.

        Raises:
            RefusedError: 404 no such session; 409 another seq; 413 too long; 507 disk full; 503, 504 no time for a prediction.
        """
        async with self._turn(session):
            before = self._head(session)
            if before.length + len(vectors.rows) > MOST_LENGTH:
                raise RefusedError(413, f"a session has at most {MOST_LENGTH} vectors", seq=before.seq, length=before.length)
            applied = self._logged(lambda: self.contexts.append(session, vectors, seq))
            if applied:
                await self._label(session, vectors)
            head = self._head(session)
            if not k:
                digest = self.models[self.stable].engine.digest
                return Answer((), "stable", self.stable, "append", digest, head.seq, head.length)
            return await self._answer(session, vectors.rows if applied else None, k, asking, deadline)

    async def predict(self, session: str, k: int, asking: Asking, deadline: float) -> Answer:
        """What comes next in a session.

        Raises:
            RefusedError: 404 no such session; 409 it is empty; 503, 504 no time.
        """
        async with self._turn(session):
            return await self._answer(session, None, k, asking, deadline)

    async def saved(self, session: str) -> bytes:
        """The stable model's state of a session, for another process that serves the same weights.

        Raises:
            RefusedError: 404 no such session; 409 it is empty.
        """
        async with self._turn(session):
            view, model = self._view(session), self.models[self.stable]
            state, rows = await self._state(model, session, view, None)
            saved = await self._in_thread(lambda: _saved(state, rows), model.line.aside)
            self._put(model, session, state)
            return saved

    def lapse(self, session: str) -> None:
        """Count a session as ended that nobody has asked for long; its context stays, and it may go on."""
        promise = self._promises.pop(session, None)
        if promise is not None:
            self._tell("unlabelled", promise, session, 1.0)
            self._settle(session, promise, None)
        self.observe(Closed(session))

    def describe(self, session: str) -> dict[str, int | str]:
        """
        Raises:
            RefusedError: 404 no such session.
        """
        head = self._head(session)
        return {"session": session, "seq": head.seq, "length": head.length, "bytes": head.bytes}

    # Without a session

    async def once(
        self, contexts: Sequence[Float32[np.ndarray, "T D"]], k: int, asking: Asking, deadline: float
    ) -> list[Answer]:
        """What comes next in whole contexts, each given at once.

        Raises:
            RefusedError: 503, 504 no time.
        """
        # Without a session there is no unit to be judged by: a rollout never sees these.
        served, why = self.snapshot.stable.choose(max(map(len, contexts)), asking.lane, self.snapshot.threshold)
        model = self.models[served.name]
        states = [model.engine.session() for _ in contexts]
        empty = np.empty((0, self.dim), np.float32)
        long = sum(map(len, contexts)) > INLINE
        if long:
            await self._in_thread(lambda: [s.push_many(r) for s, r in zip(states, contexts, strict=True)], model.line.aside)
        jobs = [Job(s, empty if long else rows, k, deadline) for s, rows in zip(states, contexts, strict=True)]
        asked = [model.line.ask(job) for job in jobs]
        found = await asyncio.gather(*asked)
        self.metrics.answers("stable", model.name, why).inc(len(found))
        digest = model.engine.digest
        return [Answer(e, "stable", model.name, why, digest, None, len(rows)) for e, rows in zip(found, contexts, strict=True)]

    async def encode(self, text: str) -> Float32[np.ndarray, "T D"]:
        """A text as rows, cut and encoded as the bank's were, in a thread.

        Raises:
            RefusedError: 422 the model's bank was not made of text.
        """
        engine = self.models[self.stable].engine
        try:
            return await self._in_thread(lambda: engine.encode(text))
        except NextvecError as error:
            raise RefusedError(422, str(error)) from None

    def rows(self, ids: Sequence[int]) -> Float32[np.ndarray, "T D"]:
        """Rows of the stable model's candidates."""
        return np.asarray(self.models[self.stable].engine.bank.rows[np.asarray(ids)], np.float32)

    # Models

    async def open_model(self, name: str, run: Path) -> None:
        """Serve one more run.

        Raises:
            NextvecError: it cannot be opened, or does not fit.
        """
        async with self._reloading:
            engine = await self._in_thread(lambda: self._open_run(run), self._disk)
            self._check(name, engine)
            self.models = {**self.models, name: self._model(name, run, engine)}

    def reads(self, name: str) -> int | None:
        """The longest context that a model was trained on, in vectors; it matters where a threshold divides contexts."""
        return self.models[name].engine.context if self.snapshot.threshold is not None else None

    def divide(self, threshold: int, long: str) -> None:
        """Let another model answer contexts of more than ``threshold`` vectors.

        Raises:
            ServingError: it is not served, or a model was not trained on contexts that it would have to read.
        """
        if long not in self.models:
            raise ServingError(f"model {long!r} is not served; name one of {', '.join(self.models)}")
        short, other = (Served(name, self.models[name].engine.context) for name in (self.stable, long))
        self.snapshot = Snapshot(self.snapshot.epoch, Lineup(short, other), threshold=threshold)

    def promote(self, name: str) -> None:
        """Let a model be the stable one; sessions go on from their contexts."""
        before = self.snapshot.stable
        there = Served(name, self.reads(name))
        short, long = (there if served.name == self.stable else served for served in (before.short, before.long))
        self.stable = name
        self.snapshot = Snapshot(self.snapshot.epoch, Lineup(short, long, before.experts), threshold=self.snapshot.threshold)

    async def reload(self, name: str) -> Model:
        """Open a model's run again, beside the old one, and put it in its place by one reference.

        Raises:
            RefusedError: 404 no such model; 409 the run cannot be opened, or does not fit the sessions.
        """
        if name not in self.models:
            raise RefusedError(404, f"there is no model {name!r}")
        async with self._reloading:
            old = self.models[name]
            try:
                engine = await self._in_thread(lambda: self._open_run(old.run), self._disk)
                self._check(name, engine)
            except NextvecError as error:
                raise RefusedError(409, "the run cannot be opened, or does not fit; the old model stays") from error
            new = self._model(name, old.run, engine)
            new.line.apart = old.line.apart
            self.models = {**self.models, name: new}
            await old.line.close()
            if old.engine.digest != engine.digest:
                self.states.drop(digest=old.engine.digest)
            return new

    def adopt(self, snapshot: Snapshot) -> None:
        """Route by another snapshot from now on. While it has a canary, its models infer in threads of their own.

        Raises:
            ServingError: it names a model that is not served.
        """
        named = {served.name for lineup in (snapshot.stable, snapshot.canary) if lineup for served in _served(lineup)}
        if missing := sorted(named - set(self.models)):
            raise ServingError(f"model {missing[0]!r} is not served; open it first")
        for name, model in self.models.items():
            model.line.apart = snapshot.canary is not None and name in named
        if snapshot.rollout != self.snapshot.rollout:
            self._promises.clear()
        self.snapshot = snapshot

    @property
    def candidates(self) -> int:
        """Rows among which the stable model's predictions are looked up."""
        return len(self.models[self.stable].engine.bank)

    @property
    def waiting(self) -> int:
        """Requests that no engine has begun with."""
        return sum(len(model.line) for model in self.models.values())

    def overloaded(self, requests: int) -> bool:
        """Whether one more beside so many would wait longer than the budget, by what one has cost lately.

        The first is always let in: if nobody were, nobody would learn that the load has passed.
        """
        others = requests - self.apart - 1
        return others > 0 and others * self.models[self.stable].line.seconds > self.limits.budget

    async def close(self) -> None:
        """Finish what is asked, sync the log, let go of everything."""
        self.ready = False
        for model in self.models.values():
            await model.line.close()
        self._keeper.cancel()
        await asyncio.gather(self._keeper, return_exceptions=True)
        self._aside.shutdown(wait=False, cancel_futures=True)
        self._disk.shutdown()
        self.contexts.close()

    # Who answers

    async def _answer(
        self, session: str, new: Float32[np.ndarray, "T D"] | None, k: int, asking: Asking, deadline: float
    ) -> Answer:
        began, view = time.perf_counter(), self._view(session)
        if not view.head.length:
            raise RefusedError(409, "this session is empty; append a vector first", seq=view.head.seq, length=0)
        snapshot = self.snapshot
        chosen = self._route(asking, view.head.length, snapshot)
        expected, model, reason = await self._routed(chosen, session, view, new, k, asking, deadline)
        if (snapshot.canary is not None or self.record is not None) and reason != WARMING:
            found, taken = frozenset(e.row for e in expected), time.perf_counter() - began
            promise = _Promise(chosen.arm, found, view.head.length, snapshot.weight, chosen.counted)
            promise.time, promise.seconds, promise.failed = time.time() - taken, taken, reason.startswith("canary ")
            self._settle(session, self._promises.get(session), None)
            self._promises[session] = promise
            self._tell("assign", promise, session, 0.0)
            self._tell("fail", promise, session, float(promise.failed))
            # Time spent on a fallback is the canary's: it is what the user waited for.
            self._tell("slow", promise, session, promise.seconds)
            if snapshot.canary is not None and chosen.arm == "stable" and self._is_mirrored(session, snapshot):
                self._mirror(snapshot, session, view, k, asking, promise)
        arm: Arm = "canary" if chosen.arm == "canary" and model.name == chosen.model.name else "stable"
        self.metrics.answers(arm, model.name, reason).inc()
        return Answer(expected, arm, model.name, reason, model.engine.digest, view.head.seq, view.head.length)

    async def _routed(
        self,
        chosen: Route,
        session: str,
        view: View,
        new: Float32[np.ndarray, "T D"] | None,
        k: int,
        asking: Asking,
        deadline: float,
    ) -> tuple[list[Expected], Model, str]:
        """A prediction changes nothing, so what the canary fails at is asked again of stable: no user meets its faults."""
        model = self.models[chosen.model.name]
        if chosen.arm == "stable":
            return await self._ask(model, session, view, new, k, deadline), model, chosen.reason
        if self._behind(model, session, view) > INLINE:
            # The first request after a switch would wait for a rebuild that says nothing of the model: stable answers.
            self._warm(
                model, session, view, _Promise("canary", frozenset(), view.head.length, self.snapshot.weight, chosen.counted)
            )
            reason = WARMING
        else:
            try:
                async with asyncio.timeout(LATE * self.limits.budget):
                    return await self._ask(model, session, view, new, k, deadline), model, chosen.reason
            except TimeoutError:
                reason = "canary late"
            except NotFiniteError:
                reason = "canary not finite"
                self.alarm(f"{chosen.model.name} answered with a score that is not finite")
            except Exception as error:
                reason = f"canary {type(error).__name__}"
        served, _ = self.snapshot.stable.choose(view.head.length, asking.lane, self.snapshot.threshold)
        stable = self.models[served.name]
        return await self._ask(stable, session, view, None, k, deadline), stable, reason

    def _route(self, asking: Asking, length: int, snapshot: Snapshot) -> Route:
        return route(asking.key, length, asking.lane, asking.headers, snapshot, now=time.monotonic(), scopes=asking.rights)

    def _behind(self, model: Model, session: str, view: View) -> int:
        return view.head.length - self.states.length(session, model.engine.digest)

    def _warm(self, model: Model, session: str, view: View, promise: _Promise) -> None:
        async def warm() -> None:
            try:
                async with asyncio.timeout(WARMING_SECONDS):
                    state, rows = await self._state(model, session, view, None)
                if len(rows):
                    self.states.lose(session, model.engine.digest)
                else:
                    self._put(model, session, state)
            except Exception:  # whatever a canary does is its failure, and nobody else's
                self._tell("fail", promise, session, 1.0)

        self._beside(model, session, warm)

    def _is_mirrored(self, session: str, snapshot: Snapshot) -> bool:
        return bucket(session, f"mirror {snapshot.rollout}"[:LONGEST_SALT]) < self.mirror * BUCKETS / 100

    def _mirror(self, snapshot: Snapshot, session: str, view: View, k: int, asking: Asking, promise: _Promise) -> None:
        """Ask the canary what stable has answered; nobody waits for it."""
        assert snapshot.canary is not None
        served, _ = snapshot.canary.choose(view.head.length, asking.lane, snapshot.threshold)
        model = self.models[served.name]
        until = asyncio.get_running_loop().time() + WARMING_SECONDS

        async def mirror() -> None:
            try:
                async with asyncio.timeout(WARMING_SECONDS):
                    found = await self._ask(model, session, view, None, k, until)
                promise.mirrored = frozenset(e.row for e in found)
            except NotFiniteError:
                self.alarm(f"{model.name} answered with a score that is not finite")
                self.observe(Pair("fail", session, False, True, view.head.length))
            except Exception:  # whatever a canary does is its failure, and nobody else's
                self.observe(Pair("fail", session, False, True, view.head.length))
            else:
                self.observe(Pair("fail", session, False, False, view.head.length))

        self._beside(model, session, mirror)

    def _beside(self, model: Model, session: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do it in the background, unless the same state is being worked on there already."""
        name = (session, model.engine.digest)
        if name not in self._working:
            task = self._working[name] = asyncio.get_running_loop().create_task(work())
            task.add_done_callback(lambda _: self._working.pop(name))

    async def _ask(
        self, model: Model, session: str, view: View, new: Float32[np.ndarray, "T D"] | None, k: int, deadline: float
    ) -> list[Expected]:
        state, rows = await self._state(model, session, view, new)
        job = Job(state, rows, k, deadline)
        try:
            found = await model.line.ask(job)
        except RefusedError:  # it was never begun
            self._put(model, session, state)
            raise
        except BaseException:
            self.states.lose(session, model.engine.digest)
            raise
        self._put(model, session, state)
        return found

    async def _state(
        self, model: Model, session: str, view: View, new: Float32[np.ndarray, "T D"] | None
    ) -> tuple[Session, Float32[np.ndarray, "T D"]]:
        """A session's state, taken out, and the few vectors it has still to read."""
        digest, length = model.engine.digest, view.head.length
        state = self.states.take(session, digest)
        if state is not None and state.length > length:  # of a session of the same name that was deleted meanwhile
            self.states.lose(session, digest)
            state = None
        behind = length - (state.length if state is not None else 0)
        if behind <= INLINE:
            rows = new if new is not None and len(new) == behind else view.read(length - behind)
            return state if state is not None else model.engine.session(), rows
        self.metrics.rebuilt.inc()
        try:
            caught_up = await self._in_thread(lambda: _caught_up(state or model.engine.session(), view), model.line.aside)
        except BaseException:
            self.states.lose(session, digest)
            raise
        return caught_up, np.empty((0, self.dim), np.float32)

    def _put(self, model: Model, session: str, state: Session) -> None:
        self.states.put(session, model.engine.digest, state, state.num_bytes)

    # What became of it

    async def _label(self, session: str, vectors: Vectors) -> None:
        """The next append is the truth of the last prediction: exact prequential Hit@K (Dawid 1984)."""
        promise = self._promises.pop(session, None)
        if promise is None:
            return
        truth = vectors.ids[0] if vectors.ids else await self._nearest(vectors.rows)
        hit = truth in promise.rows
        self.metrics.labels(promise.arm, str(hit).lower()).inc()
        self._settle(session, promise, hit)
        self._tell("miss", promise, session, float(not hit))
        self._tell("unlabelled", promise, session, 0.0)
        if promise.mirrored is not None:
            self.observe(Pair("miss", session, not hit, truth not in promise.mirrored, promise.vectors))

    def _settle(self, session: str, promise: _Promise | None, hit: bool | None) -> None:
        if promise is not None and self.record is not None:
            self.record(Settled(session, promise.time, promise.vectors, promise.seconds, promise.failed, hit))

    async def _nearest(self, vectors: Float32[np.ndarray, "T D"]) -> int:
        engine, query = self.models[self.stable].engine, torch.from_numpy(vectors[:1].copy())
        found = await self._in_thread(lambda: engine.index.search(torch.nn.functional.normalize(query), 1))
        return int(found.rows[0, 0])

    def _tell(self, stream: Stream, promise: _Promise, session: str, value: float) -> None:
        if promise.counted:
            self.observe(Seen(stream, promise.arm, session, promise.weight, value, promise.vectors))

    # The rest

    def _turn(self, session: str) -> asyncio.Lock:
        """Requests of one session are answered one after another."""
        lock = self._turns.get(session)
        if lock is None:
            lock = self._turns[session] = asyncio.Lock()
        return lock

    def _head(self, session: str) -> Any:
        return self._view(session).head

    def _view(self, session: str) -> View:
        try:
            return self.contexts.view(session)
        except KeyError:
            raise RefusedError(404, "there is no such session; PUT it first") from None

    def _logged(self, write: Callable[[], bool]) -> bool:
        try:
            return write()
        except KeyError:
            raise RefusedError(404, "there is no such session; PUT it first") from None
        except ConflictError as conflict:
            raise RefusedError(409, str(conflict), seq=conflict.head.seq, length=conflict.head.length) from None
        except FullError as full:
            raise RefusedError(507, str(full)) from None

    def _model(self, name: str, run: Path, engine: Engine) -> Model:
        session = engine.session()  # the first answer of all takes what no later one does; nobody shall wait for it
        session.push(np.asarray(engine.bank.rows[0], np.float32))
        session.predict(1)
        return Model(name, run, engine, Line(engine, self.metrics, name))

    def _check(self, name: str, engine: Engine) -> None:
        if (engine.dim, engine.encoder_fingerprint) != (self.dim, self.encoder):
            raise ServingError(f"model {name!r} reads vectors of another encoder or width than {self.stable!r}; serve it apart")

    async def _in_thread(self, call: Callable[[], T], pool: ThreadPoolExecutor | None = None) -> T:
        self.apart += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(pool or self._aside, call)
        finally:
            self.apart -= 1

    async def _keep(self) -> None:
        """Sync what was written, and give up old segments, one context at a time."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SYNC_SECONDS)
            written = self.contexts.unsynced()
            if written:
                await loop.run_in_executor(self._disk, self.contexts.sync, written)
            if self.contexts.wasteful() and self.contexts.failure is None:
                await self._compact()

    async def _compact(self) -> None:
        for session in self.contexts.oldest():
            if session in self.contexts:
                view = self.contexts.view(session)
                rows = await asyncio.get_running_loop().run_in_executor(self._disk, view.read)
                try:
                    self.contexts.rewrite(session, view, rows)
                except FullError:
                    return  # appends say so; there is nothing to be gained now
        self.contexts.give_up_oldest()


def _load_encoder(engine: Engine) -> None:
    with suppress(NextvecError):  # whoever sends text is told
        _ = engine.encoder


def _served(lineup: Lineup) -> list[Served]:
    return [lineup.short, lineup.long, *(expert.model for expert in lineup.experts)]


def _saved(state: Session, rows: Float32[np.ndarray, "T D"]) -> bytes:
    if len(rows):
        state.push_many(rows)
    return state.snapshot()


def _caught_up(state: Session, view: View) -> Session:
    state.push_many(view.read(state.length))
    state.rows_seen()  # looking up what a long context holds of the bank takes long too
    return state
