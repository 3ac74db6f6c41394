"""False rollbacks of canaries without harm, and how many requests a harmful canary answers before its rollback.

    python benchmarks/rollouts.py --out rollouts.jsonl

Whole rollouts over generated traffic (clustered sessions, drift, incidents), 100 side by side. Beside the production rule
stand two customary rules: P95 of the canary above 1.2 times stable's in any minute, and one-sided z-tests every 1,000
requests. Every finished cohort is one line of the file; a second start with the same file continues. No figure depends on the
machine.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nextvec.rollout.guardrails import GUARDRAILS
from nextvec.rollout.plan import STEP_WEIGHTS
from nextvec.rollout.power import detectable, needed
from nextvec.rollout.simulation.driver import Ends
from nextvec.rollout.simulation.harms import EQUAL, HARMS, Harm
from nextvec.rollout.simulation.table import PRODUCTION, SIDE_BY_SIDE, cohort_ends, row, stated
from nextvec.rollout.simulation.traffic import synthetic
from table import show

ENDS = ["rule", "rolled back", "requests until then, median / P90", "promoted"]
RATES = (("fail", 0.01), ("fail", 0.001), ("slow", 0.05), ("miss", 0.45))  # bad units per session
SHADOW = tuple(harm for harm in HARMS if harm.points)


class Cohorts:
    """Cohorts of 100 rollouts, kept in a file as they finish."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        self.done = {json.dumps(line["of"]): line["ends"] for line in map(json.loads, lines)}

    def rows(self, harm: Harm, rollouts: int, shadow: bool, tick: int) -> list[dict[str, Any]]:
        """One row per rule."""
        parts: dict[str, list[Ends]] = {}
        for n in range(-(-rollouts // SIDE_BY_SIDE)):
            count = min(SIDE_BY_SIDE, rollouts - n * SIDE_BY_SIDE)
            for rule, end in self._cohort(harm, count, n, shadow, tick).items():
                parts.setdefault(rule, []).append(end)
        return [row(harm.name, rule, ends) for rule, ends in parts.items()]

    def _cohort(self, harm: Harm, count: int, n: int, shadow: bool, tick: int) -> dict[str, Ends]:
        key = json.dumps([harm.name, count, n, shadow, tick])
        if key not in self.done:
            found = cohort_ends(synthetic, harm, count, [0, n], shadow=shadow, tick=tick)
            ends = {rule: [e.requests.tolist(), e.stream.tolist(), e.promoted.tolist()] for rule, e in found.items()}
            self.done[key] = ends
            if self.path is not None:
                with self.path.open("a") as file:
                    file.write(json.dumps({"of": json.loads(key), "ends": ends}) + "\n")
        return {rule: Ends(*map(np.array, end)) for rule, end in self.done[key].items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep finished cohorts here and continue from them")
    parser.add_argument("--equal", type=int, default=2_000, help="rollouts of a model against itself (2000)")
    parser.add_argument("--each", type=int, default=200, help="rollouts of each harm (200)")
    arguments = parser.parse_args()
    cohorts = Cohorts(arguments.out)
    equal = cohorts.rows(EQUAL, arguments.equal, True, 2_000)
    note = f"{arguments.equal:,} rollouts of a model against itself, 600,000 requests at 20 a second each, from the shadow on"
    show("Canaries without harm", ENDS, [_ends(found) for found in equal], note)
    harmful = [cohorts.rows(harm, arguments.each, False, 500) for harm in HARMS]
    shadow = [cohorts.rows(harm, arguments.each, True, 500) for harm in SHADOW]
    power = [_power(harm, found[0]) for harm, found in zip((*HARMS, *SHADOW), (*harmful, *shadow), strict=True)]
    for line in power[len(HARMS) :]:
        line[0], line[1] = f"{line[0]}, in shadow by pairs", ""
    note = (
        f"{arguments.each} rollouts each, from the first request at 5 %; stated: at a constant 5 %, from this traffic's rates"
    )
    show("Harmful canaries", ["harm", "stated units, P90", *ENDS[1:], "by"], power, note)
    other = [[found["harm"], *_ends(found)[:-1]] for rules in harmful for found in rules if found["rule"] != PRODUCTION]
    note = "weights of 5, 10, 25 and 50 % for a quarter of the time each"
    show("Harmful canaries by customary rules", ["harm", *ENDS[:-1]], other, note)
    columns = ["stream", "stable's rate", "units", *(f"at {weight:g} %" for weight in STEP_WEIGHTS)]
    note = "a harm is a multiple of stable's rate; units are sessions of both arms"
    show("Smallest harm detected with 90 %", columns, list(_detectable()), note)


def _ends(found: dict[str, Any]) -> list[str]:
    until = found["requests"]
    when = "" if until["median"] is None else f"{until['median']:,} / {until['p90']:,}"
    promoted = f"{found['promoted']:.1%}" if found["rule"] == PRODUCTION else ""
    return [found["rule"], f"{found['rolled_back']:.2%}", when, promoted]


def _power(harm: Harm, found: dict[str, Any]) -> list[str]:
    units = None if harm.both else stated(synthetic(np.random.default_rng(0)), harm)["units"]
    by = ", ".join(f"{stream} {share:.0%}" for stream, share in found["by"].items())
    return [found["harm"], "" if units is None else f"{units:,}", *_ends(found)[1:], by]


def _detectable() -> Iterator[list[str]]:
    for stream, base in RATES:
        guardrail = GUARDRAILS[stream]
        alpha, tolerated = guardrail.alpha, guardrail.tolerated
        for units in (1_000, 10_000, 100_000):
            harms = [detectable(units, weight, base, alpha, tolerated=tolerated) for weight in STEP_WEIGHTS]
            yield [stream, f"{base:.1%}", f"{units:,}", *("none" if harm is None else f"{harm:.2f} x" for harm in harms)]
        enough = [needed(2.0, weight, base, alpha, tolerated)[1] for weight in STEP_WEIGHTS]
        yield [stream, f"{base:.1%}", "units for 2 x", *(f"{units:,}" for units in enough)]


if __name__ == "__main__":
    main()
