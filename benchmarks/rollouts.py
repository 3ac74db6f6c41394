"""How often a perfect canary is rolled back, and how many requests a bad one answers before it is.

    python benchmarks/rollouts.py

Whole rollouts over made traffic (clustered sessions, drift, incidents), many side by side. Beside the judge stand the rule that
this design began with, P95 of the canary above 1.2 times stable's in any minute, and one-sided z-tests looked at every 1,000
requests. No figure here depends on the machine.
"""

from typing import Any

import numpy as np

from nextvec.rollout.judge import GUARDS, WEIGHTS, detectable, needed
from nextvec.rollout.simulate import EQUAL, HARMS, Harm, simulate, stated, synthetic
from table import show

EQUALS, EACH = 2_000, 200
ENDS = ["rule", "rolled back", "requests until then, median / P90", "promoted"]
UNSEEN = (("fail", 0.01), ("fail", 0.001), ("slow", 0.05), ("miss", 0.45))  # bad events a session


def main() -> None:
    equal = simulate(synthetic, [EQUAL], EQUALS, shadow=True)
    what = f"{EQUALS:,} rollouts of a model against itself, 600,000 requests at 20 a second each; the judge begins in shadow"
    show("Perfect canaries", ENDS, [_ends(row) for row in equal], what)
    shadow = [harm for harm in HARMS if harm.points]
    rows = simulate(synthetic, HARMS, EACH, rules=False, look=500)
    mirrored = simulate(synthetic, shadow, EACH, rules=False, look=500, shadow=True)
    power = [_power(harm, row) for harm, row in zip((*HARMS, *shadow), (*rows, *mirrored), strict=True)]
    for row in power[len(HARMS) :]:
        row[0], row[1] = f"{row[0]}, in shadow by pairs", ""
    what = f"{EACH} rollouts each, from the first request at 5 %; stated: if it stayed there, from this traffic's own rates"
    show("Bad canaries", ["harm", "stated units, P90", *ENDS[1:], "said by"], power, what)
    rules = simulate(synthetic, HARMS, EACH)
    other = [[row["harm"], *_ends(row)[:-1]] for row in rules if row["rule"] != "judge"]
    show(
        "The same, by other rules", ["harm", *ENDS[:-1]], other, "weights of 5, 10, 25 and 50 % for a quarter of the time each"
    )
    _unseen()


def _ends(row: dict[str, Any]) -> list[str]:
    until = row["requests"]
    when = "" if until["median"] is None else f"{until['median']:,} / {until['p90']:,}"
    return [row["rule"], f"{row['rolled_back']:.2%}", when, f"{row['promoted']:.1%}" if row["rule"] == "judge" else ""]


def _power(harm: Harm, row: dict[str, Any]) -> list[str]:
    units = None if harm.both else stated(synthetic(np.random.default_rng(0)), harm)["units"]
    by = ", ".join(f"{stream} {share:.0%}" for stream, share in row["by"].items())
    return [row["harm"], "" if units is None else f"{units:,}", *_ends(row)[1:], by]


def _unseen() -> None:
    rows: list[list[str]] = []
    for stream, base in UNSEEN:
        guard = GUARDS[stream]
        for units in (1_000, 10_000, 100_000):
            found = [detectable(units, weight, base, guard.alpha, tolerated=guard.tolerated) for weight in WEIGHTS]
            rows.append([stream, f"{base:.1%}", f"{units:,}", *("none" if harm is None else f"{harm:.2f} x" for harm in found)])
        found = [needed(2.0, weight, base, guard.alpha, guard.tolerated)[1] for weight in WEIGHTS]
        rows.append([stream, f"{base:.1%}", "units for 2 x", *(f"{units:,}" for units in found)])
    columns = ["stream", "stable's rate", "units", *(f"at {weight:g} %" for weight in WEIGHTS)]
    show(
        "The smallest harm seen with 90 %",
        columns,
        rows,
        "a harm is a multiple of stable's rate; units are sessions of both arms",
    )


if __name__ == "__main__":
    main()
