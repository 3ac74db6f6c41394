"""What the server does, without HTTP: sessions, arms, and one answer per question, whoever gives it.

A context is the truth (:mod:`nextvec.serving.contexts`), a model state a cache
of it (:mod:`nextvec.serving.states`). So a switch of arms, a reload, an
eviction and a restart are all one thing: a state that is missing, made anew.
"""

# Axes: T vectors, D width.

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, replace
from heapq import nsmallest
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np
from jaxtyping import Float32

from nextvec.errors import NextvecError, NotFiniteError, ServingError
from nextvec.inference import Expected, Question
from nextvec.routing import BUCKETS, LONGEST_SALT, Arm, ArmModels, Expert, Route, ServedModel, Snapshot, bucket, route
from nextvec.serving import moving
from nextvec.serving.causes import cause
from nextvec.serving.contexts import ConflictError, Contexts, FullError, Head, View, begun, rewritten
from nextvec.serving.isolated import Answering, EndedError, EngineProcess, Reading
from nextvec.serving.lanes import ServedLanes
from nextvec.serving.last_use import LastUse
from nextvec.serving.line import CLOSE_SECONDS, Job, Line
from nextvec.serving.metrics import Metrics
from nextvec.serving.observations import Closed, LabelledPrediction, Observation, Pair, SessionEvent, Stream
from nextvec.serving.opening import in_own_thread
from nextvec.serving.rebuild import INLINE, Rebuilds, read
from nextvec.serving.states import States
from nextvec.serving.texts import Texts
from nextvec.serving.wire import MOST_LENGTH, MOST_ROWS, MOST_SNAPSHOT, RefusedError, Vectors

T = TypeVar("T")
_NONE = object()  # background work, which no client waits for
_REQUEST: ContextVar[object | None] = ContextVar("request", default=None)  # of work that shares one; None where it has its own

SYNC_SECONDS = 0.05
WARMING_SECONDS = 30.0
UNTRIED = ("canary warming", "canary not tried")  # reasons that say nothing of a canary
TICK = 0.01  # seconds that a timer may be early
STOPPING_SECONDS = 5.0  # for an engine's last answers when the server stops
EXPIRY_SECONDS, EXPIRED, MOST_OBSERVED = 0.1, 256, 100_000  # between two looks for idle sessions; at one look; remembered ones
LATE = 2.0  # times the budget; a canary that takes longer is answered for by stable
# What a fallback leaves stable of a request's time: twice what its answers lately took, at least this or half of what is left.
RESERVE, LEAST_RESERVE = 2.0, 0.05


@dataclass(frozen=True)
class Limits:
    """What one process may use.

    Attributes:
        state_bytes: of model states; contexts are on disk.
        budget: seconds that a request may wait before new ones are refused.
        deadline: seconds of a request that names none.
        idle: seconds without a request after which a session counts as ended; its context stays, and it may go on.
        session_ttl: seconds without a request, or since the start, after which a session is deleted; None: never.
        max_sessions: that may exist at a time; None: as many as fit on the disk.
    """

    state_bytes: int = 1 << 30
    budget: float = 0.1
    deadline: float = 1.0
    idle: float = 600.0
    session_ttl: float | None = None
    max_sessions: int | None = None


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
class Answer:
    """What is expected next, and who says so.

    Attributes:
        lane: of the context; None where no lanes are served.
    """

    expected: Sequence[Expected]
    arm: Arm
    model: str
    reason: str
    digest: str
    seq: int | None
    length: int
    lane: str | None = None


@dataclass(frozen=True)
class Model:
    """A run opened for serving; a reload replaces it whole."""

    name: str
    run: Path
    engine: Answering
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
    lane: str | None = None
    reason: str = ""
    rollout: str = ""
    cause: str = ""


