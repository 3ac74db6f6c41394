"""Bytes on disk and seconds of a bank of items, against a bank that stores the vector of every event.

python benchmarks/items.py
"""

import tempfile
import time
from pathlib import Path

import numpy as np

import nextvec as nv
from nextvec.bank import Bank
from table import show

ITEMS, DIM, EVENTS, SESSIONS, UNREAD = 3_416, 384, 158_741, 6_040, 100


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def main() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((ITEMS, DIM)).astype(np.float32)
    sessions = np.sort(rng.integers(0, SESSIONS, EVENTS))
    events = {"session": sessions, "item": rng.integers(0, ITEMS - UNREAD, EVENTS), "index": np.arange(EVENTS)}
    items = {"item": np.arange(ITEMS), "vector": vectors}
    rows = {"document": sessions, "index": events["index"], "vector": vectors[events["item"]]}
    table: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, source, catalogue in (("items", events, items), ("every event", rows, None)):
            began = time.perf_counter()
            nv.ingest(source, root / name, items=catalogue)
            made = time.perf_counter() - began
            began = time.perf_counter()
            bank = Bank.open(root / name, "never")
            opened = bank.distinct.firsts is not None and time.perf_counter() - began
            bound = 2 * DIM * len(bank.table) + 4 * len(bank)
            table.append([name, f"{size(root / name) / 1e6:.2f}", f"{bound / 1e6:.2f}", f"{made:.1f}", f"{1e3 * opened:.0f}"])
    heads = ["vectors stored", "MB", "vectors + 4 bytes an event, MB", "ingest, s", "open with distinct vectors, ms"]
    note = f"{EVENTS:,} events of {ITEMS:,} items in {SESSIONS:,} sessions, float16 vectors of {DIM}"
    show("A bank of events", heads, table, note)


if __name__ == "__main__":
    main()
