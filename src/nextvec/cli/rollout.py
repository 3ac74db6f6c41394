"""The verb `rollout`: start, follow and control the rollout of a canary."""

import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextvec.errors import DataError, ServingError, SettingsError

if TYPE_CHECKING:
    from nextvec.inference import Engine
    from nextvec.rollout.ledger import Ledger


def rollout(arguments: Namespace) -> int:
    actions: dict[str, Callable[[Namespace], int]] = {
        "start": _start,
        "status": _status,
        "watch": _watch,
        "history": _history,
        "verify": _verify,
        "export": _export,
        "simulate": _simulate,
    }
    return actions.get(arguments.action, _intervene)(arguments)


def _strata(folder: Path, stable: "Engine") -> tuple[str, ...]:
    from nextvec.lanes import Anchors
    from nextvec.serving.lanes import strata

    return strata(Anchors.open(folder, stable.encoder_fingerprint, stable.dim))


def _start(arguments: Namespace) -> int:
    from nextvec.cli.banks import open_bank_of, open_source
    from nextvec.cli.show import Bars
    from nextvec.inference import Engine
    from nextvec.rollout.evidence import Evidence
    from nextvec.rollout.lifecycle import create, intervene
    from nextvec.rollout.plan import CanaryStep, Plan
    from nextvec.rollout.promotions import identity
    from nextvec.rollout.transition import Command
    from nextvec.rollout.units import bands
    from nextvec.runs.sources import served_name
    from nextvec.serving.preflight import preflight
    from nextvec.wire.fields import is_name

    names = [served_name(path) for path in (arguments.over, arguments.canary)]
    chosen = arguments.id or f"{names[1]}-{datetime.now(UTC):%Y%m%dT%H%M%S}"[-64:]
    for name in (*names, chosen):
        if not is_name(name):
            raise SettingsError(f"{name!r} is not 1 to 64 of A-Z a-z 0-9 _ -")
    if min(arguments.dwell, arguments.pairs, arguments.budget) <= 0:
        raise SettingsError("--dwell, --pairs and --budget must be above 0")
    plan = Plan.detecting(arguments.harm, arguments.base, arguments.dwell)
    plan = Plan(plan.harm, plan.base, plan.steps, CanaryStep(0.0, arguments.dwell, arguments.pairs), gated=arguments.gated)
    ledger = _opened(arguments, create=True)
    sources = [open_source(path, arguments) for path in (arguments.over, arguments.canary)]
    stable, canary = (
        Engine.open(source, open_bank_of(source, arguments), weights=arguments.weights, refit=arguments.refit)
        for source in sources
    )
    with Bars() as bars:
        checked = preflight(stable, canary, arguments.budget, progress=bars)
    models = [identity(name, engine.digest) for name, engine in zip(names, (stable, canary), strict=True)]
    if models[0] == models[1]:
        raise ServingError(f"{names[1]} is the stable model itself; there is nothing to compare")
    evidence = Evidence(_strata(arguments.lanes, stable) if arguments.lanes else bands())
    create(
        ledger, chosen, arguments.route, plan, stable=models[0], canary=models[1], actor=arguments.by, evidence=evidence
    )  # fmt: skip
    said = f"{checked.replays} replays, P95 {checked.p95:.1f} ms"
    record = intervene(ledger, chosen, Command("start", arguments.by, said, checked.failures))
    if arguments.json:
        print(json.dumps({"rollout": chosen, "state": record.state, "failures": checked.failures, "p95_ms": checked.p95}))
    else:
        print(f"{chosen}: {record.state} ({said})")
        for failure in checked.failures:
            print(f"  refused: {failure}")
        if not checked.failures:
            steps = ", ".join(f"{step.weight:g} % for {step.units:,} sessions" for step in plan.steps)
            print(f"  {plan.shadow.units:,} mirrored sessions, then {steps}")
            print(f"  each step detects failures at {plan.harm:g} times a rate of {plan.base:.2%} in 90 of 100 rollouts")
    return 1 if checked.failures else 0


def _intervene(arguments: Namespace) -> int:
    from nextvec.rollout.lifecycle import intervene
    from nextvec.rollout.status import caution
    from nextvec.rollout.transition import Command

    ledger = _opened(arguments)
    which = _which(ledger, arguments)
    record = intervene(ledger, which, Command(arguments.action, arguments.by, arguments.reason), arguments.epoch)
    warning = caution(record)
    if arguments.json:
        print(json.dumps({"rollout": which, "state": record.state, "epoch": record.epoch, "warning": warning}))
    else:
        print(f"{which}: {record.state}")
    if warning is not None:
        print(f"nextvec: warning: {warning}", file=sys.stderr)
    return 0


