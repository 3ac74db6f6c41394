"""The verb ``rollout`` and its actions."""

import getpass
from argparse import ArgumentParser, Namespace
from pathlib import Path

from nextvec.cli.arguments import add_candidate_bank, add_refit, add_weights
from nextvec.cli.verb import Verb, VerbGroup

LEDGER = "rollouts.db"


def _one_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "rollout",
        nargs="?",
        metavar="ROLLOUT",
        help="id of the rollout (default: the active rollout, or the last one if none is active)",
    )
    _ledger_arguments(parser)


def _ledger_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--ledger", default=LEDGER, metavar="FILE|URL", help=f"SQLite file or postgresql://… (default: {LEDGER})"
    )
    parser.add_argument("--route", default="default", help="route of the rollouts (default: default)")


def _actor_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--by", default=getpass.getuser(), metavar="NAME", help="name that the ledger records (default: your user name)"
    )


def _start_arguments(parser: ArgumentParser) -> None:
    _ledger_arguments(parser)
    parser.add_argument(
        "canary", type=Path, metavar="RUN|BANK", help="the canary; its folder must be beside that of the stable model"
    )
    parser.add_argument(
        "--over",
        type=Path,
        required=True,
        metavar="RUN|BANK",
        help="the stable model, which answers requests now: a run, or a bank that is served without training",
    )
    parser.add_argument("--id", help="id of the rollout (default: the name of the canary with the time)")
    add_candidate_bank(parser)
    add_refit(parser)
    add_weights(parser)
    parser.add_argument(
        "--harm",
        type=float,
        default=3.0,
        help="smallest increase of failures that every step must detect, as a multiple of the stable rate (default: 3)",
    )
    parser.add_argument(
        "--base", type=float, default=0.01, help="approximate share of the stable run's sessions that fail (default: 0.01)"
    )
    parser.add_argument(
        "--dwell", type=float, default=900.0, metavar="SECONDS", help="shortest duration of a step (default: 900)"
    )
    parser.add_argument(
        "--pairs", type=int, default=1_000, help="mirrored sessions before the canary gets traffic (default: 1000)"
    )
    parser.add_argument(
        "--lanes",
        type=Path,
        metavar="FOLDER",
        help="compare the arms in each lane; give the --lanes folder of the servers (default: by context length)",
    )
    parser.add_argument("--gated", action="store_true", help="pause before every step until a person promotes")
    parser.add_argument(
        "--budget",
        type=float,
        default=100.0,
        metavar="MS",
        help="largest accepted P95 of the canary's answers in the checks, in ms (default: 100)",
    )
    _actor_arguments(parser)


def _watch_arguments(parser: ArgumentParser) -> None:
    _one_arguments(parser)
    parser.add_argument(
        "--every", type=float, default=2.0, metavar="SECONDS", help="time between two reads of the ledger (default: 2)"
    )


def _person_arguments(parser: ArgumentParser) -> None:
    _one_arguments(parser)
    parser.add_argument("--reason", default="", help="reason that the ledger records")
    parser.add_argument("--epoch", type=int, help="act only if the rollout is still in this epoch")
    _actor_arguments(parser)


def _simulate_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "traffic",
        nargs="?",
        type=Path,
        help=".jsonl or .parquet file with time, session, n_vectors, latency_ms, failed, hit (default: synthetic traffic)",
    )
    parser.add_argument("--rollouts", type=int, default=100, help="number of simulated rollouts of each harm (default: 100)")
    parser.add_argument(
        "--requests", type=int, default=200_000, help="number of requests of synthetic traffic (default: 200000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulation (default: 0)")


def _rollout(arguments: Namespace) -> int:
    from nextvec.cli.rollout import rollout

    return rollout(arguments)


ROLLOUT = VerbGroup(
    "rollout",
    "compare a canary with the stable model on live sessions, and roll it back if it is worse",
    "A ledger is a database that stores the rollouts. Servers take part in them with nextvec serve --ledger.",
    "action",
    (
        Verb(
            "start",
            "check a canary and begin its rollout in the shadow, where users get only stable's answers",
            "Reads two runs, checks the canary against the stable run, and writes a rollout to the ledger. The exit code is 1 "
            "if a check fails.",
            "nextvec rollout start runs/second --over runs/first",
            _start_arguments,
            _rollout,
        ),
        Verb(
            "status",
            "show the state of a rollout, its evidence, and the smallest detectable effect",
            "Reads the ledger and prints the state and the evidence of a rollout. Writes nothing.",
            "nextvec rollout status",
            _one_arguments,
            _rollout,
        ),
        Verb(
            "watch",
            "follow a rollout until it ends",
            "Reads the ledger repeatedly and prints each step. Writes nothing. The exit code is 0 if the canary is promoted, "
            "and 1 if the rollout ends in another way.",
            "nextvec rollout watch",
            _watch_arguments,
            _rollout,
        ),
        Verb(
            "pause",
            "pause a rollout: the canary keeps its share of the sessions",
            "Writes the command to the ledger. The canary keeps its share of the sessions. The servers still test for harm, "
            "and harm still rolls the canary back.",
            "nextvec rollout pause --reason 'on call is away'",
            _person_arguments,
            _rollout,
        ),
        Verb(
            "resume",
            "continue a paused rollout",
            "Writes the command to the ledger. The rollout continues at the step where it was paused.",
            "nextvec rollout resume",
            _person_arguments,
            _rollout,
        ),
        Verb(
            "abort",
            "end a rollout: all sessions go to stable immediately",
            "Writes the command to the ledger. The canary gets no more sessions, and the rollout ends.",
            "nextvec rollout abort --reason 'wrong weights'",
            _person_arguments,
            _rollout,
        ),
        Verb(
            "promote",
            "go to the next step without waiting for evidence",
            "Writes the command to the ledger. The canary goes to the next step. The command is refused if a guardrail is "
            "worse.",
            "nextvec rollout promote --reason 'checked by hand'",
            _person_arguments,
            _rollout,
        ),
        Verb(
            "history",
            "list every change of all rollouts, or of one rollout",
            "Reads the ledger and prints its rows. Writes nothing.",
            "nextvec rollout history",
            _one_arguments,
            _rollout,
        ),
        Verb(
            "verify",
            "check the hash chain of the ledger",
            "Reads every row of the ledger and checks that it contains the hash of the row before it. Writes nothing.",
            "nextvec rollout verify",
            _ledger_arguments,
            _rollout,
        ),
        Verb(
            "export",
            "print every row of the ledger as one line of JSON",
            "Reads the ledger and prints its rows to standard output. It can also read a damaged ledger. Writes nothing.",
            "nextvec rollout export",
            _ledger_arguments,
            _rollout,
        ),
        Verb(
            "simulate",
            "simulate rollouts, and measure how often and how soon a canary is rolled back",
            "Reads recorded traffic, or makes synthetic traffic, and simulates rollouts of canaries with known harm by several "
            "rules. Writes nothing.",
            "nextvec rollout simulate --rollouts 20",
            _simulate_arguments,
            _rollout,
        ),
    ),
)
