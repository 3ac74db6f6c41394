"""The verb ``serve``."""

from argparse import ArgumentParser, Namespace
from importlib.util import find_spec
from pathlib import Path

from nextvec.cli.arguments import add_candidate_bank, add_refit, add_weights
from nextvec.cli.verb import Verb
from nextvec.errors import SettingsError

NEEDS = ("starlette", "uvicorn", "httptools", "msgspec", "prometheus_client")


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "run",
        type=Path,
        nargs="+",
        metavar="RUN|BANK",
        help="trained runs, or a bank, whose rows the weights of the package predict without training; each is named by its "
        "folder, a bank without the ending .bank; the first is the stable model",
    )
    for add in (_models, _sessions, _address, _access, _limits, _rollouts, _operation):
        add(parser)


def _models(parser: ArgumentParser) -> None:
    parser.add_argument("--long", metavar="NAME", help="the run that answers contexts longer than --threshold")
    parser.add_argument(
        "--threshold", type=int, metavar="VECTORS", help="longest context that the first run answers, in vectors"
    )
    parser.add_argument(
        "--lanes",
        type=Path,
        metavar="FOLDER",
        help="report the lane of each session; made by nextvec lanes BANK --out FOLDER",
    )
    parser.add_argument(
        "--expert",
        action="append",
        default=[],
        metavar="LANE=NAME",
        help="run that answers the sessions of a lane; if it fails, the first run answers; may be given several times",
    )
    add_candidate_bank(parser)
    add_refit(parser)
    add_weights(parser)


def _sessions(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--sessions",
        type=Path,
        metavar="FOLDER",
        help="where the contexts of sessions are kept (default: sessions, beside the folders of the runs)",
    )
    parser.add_argument(
        "--session-ttl", type=float, metavar="SECONDS", help="delete sessions that were not used for this time (default: never)"
    )
    parser.add_argument("--max-sessions", type=int, metavar="N", help="largest number of sessions (default: no limit)")


def _address(parser: ArgumentParser) -> None:
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1); any other needs --keys")
    parser.add_argument("--port", type=int, help="port to listen on; 0 takes a free one (default: 8080)")
    parser.add_argument("--unix", type=Path, metavar="PATH", help="listen on a Unix socket instead of a port")
    parser.add_argument(
        "--root-path", default="", metavar="/PATH", help="path of this server at a proxy, which strips the path"
    )


def _access(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--cors",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="allow pages of this origin, http(s)://HOST[:PORT], to send requests; may be given several times",
    )
    parser.add_argument("--keys", type=Path, metavar="FILE", help="file of API keys; --add-key writes it")
    parser.add_argument(
        "--add-key", metavar="NAME:RIGHT,RIGHT", help="add a key to the file of --keys, print its secret once, and stop"
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="accept requests whose Host header has this name; may be given several times",
    )


def _limits(parser: ArgumentParser) -> None:
    parser.add_argument("--state-mib", type=float, default=1024, help="memory for model states, in MiB (default: 1024)")
    parser.add_argument(
        "--budget-ms", type=float, default=100.0, help="refuse a request that would wait longer than this, in ms (default: 100)"
    )
    parser.add_argument(
        "--deadline-ms", type=float, default=1000.0, help="deadline of a request without x-deadline-ms, in ms (default: 1000)"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of one model step (default: 1)")


def _rollouts(parser: ArgumentParser) -> None:
    parser.add_argument("--ledger", metavar="FILE|URL", help="take part in the rollouts of this ledger (see nextvec rollout)")
    parser.add_argument("--route", default="default", help="route whose rollouts this server takes part in (default: default)")
    parser.add_argument("--node", default="server", help="name of this process in the ledger (default: server)")
    parser.add_argument(
        "--turn", type=float, default=1.0, metavar="SECONDS", help="time between two reads of the ledger (default: 1)"
    )
    parser.add_argument(
        "--idle",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="a session without a request for this time counts as ended (default: 600)",
    )
    parser.add_argument(
        "--settle",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="a session counts in a rollout after this time, even if it has not ended (default: 300)",
    )
    parser.add_argument(
        "--mirror",
        type=float,
        default=100.0,
        metavar="PERCENT",
        help="share of the sessions that the canary also answers in the shadow (default: 100)",
    )
    parser.add_argument(
        "--on-end",
        metavar="COMMAND",
        help="run this command, without a shell, when a rollout ends; it reads the event as JSON from its standard input",
    )
    parser.add_argument("--webhook", metavar="URL", help="send the event of --on-end to this URL by POST")


def _operation(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--isolate", action="store_true", help="run each model in its own process, so that a crash stops only one model"
    )
    parser.add_argument(
        "--watchdog",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="end the process if it hangs for this time, and log its stacks; 0 disables this (default: 60)",
    )
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="append the traffic to a .jsonl file for nextvec rollout simulate"
    )
    parser.add_argument(
        "--log-requests", action="store_true", help="log every request as a JSON line on standard error, not only failures"
    )


def _serve(arguments: Namespace) -> int:
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        raise SettingsError(f"serving needs {', '.join(missing)}: pip install 'nextvec[serve]'")
    if arguments.add_key:
        from nextvec.cli.keys import add_key

        return add_key(arguments)
    from nextvec.cli.serving import serve

    return serve(arguments)


SERVE = Verb(
    "serve",
    "serve sessions and predictions over HTTP",
    "Reads runs and their bank, or a bank alone, and answers HTTP requests. Writes the contexts of sessions to a folder. "
    "Listens on the loopback address by default; another address needs API keys.",
    "nextvec serve runs/first",
    _arguments,
    _serve,
)