class Service:
    """One process's models and sessions. Made and used inside a running loop.

    ``snapshot`` says who answers (at first: the first model, always); ``observe`` hears how it went.
    """

    def __init__(self, runs: Mapping[str, Path], open_run: Callable[[Path], Answering], sessions: Path, limits: Limits) -> None:
        self.metrics = Metrics()
        self.limits, self._open_run = limits, open_run
        self.stable = next(iter(runs))
        self.models: dict[str, Model] = {}
        for name, run in runs.items():
            self.models[name] = self._model(name, run, self._opened(name, run))
        first = self.models[self.stable].engine
        self.dim, self.encoder = first.dim, first.encoder_fingerprint
        self.contexts = Contexts(sessions, self.dim, self.encoder)
        self.states = States(limits.state_bytes)
        self.rebuilds = Rebuilds(self.states, self.contexts, self.metrics.rebuilt.inc)
        self.texts = Texts()
        self.snapshot = Snapshot(0, ArmModels(ServedModel(self.stable), ServedModel(self.stable)))
        self.mirror = 0.0  # percent of sessions whose questions a canary is asked too, while one is there
        self.observe: Callable[[SessionEvent], None] = lambda _: None
        self.alarm: Callable[[str], None] = lambda _: None  # what needs no statistics
        self.tell: Callable[..., None] = lambda *_, **__: None  # a line for the log
        self.record: Callable[[LabelledPrediction], None] | None = None  # hears of every prediction, canary or not
        self.lanes: ServedLanes | None = None
        self.ready = True
        self._apart: Counter[object] = Counter()  # waits for a thread, by request
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._promises: dict[str, _Promise] = {}
        self._used = LastUse()
        for session in self.contexts:
            self._used.touch(session, time.monotonic())
        self._observed = LastUse()  # sessions whose end matters to a rollout or a record
        self.held: frozenset[str] = frozenset()  # models that no snapshot names yet, but a rollout is about to
        self._working: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._labelling: set[asyncio.Task[None]] = set()
        self._reloading = asyncio.Lock()
        # One thread, so that labels, votes and lists take one core at most from the loop.
        self._aside = ThreadPoolExecutor(1, "aside")
        self._disk = ThreadPoolExecutor(1, "disk")
        self._expirer = asyncio.get_running_loop().create_task(self._expire(), name="expiry")
        self._keeper = asyncio.get_running_loop().create_task(self._keep(), name="keeper")
        if first.bank.manifest.reads_text:
            self.texts.warm(first)

    # Sessions

    async def open(self, session: str, deadline: float | None = None) -> bool:
        """Begin a session; False where there is one.

        Raises:
            RefusedError: 504 the deadline passed behind another request of the session; 507 the disk is full, or there are as
                many sessions as there may be.
        """
        async with self._in_time(session, deadline):
            self._check_room(session)
            made = self._logged(lambda: self.contexts.open(session))
            self._used.touch(session, time.monotonic())
            return made

    def _check_room(self, session: str) -> None:
        most = self.limits.max_sessions
        if most is not None and len(self.contexts) >= most and session not in self.contexts:
            raise RefusedError(507, f"this server holds {most} sessions, its limit; delete one first")

    async def delete(self, session: str, deadline: float | None = None) -> bool:
        """Forget a session and its states; False where there is none.

        Raises:
            RefusedError: 504 the deadline passed behind another request of the session; 507 disk full.
        """
        async with self._in_time(session, deadline):
            return self._forget(session)

    def _forget(self, session: str) -> bool:
        gone = self._logged(lambda: self.contexts.delete(session))
        self.states.drop(session=session)
        self._used.forget(session)
        if self.lanes is not None:
            self.lanes.forget(session)
        self.lapse(session)
        return gone

    async def append(
        self,
        session: str,
        vectors: Vectors,
        seq: int | None,
        k: int,
        asking: Asking,
        deadline: float,
        incarnation: int | None = None,
    ) -> Answer:
        """Write vectors at the end of a session's context, then say what comes next if ``k`` is not 0.

        The last append again changes nothing and is answered as before: a prediction is a function of the context.

        Args:
            incarnation: of the session that is meant; None for whichever has this name.

        Raises:
            RefusedError: 404 no such session; 409 another seq or incarnation; 413 too long; 507 disk full; 503, 504 no time for
                a prediction. A 503 or 504 says with ``seq`` and ``length`` where the session stands, and with ``applied``
                whether the vectors were written.
        """
        async with self._in_time(session, deadline) as told:
            before = self._head(session)
            self._used.touch(session, time.monotonic())
            if before.length + len(vectors.rows) > MOST_LENGTH:
                raise RefusedError(413, f"a session has at most {MOST_LENGTH} vectors", seq=before.seq, length=before.length)
            applied = self._logged(lambda: self.contexts.append(session, vectors, seq, incarnation))
            told["applied"] = True
            if applied and session in self._promises:
                await asyncio.shield(self._labelled(session, vectors))
            head = self._head(session)
            if not k:
                digest = self.models[self.stable].engine.digest
                return Answer((), "stable", self.stable, "append", digest, head.seq, head.length)
            return await self._answer(session, vectors.rows if applied else None, k, asking, deadline)

    async def predict(self, session: str, k: int, asking: Asking, deadline: float) -> Answer:
        """What comes next in a session.

        Raises:
            RefusedError: 404 no such session; 409 it is empty; 503, 504 no time, with ``seq`` and ``length``.
        """
        async with self._in_time(session, deadline):
            self._head(session)
            self._used.touch(session, time.monotonic())
            return await self._answer(session, None, k, asking, deadline)

    async def saved(self, session: str, deadline: float) -> bytes:
        """A session for another server: its context, and the stable model's state for an engine of the same weights.

        Raises:
            RefusedError: 404 no such session; 413 larger than what a server restores; 503, 504 no time, with ``seq`` and
                ``length``.
        """
        async with self._in_time(session, deadline):
            view, model = self._view(session), self.models[self.stable]
            with model.line.used():
                state, rows = await self._state(model, session, view, None)
                try:
                    saved = await self._counted(model.line.aside.run(moving.packed(state, rows, view, self.encoder)))
                except BaseException:
                    self.rebuilds.lose(model.line, session)
                    raise
                self.rebuilds.put(model.line, session, view, state)
            if len(saved) > MOST_SNAPSHOT:
                raise RefusedError(
                    413, f"this session's snapshot has {len(saved)} bytes; a server restores {MOST_SNAPSHOT} at most"
                )
            return saved

    async def restore(self, session: str, data: bytes, deadline: float) -> tuple[bool, bool]:
        """Begin a session with what :meth:`saved` gave, perhaps of another server: all of it or nothing.

        Everything that takes long comes before the one record that is written; what fails or is late has written nothing.

        Returns:
            Whether the context was written, False where the session held exactly this one already; whether its state was
            restored, False where the next request makes it anew from the context.

        Raises:
            DataError: as :func:`nextvec.serving.moving.opened`.
            RefusedError: 413, 422 as there; 409 the session is not empty; 507 the disk is full, or there are as many sessions
                as there may be; 503, 504 no time.
        """
        async with self._in_time(session, deadline):
            model = self.models[self.stable]
            with model.line.used():
                moved = await self._counted(model.line.aside.run(moving.opened(data, model.engine)))
                self._check_room(session)
                made = await self._begun(session, moved)
                self._used.touch(session, time.monotonic())
                if moved.state is not None:
                    self.rebuilds.put(model.line, session, self._view(session), moved.state)
            return made, moved.state is not None

    async def _begun(self, session: str, moved: moving.Moved) -> bool:
        """Write a context that another server gave; False where the session holds exactly this one already."""
        before = self._view(session) if session in self.contexts else None
        context = moved.context
        try:
            whole = await self._in_thread(lambda: begun(session, moved.rows, context.seq, context.digest, before))
        except ConflictError as conflict:
            raise RefusedError(409, str(conflict), **_standing(conflict.head)) from None
        if whole is None:
            return False

        def write() -> bool:
            self.contexts.restore(whole, before)
            return True

        return self._logged(write)

    @contextmanager
    def standing(self, session: str) -> Generator[dict[str, Any]]:
        """Let problems of 503 and 504 say where a session stands.

        Yields:
            Members of such a problem; ``applied`` is False until it is set.
        """
        told: dict[str, Any] = {"applied": False}
        try:
            yield told
        except EndedError:
            detail = "the model's process has ended and is being started again"
            raise RefusedError(503, detail, {"retry-after": "1"}, **self._where(session), **told) from None
        except RefusedError as refused:
            if refused.status not in (503, 504):
                raise
            # A new one: several requests may wait for one error, such as that of a stop, and each has a session of its own.
            members = {**self._where(session), **told, **refused.members}
            raise RefusedError(refused.status, str(refused), refused.headers, **members) from None

    @asynccontextmanager
    async def _in_time(self, session: str, deadline: float | None) -> AsyncGenerator[dict[str, Any]]:
        """One request of a session: after those before it, and until its deadline."""
        with self.standing(session) as told:
            try:
                async with asyncio.timeout_at(deadline), self._turn(session):
                    if deadline is not None and asyncio.get_running_loop().time() > deadline:
                        raise TimeoutError
                    yield told
            except TimeoutError:
                raise RefusedError(504, "the deadline has passed") from None

    def _where(self, session: str) -> dict[str, Any]:
        if session not in self.contexts:
            return {}
        return _standing(self.contexts.head(session))

    def lapse(self, session: str) -> None:
        """Count a session as ended that has had no request for long; its context stays, and it may go on."""
        self._observed.forget(session)
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
        return {"session": session, "bytes": head.bytes, **_standing(head)}

    async def page(self, after: str, limit: int) -> tuple[list[dict[str, Any]], str | None]:
        """Sessions by name from the first one after ``after``, and the name to go on after; None at the end.

        Each is :meth:`describe`'s, with ``idle``: seconds since its last request, or since the start.
        """
        names = list(self.contexts)
        found = await self._in_thread(lambda: nsmallest(limit + 1, (name for name in names if name > after)))
        now = time.monotonic()
        shown = [name for name in found[:limit] if name in self.contexts]  # others were deleted meanwhile
        listed = [{**self.describe(name), "idle": round(now - (self._used.time(name) or now), 1)} for name in shown]
        return listed, found[limit - 1] if len(found) > limit else None

    # Without a session

    async def once(
        self, contexts: Sequence[Float32[np.ndarray, "T D"]], k: int, asking: Asking, deadline: float
    ) -> list[Answer]:
        """What comes next in whole contexts, each given at once.

        Raises:
            RefusedError: 503, 504 no time.
        """
        # Without a session there is no unit to be judged by: a rollout never sees these.
        one = _REQUEST.set(object())
        try:
            async with asyncio.timeout_at(deadline):
                return list(await asyncio.gather(*(self._once(rows, k, asking, deadline) for rows in contexts)))
        except TimeoutError:
            raise RefusedError(504, "the deadline has passed") from None
        finally:
            _REQUEST.reset(one)

    async def _once(self, rows: Float32[np.ndarray, "T D"], k: int, asking: Asking, deadline: float) -> Answer:
        began, lane, lanes = time.perf_counter(), asking.lane, self.lanes
        if lanes is not None and lane is None:
            long = len(rows) > INLINE
            lane = lanes.lane(await self._in_thread(lambda: lanes.votes(rows)) if long else lanes.votes(rows))
        served, why = self._now(lane).stable.choose(len(rows), lane, self.snapshot.threshold)
        model, reason = self.models[served.name], str(why)
        found = None
        if why == "expert":
            seconds = self._patience(len(rows), deadline)
            found, fault = await self._tried(
                "expert", lambda: self._whole(model, rows, k, deadline), served.name, lane, seconds
            )
            reason = fault or reason
        if found is None:
            name = served.name if reason == why else self._shared(len(rows))
            found, model = await self._surely(name, lambda model: self._whole(model, rows, k, deadline), deadline)
        self.metrics.answers("stable", model.name, reason).inc()
        self._in_lane(lane, reason, began)
        return Answer(found, "stable", model.name, reason, model.engine.digest, None, len(rows), lane)

    async def _whole(self, model: Model, rows: Float32[np.ndarray, "T D"], k: int, deadline: float) -> list[Expected]:
        with model.line.used():
            state, left = model.engine.session(), rows
            if len(rows) > INLINE:
                await self._counted(model.line.aside.run(read(state, rows)))
                left = np.empty((0, self.dim), np.float32)
            return await model.line.ask(Job(state, left, k, deadline))

    async def encode(self, text: str, deadline: float) -> Float32[np.ndarray, "T D"]:
        """A text as rows, cut and encoded as the bank's were.

        Raises:
            RefusedError: see :meth:`nextvec.serving.texts.Texts.rows`.
        """
        model = self.models[self.stable]
        with model.line.used():
            return await self._counted(self.texts.rows(model.engine, text, deadline))

    def rows(self, ids: Sequence[int]) -> Float32[np.ndarray, "T D"]:
        """Rows of the stable model's candidates."""
        return np.asarray(self.models[self.stable].engine.bank.rows[np.asarray(ids)], np.float32)

    def holders(self, model: str, row: int) -> list[int]:
        """The rows of a model's bank that hold the vector of ``row``, ascending; the first MOST_ROWS of them."""
        bank = self.models.get(model, self.models[self.stable]).engine.bank  # both arms of a rollout have one bank
        return bank.distinct.rows(row)[:MOST_ROWS].tolist()

    # Models

    async def open_model(self, name: str, run: Path) -> None:
        """Serve one more run.

        Raises:
            NextvecError: it cannot be opened, or does not fit.
        """
        async with self._reloading:
            engine = await in_own_thread(lambda: self._opened(name, run), f"opening {name}", _let_go)
            self.models = {**self.models, name: self._model(name, run, engine)}

    @property
    def needed(self) -> set[str]:
        """Names of the models that may be asked: those of the present snapshot, the experts, and the held ones."""
        snapshot, experts = self.snapshot, () if self.lanes is None else self.lanes.experts.values()
        lineups = [lineup for lineup in (snapshot.stable, snapshot.canary) if lineup is not None]
        return {self.stable, *self.held, *experts, *(served.name for lineup in lineups for served in _served(lineup))}

    async def close_model(self, name: str) -> None:
        """Serve a model no longer: its last answers are given, its process ends, and its states are dropped.

        Raises:
            ServingError: it is not served, or it is needed.
        """
        async with self._reloading:
            model = self.models.get(name)
            if model is None or name in self.needed:
                raise ServingError(f"model {name!r} is {'not served' if model is None else 'still needed'}")
            self.models = {other: held for other, held in self.models.items() if other != name}
            await self._end(model)
            self.states.drop(digest=model.engine.digest)

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
        short, other = (ServedModel(name, self.models[name].engine.context) for name in (self.stable, long))
        self.snapshot = Snapshot(self.snapshot.epoch, ArmModels(short, other), threshold=threshold)

    def specialise(self, lanes: ServedLanes) -> None:
        """Let models that are served answer the lanes that are theirs. They infer in threads of their own.

        Raises:
            ServingError: a lane that is none, a model that is not served, or one that looks predictions up elsewhere.
        """
        stable = self.models[self.stable].engine
        for lane, name in lanes.experts.items():
            if lane not in lanes.anchors.names:
                raise ServingError(f"there is no lane {lane!r}; the lanes are {', '.join(lanes.anchors.names)}")
            if name not in self.models:
                raise ServingError(f"the expert of {lane!r}, {name!r}, is not served; name one of {', '.join(self.models)}")
            if self.models[name].engine.bank.fingerprint != stable.bank.fingerprint:
                raise ServingError(
                    f"the expert of {lane!r}, {name!r}, looks predictions up in another bank than {self.stable!r}"
                )
        self.lanes, now = lanes, self.snapshot
        experts = tuple(Expert(lane, ServedModel(name)) for lane, name in lanes.experts.items())
        self.adopt(replace(now, stable=replace(now.stable, experts=experts)))

    def promote(self, name: str, over: str) -> None:
        """Let a model answer where ``over`` did, the stable one or the one for long contexts; sessions go on.

        Raises:
            ServingError: it is not served, or it cannot read the threshold; nothing has changed.
        """
        if name not in self.models:
            raise ServingError(f"model {name!r} is not served; open it first")
        before = self.snapshot.stable
        there = ServedModel(name, self.reads(name))
        short, long = (there if served.name == over else served for served in (before.short, before.long))
        self.snapshot = Snapshot(self.snapshot.epoch, ArmModels(short, long, before.experts), threshold=self.snapshot.threshold)
        self.stable = name if self.stable == over else self.stable

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
                opening = in_own_thread(lambda: self._opened(name, old.run), f"opening {name}", _let_go)
                engine = await self._counted(opening)
            except NextvecError as error:
                raise RefusedError(409, "the run cannot be opened, or does not fit; the old model stays") from error
            new = self._model(name, old.run, engine)
            new.line.apart = old.line.apart
            self.models = {**self.models, name: new}
            if self.lanes is not None:
                self.lanes.anew(name)
            # States that lie in another process go with it, whatever its weights were; those in use are not put back.
            if isinstance(old.engine, EngineProcess):
                old.engine.replaced = True
                self.states.drop(digest=old.engine.digest)
            await self._end(old)
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
            tried = snapshot.canary is not None and name in named
            model.line.apart = tried or self._is_expert(name) or isinstance(model.engine, EngineProcess)
        self.snapshot = snapshot

    def _is_expert(self, name: str) -> bool:
        return self.lanes is not None and name in self.lanes.experts.values()

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

    def drain(self) -> None:
        """Be ready no more; texts that are not encoded yet are refused, everything else is answered."""
        self.ready = False
        self.texts.close()

    async def close(self) -> None:
        """Finish what is asked, sync the log, let go of everything."""
        self.drain()
        self.rebuilds.close()
        background = (self._expirer, *self._working.values(), *self._labelling)
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        for model in self.models.values():
            await self._end(model, STOPPING_SECONDS)
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
        lane = await self._lane(session, view, new, asking)
        snapshot = self._now(lane)
        chosen = self._route(replace(asking, lane=lane), view.head.length, snapshot)
        promise = _Promise(chosen.arm, frozenset(), view.head.length, snapshot.weight, chosen.counted, lane=lane)
        promise.rollout = snapshot.rollout
        promise.reason, patience = chosen.reason, self._patience_of(chosen, snapshot, view, deadline)
        promise.counted = chosen.counted and patience > 0  # of either arm: what had no time says nothing of a model
        try:
            expected, model = await self._routed(chosen, promise, session, view, new, k, deadline, patience)
        except BaseException as error:
            # A client that leaves before its deadline says nothing of a model; a deadline that passes does.
            over = asyncio.get_running_loop().time() > deadline - TICK
            if promise.reason not in UNTRIED and (over or not isinstance(error, asyncio.CancelledError)):
                promise.cause = self._cause(promise.reason, chosen, patience)
                self._outcome(promise, session, time.perf_counter() - began, failed=True)
            raise
        reason, taken = promise.reason, time.perf_counter() - began
        watched = snapshot.canary is not None or self.record is not None or self.lanes is not None
        if watched and reason not in UNTRIED:
            promise.rows = frozenset(e.row for e in expected)
            promise.time, promise.seconds, promise.failed = time.time() - taken, taken, reason.startswith("canary ")
            self._settle(session, self._promises.get(session), None)
            self._promises[session] = promise
            # Both arms fail by one rule, so that what slows the whole server is no evidence against a canary.
            failed = promise.failed or taken > patience
            promise.cause = self._cause(reason, chosen, patience) if failed else ""
            self._outcome(promise, session, taken, failed)
            if snapshot.canary is not None and chosen.arm == "stable" and self._is_mirrored(session, snapshot):
                self._mirror(snapshot, session, view, k, replace(asking, lane=lane), promise)
        arm: Arm = "canary" if chosen.arm == "canary" and model.name == chosen.model.name else "stable"
        self.metrics.answers(arm, model.name, reason).inc()
        self._in_lane(lane, reason, began)
        return Answer(expected, arm, model.name, reason, model.engine.digest, view.head.seq, view.head.length, lane)

    def _cause(self, reason: str, chosen: Route, patience: float) -> str:
        """What stopped the chosen model from answering in time."""
        model = self.models.get(chosen.model.name)
        said = reason if reason.startswith("canary ") else "canary late"
        return cause(said, None if model is None else model.engine, patience)

    def _outcome(self, promise: _Promise, session: str, seconds: float, failed: bool) -> None:
        """Tell what became of a request; time spent on a fallback is the canary's: it is what the user waited for."""
        self._observed.touch(session, time.monotonic())
        self._tell("assign", promise, session, 0.0)
        self._tell("fail", promise, session, float(failed))
        self._tell("slow", promise, session, seconds)

    def _patience_of(self, chosen: Route, snapshot: Snapshot, view: View, deadline: float) -> float:
        if snapshot.canary is None and chosen.model_reason != "expert":
            return math.inf
        return self._patience(view.head.length, deadline)

    def _patience(self, length: int, deadline: float) -> float:
        """Seconds after which stable is asked instead, early enough to answer before the deadline; 0 or less: at once."""
        left = deadline - asyncio.get_running_loop().time()
        stable = self.models[self._shared(length)]
        reserve = max(RESERVE * stable.line.wait, min(LEAST_RESERVE, left / 2))
        return min(LATE * self.limits.budget, left - reserve)

    def _shared(self, length: int) -> str:
        """The stable model of every lane for contexts of this length, in vectors."""
        return self.snapshot.stable.choose(length, None, self.snapshot.threshold)[0].name

    async def _lane(self, session: str, view: View, new: Float32[np.ndarray, "T D"] | None, asking: Asking) -> str | None:
        """What the request says, else what the context is about; None where no lanes are served."""
        lanes = self.lanes
        if asking.lane is not None or lanes is None:
            return asking.lane
        voted = lanes.length(session)
        behind = view.head.length - voted
        if behind < 0:  # of a session of the same name that was deleted meanwhile
            lanes.forget(session)
            voted, behind = 0, view.head.length
        earlier = lanes.earlier(session)  # others may push it out while the thread reads
        if behind > INLINE:
            votes = earlier + await self._in_thread(lambda: lanes.votes(view.read(voted)))
        else:
            votes = earlier + lanes.votes(new if new is not None and len(new) == behind else view.read(voted))
        return lanes.keep(session, view.head.length, votes)

    def _now(self, lane: str | None) -> Snapshot:
        """Who answers, without the expert of this lane while it is down."""
        snapshot, lanes = self.snapshot, self.lanes
        if lanes is None or lane not in lanes.experts or lanes.health[lane].asked():
            return snapshot

        def without(lineup: ArmModels) -> ArmModels:
            experts = tuple(replace(e, healthy=e.healthy and e.lane != lane) for e in lineup.experts)
            return replace(lineup, experts=experts)

        canary = None if snapshot.canary is None else without(snapshot.canary)
        return replace(snapshot, stable=without(snapshot.stable), canary=canary)

    def _in_lane(self, lane: str | None, reason: str, began: float) -> None:
        if self.lanes is not None:
            self.lanes.answered(lane, reason, time.perf_counter() - began)

    async def _routed(
        self,
        chosen: Route,
        promise: _Promise,
        session: str,
        view: View,
        new: Float32[np.ndarray, "T D"] | None,
        k: int,
        deadline: float,
        patience: float,
    ) -> tuple[list[Expected], Model]:
        """A prediction changes nothing, so what a canary or an expert fails at is asked of the shared stable model.

        Sets ``promise.reason`` before it asks stable, so that it is known of a request that ends without an answer, too.
        """

        def ask(model: Model) -> Awaitable[list[Expected]]:
            return self._ask(model, session, view, new, k, deadline)

        name = chosen.model.name
        what = "canary" if chosen.arm == "canary" else "expert" if chosen.model_reason == "expert" else None
        if what is None:
            return await self._surely(name, ask, deadline)
        model, lane = self.models[name], promise.lane
        if self.rebuilds.behind(model.line, session, view) > INLINE:
            # The first request after a switch would wait for a rebuild that says nothing of the model: stable answers.
            self._warm(model, session, view, replace(promise), lane if what == "expert" else None)
            promise.reason = f"{what} warming"
        else:
            found, fault = await self._tried(what, lambda: ask(model), name, lane, patience)
            if found is not None:
                return found, model
            promise.reason = fault
        return await self._surely(self._shared(view.head.length), ask, deadline)

    async def _surely(
        self, name: str, ask: Callable[[Model], Awaitable[list[Expected]]], deadline: float
    ) -> tuple[list[Expected], Model]:
        """Ask the model that nobody stands in for; once more if its process ended, or a reload replaced it meanwhile.

        Raises:
            EndedError: it was not there again before the deadline.
        """
        model = self.models[name]
        try:
            return await ask(model), model
        except EndedError as ended:
            model = self.models.get(name) or self.models[self.stable]  # it may have been unloaded meanwhile
            await self._there_again(model, ended, deadline)
            return await ask(model), model

    async def _there_again(self, model: Model, ended: EndedError, deadline: float) -> None:
        loop, engine = asyncio.get_running_loop(), model.engine
        while isinstance(engine, EngineProcess) and engine.fault is not None:
            try:
                await asyncio.sleep(0.02)
            except asyncio.CancelledError:
                if loop.time() > deadline - TICK:  # the reason is more than that the deadline has passed
                    raise ended from None
                raise

    async def _tried(
        self, what: str, ask: Callable[[], Awaitable[list[Expected]]], name: str, lane: str | None, seconds: float
    ) -> tuple[list[Expected] | None, str]:
        """The answer of a model that another can stand in for, within so many seconds; else None, and why."""
        if seconds <= 0:
            return None, f"{what} not tried"
        reason, refused = "", False
        found: list[Expected] | None = None
        try:
            async with asyncio.timeout(seconds):
                found = await ask()
        except TimeoutError:
            reason = f"{what} late"
        except NotFiniteError:
            reason = f"{what} not finite"
            if what == "canary":
                self.alarm(f"{name} answered with a score that is not finite")
        except Exception as error:
            reason, refused = f"{what} {type(error).__name__}", isinstance(error, RefusedError)
        if what == "expert" and self.lanes is not None and lane is not None and not refused:
            (self.lanes.failed if reason else self.lanes.well)(lane)
        return found, reason

    def _route(self, asking: Asking, length: int, snapshot: Snapshot) -> Route:
        return route(asking.key, length, asking.lane, asking.headers, snapshot, now=time.monotonic(), scopes=asking.rights)

    def _warm(self, model: Model, session: str, view: View, promise: _Promise, lane: str | None) -> None:
        """Bring a state up to date; ``lane``: of the expert whose state it is, None of a canary's."""
        self._observed.touch(session, time.monotonic())

        async def warm() -> None:
            try:
                async with asyncio.timeout(WARMING_SECONDS):
                    with model.line.used():
                        state, _ = await self._state(model, session, view, None)
                self.rebuilds.put(model.line, session, view, state)  # the next request reads the few rows that are left
            except Exception as error:  # a canary's failure concerns the canary alone
                if lane is None:
                    fault = "late" if isinstance(error, TimeoutError) else type(error).__name__
                    promise.cause = cause(f"canary {fault}", model.engine, WARMING_SECONDS)
                    if self._is_observed(session):
                        self._tell("fail", promise, session, 1.0)
                elif self.lanes is not None:
                    self.lanes.failed(lane)

        self._beside(model, session, warm)

    def _is_mirrored(self, session: str, snapshot: Snapshot) -> bool:
        return bucket(session, f"mirror {snapshot.rollout}"[:LONGEST_SALT]) < self.mirror * BUCKETS / 100

    def _mirror(self, snapshot: Snapshot, session: str, view: View, k: int, asking: Asking, promise: _Promise) -> None:
        """Ask the canary what stable has answered; nobody waits for it."""
        assert snapshot.canary is not None
        served, _ = snapshot.canary.choose(view.head.length, asking.lane, snapshot.threshold)
        if served == self.snapshot.stable.choose(view.head.length, asking.lane, snapshot.threshold)[0]:
            return  # an expert is its lane's in both arms
        model = self.models.get(served.name)
        if model is None:  # the rollout has ended meanwhile
            return
        until = asyncio.get_running_loop().time() + WARMING_SECONDS

        def compare(fault: str | None) -> None:
            if promise.rollout == self.snapshot.rollout and self._is_observed(session):
                why = "" if fault is None else cause(f"canary {fault}", model.engine, WARMING_SECONDS)
                self.observe(Pair("fail", session, False, fault is not None, view.head.length, asking.lane, why))

        async def mirror() -> None:
            try:
                async with asyncio.timeout(WARMING_SECONDS):
                    found = await self._ask(model, session, view, None, k, until)
                promise.mirrored = frozenset(e.row for e in found)
            except NotFiniteError:
                self.alarm(f"{model.name} answered with a score that is not finite")
                compare("not finite")
            except TimeoutError:
                compare("late")
            except Exception as error:  # whatever a canary does is its failure alone
                compare(type(error).__name__)
            else:
                compare(None)

        self._beside(model, session, mirror)

    def _beside(self, model: Model, session: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do it in the background, unless the same state is being worked on there already."""
        name = (session, model.engine.digest)
        if name not in self._working:
            context = copy_context()
            context.run(_REQUEST.set, _NONE)
            task = self._working[name] = asyncio.get_running_loop().create_task(work(), context=context)
            task.add_done_callback(lambda _: self._working.pop(name))

    async def _ask(
        self, model: Model, session: str, view: View, new: Float32[np.ndarray, "T D"] | None, k: int, deadline: float
    ) -> list[Expected]:
        with model.line.used():
            state, rows = await self._state(model, session, view, new)
            job = Job(state, rows, k, deadline)
            try:
                found = await model.line.ask(job)
            except BaseException as error:
                # A deadline may pass in the queue; a line that is closed ends with its states.
                if job.begun or isinstance(error, EndedError):
                    self.rebuilds.lose(model.line, session)
                else:
                    self.rebuilds.put(model.line, session, view, state)
                raise
            self.rebuilds.put(model.line, session, view, state)
            return found

    async def _state(
        self, model: Model, session: str, view: View, new: Float32[np.ndarray, "T D"] | None
    ) -> tuple[Reading, Float32[np.ndarray, "T D"]]:
        return await self._counted(self.rebuilds.take(model.line, session, view, new))

    # What became of it

    def _labelled(self, session: str, vectors: Vectors) -> asyncio.Task[None]:
        """The search for a label; it goes on when its request is over, for the judge would miss the slow ones alone."""
        task = asyncio.get_running_loop().create_task(self._label(session, vectors))
        self._labelling.add(task)
        task.add_done_callback(self._labelling.discard)
        return task

    async def _label(self, session: str, vectors: Vectors) -> None:
        """The next append is the truth of the last prediction: exact prequential Hit@K (Dawid 1984)."""
        promise = self._promises.pop(session, None)
        if promise is None:
            return
        try:
            truth = await self._truth(vectors)
        except EndedError:  # the append stands; what it says of the prediction is lost
            if self._is_observed(session):
                self._tell("unlabelled", promise, session, 1.0)
            self._settle(session, promise, None)
            return
        hit = truth in promise.rows
        self.metrics.labels(promise.arm, str(hit).lower()).inc()
        if self.lanes is not None:
            self.lanes.labelled(promise.lane, hit)
        self._settle(session, promise, hit)
        if not self._is_observed(session):
            return
        self._tell("miss", promise, session, float(not hit))
        self._tell("unlabelled", promise, session, 0.0)
        if promise.mirrored is not None and promise.rollout == self.snapshot.rollout:
            self.observe(Pair("miss", session, not hit, truth not in promise.mirrored, promise.vectors, promise.lane))

    def _is_observed(self, session: str) -> bool:
        """Whether its end is still to be told; what is found out after it would count the session twice."""
        return self._observed.time(session) is not None

    def _settle(self, session: str, promise: _Promise | None, hit: bool | None) -> None:
        if promise is not None and self.record is not None:
            self.record(LabelledPrediction(session, promise.time, promise.vectors, promise.seconds, promise.failed, hit))

    async def _truth(self, vectors: Vectors) -> int:
        """The first row of the bank that holds what was appended, or else that of the nearest vector."""
        model = self.models[self.stable]
        if vectors.ids:
            return int(model.engine.bank.distinct.classes[vectors.ids[0]])
        with model.line.used():
            return int((await self._in_thread(lambda: model.engine.nearest(vectors.rows[:1])))[0])

    def _tell(self, stream: Stream, promise: _Promise, session: str, value: float) -> None:
        if promise.counted and promise.rollout == self.snapshot.rollout:
            why = promise.cause if stream == "fail" and value else ""
            self.observe(Observation(stream, promise.arm, session, promise.weight, value, promise.vectors, promise.lane, why))

    # The rest

    def _turn(self, session: str) -> asyncio.Lock:
        """Requests of one session are answered one after another."""
        lock = self._turns.get(session)
        if lock is None:
            lock = self._turns[session] = asyncio.Lock()
        return lock

    def _head(self, session: str) -> Head:
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
            raise RefusedError(409, str(conflict), **_standing(conflict.head)) from None
        except FullError as full:
            raise RefusedError(507, str(full)) from None

    def _opened(self, name: str, run: Path) -> Answering:
        """A run, open, fitting, and asked once: the first answer of all takes what no later one does.

        Raises:
            NextvecError: the run cannot be opened, does not fit, or cannot answer; no process of it is left.
        """
        engine = self._open_run(run)
        try:
            self._check(name, engine)
            engine.bank.distinct.rows(0)  # reads the whole bank, once for each model
            (answer,) = engine.answers([Question(engine.session(), np.asarray(engine.bank.rows[:1], np.float32), 1)])
            if isinstance(answer, Exception):
                raise answer
        except BaseException:
            _let_go(engine)
            raise
        return engine

    def _model(self, name: str, run: Path, engine: Answering) -> Model:
        if isinstance(engine, EngineProcess):
            loop, digest = asyncio.get_running_loop(), engine.digest

            def told(event: str, detail: str) -> None:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(self._process_told, name, digest, event, detail)

            engine.told = told
        return Model(name, run, engine, Line(engine, self.metrics, name))

    async def _end(self, model: Model, patience: float = CLOSE_SECONDS) -> None:
        await model.line.close(patience)
        if isinstance(model.engine, EngineProcess):
            await in_own_thread(model.engine.close, f"closing {model.name}")

    def _process_told(self, name: str, digest: str, event: str, detail: str) -> None:
        self.states.drop(digest=digest)
        self.tell("engine", model=name, detail=detail)
        if event == "ended":
            self.metrics.ended(name).inc()
        if event == "there" and self.lanes is not None:
            self.lanes.anew(name)

    def _check(self, name: str, engine: Answering) -> None:
        stable = self.models[self.stable].engine if self.models else engine
        if (engine.dim, engine.encoder_fingerprint) != (stable.dim, stable.encoder_fingerprint):
            raise ServingError(f"model {name!r} reads vectors of another encoder or width than {self.stable!r}; serve it apart")

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await self._counted(asyncio.get_running_loop().run_in_executor(self._aside, call))

    @property
    def apart(self) -> int:
        """Requests that wait for a thread, not for the loop."""
        return len(self._apart)

    async def _counted(self, waited: Awaitable[T]) -> T:
        """Wait for a thread; a request counts once, however many of its contexts wait."""
        request = _REQUEST.get() or object()
        if request is _NONE:
            return await waited
        self._apart[request] += 1
        try:
            return await waited
        finally:
            self._apart[request] -= 1
            if not self._apart[request]:
                del self._apart[request]

    async def _expire(self) -> None:
        """Count sessions as ended that have had no request for long, and delete old ones, a few at a time."""
        while True:
            await asyncio.sleep(EXPIRY_SECONDS)
            for session in self._observed.due(time.monotonic() - self.limits.idle, EXPIRED, MOST_OBSERVED):
                try:
                    self.lapse(session)
                except Exception as error:  # a fault in what observes must not stop the others from ending
                    self.tell("expiry", session=session, trouble=f"{type(error).__name__}: {error}")
            self._delete_old()

    def _delete_old(self) -> None:
        if self.limits.session_ttl is None:
            return
        for session in self._used.due(time.monotonic() - self.limits.session_ttl, EXPIRED):
            try:
                if self._turn(session).locked():  # a request is under way
                    self._used.touch(session, time.monotonic())
                else:
                    self._forget(session)
            except RefusedError as error:  # a disk that takes no more; later is soon enough
                self._used.touch(session, time.monotonic())
                self.tell("expiry", session=session, trouble=str(error))

    async def _keep(self) -> None:
        """Sync what was written, and give up old segments, one context at a time."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SYNC_SECONDS)
            try:
                written = self.contexts.unsynced()
                if written:
                    await loop.run_in_executor(self._disk, self.contexts.sync, written)
                if self.contexts.wasteful() and self.contexts.failure is None:
                    await self._compact()
            except Exception as error:  # a damaged record, or a disk that cannot be read: appends are refused from now on
                self.contexts.failure = f"{type(error).__name__}: {error}"
                self.tell("contexts", trouble=self.contexts.failure)

    async def _compact(self) -> None:
        for session in self.contexts.oldest():
            if session in self.contexts:
                view = self.contexts.view(session)
                whole = await asyncio.get_running_loop().run_in_executor(self._disk, rewritten, session, view)
                try:
                    self.contexts.rewrite(whole, view)
                except FullError:
                    return  # appends say so; there is nothing to be gained now
        self.contexts.give_up_oldest()


def _served(lineup: ArmModels) -> list[ServedModel]:
    return [lineup.short, lineup.long, *(expert.model for expert in lineup.experts)]


def _let_go(engine: Answering) -> None:
    if isinstance(engine, EngineProcess):
        engine.close()


def _standing(head: Head) -> dict[str, Any]:
    """Where a session stands, as an answer's members."""
    return {"seq": head.seq, "length": head.length, "incarnation": f"{head.incarnation:016x}"}
