"""The verb `serve`: a run behind HTTP."""

import json
import sys
from argparse import ArgumentParser, Namespace
from importlib.util import find_spec
from pathlib import Path

from nextvec.errors import ServingError, SettingsError

NEEDS = ("starlette", "uvicorn", "httptools", "orjson", "prometheus_client")


def add_arguments(serve: ArgumentParser) -> None:
    """What `nextvec serve` takes."""
    serve.add_argument("run", type=Path, help="a trained run; answers are given under the name `stable`")
    serve.add_argument(
        "--also", action="append", default=[], metavar="NAME=RUN", help="another run, for routing; may be repeated"
    )
    serve.add_argument("--bank", type=Path, help="where candidates come from (default: the bank it was trained on)")
    serve.add_argument("--sessions", type=Path, help="folder of the sessions' contexts (RUN/sessions)")
    serve.add_argument("--host", default="127.0.0.1", help="where to listen (127.0.0.1); anything else needs --keys")
    serve.add_argument("--port", type=int, default=8080, help="0 takes a free one (8080)")
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
        "--log-requests", action="store_true", help="a JSON line per request on standard error, not only of failures"
    )


def serve(arguments: Namespace) -> int:
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        raise SettingsError(f"serving needs {', '.join(missing)}: pip install 'nextvec[serve]'")
    if arguments.add_key:
        return _add_key(arguments)
    from nextvec.bank import Bank
    from nextvec.inference import Engine
    from nextvec.serving.app import Place, serve
    from nextvec.serving.guard import ON_LOOPBACK, read_keys
    from nextvec.serving.service import Limits

    if (
        min(arguments.state_mib, arguments.budget_ms, arguments.deadline_ms, arguments.threads) <= 0
        or not 0 <= arguments.port < 65_536
    ):
        raise SettingsError("--state-mib, --budget-ms, --deadline-ms and --threads must be above 0, --port below 65536")
    bank = Bank.open(arguments.bank) if arguments.bank else None
    keys = read_keys(arguments.keys) if arguments.keys else ()
    place = Place(arguments.host, arguments.port, keys, ON_LOOPBACK | set(arguments.allow_host))
    limits = Limits(int(arguments.state_mib * 2**20), arguments.budget_ms / 1e3, arguments.deadline_ms / 1e3)

    def announce(url: str) -> None:
        print(json.dumps({"url": url}) if arguments.json else f"serving {arguments.run} on {url}", flush=True)

    serve(
        {"stable": arguments.run, **_others(arguments.also)},
        lambda run: Engine.open(run, bank, weights=arguments.weights),
        arguments.sessions or arguments.run / "sessions",
        place,
        limits,
        announce,
        arguments.log_requests,
        arguments.threads,
    )
    return 0


def _others(given: list[str]) -> dict[str, Path]:
    from nextvec.serving.wire import NAME

    others: dict[str, Path] = {}
    for text in given:
        name, equals, run = text.partition("=")
        if not equals or not NAME.fullmatch(name) or name in ("stable", *others):
            raise SettingsError(f"--also {text!r} is not NAME=RUN with a name of its own")
        others[name] = Path(run)
    return others


def _add_key(arguments: Namespace) -> int:
    from nextvec.bank.layout import write_atomically
    from nextvec.serving.guard import RIGHTS, Key, read_keys

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
