"""The control of experts by kind: the same shares of rows, dealt to documents at random.

    python benchmarks/random_lanes.py BANK LABELS OUT [SEED]

Documents come in random order; each goes to the lane that is furthest from the
share of rows that it has in LABELS. Lanes are named after those that lend
their size.
"""

import csv
import sys
from collections import Counter

import numpy as np

from nextvec.bank import Bank
from nextvec.lanes import read_labels


def main(path: str, labels: str, out: str, seed: int = 0) -> None:
    bank = Bank.open(path)
    given, sizes = read_labels(labels, bank), np.diff(bank.offsets).tolist()
    wanted = Counter[str]()
    for lane, size in zip(given.lane.tolist(), sizes, strict=True):
        if lane >= 0:
            wanted[given.names[lane]] += size
    left = Counter(wanted)
    dealt: list[tuple[str, str]] = []
    for m in np.random.default_rng(seed).permutation(bank.num_documents).tolist():
        lane = max(left, key=lambda name: left[name])
        left[lane] -= sizes[m]
        dealt.append((bank.ids[m], f"as {lane}"))
    with open(out, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("document", "lane"))
        writer.writerows(dealt)
    for lane, count in wanted.most_common():
        print(f"{lane:16} {count:9,} rows by label, {count - left[lane]:9,} dealt")


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:5]))
