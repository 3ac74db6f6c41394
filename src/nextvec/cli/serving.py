"""The verb `serve`: a run behind HTTP."""

import asyncio
import json
import os
import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nextvec.errors import ServingError, SettingsError

if TYPE_CHECKING:
    from nextvec.bank.verification import Verify
    from nextvec.inference import Engine
    from nextvec.kernels.weights import WeightFormat
    from nextvec.rollout.ledger import Ledger
    from nextvec.rollout.promotions import Start
    from nextvec.serving.canary import Canary
    from nextvec.serving.listening import ListenAddress
    from nextvec.serving.observations import LabelledPrediction
    from nextvec.serving.service import Service

HOST, PORT = "127.0.0.1", 8080
NEEDS = ("starlette", "uvicorn", "httptools", "msgspec", "orjson", "prometheus_client")


def add_arguments(serve: ArgumentParser) -> None:
    """What `nextvec serve` takes."""
    serve.add_argument(
        "run", type=Path, nargs="+", metavar="RUN", help="trained runs, named by their folders; the first one answers"
    )
    serve.add_argument("--long", metavar="NAME", help="the run that answers contexts above --threshold")
    serve.add_argument("--threshold", type=int, metavar="VECTORS", help="the longest context that the first run answers")
    serve.add_argument("--lanes", type=Path, metavar="FOLDER", help="tell sessions' lanes; made by nextvec lanes BANK --out")
    serve.add_argument(
        "--expert",
        action="append",
        default=[],
        metavar="LANE=NAME",
        help="the run that answers sessions of a lane; while it fails, the first run does",
    )
    serve.add_argument("--ledger", metavar="FILE|URL", help="of rollouts (nextvec rollout), to take part in them")
    serve.add_argument("--route", default="default", help="whose rollouts (default)")
    serve.add_argument("--node", default="server", help="this process's name in the ledger (server)")
    serve.add_argument("--turn", type=float, default=1.0, metavar="SECONDS", help="between two looks at the ledger (1)")
    serve.add_argument("--idle", type=float, default=600.0, metavar="SECONDS", help="then a session counts as ended (600)")
    serve.add_argument(
        "--settle", type=float, default=300.0, metavar="SECONDS", help="then a session counts though it has not ended (300)"
    )
    serve.add_argument("--mirror", type=float, default=100.0, metavar="PERCENT", help="of sessions, in the shadow (100)")
    serve.add_argument(
        "--on-end",
        metavar="COMMAND",
        help="started without a shell when a rollout ends, with what happened as JSON on its input",
    )
    serve.add_argument("--webhook", metavar="URL", help="gets the same by POST")
    serve.add_argument("--bank", type=Path, help="where candidates come from (default: the bank it was trained on)")
    serve.add_argument(
        "--sessions", type=Path, metavar="FOLDER", help="of the sessions' contexts (sessions, beside the runs' folders)"
    )
    serve.add_argument(
        "--session-ttl", type=float, metavar="SECONDS", help="delete sessions that were not used for so long (never)"
    )
    serve.add_argument("--max-sessions", type=int, metavar="N", help="refuse to begin more (no limit)")
    serve.add_argument("--host", help="where to listen (127.0.0.1); anything else needs --keys")
    serve.add_argument("--port", type=int, help="0 takes a free one (8080)")
    serve.add_argument("--unix", type=Path, metavar="PATH", help="listen on a socket in the file system, not on a port")
    serve.add_argument(
        "--root-path", default="", metavar="/PATH", help="where a proxy shows this server; the proxy strips it from requests"
    )
    serve.add_argument(
        "--cors", action="append", default=[], metavar="ORIGIN", help="pages of this origin may ask, http(s)://HOST[:PORT]"
    )
    serve.add_argument("--keys", type=Path, metavar="FILE", help="API keys; --add-key writes them")
    serve.add_argument(
        "--add-key", metavar="NAME:RIGHT,RIGHT", help="make a key in --keys FILE, print its secret once, and stop"
    )
    serve.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="a name this server may be asked by")
    serve.add_argument(
        "--weights", choices=("auto", "float32", "bfloat16", "int8"), default="auto", help="how weights are held"
    )
    serve.add_argument("--state-mib", type=float, default=1024, help="memory for model states (1024)")
    serve.add_argument("--budget-ms", type=float, default=100.0, help="a request that would wait longer is refused (100)")
    serve.add_argument("--deadline-ms", type=float, default=1000.0, help="of a request that names none (1000)")
    serve.add_argument("--threads", type=int, default=1, help="of one inference (1)")
    serve.add_argument(
        "--isolate", action="store_true", help="a process per run: one that is killed or hangs takes no other with it"
    )
    serve.add_argument(
        "--watchdog",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="end the process, with its stacks in the log, when it is stuck for so long; 0: never (60)",
    )
    serve.add_argument("--record", type=Path, metavar="FILE", help="traffic as .jsonl, for `nextvec rollout simulate`")
    serve.add_argument(
        "--log-requests", action="store_true", help="a JSON line per request on standard error, not only of failures"
    )


