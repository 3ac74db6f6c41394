"""Prove that a restructuring changes no figure: two checkouts on three small banks, compared to the last digit.

    python benchmarks/same_figures.py BEFORE AFTER

BEFORE and AFTER are checkouts whose kernels are compiled. In each,
`figures.py` ingests the banks, trains by updates, evaluates, trains and
compares phases, answers from sessions in every weight format, and takes
snapshots; the sources of that checkout are first on its path. Exit code 1 when
a figure differs.

What is not compared stands in IGNORED and ABSENT, with the reason. Keys that a
restructuring renames stand in RENAMED. Of a sentence (SENTENCES) its numbers
are compared and its words are not.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np

from table import show

# Keys of settings, records and snapshots, and names of files, or parts of them between dots: before → after.
RENAMED = {"census-2": "census", "faster": "vector_lr_multiplier", "router": "router_fraction", "only": "lane_filter"}
# Groups of settings in a run's record, which the flat names of settings do not have.
GROUPS = re.compile(r"(/settings)/(options|source|space|passages|objective|negatives|optimizer|compute|validation|split)/")
# Places that only one side may have, and why.
ABSENT = {"*/run.json/settings/*": "a record may leave out the settings that its model does not read"}
# Places, as patterns, and why a difference there is no difference of a figure.
IGNORED = {
    "*/seconds": "clock",
    "*/seconds/*": "clock",
    "*/time_to_reach/*": "clock",
    "*/format": "version of a layout on disk",
    "*/snapshot/facts/model": "digest over the names of settings, which may be renamed",
}
SENTENCES = ("*/notes/*", "*/alarms/*", "*/says", "*/untrained", "*/source")
SHOWN = 12  # differences
NUMBER = re.compile(r"-?\d+(?:[.,]\d+)*")

Values = dict[str, Any]  # place → a number or a text; of bfloat16 its 16 bits as a whole number


def main(before: Path, after: Path) -> int:
    for checkout in (before, after):
        if not list((checkout / "src/nextvec/kernels").glob("*.so")):
            print(f"{checkout}: the kernels are not compiled, so the last digits would be those of torch", file=sys.stderr)
            return 2
    with tempfile.TemporaryDirectory() as folder:
        figures = computed([before, after], Path(folder))
    rows: list[list[str]] = []
    told: list[str] = []
    for bank, thing in dict.fromkeys((name, thing) for each in figures for name in each for thing in each[name]):
        one, other = (values(each.get(bank, {}).get(thing, {"failed": "missing"})) for each in figures)
        found = differences(one, other)
        rows.append([bank, thing, f"{len(one):,}", f"{len(found)} differ" if found else "equal"])
        told += [f"{bank}, {thing}: {difference}" for difference in found]
    show("Same figures", ("bank", "thing", "values", ""), rows, f"{before} and {after}")
    print(f"not compared: {', '.join(f'{place} ({why})' for place, why in IGNORED.items())}")
    print(f"compared where both have it: {', '.join(f'{place} ({why})' for place, why in ABSENT.items())}")
    for difference in told[:SHOWN]:
        print(difference)
    if told:
        print(f"{len(told)} differences")
    return 1 if told else 0


def computed(checkouts: list[Path], folder: Path) -> list[dict[str, Any]]:
    """What `figures.py` computes in each checkout, one process for each, side by side."""
    script = Path(__file__).with_name("figures.py")
    places = [folder / str(n) for n in range(len(checkouts))]
    running = []
    for checkout, place in zip(checkouts, places, strict=True):
        write_inputs(place)
        environment = {**os.environ, "PYTHONPATH": str((checkout / "src").resolve()), "OMP_NUM_THREADS": "1"}
        log = open(place / "log", "w")
        running.append(subprocess.Popen([sys.executable, script, place], env=environment, stdout=log, stderr=log))
    for process, checkout, place in zip(running, checkouts, places, strict=True):
        if process.wait():
            sys.exit(f"{checkout}: {(place / 'log').read_text()}")
    return [json.loads((place / "figures.json").read_text()) for place in places]


def write_inputs(folder: Path) -> None:
    """Vectors with topics; sessions over few items; chapters of Python's documentation."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    centres, lengths = rng.standard_normal((6, 24)), rng.integers(40, 90, 24)
    rows: list[np.ndarray] = []
    for length in lengths:
        topic, drift = rng.integers(6), np.zeros(24)
        for _ in range(length):
            topic = rng.integers(6) if rng.random() < 0.15 else topic
            drift = 0.7 * drift + 0.5 * rng.standard_normal(24)
            rows.append(centres[topic] + drift)
    np.savez(folder / "topics.npz", vectors=np.array(rows, np.float32), lengths=lengths)
    items, lengths = rng.standard_normal((150, 16)), rng.integers(8, 20, 120)
    chosen = (rng.zipf(1.3, lengths.sum()) + np.arange(lengths.sum()) // 3) % len(items)
    np.savez(folder / "items.npz", vectors=items[chosen].astype(np.float32), lengths=lengths)
    (folder / "text.texts").mkdir()
    for name, text in sorted(topics.items()):
        if 2_000 < len(text) < 9_000:
            (folder / "text.texts" / f"{name}.txt").write_text(text)


def values(thing: Any) -> Values:
    """Everything in a tree by its place; each number of an array by itself."""
    found: Values = {}
    for raw, value in leaves("", thing):
        place = GROUPS.sub(r"\1/", raw)
        if matches(place, IGNORED):
            continue
        if place in found:
            raise ValueError(f"two values at {place}: RENAMED gives two keys one name")
        sentence = isinstance(value, str) and matches(place, SENTENCES)
        found[place] = NUMBER.findall(value) if sentence else value
    return found


def matches(place: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(place, pattern) for pattern in patterns)


def leaves(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and "array" in value:
        yield f"{place}/shape", [value["array"], value["shape"]]
        data = bytes.fromhex(value["bytes"])
        numbers = np.frombuffer(data, "u2" if value["array"] == "bfloat16" else value["array"]).tolist()
        yield from ((f"{place}/{n}", number) for n, number in enumerate(numbers))
    elif isinstance(value, Mapping):
        for key, held in value.items():
            name = ".".join(RENAMED.get(part, part) for part in str(key).split("."))
            yield from leaves(f"{place}/{name}", held)
    elif isinstance(value, list):
        for n, held in enumerate(value):
            yield from leaves(f"{place}/{n}", held)
        yield f"{place}/length", len(value)
    else:
        yield place, value


def differences(one: Values, other: Values) -> list[str]:
    """Each place whose values differ, or that only one side has; a thing that failed differs even from itself."""
    found = [f"{place}: only before" for place in one if place not in other and not matches(place, ABSENT)]
    found += [f"{place}: only after" for place in other if place not in one and not matches(place, ABSENT)]
    # As texts, so that a NaN equals itself, and -0.0 does not equal 0.0.
    found += [
        f"{place}: {one[place]} → {other[place]}" for place in one if place in other and repr(one[place]) != repr(other[place])
    ]
    return found + [f"{place}: {one[place]}" for place in one if place.startswith("/failed") and place in other]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
