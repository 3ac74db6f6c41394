"""Bytes on disk: a bank against the predecessor's windows at context 1000.

python benchmarks/disk.py
"""

import tempfile
from pathlib import Path

import numpy as np

from nextvec.bank import BankWriter, VectorDocument
from nextvec.bank.exchange import write_windows
from table import show

ROWS, DIM = 20_000, 384


def main() -> None:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with BankWriter(root / "bank", encoder="t", encoder_fingerprint="t", dim=DIM) as writer:
            for m in range(4):
                writer.append(VectorDocument(str(m), "", rng.standard_normal((ROWS // 4, DIM)).astype(np.float32)))
            bank = writer.finish()
        size = sum(file.stat().st_size for file in (root / "bank").iterdir())
        table = [
            [
                "bank, every context, every row a target",
                f"{size / 1e6:.1f}",
                f"{ROWS - 4:,}",
                f"{size / (ROWS - 4):,.0f}",
                "1.0",
            ]
        ]
        for stride in (500, 100, 1):
            count = write_windows(bank, root / "windows.npz", 1000, stride) if stride > 1 else ROWS - 4 * 1000
            written = (root / "windows.npz").stat().st_size if stride > 1 else count * 1001 * DIM * 2
            how = "" if stride > 1 else " (computed, not written)"
            name = f".npz windows, stride {stride}{how}"
            table.append([name, f"{written / 1e6:.1f}", f"{count:,}", f"{written / count:,.0f}", f"{written / size:.1f}"])
    note = f"{ROWS:,} float16 rows of {DIM}; stride 500 is what the predecessor exported; its files held float32, twice this"
    show("Bytes on disk at context 1000", ["format", "MB", "targets", "bytes per target", "x bank"], table, note)


if __name__ == "__main__":
    main()
