"""What a person wants to see at one glance: what is served and how fast, the rollout, the runs and what they are worth."""

import asyncio
import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import astuple
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

import nextvec
from nextvec.bank import Bank
from nextvec.errors import NextvecError
from nextvec.evaluation.runs import SITTINGS
from nextvec.experiments.answers import kept_at
from nextvec.ranks import Ranks, candidate_terms
from nextvec.rollout.evalues import ALPHA_OK
from nextvec.rollout.evidence import Evidence
from nextvec.rollout.guardrails import CANARY, STABLE
from nextvec.rollout.plan import CanaryStep, Plan
from nextvec.rollout.records import LedgerError
from nextvec.rollout.state import Phase, State
from nextvec.rollout.transition import units_at
from nextvec.runs import Run
from nextvec.runs.run import BEST
from nextvec.serving.isolated import EngineProcess
from nextvec.serving.recent import BINS, DECADE, SECONDS, edges, percentiles
from nextvec.serving.service import Model, Service

Json = dict[str, Any]
Rollout = Callable[[], Json | None]

FINE, COARSE, FINE_FOR = 1, 5, 180  # seconds of a point, while the server is younger than so many, and later
MINUTE, HISTOGRAM_SECONDS, RATE_SECONDS = 60, 300, 10
WIDE = 4  # bins of one bar
FRESH, SHARE = 1.0, 0.05  # seconds between two looks at the ledger and the runs; of the time that they may take
STUCK_DEADLINES = 10  # deadlines that one batch of chunks may take before the encoder counts as blocked
MOST_DOCUMENTS, MOST_SITTINGS = 300, 6


class Overview:
    """Gathers it. What needs a disk is read in a thread, and seldom.

    Args:
        rollout: how things stand, see :meth:`nextvec.serving.canary.Canary.status`; None where the server takes part in none.
    """

    def __init__(self, service: Service, rollout: Rollout) -> None:
        self._service, self._rollout = service, rollout
        self._reading = asyncio.Lock()
        self._read: Json = {}
        self._stale, self._epoch = -math.inf, (0, "")
        self._sat: dict[Path, Json] = {}
        self._weights = lru_cache(16)(_digest)

    async def told(self, documents: bool = False) -> Json:
        """Everything, JSON-able; with the documents of the bank, to pick from, where they are asked for."""
        async with self._reading:
            snapshot = self._service.snapshot
            epoch = (snapshot.epoch, snapshot.rollout)
            if time.monotonic() > self._stale or epoch != self._epoch:
                began = time.monotonic()
                self._read = await asyncio.get_running_loop().run_in_executor(None, self._from_disk, self._service.models)
                # What may be there unseen takes half a second to compute, and those who answer share this processor.
                self._stale, self._epoch = time.monotonic() + max(FRESH, (time.monotonic() - began) / SHARE), epoch
        found = {**self._now(), **self._read}
        if documents:
            bank = self._service.models[self._service.stable].engine.bank
            found["documents"] = await asyncio.get_running_loop().run_in_executor(None, documents_of, bank)
        return found

    def _now(self) -> Json:
        service, recent = self._service, self._service.metrics.recent
        stable = service.models[service.stable].engine
        trouble = unready(service)
        return {
            "server": {
                "version": nextvec.__version__,
                "ready": trouble is None,
                "trouble": trouble,
                "started": recent.started.isoformat(timespec="seconds"),
                "uptime": round(recent.uptime, 1),
            },
            "models": [
                {"name": name, "digest": model.engine.digest, "stable": name == service.stable, "weights": model.engine.weights}
                for name, model in service.models.items()
            ],
            "bank": {
                "rows": len(stable.bank),
                "documents": stable.bank.num_documents,
                "dim": stable.dim,
                "encoder": stable.bank.manifest.encoder,
                "text": stable.bank.manifest.text,
            },
            "sessions": {
                "open": len(service.contexts),
                "bytes": service.contexts.bytes,
                "state_bytes": service.states.bytes,
                "recent": [
                    {**service.describe(session), "idle": round(ago, 1)}
                    for session, ago in recent.sessions()
                    if session in service.contexts
                ],
            },
            "load": load_of(service),
            "lanes": None if service.lanes is None else service.lanes.told(),
        }

    def _from_disk(self, models: Mapping[str, Model]) -> Json:
        return {"rollout": self._told_rollout(), "runs": [self._run(model) for model in models.values()]}

    def _told_rollout(self) -> Json | None:
        try:
            told = self._rollout()
        except LedgerError:
            return {"current": None, "past": [], "trouble": "the ledger of rollouts cannot be read", "watching": False}
        if told is None or told["current"] is None:
            return told
        return {**told, "current": summary(told["current"])}

    def _run(self, model: Model) -> Json:
        """What a run's folder says: how it was trained, and every exam that its present weights have sat."""
        found: Json = {"name": model.name, "model": None, "context": None, "updates": None, "valid": None, "exams": []}
        try:
            run = Run.open(model.run)
            looks, sat = run.history(), self._sittings(run)
        except (NextvecError, OSError):
            return {**found, "trouble": "its folder cannot be read any more"}
        best = next((look["valid"] for look in reversed(looks) if look["best"]), None)
        return {
            **found,
            "trouble": None,
            "recipe": run.recipe,
            "model": run.settings.model,
            "context": run.settings.context,
            "updates": looks[-1]["update"] if looks else None,
            "kept": kept_at(run) if best else None,
            "valid": best and {"value": best["hit@5"], "low": best["low"], "high": best["high"]},
            "exams": sat,
        }

    def _sittings(self, run: Run) -> list[Json]:
        folder = run.path / SITTINGS
        files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
        held = (run.path / BEST).stat() if files else None
        weights = self._weights(run.path / BEST, held.st_mtime_ns, held.st_size) if held else ""
        mine = [file for file in files if file.stem.endswith(f"-{weights}")][:MOST_SITTINGS]
        for file in mine:
            if file not in self._sat:
                self._sat[file] = sitting(file)
        return sorted((self._sat[file] for file in mine), key=lambda sat: -sat["candidates"]["most"])


