"""What another encoder changes: cosines of its vectors to the bank's, and the paired difference of Hit@5.

    python benchmarks/encoder_quality.py books.bank transcripts.bank technical.bank --encoder all-MiniLM-L6-v2-int8

The banks hold texts: of `nextvec ingest`, or of `benchmarks/banks.py --texts`. Their chunks are encoded again. The new banks
stay beside the old ones (NAME-ENCODER.bank), and a command that was stopped continues there. Half of the documents are
examined; the space and the centre are those of the other half. Both predictors are the same for both encoders: an untrained
one, and the weights of the package. Both encoders score the same rows, and rank them among the same chunks.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64

from nextvec.bank import Bank, BankWriter, VectorDocument
from nextvec.bank.moments import Moments, moments
from nextvec.encoders import Encoder, load_encoder, max_tokens
from nextvec.evaluation.exam import Exam
from nextvec.evaluation.predictions import predict_rows
from nextvec.models import Recurrent
from nextvec.models.baselines import MeanAndLags
from nextvec.models.space import InSpace, Space
from nextvec.ranks import Ranks, paired_lift
from nextvec.runs.shipped import CONTEXT, POWER, shipped_model
from nextvec.windows import split
from table import show

TEST, VALID = 0.5, 0.01
Predictor = Callable[[Moments], Recurrent[Any]]


def space_of(found: Moments) -> Space:
    return Space.fitted(found.mean, found.covariance, POWER, found.rows)


def untrained(found: Moments) -> Recurrent[Any]:
    return InSpace(space_of(found), MeanAndLags(len(found.mean), 0.8, 0.7))


def package(found: Moments) -> Recurrent[Any]:
    return shipped_model(space_of(found))


PREDICTORS: dict[str, Predictor] = {
    "exponential mean 0.8 with pooled lags 0.7, power 0.5": untrained,
    "the weights of the package": package,
}


@dataclass(frozen=True)
class Compared:
    """One bank under both encoders.

    Attributes:
        ranks: of each predictor, before and after.
        cosines: of both vectors of each chunk, where they have one width.
    """

    ranks: dict[str, tuple[Ranks, Ranks]]
    cosines: Float32[np.ndarray, " N"] | None


def main(paths: list[Path], name: str, rows: int) -> None:
    encoder = load_encoder(name)
    found = {path.stem: compared(path, encoder, rows) for path in paths}
    cosines = [
        [bank, f"{len(each.cosines):,}", *(f"{np.percentile(each.cosines, p):.5f}" for p in (1, 50))]
        for bank, each in found.items()
        if each.cosines is not None
    ]
    if cosines:
        show(f"Cosine of {name} to the bank's vectors", ["bank", "chunks", "1 %", "median"], cosines, "")
    columns = ["bank", "scored rows", "before, %", "after, %", "difference, points"]
    for predictor in PREDICTORS:
        ranks = {bank: each.ranks[predictor] for bank, each in found.items()}
        together = (joined([before for before, _ in ranks.values()]), joined([after for _, after in ranks.values()]))
        table = [_row(bank, *pair) for bank, pair in {**ranks, "all": together}.items()]
        show(f"Hit@5 of {predictor}: {name}", columns, table, "95 % intervals resample documents")


def compared(path: Path, encoder: Encoder, rows: int) -> Compared:
    bank = Bank.open(path)
    other = encoded(bank, path.with_name(f"{path.stem}-{encoder.name.replace('/', '-')}.bank"), encoder)
    parts = split(bank, VALID, TEST)
    exam = Exam.over(bank, parts.test, "test", max_rows=rows)
    exams = (exam, replace(exam, bank=other))
    ranks = {name: [ranked(each, make, parts.train) for each in exams] for name, make in PREDICTORS.items()}
    cosines = None
    if other.dim == bank.dim:
        cosines = np.einsum("nd,nd->n", bank.rows.astype(np.float32), other.rows.astype(np.float32))
    return Compared({name: (before, after) for name, (before, after) in ranks.items()}, cosines)


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
        source=f"{bank.fingerprint}, encoded again",
        max_tokens=max_tokens(encoder),
    ) as writer:
        for document, title, texts in _documents(bank, writer.documents):
            writer.append(VectorDocument(document, title, encoder.encode(texts).rows))
            writer.commit()
            print(f"{path.name}: {writer.rows:,} of {len(bank):,} chunks", flush=True)
        return writer.finish()


def ranked(exam: Exam, predictor: Predictor, train: Int64[np.ndarray, " M"]) -> Ranks:
    """The ranks of a predictor whose space is that of the training documents under the bank's own encoder."""
    model = predictor(moments(exam.bank, train)).eval()
    return exam.rank(predict_rows(model, exam.bank, exam.rows, CONTEXT), model)


def joined(parts: list[Ranks]) -> Ranks:
    """The ranks of several banks; documents of different banks stay different clusters."""
    shifts = np.cumsum([0, *(int(part.clusters.max()) + 1 for part in parts)])
    return Ranks.joined([replace(part, clusters=part.clusters + shift) for part, shift in zip(parts, shifts[:-1], strict=True)])


def _documents(bank: Bank, first: int) -> Iterator[tuple[str, str, list[str]]]:
    """Identifier, title and texts of each document from ``first`` on."""
    for m, (document, title) in enumerate(bank.documents):
        if m >= first:
            texts = [bank.text(row) for row in range(int(bank.offsets[m]), int(bank.offsets[m + 1]))]
            yield document, title, [text or "" for text in texts]


def _row(bank: str, before: Ranks, after: Ranks) -> list[str]:
    lift = paired_lift(after, before, 5)
    difference = f"{100 * lift.value:+.2f} [{100 * lift.low:+.2f}, {100 * lift.high:+.2f}]"
    return [bank, f"{len(before):,}", *(f"{100 * ranks.hits(5).mean():.2f}" for ranks in (before, after)), difference]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("banks", type=Path, nargs="+")
    parser.add_argument("--encoder", default="all-MiniLM-L6-v2-int8")
    parser.add_argument("--rows", type=int, default=4_000, help="scored rows of each bank at most (default: 4,000)")
    parser.add_argument("--threads", type=int, default=1)
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    main(parsed.banks, parsed.encoder, parsed.rows)
