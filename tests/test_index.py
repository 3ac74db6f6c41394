"""Exact search is exact."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nextvec.errors import SettingsError
from nextvec.index import ExactIndex


@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 1000))
def test_search_agrees_with_sorting_all_scores(rows: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bank = rng.integers(-2, 3, (rows, 4)).astype(np.float32)  # ties are common
    queries = rng.integers(-2, 3, (3, 4)).astype(np.float32)
    excluded = rng.random(rows) < 0.3
    found = ExactIndex(bank).search(torch.from_numpy(queries), k, excluded)
    for q in range(3):
        scores = bank @ queries[q]
        order = [r for r in np.argsort(-scores, kind="stable").tolist() if not excluded[r]][:k]
        assert found.rows[q].tolist() == order + [-1] * (k - len(order))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).standard_normal((1000, 8)).astype(np.float16)
    queries = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    whole = ExactIndex(rows).search(queries, 10)
    monkeypatch.setattr("nextvec.index.exact.BLOCK", 37)
    assert (ExactIndex(rows).search(queries, 10).rows == whole.rows).all()


def test_no_neighbours_are_refused() -> None:
    with pytest.raises(SettingsError, match="k=0"):
        ExactIndex(np.eye(3, dtype=np.float32)).search(torch.eye(3), 0)