def add_verify(verb: ArgumentParser) -> None:
    """What every verb takes that opens a bank."""
    verb.add_argument(
        "--verify", action="store_true", help="hash the bank's content, even if its files look unchanged since the last time"
    )


def serve(arguments: Namespace) -> int:
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        raise SettingsError(f"serving needs {', '.join(missing)}: pip install 'nextvec[serve]'")
    if arguments.add_key:
        return _add_key(arguments)
    from nextvec.serving.isolated_engine import IsolatedEngine
    from nextvec.serving.limits import Limits
    from nextvec.serving.server import serve

    runs = _named(arguments.run)
    sessions = arguments.sessions or sessions_folder(arguments.run)
    if (arguments.long is None) != (arguments.threshold is None):
        raise SettingsError("--long NAME and --threshold VECTORS go together")

    positive = ("state_mib", "budget_ms", "deadline_ms", "threads", "turn", "idle", "settle")
    if (
        min(getattr(arguments, name) for name in positive) <= 0
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
    if arguments.ledger is None and (arguments.on_end or arguments.webhook):
        raise SettingsError("--on-end and --webhook tell of rollouts; give --ledger too")
    if arguments.webhook and not arguments.webhook.startswith(("http://", "https://")):
        raise SettingsError(f"--webhook {arguments.webhook!r}: give a URL that begins with http:// or https://")
    experts = _experts(arguments, runs)
    place = _place(arguments)
    limits = Limits(
        int(arguments.state_mib * 2**20),
        arguments.budget_ms / 1e3,
        arguments.deadline_ms / 1e3,
        arguments.idle,
        arguments.session_ttl,
        arguments.max_sessions,
    )
    ledger, start = _started(arguments, runs, set(experts.values()))

    def announce(url: str) -> None:
        print(json.dumps({"url": url}) if arguments.json else f"serving {', '.join(start.runs)} on {url}", flush=True)

    open_run = partial(_opened, arguments.bank, arguments.weights, "always" if arguments.verify else "once")
    serve(
        start.runs,
        partial(IsolatedEngine, open_run=open_run) if arguments.isolate else open_run,
        sessions,
        place,
        limits,
        announce,
        arguments.log_requests,
        arguments.threads,
        lambda service, tell: _joined(arguments, experts, ledger, start, service, tell),
    )
    return 0


def _place(arguments: Namespace) -> "ListenAddress":
    from nextvec.serving.cors import Cors, as_origin
    from nextvec.serving.guard import ON_LOOPBACK, Access
    from nextvec.serving.keys import read_keys
    from nextvec.serving.listening import ListenAddress

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


def _opened(bank: Path | None, weights: "WeightFormat | Literal['auto']", verify: "Verify", run: Path) -> "Engine":
    """At the top of a module, for another process to find it."""
    from nextvec.inference import Engine, bank_of
    from nextvec.runs import Run

    opened = Run.open(run)
    return Engine.open(opened, bank_of(opened, bank, verify), weights=weights)


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
        raise SettingsError("--expert needs --lanes FOLDER, which tells what lane a session is in")
    return experts


def sessions_folder(runs: list[Path]) -> Path:
    """The folder of sessions where none is named: the same whichever of the runs is named first, or promoted.

    Earlier versions kept sessions inside the folder of the first run; where such a folder exists it is used.

    Raises:
        ServingError: the runs lie in several folders, or several of the earlier kind are found.
    """
    from nextvec.serving.context_log import MANIFEST

    folders = {run.resolve().parent for run in runs}
    if len(folders) > 1:
        raise ServingError("the runs lie in several folders; say where the sessions are kept: --sessions FOLDER")
    default = folders.pop() / "sessions"
    if (default / MANIFEST).exists():
        return default
    inside = sorted({run.resolve() / "sessions" for run in runs if (run / "sessions" / MANIFEST).exists()})
    inside = inside or sorted(found.parent for found in default.parent.glob(f"*/sessions/{MANIFEST}"))
    if len(inside) > 1:
        names = " and ".join(f"{folder.parent.name}/sessions" for folder in inside)
        raise ServingError(f"{default.parent} holds sessions in {names}; name the folder to use: --sessions FOLDER")
    return inside[0] if inside else default


def _started(arguments: Namespace, runs: dict[str, Path], experts: set[str]) -> "tuple[Ledger | None, Start]":
    """The ledger, and what to open once it has been followed.

    Raises:
        ServingError: the ledger is damaged, or a run that it says was promoted is not there.
    """
    from nextvec.rollout.opening import open_ledger
    from nextvec.rollout.promotions import Start, promotions, start

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
    ledger: "Ledger | None",
    start: "Start",
    service: "Service",
    tell: Callable[..., None],
) -> "Canary | None":
    from nextvec.lanes import Anchors
    from nextvec.serving.canary import Canary, Terms
    from nextvec.serving.lanes import ServedLanes
    from nextvec.serving.notices import Notices
    from nextvec.serving.watchdog import Watchdog

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


