"""Make a bank of a folder that holds `vectors.npy` [N, D] and `documents.csv` (path, first_row, rows).

    python benchmarks/banks.py ../shared/data/banks/books books.bank

For benchmark data that somebody has embedded already with the default encoder
(`pytest --shared PATH tests/test_shared.py` compares its vectors with ours).
Documents keep their paths as names, so their split is the same on every machine.
"""

import csv
import sys
from pathlib import Path

import numpy as np

from nextvec.bank import BankWriter, VectorDocument
from nextvec.encoders import load_encoder

ENCODER = "all-MiniLM-L6-v2"


def main(source: Path, target: Path) -> None:
    vectors = np.load(source / "vectors.npy", mmap_mode="r")
    with open(source / "documents.csv", encoding="utf-8") as lines:
        documents = list(csv.DictReader(lines))
    with BankWriter(
        target, encoder=ENCODER, encoder_fingerprint=load_encoder(ENCODER).fingerprint, dim=vectors.shape[1], source=source.name
    ) as writer:
        for document in documents:
            first = int(document["first_row"])
            rows = vectors[first : first + int(document["rows"])]
            writer.append(VectorDocument(document["path"], Path(document["path"]).stem, rows))
        bank = writer.finish()
    print(f"{target}: {len(bank):,} rows of {bank.num_documents} documents")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
