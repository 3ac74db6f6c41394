"""Searches: where no grid is known, Optuna proposes the next point from what the points before it reached."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextvec.bank import Bank
from nextvec.errors import SettingsError
from nextvec.experiments.points import Point, Sweep
from nextvec.experiments.sweep import Question, judged, parse_list
from nextvec.progress import Progress, silent
from nextvec.runs.seeds import generator_seed

STORAGE = "trials.sqlite"
PROPOSAL = 11  # purpose of a generator, beside those of training
DECADE = 10
DIGITS = 4


@dataclass(frozen=True)
class Span:
    """All values from ``low`` to ``high``, both included; by factors where they are a factor of 10 or more apart."""

    low: Any
    high: Any


Values = Sequence[object] | Span


def parse_over(texts: Sequence[str]) -> dict[str, Values]:
    """``NAME=V,V,…`` and ``NAME=LOW..HIGH`` by name.

    Raises:
        SettingsError: one is not of that form, or a name comes twice.
    """
    found: dict[str, Values] = {}
    for text in texts:
        name, values = parse_list(text)
        if name in found:
            raise SettingsError(f"--over {name} is given twice; list all its values in one")
        low, dots, high = values[0].partition("..")
        found[name] = Span(low, high) if dots and len(values) == 1 else values
    return found


def search(
    name: str,
    bank: Bank,
    folder: str | Path,
    over: Mapping[str, Values],
    trials: int,
    seeds: int = 3,
    sets: Sequence[str] = (),
    jobs: int = 1,
    rows: int = 2000,
    progress: Progress = silent,
) -> Sweep:
    """Let Optuna propose ``trials`` points, one after the other, for the highest mean Hit@5 on the valid part.

    What it proposes depends on the settings, the number of the trial and the
    trials before it alone, so a search that was killed goes on as if it had not
    been; more trials go on from those there are. Only the seeds of one trial
    run side by side.

    Args: as :func:`~nextvec.experiments.sweep.sweep`'s, with :class:`Span` where any value between two will do.

    Raises: as :func:`~nextvec.experiments.sweep.sweep`, and SettingsError without Optuna.
    """
    question = Question.of(name, bank, folder, sets, seeds, jobs, rows)
    ends = [(v.low, v.high) if isinstance(v, Span) else v for v in over.values()]
    # Settings that do not go together are refused before any run.
    corners = [question.settled(dict(zip(over, corner, strict=True))) for corner in itertools.product(*ends)]
    space = {s: _distribution(s, isinstance(v, Span), [corner[s] for corner in corners]) for s, v in over.items()}
    with question.held():
        study = _study(question, over)
        points: list[Point] = []
        for number in range(trials):
            values = question.settled(_proposed(study, number, space, question.base.seed))
            asked = [] if any(point.values == values for point in points) else [values]
            points = list(judged(question, asked, points, progress).points)
            _tell(study, number, next(point for point in points if point.values == values))
        return Sweep.of(question.folder, name, bank, points)


def _distribution(name: str, is_span: bool, settled: Sequence[Any]) -> Any:
    if not is_span:
        return _optuna().distributions.CategoricalDistribution(list(dict.fromkeys(settled)))
    low, high = settled[0], settled[-1]
    if isinstance(low, bool) or not isinstance(low, int | float) or not isinstance(high, int | float):
        raise SettingsError(f"{name} has no values between {low} and {high}; list them: --over {name}=V,V,…")
    if low >= high:
        raise SettingsError(f"--over {name}={low}..{high}: the first must be below the second; did you mean {high}..{low}?")
    log = low > 0 and high / low >= DECADE
    if isinstance(low, int):
        return _optuna().distributions.IntDistribution(low, int(high), log=log)
    return _optuna().distributions.FloatDistribution(low, high, log=log)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise SettingsError('--trials searches with Optuna, which is not installed: pip install -e ".[sweep]"') from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _study(question: Question, over: Mapping[str, Values]) -> Any:
    """Kept in the folder under the name of what is asked, so that another question does not learn from this one."""
    asked = f"{question.recipe} {question.base} {question.seeds} {question.rows} {question.bank.fingerprint} {dict(over)}"
    return _optuna().create_study(
        storage=f"sqlite:///{question.folder.resolve() / STORAGE}",
        study_name=hashlib.sha256(asked.encode()).hexdigest()[:16],
        direction="maximize",
        load_if_exists=True,
    )


def _proposed(study: Any, number: int, space: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The values of a trial: those on record, or new ones."""
    if number == len(study.trials):
        # A sampler that lived on would propose otherwise after a kill than without one.
        study.sampler = _optuna().samplers.TPESampler(seed=generator_seed(seed, PROPOSAL, number) % 2**32)
        study.ask(dict(space))
    found = study.trials[number].params
    return {name: float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value for name, value in found.items()}


def _tell(study: Any, number: int, point: Point) -> None:
    if study.trials[number].state.is_finished():
        return
    if point.whole:
        study.tell(number, point.hit(5).value)
    else:
        study.tell(number, state=_optuna().trial.TrialState.FAIL)
