"""What another encoder changes: cosines of its vectors to the bank's, and the paired difference of Hit@5.

    python benchmarks/encoder_quality.py transcripts.bank technical.bank --encoder all-MiniLM-L6-v2-int8

The banks hold texts: of `nextvec ingest --encoder all-MiniLM-L6-v2`, or of `benchmarks/banks.py --texts`. Their chunks are
encoded again, and the new banks stay beside the old ones (NAME-ENCODER.bank), where a second run finds them. Half of the
documents are examined and the space is fitted to the others; the model is that of the package without training, so nothing
but the vectors differs. Both encoders score the same rows among the same 1,000 candidates.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64

from nextvec.bank import Bank, BankWriter, VectorDocument
from nextvec.bank.moments import moments
from nextvec.encoders import Encoder, load_encoder, max_tokens
from nextvec.evaluation.exam import Exam
from nextvec.evaluation.predictions import predict_rows
from nextvec.evaluation.report import points
from nextvec.models import Pooled
from nextvec.models.space import InSpace, Space
from nextvec.ranks import Ranks, paired_lift
from nextvec.runs.shipped import shipped_weights
from nextvec.windows import split
from table import show

POWER, CONTEXT, TEST, VALID = 0.5, 256, 0.5, 0.01


@dataclass(frozen=True)
class Compared:
    """The ranks on one bank under both encoders, and the cosines of both vectors of each chunk where they have one width."""

    before: Ranks
    after: Ranks
    cosines: np.ndarray | None


def main(paths: list[Path], name: str) -> None:
    encoder = load_encoder(name)
    found = {path.stem: compared(path, encoder) for path in paths}
    pooled = {key: np.concatenate([getattr(each, key).hits(5) for each in found.values()]) for key in ("before", "after")}
    rows = [_row(bank, each) for bank, each in found.items()]
    rows.append(["all", f"{len(pooled['before']):,}", "", "", *_percents(pooled["before"], pooled["after"]), ""])
    columns = ["bank", "scored rows", "cosine, 1 %", "cosine, median", "Hit@5 before", "after", "difference", "interval"]
    show(f"{name} in place of the bank's encoder", columns, rows, "points; 95 % intervals resample documents")


def compared(path: Path, encoder: Encoder) -> Compared:
    bank = Bank.open(path)
    other = encoded(bank, path.with_name(f"{path.stem}-{encoder.name.replace('/', '-')}.bank"), encoder)
    parts = split(bank, VALID, TEST)
    exam = Exam.over(bank, parts.test, "test", max_rows=len(bank))
    before, after = ranks(exam, parts.train), ranks(replace(exam, bank=other), parts.train)
    cosines = None
    if other.dim == bank.dim:
        cosines = np.einsum("nd,nd->n", bank.rows.astype(np.float32), other.rows.astype(np.float32))
    return Compared(before, after, cosines)


def encoded(bank: Bank, path: Path, encoder: Encoder) -> Bank:
    """The bank with the same documents and chunks under another encoder."""
    if path.exists():
        return Bank.open(path)
    facts = bank.manifest
    with BankWriter(
        path,
        encoder=encoder.name,
        encoder_fingerprint=encoder.fingerprint,
        dim=encoder.dim,
        dtype=facts.dtype,
        source=f"{facts.source}, encoded again",
        max_tokens=max_tokens(encoder),
    ) as writer:
        for m, (document, title) in enumerate(bank.documents):
            if m >= writer.documents:
                texts = [bank.text(row) for row in range(int(bank.offsets[m]), int(bank.offsets[m + 1]))]
                writer.append(VectorDocument(document, title, encoder.encode([text or "" for text in texts]).rows))
                writer.commit()
        return writer.finish()


def ranks(exam: Exam, train: Int64[np.ndarray, " M"]) -> Ranks:
    """Of the weights of the package, in the space of the training documents."""
    found = moments(exam.bank, train)
    model = InSpace(Space.fitted(found.mean, found.covariance, POWER), Pooled(exam.bank.dim, 0.5)).eval()
    model.take_over({name: tensor for name, tensor in shipped_weights().items() if name != "log_temperature"})
    return exam.rank(predict_rows(model, exam.bank, exam.rows, CONTEXT), model)


def _row(bank: str, found: Compared) -> list[str]:
    cosines = ["", ""] if found.cosines is None else [f"{np.percentile(found.cosines, p):.5f}" for p in (1, 50)]
    before, after = found.before.hits(5), found.after.hits(5)
    lift = points(paired_lift(found.after, found.before, 5))
    return [bank, f"{len(before):,}", *cosines, *_percents(before, after), lift]


def _percents(before: np.ndarray, after: np.ndarray) -> list[str]:
    return [f"{100 * before.mean():.2f}", f"{100 * after.mean():.2f}", f"{100 * (after - before).mean():+.2f}"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("banks", type=Path, nargs="+")
    parser.add_argument("--encoder", default="all-MiniLM-L6-v2-int8")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    main(parsed.banks, parsed.encoder)
