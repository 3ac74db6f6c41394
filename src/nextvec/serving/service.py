"""One server process without HTTP: its parts, how they fit together, and how they stop."""

# Axes: T vectors, D width.

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from nextvec.serving.answering import Answering
from nextvec.serving.background import Background
from nextvec.serving.compaction import Compaction
from nextvec.serving.contexts import Contexts
from nextvec.serving.expiry import Expiry
from nextvec.serving.fallback import Fallback
from nextvec.serving.limits import Limits
from nextvec.serving.listeners import Listeners
from nextvec.serving.metrics import Metrics
from nextvec.serving.model_routing import ModelRouting
from nextvec.serving.outcomes import Outcomes
from nextvec.serving.predictions import Predictions
from nextvec.serving.served_models import ServedModels
from nextvec.serving.session_inference import SessionInference
from nextvec.serving.session_snapshots import SessionSnapshots
from nextvec.serving.sessions import Sessions
from nextvec.serving.state_cache import StateCache
from nextvec.serving.state_rebuild import StateRebuilds
from nextvec.serving.text_encoding import TextEncoding
from nextvec.serving.worker_thread import WorkerThread
from nextvec.wire.limits import MOST_ROWS

STOPPING_SECONDS = 5.0  # for an engine's last answers when the server stops


class Service:
    """The models and sessions of one process. Made, used and closed in a running loop.

    Attributes:
        listeners: set them to observe, record and log.
        models: open runs.
        routing: which of them answers.
        sessions, snapshots: sessions, and their transfer to other servers.
        predictions: answers for contexts without a session.
        outcomes, background: labels, and work that no client waits for.
        ready: False while the server stops.

    Args:
        runs: folders by name; the first is the stable model.
        open_run: opens such a folder.
        sessions: folder of the contexts.

    Raises:
        NextvecError: a run cannot be opened, or the folder of sessions is in use, damaged, or of another model.
    """

    def __init__(self, runs: Mapping[str, Path], open_run: Callable[[Path], Answering], sessions: Path, limits: Limits) -> None:
        self.limits, self.metrics, self.listeners, self.ready = limits, Metrics(), Listeners(), True
        self.states = StateCache(limits.state_bytes)
        self.worker = WorkerThread()
        self.models = ServedModels(runs, open_run, self.states, self.metrics, self.listeners, self.worker)
        self.routing = ModelRouting(self.models)
        stable = self.routing.stable_model.engine
        self.dim, self.encoder = stable.dim, stable.encoder_fingerprint
        self.contexts = Contexts(sessions, self.dim, self.encoder)
        self.rebuilds = StateRebuilds(self.states, self.contexts, self.metrics.rebuilt.inc)
        self.inference = SessionInference(self.rebuilds, self.worker)
        self.outcomes = Outcomes(self.routing, self.listeners, self.metrics, self.worker)
        self.background = Background(self.inference, self.routing, self.outcomes, self.listeners)
        self.fallback = Fallback(self.routing, limits, self.listeners)
        accounts = (self.outcomes, self.background, self.metrics, self.listeners)
        self.predictions = Predictions(self.routing, self.inference, self.fallback, *accounts, self.worker)
        self.sessions = Sessions(self.contexts, self.states, self.routing, self.outcomes, self.predictions, limits, self.worker)
        self.snapshots = SessionSnapshots(self.sessions, self.contexts, self.routing, self.inference, self.worker)
        self.texts = TextEncoding()
        self.expiry = Expiry(self.sessions, self.outcomes, limits, self.listeners)
        self.compaction = Compaction(self.contexts, self.listeners)
        if stable.bank.manifest.reads_text:
            self.texts.warm(stable)

    async def encode(self, text: str, deadline: float) -> Float32[np.ndarray, "T D"]:
        """A text as rows, cut and encoded as the bank's texts were.

        Raises:
            RefusedError: see :meth:`nextvec.serving.text_encoding.TextEncoding.rows`.
        """
        model = self.routing.stable_model
        with model.queue.used():
            return await self.worker.counted(self.texts.rows(model.engine, text, deadline))

    @property
    def candidates(self) -> int:
        """Rows among which the stable model's predictions are looked up."""
        return len(self.routing.stable_model.engine.bank.table)

    def rows(self, ids: Sequence[int]) -> Float32[np.ndarray, "T D"]:
        """The vectors of items of the stable model's bank."""
        return np.asarray(self.routing.stable_model.engine.bank.table.vectors[np.asarray(ids)], np.float32)

    def holders(self, model: str, row: int) -> list[int]:
        """The rows of a model's bank that hold the vector of ``row``, ascending; the first MOST_ROWS of them."""
        bank = self.models.get(model, self.routing.stable_model).engine.bank  # both arms of a rollout have one bank
        return bank.distinct.rows(row)[:MOST_ROWS].tolist()

    def overloaded(self, requests: int) -> bool:
        """Whether one more of ``requests`` would wait longer than the budget, by the recent cost of a request.

        The first request is always admitted: otherwise the server would never measure that the load has passed.
        """
        others = requests - self.worker.waiting - 1
        return others > 0 and others * self.routing.stable_model.queue.seconds_per_request > self.limits.budget

    def drain(self) -> None:
        """Report as not ready; texts that are not encoded yet are refused, all other requests are answered."""
        self.ready = False
        self.texts.close()

    async def close(self) -> None:
        """Finish the requests, sync the log, and close every model, thread and file."""
        self.drain()
        self.rebuilds.close()
        tasks = (self.expiry.task, *self.background.tasks.values(), *self.outcomes.labelling)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.models.close(STOPPING_SECONDS)
        await self.compaction.close()
        self.worker.close()
        self.contexts.close()
