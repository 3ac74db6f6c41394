"""A decision: the figure of every gate, recorded with everything that is needed to measure it again."""

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nextvec.bank import Bank
from nextvec.bank.layout import write_atomically
from nextvec.errors import SettingsError
from nextvec.evaluation.report import HITS
from nextvec.experiments.gate import Gate, Gates
from nextvec.experiments.metrics import METRICS, Figure, Measured, figure_text, threshold_text
from nextvec.inference.latency import AnswerLatency
from nextvec.progress import Progress, silent
from nextvec.ranks import Rate, candidate_terms, candidates_in_words
from nextvec.runs import Run
from nextvec.runs.run import BEST


@dataclass(frozen=True)
class Outcome:
    """A gate and the figure that was measured for it."""

    gate: Gate
    figure: Figure

    @property
    def passed(self) -> bool:
        return self.gate.passes(self.figure)

    def to_json(self) -> dict[str, Any]:
        measured = self.figure.to_json() if isinstance(self.figure, Rate) else {"value": self.figure}
        gate = self.gate
        bound = {"name": gate.name, "metric": gate.metric, gate.bound: gate.threshold}
        return {**bound, **({"over": gate.over} if gate.over else {}), "measured": measured, "passed": self.passed}


@dataclass(frozen=True)
class Decision:
    """Every gate with its figure, and everything that is needed to measure it again.

    Attributes:
        gates: name of the file; run: its folder; finished: why its training ended, None if it has not.
        exam, part, context, rows: of the evaluation; candidates: ``pool``, least and most
            (:func:`~nextvec.ranks.candidate_terms`); chance: of Hit@1/5/10 on it.
        bank, weights: fingerprints; date: of the measurement, UTC.
        alarms: of the training; latency: in full, where a gate bounds some of it.
    """

    gates: str
    run: str
    finished: str | None
    exam: str
    part: str
    context: int | None
    candidates: dict[str, Any]
    rows: int
    chance: dict[str, float]
    bank: str
    weights: str
    date: str
    alarms: tuple[str, ...]
    latency: AnswerLatency | None
    outcomes: tuple[Outcome, ...]

    @property
    def passed(self) -> bool:
        return all(outcome.passed for outcome in self.outcomes)

    def to_json(self) -> dict[str, Any]:
        return {
            "gates": self.gates,
            "passed": self.passed,
            "outcomes": [outcome.to_json() for outcome in self.outcomes],
            "run": self.run,
            "finished": self.finished,
            "exam": {
                "id": self.exam,
                "part": self.part,
                "context": self.context,
                **self.candidates,
                "rows": self.rows,
                "chance": self.chance,
            },
            "bank": self.bank,
            "weights": self.weights,
            "alarms": list(self.alarms),
            "latency": self.latency.to_json() if self.latency else None,
            "date": self.date,
        }

    def write(self, folder: Path) -> Path:
        """Write the record to ``folder`` as JSON and as Markdown; the path of the JSON file."""
        stem = f"decision-{self.gates}"
        write_atomically(folder / f"{stem}.md", _page(self))
        write_atomically(folder / f"{stem}.json", json.dumps(self.to_json(), indent=1) + "\n")
        return folder / f"{stem}.json"


def decide(run: Run, bank: Bank, gates: Gates, progress: Progress = silent) -> Decision:
    """Measure the figures that the gates bound, and no others.

    Raises:
        SettingsError: a gain without a run that it is over.
        ExamError: too few rows to score, or a gain over a run that does not hold out the same documents.
        RunError: an untrained run.
    """
    for gate in gates.gates:
        if gate.metric.startswith("gain:") and gate.over is None:
            raise SettingsError(f'gate {gate.name!r}: {gate.metric} needs a run: over = "RUN" in the file, or --over RUN')
    measured = Measured(run, bank, gates.terms, progress)
    outcomes = tuple(Outcome(gate, METRICS[gate.metric].measure(measured, gate.over or "")) for gate in gates.gates)
    ranks = measured.result.ranks
    timed = any(gate.metric.endswith("_ms") for gate in gates.gates)
    return Decision(
        gates=gates.name,
        run=str(run.path),
        finished=run.finished,
        exam=measured.result.exam,
        part=gates.terms.part,
        context=measured.result.context,
        candidates=candidate_terms(ranks.candidates),
        rows=len(ranks),
        chance={f"hit@{k}": ranks.chance(k) for k in HITS},
        bank=bank.fingerprint,
        weights=hashlib.sha256((run.path / BEST).read_bytes()).hexdigest(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        alarms=tuple(run.alarms()),
        latency=measured.latency if timed else None,
        outcomes=outcomes,
    )


def _page(decision: Decision) -> str:
    rows = [
        f"| {'pass' if o.passed else '**FAIL**'} | {_cell(o.gate.name)} | {o.gate.metric} "
        f"{o.gate.bound.replace('_', ' ')} {threshold_text(o.gate.threshold, o.gate.metric)}"
        f"{f' over {_cell(o.gate.over)}' if o.gate.over else ''} | {figure_text(o.figure, o.gate.metric)} |"
        for o in decision.outcomes
    ]
    chance = ", ".join(f"{name} {value:.2%}" for name, value in decision.chance.items())
    facts = {
        "run": decision.run,
        "training ended": decision.finished or "not yet",
        "exam": f"{decision.exam}: {decision.rows:,} rows of the {decision.part} documents",
        "candidates each": candidates_in_words(decision.candidates),
        "chance": chance,
        "alarms": "; ".join(decision.alarms) or "none",
        "context": "all" if decision.context is None else f"{decision.context:,}",
        "bank": decision.bank,
        "weights": decision.weights,
        "date": decision.date,
    }
    return "\n".join(
        [
            f"# {decision.gates}: {'passed' if decision.passed else 'not passed'}",
            "",
            "A figure with a 95 % interval passes only where the worse end of the interval does.",
            "",
            "| | gate | bound | measured |",
            "|---|---|---|---|",
            *rows,
            "",
            *(f"- {name}: {value}" for name, value in facts.items()),
            "",
        ]
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
