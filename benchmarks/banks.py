"""Make a bank of a folder that holds `vectors.npy` [N, D] and `documents.csv` (path, first_row, rows).

    python benchmarks/banks.py ../shared/data/banks/books books.bank
    python benchmarks/banks.py ../shared/data/banks/books books.bank --texts ../shared/data/text

With --texts the bank holds its texts too: the files under that folder, cut at the spans of `spans.npy` [N, 2], with the
number of tokens of each chunk in `tokens.npy` [N]. For benchmark data that somebody has embedded already with the default
encoder (`pytest --shared PATH tests/test_shared.py` compares its vectors with ours).
Documents keep their paths as names, so their split is the same on every machine.
"""

import argparse
import csv
from pathlib import Path

import numpy as np

from nextvec.bank import BankWriter, VectorDocument
from nextvec.encoders import load_encoder, max_tokens

ENCODER = "all-MiniLM-L6-v2"


def main(source: Path, target: Path, texts: Path | None) -> None:
    vectors = np.load(source / "vectors.npy", mmap_mode="r")
    spans, tokens = (np.load(source / f"{name}.npy") for name in ("spans", "tokens")) if texts else (None, None)
    with open(source / "documents.csv", encoding="utf-8") as lines:
        documents = list(csv.DictReader(lines))
    encoder = load_encoder(ENCODER)
    with BankWriter(
        target,
        encoder=ENCODER,
        encoder_fingerprint=encoder.fingerprint,
        dim=vectors.shape[1],
        source=source.name,
        text=texts is not None,
        chunking="none",
        max_tokens=max_tokens(encoder),
    ) as writer:
        for document in documents:
            held = slice(int(document["first_row"]), int(document["first_row"]) + int(document["rows"]))
            path, title = document["path"], Path(document["path"]).stem
            if texts is None or spans is None or tokens is None:
                writer.append(VectorDocument(path, title, vectors[held]))
            else:
                text = (texts / path).read_text(encoding="utf-8")
                writer.append(VectorDocument(path, title, vectors[held], text, spans[held].astype(np.int64), tokens[held]))
        bank = writer.finish()
    print(f"{target}: {len(bank):,} rows of {bank.num_documents} documents")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--texts", type=Path)
    parsed = parser.parse_args()
    main(parsed.source, parsed.target, parsed.texts)
