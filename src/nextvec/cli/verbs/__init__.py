"""The verbs, in the order of ``nextvec --help``. Importing them imports neither torch nor the library."""

from nextvec.cli.verb import Verb, VerbGroup
from nextvec.cli.verbs.banks import BANKS
from nextvec.cli.verbs.completion import COMPLETION
from nextvec.cli.verbs.experiments import EXPERIMENTS
from nextvec.cli.verbs.rollout import ROLLOUT
from nextvec.cli.verbs.runs import DEMO, RUNS
from nextvec.cli.verbs.serving import SERVE

VERBS: tuple[Verb | VerbGroup, ...] = (DEMO, *BANKS, *RUNS, *EXPERIMENTS, SERVE, ROLLOUT, COMPLETION)

__all__ = ["VERBS"]
