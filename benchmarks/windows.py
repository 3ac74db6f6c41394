"""Reading windows of 1000 rows from a memory-mapped bank, against the memory's own copy speed.

    python benchmarks/windows.py [--rows 200000]

Aim: at least half of the copy speed of the same bytes. The bank is float16 on
disk; a model wants float32. Both are shown: the rows as they lie, and widened
into a training batch.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from nextvec.bank import Bank, BankWriter, VectorDocument
from nextvec.batches import passages
from nextvec.windows import Windows
from table import interleaved, show

CONTEXT, WINDOWS, DIM = 1000, 200, 384


def make(path: Path, rows: int) -> Bank:
    rng = np.random.default_rng(0)
    with BankWriter(path, encoder="t", encoder_fingerprint="t", dim=DIM) as writer:
        for m in range(rows // 5000):
            writer.append(VectorDocument(str(m), "", rng.standard_normal((5000, DIM)).astype(np.float32)))
        return writer.finish()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        bank = make(Path(folder) / "bank", rows)
        rng = np.random.default_rng(1)
        document = rng.integers(bank.num_documents, size=WINDOWS)
        starts = bank.offsets[document] + rng.integers(5000 - CONTEXT - 1, size=WINDOWS)
        into = np.empty((WINDOWS, CONTEXT, DIM), np.float16)
        flat = np.array(bank.rows[: WINDOWS * CONTEXT]).reshape(WINDOWS, CONTEXT, DIM)
        windows = Windows(starts, starts + 1, starts + CONTEXT + 1)
        wide = flat.astype(np.float32)
        wide_into = np.empty_like(wide)

        def read() -> None:
            for w, start in enumerate(starts.tolist()):
                into[w] = bank.rows[start : start + CONTEXT]

        times = interleaved(
            {
                "memory copy, float16": lambda: np.copyto(into, flat),
                "windows as they lie, float16": read,
                "memory copy, float32": lambda: np.copyto(wide_into, wide),
                "windows as a training batch, float32": lambda: passages(bank, windows, np.arange(WINDOWS)),
            },
            rounds=7,
        )
    narrow, broad = times["memory copy, float16"].median, times["memory copy, float32"].median
    table = []
    for name, timing in times.items():
        size = (wide if "float32" in name else flat).nbytes
        limit = broad if "float32" in name else narrow
        table.append([name, f"{size / timing.median / 1e9:.2f}", f"{limit / timing.median:.2f}"])
    note = f"{WINDOWS} windows of {CONTEXT} x {DIM} from {rows:,} rows; medians of 7 interleaved rounds; page cache warm"
    show("Reading windows", ["what", "GB/s", "share of copy speed"], table, note)


if __name__ == "__main__":
    main()