def _status(arguments: Namespace) -> int:
    from nextvec.cli import show_rollout
    from nextvec.rollout.status import status

    ledger = _opened(arguments)
    found = status(ledger, _which(ledger, arguments))
    if arguments.json:
        print(json.dumps(found))
    else:
        show_rollout.rollout_status(found)
    return 0


def _watch(arguments: Namespace) -> int:
    from nextvec.rollout.state import Phase
    from nextvec.rollout.status import status

    if arguments.every <= 0:
        raise SettingsError("--every must be above 0 seconds")
    ledger = _opened(arguments)
    which, printed = _which(ledger, arguments), 0
    while True:
        found = status(ledger, which)
        for row in found["steps"][printed:]:
            _line(row, arguments.json)
        printed = len(found["steps"])
        if found["ended"]:
            return 0 if found["state"] == Phase.PROMOTED else 1
        time.sleep(arguments.every)


def _line(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(row), flush=True)
        return
    weight = row.get("weight")
    at = f"  {weight[1]:g} %" if weight else ""
    print(f"{row['time'][:19]}  {row['from'] or '-'} → {row['to']}{at}  {row['cause']} ({row['actor']})", flush=True)


def _history(arguments: Namespace) -> int:
    from nextvec.rollout.status import weights

    ledger = _opened(arguments)
    rows = ledger.rows(arguments.rollout)
    routes = {name: ledger.record(name).route for name in {row.rollout for row in rows}}
    rows = [row for row in rows if routes[row.rollout] == arguments.route]
    if arguments.json:
        print(json.dumps({"rows": [row.to_json() for row in rows]}))
        return 0
    for row in rows:
        _line({**row.to_json(), "cause": f"{row.rollout}: {row.cause}", "weight": weights(row)}, False)
    return 0


def _verify(arguments: Namespace) -> int:
    ledger = _opened(arguments)
    count = ledger.verify()
    head = ledger.rows()[-1].hash if count else ""
    if arguments.json:
        print(json.dumps({"rows": count, "head": head}))
    else:
        print(f"{ledger.where}: {count} rows, all as they were written; head {head[:16] or '-'}")
    return 0


def _export(arguments: Namespace) -> int:
    from nextvec.rollout.opening import open_damaged

    for row in open_damaged(arguments.ledger).export():
        print(json.dumps(row))
    return 0


def _simulate(arguments: Namespace) -> int:
    from nextvec.cli import show, show_rollout
    from nextvec.rollout.simulation.harms import EQUAL, HARMS
    from nextvec.rollout.simulation.table import simulate
    from nextvec.rollout.simulation.traffic import recorded, synthetic

    if min(arguments.rollouts, arguments.requests) < 1:
        raise SettingsError("--rollouts and --requests must be 1 or more")
    if arguments.traffic is not None and not arguments.traffic.exists():
        raise DataError(f"{arguments.traffic}: no such file")
    traffic = partial(synthetic, requests=arguments.requests) if arguments.traffic is None else recorded(arguments.traffic)
    rows: list[dict[str, Any]] = []
    harms = (EQUAL, *HARMS)
    with show.Bars() as bars:
        for n, harm in enumerate(harms):
            rows += simulate(traffic, [harm], arguments.rollouts, arguments.seed)
            bars("harms", n + 1, len(harms), harm.name)
    if arguments.json:
        print(json.dumps({"rows": rows}))
    else:
        show_rollout.simulation(rows, arguments.rollouts)
    return 0


def _opened(arguments: Namespace, create: bool = False) -> "Ledger":
    from nextvec.rollout.opening import open_ledger

    if not create and "://" not in arguments.ledger and not Path(arguments.ledger).exists():
        raise ServingError(f"{arguments.ledger}: there is no ledger; `nextvec rollout start` creates one")
    return open_ledger(arguments.ledger)


def _which(ledger: "Ledger", arguments: Namespace) -> str:
    if arguments.rollout:
        return str(arguments.rollout)
    active = ledger.active(arguments.route)
    if active is not None:
        return active.row.rollout
    rows: Sequence[Any] = ledger.rows()
    last = next((row.rollout for row in reversed(rows) if ledger.record(row.rollout).route == arguments.route), None)
    if last is None:
        raise ServingError(f"{ledger.where} has no rollout of route {arguments.route!r}; nextvec rollout start RUN --over RUN")
    return str(last)
