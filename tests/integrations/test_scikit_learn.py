"""The estimator: scikit-learn's own checks, and the engine's answers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs scikit-learn: pip install 'nextvec[integrations]'")

from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from nextvec.bank import Bank
from nextvec.inference import Engine
from nextvec.integrations.scikit_learn import NextVector
from tests.conftest import unchecked, walk_bank

pytestmark = pytest.mark.integration


class WithoutLabels(NextVector):
    """The estimator as the checks call it: they pass labels where ``fit`` takes lengths, and a sequence has no labels."""

    def fit(self, X: Any, y: Any = None) -> "WithoutLabels":
        return super().fit(X)


ORDERED = "the order of the rows is part of the data: a prediction depends on the rows before it"
NOT_APPLICABLE = {
    "check_methods_sample_order_invariance": ORDERED,
    "check_methods_subset_invariance": ORDERED,
    "check_estimators_dtypes": "the check fits rows of zeros, which have no direction",
}


@parametrize_with_checks([WithoutLabels()], expected_failed_checks=lambda _: NOT_APPLICABLE)
def test_the_checks_of_scikit_learn(estimator: NextVector, check: Callable[[NextVector], None]) -> None:
    with unchecked():  # one check sets arguments of other types, which an estimator must refuse in ``fit`` alone
        check(estimator)


def test_the_expected_rows_are_those_of_a_session(bank: Bank) -> None:
    X, lengths = np.asarray(bank.rows, np.float32), bank.lengths
    scores, rows = NextVector().fit(X, lengths).expected(X[:20], k=3)
    session = Engine.open(bank).session()
    for position, vector in enumerate(X[:20]):
        session.push(vector)
        found = session.predict(3)
        assert rows[position].tolist() == [each.row for each in found]
        np.testing.assert_allclose(scores[position], [each.score for each in found], rtol=0, atol=1e-4)


def test_a_prediction_reads_its_own_document_up_to_its_row(bank: Bank) -> None:
    X, lengths = np.asarray(bank.rows, np.float32), bank.lengths
    model = NextVector().fit(X, lengths)
    together = model.predict(X, lengths)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    alone = np.concatenate([model.predict(bank.document(m)) for m in range(bank.num_documents)])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-4)
    np.testing.assert_allclose(model.predict(X[:5]), together[:5], rtol=0, atol=1e-4)


def test_places_without_a_row_are_marked() -> None:
    X = np.eye(3, 4, dtype=np.float32)
    scores, rows = NextVector().fit(X).expected(X, k=2)
    assert sorted(rows[0].tolist()) == [1, 2]
    assert rows[1].tolist() == [2, -1]
    assert rows[2].tolist() == [-1, -1]
    assert np.isneginf(scores[rows == -1]).all()


def test_a_recipe_is_trained_and_its_run_kept(bank: Bank, tmp_path: Any) -> None:
    settings = {"updates": 4, "pool": 20, "context": 16, "negatives": 20, "targets": 4}
    model = NextVector("default", settings, tmp_path / "run").fit(np.asarray(bank.rows), bank.lengths)
    assert (tmp_path / "run" / "best.safetensors").is_file()
    assert model.predict(bank.document(0)).shape == bank.document(0).shape
    assert clone(model).get_params() == model.get_params()


def test_a_pipeline_passes_lengths_on() -> None:
    bank = walk_bank(documents=4, length=20)
    X, lengths = np.asarray(bank.rows, np.float64), bank.lengths
    found = make_pipeline(StandardScaler(), NextVector()).fit(X, lengths).predict(X, lengths=lengths)
    scaled = StandardScaler().fit_transform(X)
    np.testing.assert_allclose(found, NextVector().fit(scaled, lengths).predict(scaled, lengths), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda X: NextVector().fit(X, [1, 2]), "lengths add up to 3 but there are 5 vectors"),
        (lambda X: NextVector(settings={"updates": 1}).fit(X), "settings and run are of a training"),
        (lambda X: NextVector().fit(X).expected(X, k=0), "k"),
        (lambda X: NextVector().fit(X - X), "zero vector"),
        (lambda X: NextVector("defualt").fit(X), "did you mean 'default'"),
    ],
)
def test_bad_input_is_a_value_error(call: Callable[[np.ndarray], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(np.eye(5, 4) + 1)


def test_an_estimator_that_was_not_fitted_says_so() -> None:
    with pytest.raises(NotFittedError):
        NextVector().predict(np.eye(3))
