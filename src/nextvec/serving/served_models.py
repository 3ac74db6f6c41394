"""The models that a server has open: opened, reloaded and removed while requests are answered."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nextvec.errors import NextvecError
from nextvec.inference.place import Status
from nextvec.serving.answering import Answering
from nextvec.serving.daemon_thread import in_daemon_thread
from nextvec.serving.listeners import Listeners
from nextvec.serving.metrics import Metrics
from nextvec.serving.model_loading import load
from nextvec.serving.refusal import RefusedError
from nextvec.serving.request_queue import CLOSE_SECONDS, RequestQueue
from nextvec.serving.state_cache import StateCache
from nextvec.serving.worker_thread import WorkerThread


@dataclass(frozen=True)
class ServedModel:
    """An open run and its request queue. A reload replaces it whole."""

    name: str
    run: Path
    engine: Answering
    queue: RequestQueue


class ServedModels(Mapping[str, ServedModel]):
    """All open models by name. Changes happen on the loop, one at a time; a change replaces the table whole.

    Attributes:
        open_run: opens a run's folder.
        changing: held while a model is opened, reloaded or removed.
        renewed: called with the name of a model that can answer again, or that was reloaded.

    Args:
        runs: folders by name, at least one.
        states: of the models; a model that ends loses its states there.

    Raises:
        NextvecError: a run cannot be opened, does not fit the first one, or cannot answer.
    """

    def __init__(
        self,
        runs: Mapping[str, Path],
        open_run: Callable[[Path], Answering],
        states: StateCache,
        metrics: Metrics,
        listeners: Listeners,
        worker: WorkerThread,
    ) -> None:
        self.open_run = open_run
        self.changing = asyncio.Lock()
        self.renewed: Callable[[str], None] = lambda _: None
        self._states, self._metrics, self._listeners, self._worker = states, metrics, listeners, worker
        self._models: dict[str, ServedModel] = {}
        for name, run in runs.items():
            self._models[name] = self._served(name, run, self._load(name, run))

    def __getitem__(self, name: str) -> ServedModel:
        return self._models[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    @property
    def waiting(self) -> int:
        """Requests in all queues, without those that an engine has begun."""
        return sum(len(model.queue) for model in self._models.values())

    async def open(self, name: str, run: Path) -> None:
        """Serve one more run.

        Raises:
            NextvecError: it cannot be opened, does not fit, or cannot answer.
        """
        async with self.changing:
            engine = await in_daemon_thread(lambda: self._load(name, run), f"opening {name}", _close)
            self._models = {**self._models, name: self._served(name, run, engine)}

    async def remove(self, name: str) -> None:
        """Give a model's last answers, end its process, and drop its states. Call it with ``changing`` held.

        The caller sees to it that no request is routed to the model any more.
        """
        model = self._models[name]
        self._models = {other: held for other, held in self._models.items() if other != name}
        await self._end(model)
        self._states.drop(digest=model.engine.digest)

    async def reload(self, name: str) -> ServedModel:
        """Open a model's run again beside the old engine, then replace the old one at once.

        Raises:
            RefusedError: 404 no such model; 409 the run cannot be opened, or does not fit the sessions.
        """
        if name not in self._models:
            raise RefusedError(404, f"there is no model {name!r}")
        async with self.changing:
            old = self._models[name]
            try:
                opening = in_daemon_thread(lambda: self._load(name, old.run), f"opening {name}", _close)
                engine = await self._worker.counted(opening)
            except NextvecError as error:
                raise RefusedError(409, "the run cannot be opened, or does not fit; the old model stays") from error
            new = self._served(name, old.run, engine)
            new.queue.in_thread = old.queue.in_thread
            self._models = {**self._models, name: new}
            self.renewed(name)
            # States in another process end with it, even if the new weights are the same; those in use are not put back.
            if old.engine.place.isolated:
                old.engine.retire()
                self._states.drop(digest=old.engine.digest)
            await self._end(old)
            if old.engine.digest != engine.digest:
                self._states.drop(digest=old.engine.digest)
            return new

    async def close(self, patience: float) -> None:
        """Close every model; requests that wait longer than ``patience`` seconds get an error."""
        for model in self._models.values():
            await self._end(model, patience)

    def _load(self, name: str, run: Path) -> Answering:
        first = next(iter(self._models.values()), None)
        return load(name, run, self.open_run, None if first is None else (first.name, first.engine))

    def _served(self, name: str, run: Path, engine: Answering) -> ServedModel:
        loop, digest = asyncio.get_running_loop(), engine.digest

        def notify(status: Status, detail: str) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._status_changed, name, digest, status, detail)

        engine.subscribe(notify)
        return ServedModel(name, run, engine, RequestQueue(engine, self._metrics, name))

    async def _end(self, model: ServedModel, patience: float = CLOSE_SECONDS) -> None:
        await model.queue.close(patience)
        if model.engine.place.isolated:
            await in_daemon_thread(model.engine.close, f"closing {model.name}")

    def _status_changed(self, name: str, digest: str, status: Status, detail: str) -> None:
        self._states.drop(digest=digest)
        self._listeners.log("engine", model=name, detail=detail)
        if status == "ended":
            self._metrics.ended(name).inc()
        if status == "restarted":
            self.renewed(name)


def _close(engine: Answering) -> None:
    engine.close()
