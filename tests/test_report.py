"""The baselines of a report: computed together, they are what each computes alone; the table has the best of each kind."""

import numpy as np
import pytest

from nextvec.bank import Bank
from nextvec.bank.moments import Moments, moments
from nextvec.cli.show import report_table
from nextvec.evaluation import Exam, Report, examine, predict_rows
from nextvec.evaluation.baselines import baseline_ranks, baselines, together
from nextvec.evaluation.report import best_of_kinds, shown_baselines
from nextvec.models.baselines import CopyLast
from nextvec.models.space import POWERS
from tests.conftest import walk_bank

CONTEXT = 20
TRAIN = np.arange(8, 20)


@pytest.fixture(scope="module")
def bank() -> Bank:
    return walk_bank(documents=20)


@pytest.fixture(scope="module")
def exam(bank: Bank) -> Exam:
    return Exam.over(bank, np.arange(8), "test", 40)


@pytest.fixture(scope="module")
def found(bank: Bank) -> Moments:
    return moments(bank, TRAIN)


@pytest.fixture(scope="module")
def report(exam: Exam, found: Moments) -> Report:
    return examine(exam, CopyLast(exam.bank.dim), "copies", found, CONTEXT, (exam.bank, TRAIN))


@pytest.mark.parametrize("context", [3, CONTEXT, None])
def test_baselines_together_have_the_ranks_of_each_alone(bank: Bank, exam: Exam, found: Moments, context: int | None) -> None:
    ranked = baseline_ranks(exam, list(together(found, (bank, TRAIN))), context)
    alone = dict(baselines(found, (bank, TRAIN)))
    assert list(ranked) == list(alone)
    for name, predictor in alone.items():
        wanted = exam.rank(predict_rows(predictor, bank, exam.rows, context), predictor)
        assert ranked[name].above.tolist() == wanted.above.tolist(), name
        assert ranked[name].tied.tolist() == wanted.tied.tolist(), name


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_a_mean_of_a_space_ranks_as_its_definition_in_float64(bank: Bank, exam: Exam, found: Moments, power: float) -> None:
    values, vectors = np.linalg.eigh(found.covariance)
    matrix = vectors @ np.diag((values + 1e-4 * values.max()) ** (-power / 2)) @ vectors.T
    mapped = (bank.rows.astype(np.float64) - found.mean) @ matrix
    mapped /= np.linalg.norm(mapped, axis=1, keepdims=True)
    decay, above = 0.7, []
    for r, row in enumerate(exam.rows.tolist()):
        first = max(int(bank.offsets[exam.clusters[r]]), row - CONTEXT)
        mean = decay ** np.arange(row - first)[::-1] @ mapped[first:row]
        columns = exam.candidate_sets.columns[exam.candidate_sets.of_row(r)]
        above.append(int((mapped[columns] @ mean > mapped[row] @ mean + 1e-9).sum()))
    ranked = baseline_ranks(exam, list(together(found)), CONTEXT)[f"exponential mean {decay:g}, power {power:g}"]
    assert (np.array(above) == ranked.above).mean() > 0.99  # float32 may order two near equal scores otherwise


def test_a_table_has_the_best_baseline_of_each_kind(report: Report) -> None:
    hits = {name: float(ranks.hits(5).mean()) for name, ranks in report.baselines.items()}
    shown = best_of_kinds(hits)
    single = {"copy last", "mean of all", "mean vector", "successor of nearest"}
    raw = {name for name in hits if "power" not in name} - single
    pooled = {name for name in hits if name.startswith("pooled")}
    sums = {name for name in hits if "with pooled" in name}
    of_power = [{n for n in hits if n.endswith(f"power {power:g}")} - pooled - sums for power in POWERS]
    assert [len(raw), len(pooled), len(sums), *map(len, of_power)] == [8, 12, 18, 8, 8, 8, 8]
    assert single <= set(shown)
    for kind in (raw, pooled, sums, *of_power):
        (best,) = kind & set(shown)
        assert hits[best] == max(hits[name] for name in kind)
    assert len(shown) == 11
    assert [hits[name] for name in shown] == sorted((hits[name] for name in shown), reverse=True)


def test_a_report_states_the_lift_over_the_best_of_all_and_over_the_best_of_raw_rows(report: Report) -> None:
    said = report.to_json()
    hits = {name: ranks.hits(5) for name, ranks in report.baselines.items()}
    raw = {name: hit for name, hit in hits.items() if "power" not in name}
    for key, among in (("lift", hits), ("lift_over_raw", raw)):
        over = said[key]["over"]
        assert among[over].mean() == max(hit.mean() for hit in among.values())
        assert said[key]["hit@5"]["value"] == pytest.approx(report.ranks.hits(5).mean() - among[over].mean())
        assert set(said[key]) == {"over", "hit@1", "hit@5", "hit@10"}
    assert said["lift"]["hit@5"]["value"] <= said["lift_over_raw"]["hit@5"]["value"]
    assert list(said["baselines"]) == list(hits)


def test_the_printed_table_states_how_many_baselines_were_examined(
    report: Report, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    said = report.to_json()
    report_table(said)
    printed = capsys.readouterr().out
    assert f"{len(report.baselines)} baselines were examined" in printed
    assert f"lift over the best baseline, {said['lift']['over']}:" in printed
    assert f"lift over the best baseline of raw rows, {said['lift_over_raw']['over']}:" in printed
    first_words = [line.split("  ")[0] for line in printed.splitlines()]
    assert [word for word in first_words if word in report.baselines] == list(shown_baselines(said))