def _recording(path: Path, service: "Service") -> "Callable[[LabelledPrediction], None]":
    from nextvec.serving.log import Log

    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    log = Log(service.metrics, descriptor=descriptor)

    def record(s: "LabelledPrediction") -> None:
        said = {"time": s.time, "session": s.session, "n_vectors": s.vectors}
        log.line("answer", **said, latency_ms=1e3 * s.seconds, failed=s.failed, hit=s.hit)

    return record


def _beside(run: Path, name: str) -> Path:
    from nextvec.wire.fields import is_name

    path = run.resolve().parent / name
    if not is_name(name) or path.is_symlink() or not path.is_dir():
        raise ServingError(f"there is no run {name!r} beside {run.name!r}")
    return path


def _named(paths: list[Path]) -> dict[str, Path]:
    from nextvec.wire.fields import is_name

    runs: dict[str, Path] = {}
    for path in paths:
        name = path.resolve().name
        if not is_name(name) or name in runs:
            raise SettingsError(f"run {path} is served as {name!r}: name folders by 1 to 64 of A-Z a-z 0-9 _ -, each once")
        runs[name] = path
    return runs


def _add_key(arguments: Namespace) -> int:
    from nextvec.bank.layout import write_atomically
    from nextvec.serving.keys import Key, read_keys
    from nextvec.serving.rights import RIGHTS

    name, _, rights = arguments.add_key.partition(":")
    chosen = rights.split(",") if rights else ["predict", "session"]
    if arguments.keys is None or not name or not set(chosen) <= set(RIGHTS):
        raise SettingsError(f"--add-key wants --keys FILE and NAME:RIGHT,RIGHT with rights among {', '.join(RIGHTS)}")
    held = list(read_keys(arguments.keys)) if arguments.keys.exists() else []
    if any(key.name == name for key in held):
        raise ServingError(f"{arguments.keys} has a key {name!r} already; take it out first")
    key, secret = Key.new(name, chosen)
    write_atomically(arguments.keys, json.dumps([k.to_json() for k in [*held, key]], indent=1) + "\n")
    arguments.keys.chmod(0o600)
    print(json.dumps({"name": name, "secret": secret}) if arguments.json else secret)
    print("this is shown once; the file holds its sha256 only", file=sys.stderr)
    return 0
