"""On real banks, where their folder is given: `make test-all SHARED=PATH`."""

import csv
from pathlib import Path

import numpy as np
import pytest

from nextvec.bank import Bank
from nextvec.bank.moments import moments
from nextvec.encoders import MiniLM
from nextvec.evaluation import Exam, examine
from nextvec.evaluation.runs import evaluate
from nextvec.models.baselines import CopyLast
from nextvec.recipes import recipe
from nextvec.training import begin, train
from nextvec.windows import split


def load(data: Path, name: str) -> Bank:
    folder = data / "banks" / name
    with open(folder / "documents.csv", encoding="utf-8") as lines:
        documents = list(csv.DictReader(lines))
    lengths = [int(d["rows"]) for d in documents]
    return Bank.from_numpy(np.load(folder / "vectors.npy"), lengths, [d["path"] for d in documents])


@pytest.mark.shared
def test_our_encoder_gives_the_vectors_of_the_banks(shared: Path) -> None:
    folder = shared / "banks" / "technical"
    with open(folder / "documents.csv", encoding="utf-8") as lines:
        first = next(csv.DictReader(lines))
    text = (shared / "text" / first["path"]).read_text(encoding="utf-8")
    spans = np.load(folder / "spans.npy")[:40]
    rows = MiniLM().encode([text[a:b] for a, b in spans.tolist()]).rows
    np.testing.assert_allclose(rows, np.load(folder / "vectors.npy")[:40].astype(np.float32), atol=2e-4)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["books", "technical", "transcripts", "encyclopedia"])
def test_a_centred_mean_beats_copy_last_on_every_bank(shared: Path, name: str) -> None:
    bank = load(shared, name)
    parts = split(bank, 0.1, 0.2)
    exam = Exam.over(bank, parts.test, "test", max_rows=1000)
    report = examine(exam, CopyLast(bank.dim), "copy last", moments(bank, parts.train), 100)
    assert report.lift(5, "copy last").value == 0
    assert report.lift().high < 0, "some centred mean must beat copy-last, or the exam is broken"


@pytest.mark.shared
@pytest.mark.slow
def test_the_default_recipe_beats_every_baseline_on_unseen_technical_documents(shared: Path, tmp_path: Path) -> None:
    bank = load(shared, "technical")
    run = begin(tmp_path / "run", "default", recipe("default", len(bank)), bank)
    for _ in train(run, bank):
        pass
    report = evaluate(run, bank, "test")
    assert report.lift().low > 0, str(report)
