"""The verb ``serve``: runs, or a bank without training, behind HTTP."""

import asyncio
import json
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from nextvec.bank.layout import Manifest
from nextvec.bank.verification import Verify
from nextvec.cli.banks import say_foreign
from nextvec.errors import ServingError, SettingsError
from nextvec.inference import Engine
from nextvec.kernels.weights import WeightFormat
from nextvec.lanes import Anchors
from nextvec.rollout.ledger import Ledger
from nextvec.rollout.opening import open_ledger
from nextvec.rollout.promotions import Start, promotions, start
from nextvec.runs import Run, bank_of, open_source
from nextvec.runs.sources import SUFFIX, is_bank, served_name
from nextvec.serving.canary import Canary, Terms
from nextvec.serving.cors import Cors, as_origin
from nextvec.serving.guard import ON_LOOPBACK, Access
from nextvec.serving.isolated_engine import IsolatedEngine
from nextvec.serving.keys import read_keys
from nextvec.serving.lanes import ServedLanes
from nextvec.serving.limits import Limits
from nextvec.serving.listening import ListenAddress
from nextvec.serving.log import Log
from nextvec.serving.notices import Notices
from nextvec.serving.observations import LabelledPrediction
from nextvec.serving.server import serve as run_server
from nextvec.serving.service import Service
from nextvec.serving.watchdog import Watchdog
from nextvec.wire.fields import is_name

HOST, PORT = "127.0.0.1", 8080
ABOVE_ZERO = ("state_mib", "budget_ms", "deadline_ms", "threads", "turn", "idle", "settle")


def serve(arguments: Namespace) -> int:
    """Serve until the process is told to stop."""
    runs = _named(arguments.run)
    sessions = arguments.sessions or sessions_folder(arguments.run)
    _check_numbers(arguments)
    _check_pairs(arguments)
    experts = _experts(arguments, runs)
    place = _place(arguments)
    ledger, begun = _started(arguments, runs, set(experts.values()))

    def announce(url: str) -> None:
        print(json.dumps({"url": url}) if arguments.json else f"serving {', '.join(begun.runs)} on {url}", flush=True)

    _say_foreign(arguments, begun.runs)
    verify: Verify = "always" if arguments.verify else "once"
    opening = partial(open_run, arguments.bank, arguments.weights, verify, refit=arguments.refit)
    run_server(
        begun.runs,
        partial(IsolatedEngine, open_run=opening) if arguments.isolate else opening,
        sessions,
        place,
        _limits(arguments),
        announce,
        arguments.log_requests,
        arguments.threads,
        lambda service, tell: _joined(arguments, experts, ledger, begun, service, tell),
    )
    return 0


def _check_numbers(arguments: Namespace) -> None:
    if (
        min(getattr(arguments, name) for name in ABOVE_ZERO) <= 0
        or arguments.watchdog < 0
        or not 0 <= (arguments.port or 0) < 65_536
        or not 0 <= arguments.mirror <= 100
    ):
        raise SettingsError(
            "--state-mib, --budget-ms, --deadline-ms, --threads, --turn, --idle and --settle must be above 0, "
            "--watchdog 0 or more, --port below 65536, --mirror a percentage"
        )
    if min(arguments.session_ttl or 1.0, arguments.max_sessions or 1) <= 0 or arguments.max_sessions == 0:
        raise SettingsError("--session-ttl and --max-sessions must be above 0")


def _check_pairs(arguments: Namespace) -> None:
    """Arguments that need each other."""
    if (arguments.long is None) != (arguments.threshold is None):
        raise SettingsError("--long NAME and --threshold VECTORS go together")
    if arguments.ledger is None and (arguments.on_end or arguments.webhook):
        raise SettingsError("--on-end and --webhook report the end of a rollout; give --ledger too")
    if arguments.webhook and not arguments.webhook.startswith(("http://", "https://")):
        raise SettingsError(f"--webhook {arguments.webhook!r}: give a URL that begins with http:// or https://")


def _limits(arguments: Namespace) -> Limits:
    return Limits(
        int(arguments.state_mib * 2**20),
        arguments.budget_ms / 1e3,
        arguments.deadline_ms / 1e3,
        arguments.idle,
        arguments.session_ttl,
        arguments.max_sessions,
    )


def _place(arguments: Namespace) -> ListenAddress:
    if arguments.unix is not None and (arguments.port is not None or arguments.host is not None):
        raise SettingsError("--unix PATH takes the place of --host and --port; give one or the other")
    host = HOST if arguments.host is None else arguments.host
    port = PORT if arguments.port is None else arguments.port
    keys = read_keys(arguments.keys) if arguments.keys else ()
    hosts = ON_LOOPBACK | {host} | set(arguments.allow_host)
    access = Access(keys, hosts, Cors(as_origin(origin) for origin in arguments.cors))
    place = ListenAddress(host, port, access, arguments.unix, arguments.root_path)
    place.check()
    return place


