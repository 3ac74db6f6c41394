"""The evidence of one rollout: counts of unit outcomes, and the verdicts that follow from them.

The counts are integers. So the order of batches makes no difference, rounding errors cannot accumulate, and counts of several
routers are added. E-values and verdicts are computed from the counts (:mod:`nextvec.rollout.evalues`).

The unit is the session, because the session is assigned to an arm (:mod:`nextvec.rollout.units`). Requests of one session fail
together; a test that counted each of them would report harm for identical arms.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from nextvec.errors import ServingError
from nextvec.rollout.evalues import PairKey, UnitKey, count_pairs, count_units, log_e_values, verdicts
from nextvec.rollout.guardrails import (
    ASSIGN,
    CANARY,
    GUARDRAILS,
    NEITHER,
    OK,
    PAIRED,
    STABLE,
    STREAMS,
    UNDECIDED,
    WORSE,
    Guardrail,
)


@dataclass(frozen=True)
class UnitOutcome:
    """The outcome of one unit in one stream, or of ``count`` equal ones.

    Attributes:
        stream: one of :data:`~nextvec.rollout.guardrails.STREAMS`.
        arm: of the unit; ``neither`` for a mirrored pair, because both arms answered.
        weight: of the canary, in percent, when the unit was assigned; None for a mirrored pair.
        bad: whether the event that the stream counts happened. Good units change no ratio; they give the base rate.
        stratum: one of the strata of the evidence.
        segment: number of restarts of the test before it; one per canary step.
        shift: only of a mirrored pair, -1 to 1: share of its requests that were bad on the canary, minus that on stable.

    Raises:
        ServingError: an unknown stream or arm, or a weight, segment, shift or count outside its range.
    """

    stream: str
    arm: str
    weight: float | None
    bad: bool = True
    stratum: str = "all"
    segment: int = 0
    shift: float = 0.0
    count: int = 1

    def __post_init__(self) -> None:
        if self.stream not in STREAMS:
            raise ServingError(f"an outcome of stream {self.stream!r}; known: {', '.join(STREAMS)}")
        arms = (NEITHER,) if self.weight is None else (STABLE, CANARY)
        if self.arm not in arms:
            raise ServingError(f"an outcome of {self.stream!r} by arm {self.arm!r}; known: {', '.join(arms)}")
        if self.weight is None and self.stream not in PAIRED:
            raise ServingError(f"a mirrored pair of {self.stream!r}; only {', '.join(PAIRED)} have pairs, give a weight")
        if self.weight is not None and not 0 <= self.weight <= 100:
            raise ServingError(f"an outcome of {self.stream!r} at weight {self.weight}; give percent, 0 to 100")
        if self.weight == (0 if self.arm == CANARY else 100):
            raise ServingError(f"an outcome of {self.stream!r} by {self.arm} at weight {self.weight}, which sends it nothing")
        if not abs(self.shift) <= (1 if self.weight is None else 0):
            raise ServingError(f"an outcome of {self.stream!r} shifted by {self.shift}; only pairs have a shift, -1 to 1")
        if self.segment < 0 or self.count < 1:
            raise ServingError(f"an outcome of {self.stream!r} with segment {self.segment} and count {self.count}")


@dataclass(frozen=True)
class Verdict:
    """WORSE, OK or UNDECIDED for each stream."""

    streams: Mapping[str, str]

    @property
    def worse(self) -> tuple[str, ...]:
        return tuple(stream for stream, verdict in self.streams.items() if verdict == WORSE)

    @property
    def overall(self) -> str:
        """WORSE if any stream is WORSE; OK if every stream is OK, ``assign`` included; otherwise UNDECIDED."""
        if self.worse:
            return WORSE
        return OK if all(verdict == OK for verdict in self.streams.values()) else UNDECIDED


@dataclass(frozen=True)
class Evidence:
    """The outcomes of one rollout so far, as counts. A value: every decision is stored with it.

    Attributes:
        strata: names, fixed in advance, because the division of the capital must not depend on outcomes.
        guardrails: what each stream tolerates, fixed in advance for the same reason.
        counts: units by (stream, stratum, segment, weight, arm, bad).
        pairs: mirrored pairs by (stream, shift).
    """

    strata: tuple[str, ...] = ("all",)
    guardrails: Mapping[str, Guardrail] = field(default_factory=lambda: dict(GUARDRAILS))
    counts: Mapping[UnitKey, int] = field(default_factory=dict[UnitKey, int])
    pairs: Mapping[PairKey, int] = field(default_factory=dict[PairKey, int])

    def __post_init__(self) -> None:
        if not self.strata or len(set(self.strata)) != len(self.strata):
            raise ServingError(f"strata {self.strata!r}; give at least one, each once")
        if tuple(sorted(self.guardrails)) != tuple(sorted(STREAMS)):
            raise ServingError(f"guardrails for {', '.join(self.guardrails)}; every stream needs one: {', '.join(STREAMS)}")

    def after(self, outcomes: UnitOutcome | Iterable[UnitOutcome]) -> "Evidence":
        """The evidence with one or more outcomes added. Their order makes no difference.

        Raises:
            ServingError: the stratum of an outcome was not declared.
        """
        counts, pairs = dict(self.counts), dict(self.pairs)
        for outcome in (outcomes,) if isinstance(outcomes, UnitOutcome) else outcomes:
            if outcome.stratum not in self.strata:
                raise ServingError(f"an outcome of stratum {outcome.stratum!r}; declared: {', '.join(self.strata)}")
            if outcome.weight is None:
                pair = (outcome.stream, float(outcome.shift))
                pairs[pair] = pairs.get(pair, 0) + outcome.count
            else:
                key = (
                    outcome.stream, outcome.stratum, outcome.segment, float(outcome.weight), outcome.arm, outcome.bad,
                )  # fmt: skip
                counts[key] = counts.get(key, 0) + outcome.count
        # Sorted, so that sums over equal counts are equal to the bit.
        return replace(self, counts=dict(sorted(counts.items())), pairs=dict(sorted(pairs.items())))

    def count(self, stream: str, arm: str | None = None, *, bad: bool | None = None) -> int:
        """Units of a stream: of one arm or of both, all or only bad (or good) ones. Mirrored pairs are not included."""
        return int(count_units(self.counts, stream, arm, bad=bad))

    @property
    def num_pairs(self) -> int:
        """Sessions whose mirrored answers were compared."""
        return int(count_pairs(self.pairs))

    @property
    def num_units(self) -> int:
        """Sessions assigned so far on both arms, and sessions whose mirrored answers were compared."""
        return self.count(ASSIGN) + self.num_pairs

    def log_e(self, stream: str) -> tuple[float, float]:
        """Natural logarithms of the stream's e-values for WORSE and for OK; 0 is no evidence."""
        worse, ok = log_e_values(stream, self.guardrails[stream], self.strata, self.counts, self.pairs)
        return float(worse), float(ok)

    def verdict(self) -> Verdict:
        """The verdict on each stream. A stream without units is UNDECIDED; WORSE has priority over OK."""
        found = verdicts(self.guardrails, self.strata, self.counts, self.pairs)
        return Verdict({stream: str(verdict) for stream, verdict in found.items()})

    def to_json(self) -> dict[str, Any]:
        """The counts, and the e-values and verdicts that follow from them."""
        log_e = {stream: self.log_e(stream) for stream in STREAMS}
        return {
            "strata": list(self.strata),
            "guardrails": {stream: asdict(guardrail) for stream, guardrail in self.guardrails.items()},
            "counts": [[*key, count] for key, count in self.counts.items()],
            "pairs": [[*key, count] for key, count in self.pairs.items()],
            "log_e": {stream: {"worse": worse, "ok": ok} for stream, (worse, ok) in log_e.items()},
            "verdict": dict(self.verdict().streams),
            "units": self.num_units,
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Evidence":
        """Read what :meth:`to_json` wrote; equal to the bit.

        Raises:
            ServingError: the values are not evidence, or the e-values do not follow from the counts.
        """
        try:
            guardrails = {stream: Guardrail(**guardrail) for stream, guardrail in values["guardrails"].items()}
            live = [
                UnitOutcome(stream, arm, weight, bad, stratum, segment, count=count)
                for stream, stratum, segment, weight, arm, bad, count in values["counts"]
            ]
            pairs = [
                UnitOutcome(stream, NEITHER, None, True, values["strata"][0], shift=shift, count=count)
                for stream, shift, count in values["pairs"]
            ]
            evidence = Evidence(tuple(values["strata"]), guardrails).after([*live, *pairs])
            stored = {stream: (log_e["worse"], log_e["ok"]) for stream, log_e in values["log_e"].items()}
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ServingError(f"these values are not evidence of a rollout: {type(error).__name__} {error}") from None
        for stream in STREAMS:
            if not np.allclose(stored.get(stream, math.nan), evidence.log_e(stream), rtol=1e-9, atol=1e-9):
                raise ServingError(f"evidence of {stream!r} was altered: its e-values do not follow from its counts")
        return evidence
