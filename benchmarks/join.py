"""Join banks of one encoder into one; a prefix keeps names apart.

python benchmarks/join.py library.bank classic_books.bank pg_=pg_books.bank
"""

import sys
from pathlib import Path

from nextvec.bank import Bank, BankWriter, VectorDocument
from nextvec.errors import DataError


def main(target: Path, sources: list[str]) -> None:
    named = [(prefix, Bank.open(path)) for prefix, _, path in (s.rpartition("=") for s in sources)]
    first = named[0][1].manifest
    for _, bank in named:
        if bank.manifest.encoder_fingerprint != first.encoder_fingerprint:
            raise DataError(f"{bank.path} comes from another encoder than {named[0][1].path}")
    source = ", ".join(Path(s.rpartition("=")[2]).stem for s in sources)
    with BankWriter(
        target, encoder=first.encoder, encoder_fingerprint=first.encoder_fingerprint, dim=first.dim, source=source
    ) as writer:
        for prefix, bank in named:
            for m, name in enumerate(bank.ids):
                writer.append(VectorDocument(prefix + name, Path(name).stem, bank.document(m)))
        joined = writer.finish()
    print(f"{target}: {len(joined):,} rows of {joined.num_documents} documents")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
