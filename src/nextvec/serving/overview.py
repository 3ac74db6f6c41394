"""Everything that the dashboard shows, gathered from the service, the ledger and the runs' folders."""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import msgspec

import nextvec
from nextvec.bank import Bank
from nextvec.rollout.records import LedgerError
from nextvec.serving.load import load_of
from nextvec.serving.rollout_state import rollout_state
from nextvec.serving.run_state import RunStates
from nextvec.serving.served_models import ServedModel as OpenedModel
from nextvec.serving.service import Service
from nextvec.wire.operations import PastRollout
from nextvec.wire.overview import (
    BankDescription,
    DocumentRows,
    LaneState,
    Overview,
    RolloutOverview,
    RunState,
    ServedModel,
    ServerState,
    SessionLoad,
)
from nextvec.wire.sessions import ListedSession

Rollouts = Callable[[], dict[str, Any] | None]

FRESH, SHARE = 1.0, 0.05  # seconds for which disk reads stay valid; share of the time that reading may take
STUCK_DEADLINES = 10  # deadlines that one batch of chunks may take before the encoder counts as blocked
MOST_DOCUMENTS = 300


class Overviews:
    """Makes overviews. Whatever needs a disk is read in a thread, and at most once in :data:`FRESH` seconds.

    Args:
        rollouts: the status of rollouts, see :meth:`nextvec.serving.canary.Canary.status`; None on a server that takes part in
            none.
    """

    def __init__(self, service: Service, rollouts: Rollouts) -> None:
        self._service, self._rollouts = service, rollouts
        self._reading = asyncio.Lock()
        self._on_disk: tuple[RolloutOverview | None, list[RunState]] = (None, [])
        self._stale, self._epoch = -math.inf, (0, "")
        self._runs = RunStates()

    async def read(self, documents: bool = False) -> Overview:
        """The present overview.

        Args:
            documents: whether it lists the first documents of the bank.
        """
        async with self._reading:
            snapshot = self._service.routing.snapshot
            epoch = (snapshot.epoch, snapshot.rollout)
            if time.monotonic() > self._stale or epoch != self._epoch:
                began = time.monotonic()
                self._on_disk = await asyncio.get_running_loop().run_in_executor(
                    None, self._read_disk, dict(self._service.models)
                )
                # The smallest detectable effects take half a second of a processor that answers need as well.
                self._stale, self._epoch = time.monotonic() + max(FRESH, (time.monotonic() - began) / SHARE), epoch
            rollout, runs = self._on_disk
        listed: list[DocumentRows] | msgspec.UnsetType = msgspec.UNSET
        if documents:
            bank = self._service.routing.stable_model.engine.bank
            listed = await asyncio.get_running_loop().run_in_executor(None, documents_of, bank)
        return self._now(rollout, runs, listed)

    def _now(
        self, rollout: RolloutOverview | None, runs: list[RunState], documents: list[DocumentRows] | msgspec.UnsetType
    ) -> Overview:
        service, recent = self._service, self._service.metrics.recent
        stable = service.routing.stable_model.engine
        bank = stable.bank
        trouble, started = unready(service), recent.started.isoformat(timespec="seconds")
        return Overview(
            server=ServerState(nextvec.__version__, trouble is None, trouble, started, round(recent.uptime, 1)),
            models=[
                ServedModel(
                    name, model.engine.digest, name == service.routing.stable, model.engine.weights, model.engine.names_rows
                )
                for name, model in service.models.items()
            ],
            bank=BankDescription(len(bank), bank.num_documents, stable.dim, bank.manifest.encoder, bank.manifest.text),
            sessions=SessionLoad(len(service.contexts), service.contexts.log.bytes, service.states.bytes, self._recent()),
            load=load_of(recent, service.models.waiting, service.limits.budget),
            lanes=None if service.routing.lanes is None else msgspec.convert(service.routing.lanes.status(), list[LaneState]),
            rollout=rollout,
            runs=runs,
            documents=documents,
        )

    def _recent(self) -> list[ListedSession]:
        service = self._service
        found = [
            {**service.sessions.describe(session), "idle": round(ago, 1)}
            for session, ago in service.metrics.recent.sessions()
            if session in service.contexts
        ]
        return msgspec.convert(found, list[ListedSession])

    def _read_disk(self, models: Mapping[str, OpenedModel]) -> tuple[RolloutOverview | None, list[RunState]]:
        return self._rollout(), [self._runs.read(model.name, model.run) for model in models.values()]

    def _rollout(self) -> RolloutOverview | None:
        try:
            status = self._rollouts()
        except LedgerError:
            return RolloutOverview(None, [], "the ledger of rollouts cannot be read", False)
        if status is None:
            return None
        return RolloutOverview(
            current=None if status["current"] is None else rollout_state(status["current"]),
            past=msgspec.convert(status["past"], list[PastRollout]),
            trouble=status["trouble"],
            watching=status["watching"],
        )


def unready(service: Service) -> str | None:
    """Why the server takes no requests, or not all of them; None if it takes all."""
    if not service.ready:
        return "this server is stopping"
    stable = service.routing.stable_model.engine
    if stable.fault is not None:
        return stable.fault
    if service.texts.stuck(STUCK_DEADLINES * service.limits.deadline):
        return "the encoder has not finished a batch for long; texts are not answered"
    trouble = service.contexts.log.trouble()
    return f"{trouble}; predictions go on" if trouble is not None else None


def documents_of(bank: Bank) -> list[DocumentRows]:
    """The first :data:`MOST_DOCUMENTS` documents of a bank."""
    bounds = pairwise(bank.offsets[: MOST_DOCUMENTS + 1].tolist())
    return [
        DocumentRows(title or name, first, stop - first)
        for (name, title), (first, stop) in zip(bank.documents[:MOST_DOCUMENTS], bounds, strict=True)
    ]
