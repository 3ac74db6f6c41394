"""Searches: Optuna proposes the next point of a sweep from the results of the points before it."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextvec.bank import Bank
from nextvec.errors import SettingsError
from nextvec.experiments.executor import Executor, LocalProcesses
from nextvec.experiments.points import Point, Sweep
from nextvec.experiments.sweep import SweepSettings, add_points, parse_list
from nextvec.progress import Progress, silent
from nextvec.runs.seeds import generator_seed
from nextvec.training import Tracker

STORAGE = "trials.sqlite"
PROPOSAL = 11  # number of a random generator; those of training have others
DECADE = 10
DIGITS = 4


@dataclass(frozen=True)
class Span:
    """All values from ``low`` to ``high``, both included; on a logarithmic scale where their ratio is 10 or more."""

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
    executor: Executor | None = None,
    rows: int = 2000,
    progress: Progress = silent,
    trackers: Sequence[Tracker] = (),
) -> Sweep:
    """Let Optuna propose ``trials`` points, one after the other, for the highest mean Hit@5 on the valid part.

    A proposal depends only on the settings, the number of the trial and the
    trials before it. So a search that was killed goes on as if it had not been
    killed, and a call with more trials goes on from the finished ones. Only the
    seeds of one trial are trained at the same time.

    Args: as :func:`~nextvec.experiments.sweep.sweep`'s; a :class:`Span` allows all values between two.

    Raises: as :func:`~nextvec.experiments.sweep.sweep`, and SettingsError without Optuna.
    """
    settings = SweepSettings.of(name, bank, folder, sets, seeds, rows)
    trained_by = executor or LocalProcesses()
    ends = [(v.low, v.high) if isinstance(v, Span) else v for v in over.values()]
    # Settings that contradict each other are refused before any run.
    corners = [settings.parsed(dict(zip(over, corner, strict=True))) for corner in itertools.product(*ends)]
    space = {s: _distribution(s, isinstance(v, Span), [corner[s] for corner in corners]) for s, v in over.items()}
    with settings.held():
        study = _study(settings, over, rows)
        points: list[Point] = []
        for number in range(trials):
            values = settings.parsed(_proposed(study, number, space, settings.base.seed))
            added = [] if any(point.values == values for point in points) else [values]
            points = list(add_points(settings, added, points, trained_by, progress, trackers).points)
            _tell(study, number, next(point for point in points if point.values == values))
        return Sweep.of(settings.folder, name, bank, points)


def _distribution(name: str, is_span: bool, values: Sequence[Any]) -> Any:
    if not is_span:
        return _optuna().distributions.CategoricalDistribution(list(dict.fromkeys(values)))
    low, high = values[0], values[-1]
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


def _study(settings: SweepSettings, over: Mapping[str, Values], rows: int) -> Any:
    """The study of these settings, kept in the folder under a hash of them, so that other settings have other studies."""
    named = f"{settings.recipe} {settings.base} {settings.seeds} {rows} {settings.bank.fingerprint} {dict(over)}"
    return _optuna().create_study(
        storage=f"sqlite:///{settings.folder.resolve() / STORAGE}",
        study_name=hashlib.sha256(named.encode()).hexdigest()[:16],
        direction="maximize",
        load_if_exists=True,
    )


def _proposed(study: Any, number: int, space: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The values of a trial: the recorded ones, else newly proposed ones."""
    if number == len(study.trials):
        # A new sampler for each trial: one that is kept would propose other values without a kill than after one.
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