def _digest(file: Path, _written: int, _size: int) -> str:
    """How a kept answer names the weights that gave it; read again only where the file has changed."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def unready(service: Service) -> str | None:
    """Why a server takes no requests, or not all of them; None where it does."""
    if not service.ready:
        return "this server is stopping"
    stable = service.models[service.stable].engine
    if isinstance(stable, EngineProcess) and stable.fault is not None:
        return stable.fault
    if service.texts.stuck(STUCK_DEADLINES * service.limits.deadline):
        return "the encoder has not finished a batch for long; texts are not answered"
    trouble = service.contexts.trouble()
    return f"{trouble}; predictions go on" if trouble is not None else None


def load_of(service: Service) -> Json:
    """The last minutes in points, the last five in a histogram, the last one in figures."""
    recent = service.metrics.recent
    young = recent.uptime < FINE_FOR
    step, span = (FINE, FINE_FOR) if young else (COARSE, SECONDS)
    counts = recent.histogram(HISTOGRAM_SECONDS)
    last, minute = recent.points(RATE_SECONDS, RATE_SECONDS)[0], recent.points(MINUTE, MINUTE)[0]
    seconds = max(1.0, min(recent.uptime, RATE_SECONDS))
    return {
        "queue": service.waiting,
        "budget": service.limits.budget,
        "rate": last.answers / seconds,
        "minute": {name: getattr(minute, name) for name in ("answers", "refused", "failed", "p50", "p95", "p99")},
        "step": step,
        "points": [astuple(point) for point in recent.points(span, step)],
        "histogram": {
            "seconds": HISTOGRAM_SECONDS,
            "edges": edges()[::WIDE].tolist(),
            "counts": counts.reshape(BINS // WIDE, WIDE).sum(1).tolist(),
            "within": within(counts, service.limits.budget),
            "p95": percentiles(counts, (0.95,))[0],
        },
    }


def within(counts: np.ndarray, seconds: float) -> float | None:
    """The share of answers that took no longer, as bins tell; None without answers."""
    total = int(counts.sum())
    whole = int(np.searchsorted(edges(), seconds * 10 ** (0.5 / DECADE))) - 1
    return float(counts[: max(whole, 0)].sum() / total) if total else None


def sitting(file: Path) -> Json:
    """A kept answer to an exam: Hit@5 with its interval, and the terms it was sat on.

    Raises:
        NextvecError: the file is damaged.
    """
    exam, context, _ = file.stem.rsplit("-", 2)
    try:
        ranks = Ranks(**load(file.read_bytes()))
    except (SafetensorError, TypeError) as error:
        raise NextvecError(f"{file.name} is damaged: {error}") from None
    return {
        "exam": exam,
        "context": None if context == "all" else int(context),
        **candidate_terms(ranks.candidates),
        "rows": len(ranks),
        "documents": len(np.unique(ranks.clusters)),
        "hit@5": ranks.hit(5).to_json(),
        "chance": ranks.chance(5),
    }


def documents_of(bank: Bank) -> list[Json]:
    """The first documents of a bank: title, first row, rows."""
    bounds = pairwise(bank.offsets[: MOST_DOCUMENTS + 1].tolist())
    return [
        {"title": title or name, "first": first, "rows": stop - first}
        for (name, title), (first, stop) in zip(bank.documents[:MOST_DOCUMENTS], bounds, strict=True)
    ]


def summary(report: Json) -> Json:
    """A rollout's report as a page draws it: where it is on the ladder, and how near each stream is to a verdict."""
    plan, evidence = Plan.from_json(report["plan"]), Evidence.from_json(report["evidence"])
    state = State(plan).named(report["state"], 1)
    kept = ("rollout", "state", "ended", "stable", "canary", "parent", "steps", "detectable", "next", "cause")
    return {
        **{name: report[name] for name in kept},
        "harm": plan.harm,
        "gated": plan.gated,
        "weight": report["weight"],
        "paused": state.paused_from is not None,
        "down": state.phase in (Phase.ROLLING_BACK, Phase.ROLLED_BACK, Phase.REJECTED),
        "ladder": _ladder(plan),
        "at": _reached(plan, [step["to"] for step in report["steps"]]),
        "seen": int(units_at(state.weight, evidence.counts, evidence.pairs)),
        "streams": [_stream(evidence, stream, verdict) for stream, verdict in evidence.verdict().streams.items()],
    }


