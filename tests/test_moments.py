"""Moments: the mean and covariance of NumPy, however the rows are cut into blocks and documents."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextvec.bank import Bank
from nextvec.bank.moments import moments
from tests.conftest import walk_bank


def rows_of_documents(bank: Bank, documents: list[int]) -> np.ndarray:
    return np.concatenate([bank.document(m) for m in documents]).astype(np.float64)


@pytest.mark.parametrize("block", [1, 7 * 16, 16_384])
@given(seed=st.integers(0, 1000))
def test_moments_are_the_mean_and_covariance_of_all_rows(block: int, seed: int) -> None:
    bank = walk_bank(documents=5, length=30, seed=seed)
    chosen = np.random.default_rng(seed).permutation(5)[:3]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nextvec.bank.moments.BLOCK", block)
        found = moments(bank, chosen)
    rows = rows_of_documents(bank, chosen.tolist())
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(rows.T, bias=True), rtol=0, atol=1e-12)
    assert found.rows == len(rows)
    assert found.mean.dtype == found.covariance.dtype == np.float64


def test_the_order_of_documents_does_not_matter() -> None:
    bank = walk_bank()
    forth, back = moments(bank, np.arange(12)), moments(bank, np.arange(12)[::-1].copy())
    np.testing.assert_allclose(forth.mean, back.mean, rtol=0, atol=1e-14)
    np.testing.assert_allclose(forth.covariance, back.covariance, rtol=0, atol=1e-14)


def test_a_mean_far_from_zero_cancels_nothing() -> None:
    """The difference of the mean of squares and the square of the mean would lose half of the digits here."""
    rng = np.random.default_rng(0)
    rows = np.ones(16) + 1e-3 * rng.standard_normal((200, 16))
    bank = Bank.from_numpy(rows.astype(np.float32), [50] * 4)
    expected = np.cov(rows_of_documents(bank, [0, 1, 2, 3]).T, bias=True)
    np.testing.assert_allclose(moments(bank, np.arange(4)).covariance, expected, rtol=0, atol=1e-9 * expected.max())