def open_run(
    bank: Path | None, weights: WeightFormat | Literal["auto"], verify: Verify, run: Path, refit: bool = False
) -> Engine:
    """A run or a bank ready to answer. At the top of a module, so that another process can import it."""
    source = open_source(run, verify)
    held = bank_of(source, bank, verify)
    if not sys.stderr.isatty():  # the server's log is there
        return Engine.open(source, held, weights=weights, refit=refit)
    from nextvec.cli.show import Bars

    with Bars() as bars:
        return Engine.open(source, held, weights=weights, refit=refit, progress=bars)


def _say_foreign(arguments: Namespace, runs: dict[str, Path]) -> None:
    """A line for each run that predicts the rows of another bank than its own."""
    if arguments.bank is not None:
        fingerprint = Manifest.read(arguments.bank).fingerprint
        for path in runs.values():
            if not is_bank(path):
                say_foreign(Run.open(path), arguments.bank, fingerprint, arguments.refit)


def _experts(arguments: Namespace, runs: dict[str, Path]) -> dict[str, str]:
    experts: dict[str, str] = {}
    for assignment in arguments.expert:
        lane, equals, name = assignment.rpartition("=")
        if not equals or not lane or lane in experts:
            raise SettingsError(f"--expert {assignment!r}: want LANE=NAME, each lane once")
        if name not in runs:
            raise SettingsError(f"--expert {assignment!r}: {name!r} is not served; name one of {', '.join(runs)}")
        experts[lane] = name
    if experts and arguments.lanes is None:
        raise SettingsError("--expert needs --lanes FOLDER, which gives each session a lane")
    return experts


def sessions_folder(runs: list[Path]) -> Path:
    """The default folder of sessions: ``sessions`` beside the runs, in whichever order they are named.

    Raises:
        ServingError: the runs lie in several folders.
    """
    folders = {run.resolve().parent for run in runs}
    if len(folders) > 1:
        raise ServingError("the runs lie in several folders; say where the sessions are kept: --sessions FOLDER")
    return folders.pop() / "sessions"


def _started(arguments: Namespace, runs: dict[str, Path], experts: set[str]) -> tuple[Ledger | None, Start]:
    """The ledger, and the runs to open: those that were named, or the runs that were promoted over them.

    Raises:
        ServingError: the ledger is damaged, or the folder of a promoted run is missing.
    """
    if arguments.long is not None and arguments.long not in runs:
        raise ServingError(f"model {arguments.long!r} is not served; name one of {', '.join(runs)}")
    if arguments.ledger is None:
        return None, Start(runs, arguments.long, {})
    ledger = open_ledger(arguments.ledger)
    route = arguments.route

    def beside(name: str) -> Path:
        try:
            return _beside(arguments.run[0], name)
        except ServingError as error:
            raise ServingError(
                f"{ledger.where} says that {name} was promoted on {route!r}, but {error}; restore it, or give another --route"
            ) from None

    try:
        return ledger, start(runs, arguments.long, experts, promotions(ledger, route), beside)
    except ServingError:
        ledger.close()
        raise


def _joined(
    arguments: Namespace,
    experts: dict[str, str],
    ledger: Ledger | None,
    start: Start,
    service: Service,
    tell: Callable[..., None],
) -> Canary | None:
    if arguments.watchdog:
        Watchdog(asyncio.get_running_loop(), arguments.watchdog)
    if arguments.record is not None:
        service.listeners.record = _recording(arguments.record, service)
    if start.long is not None:
        service.routing.divide(arguments.threshold, start.long)
    if arguments.lanes is not None:
        anchors = Anchors.open(arguments.lanes, service.encoder, service.dim)
        service.routing.specialise(ServedLanes(anchors, experts, service.metrics))
    if ledger is None:
        return None
    terms = Terms(arguments.route, arguments.node, arguments.turn, arguments.settle, arguments.mirror)
    command = shlex.split(arguments.on_end or "")
    notices = Notices(command, arguments.webhook, tell) if command or arguments.webhook else None
    # A name in the ledger opens nothing but a folder beside the first run.
    return Canary(service, ledger, lambda name: _beside(arguments.run[0], name), tell, terms, start.digests, notices)


def _recording(path: Path, service: Service) -> Callable[[LabelledPrediction], None]:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    log = Log(service.metrics, descriptor=descriptor)

    def record(s: "LabelledPrediction") -> None:
        said = {"time": s.time, "session": s.session, "n_vectors": s.vectors}
        log.line("answer", **said, latency_ms=1e3 * s.seconds, failed=s.failed, hit=s.hit)

    return record


def _beside(run: Path, name: str) -> Path:
    folder = run.resolve().parent
    path = next((path for path in (folder / name, folder / (name + SUFFIX)) if path.is_dir()), None)
    if not is_name(name) or path is None or path.is_symlink():
        raise ServingError(f"there is no run {name!r} beside {run.name!r}")
    return path


def _named(paths: list[Path]) -> dict[str, Path]:
    runs: dict[str, Path] = {}
    for path in paths:
        name = served_name(path)
        if not is_name(name) or name in runs:
            raise SettingsError(f"run {path} is served as {name!r}: name folders by 1 to 64 of A-Z a-z 0-9 _ -, each once")
        runs[name] = path
    return runs