def _ladder(plan: Plan) -> list[Json]:
    def stop(name: str, step: CanaryStep) -> Json:
        return {"name": name, "weight": step.weight, "units": step.units, "seconds": step.dwell}

    steps = [stop("canary", step) for step in plan.steps[:-1]]
    return [stop("shadow", plan.shadow), *steps, stop("hold-back", plan.steps[-1]), stop("promoted", CanaryStep(100.0, 0.0, 0))]


def _reached(plan: Plan, names: list[str]) -> int:
    """The last place on the ladder that a rollout has stood on; -1 for a draft."""
    for name in reversed(names):
        state = State(plan).named(name, 1)
        if state.phase is Phase.PROMOTED:
            return len(plan.steps) + 1
        if state.active_phase in (Phase.SHADOW, Phase.CANARY, Phase.FULL):
            return state.segment
    return -1


def _stream(evidence: Evidence, stream: str, verdict: str) -> Json:
    worse, ok = evidence.log_e(stream)
    return {
        "stream": stream,
        "verdict": verdict,
        "worse": {"log_e": worse, "bound": -math.log(evidence.guardrails[stream].alpha)},
        "ok": {"log_e": ok, "bound": -math.log(ALPHA_OK)},
        "arms": {
            arm: {"units": evidence.count(stream, arm), "bad": evidence.count(stream, arm, bad=True)}
            for arm in (STABLE, CANARY)
        },
        "pairs": sum(count for (of, _), count in evidence.pairs.items() if of == stream),
    }
