"""Negatives beside the batch: what the queue keeps, what mining finds."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from nextvec.bank import Bank
from nextvec.models.queries import Products
from nextvec.negatives import NEIGHBOURS, NOTHING, Mined, Queue, mine
from tests.conftest import walk_bank


@given(st.integers(0, 20), st.lists(st.integers(0, 9), max_size=12))
def test_the_queue_holds_the_last_targets_in_order(size: int, counts: list[int]) -> None:
    queue, everything, number = Queue.empty(size), [], 0
    for count in counts:
        rows = np.arange(number, number + count)
        number += count
        everything += rows.tolist()
        queue = queue.push(rows)
    assert queue.rows.tolist() == (everything[-size:] if size else [])


@given(st.integers(0, 200))
def test_mining_is_its_definition(seed: int) -> None:
    """Row by row: in the band, no neighbour, best liked first."""
    rng = np.random.default_rng(seed)
    bank: Bank = walk_bank(documents=4, length=40, dim=6, seed=seed)
    candidates = np.sort(rng.choice(len(bank), len(bank) // 2, replace=False))
    targets = np.sort(rng.choice(len(bank), 7, replace=False))
    predicted = torch.nn.functional.normalize(torch.from_numpy(rng.standard_normal((7, 6)).astype(np.float32)), dim=-1)
    found = mine(bank, candidates, targets, predicted, Products(), 3, 0.6, 0.8)
    rows = bank.rows.astype(np.float32)
    document = bank.document_of(np.arange(len(bank)))
    for n, target in enumerate(targets.tolist()):
        allowed = [
            c
            for c in candidates.tolist()
            if 0.6 <= rows[c] @ rows[target] < 0.8 and not (document[c] == document[target] and abs(c - target) <= NEIGHBOURS)
        ]
        liked = sorted((float(rows[c] @ predicted[n].numpy()) for c in allowed), reverse=True)[:3]
        chosen = [c for c in found.negatives[n].tolist() if c != NOTHING]
        assert set(chosen) <= set(allowed)
        np.testing.assert_allclose([float(rows[c] @ predicted[n].numpy()) for c in chosen], liked, rtol=1e-5)


def test_what_was_mined_is_given_to_its_own_targets_once() -> None:
    mined = Mined(np.array([3, 7]), np.array([[1, NOTHING], [1, 5]]))
    assert mined.of(np.array([3])).tolist() == [1]
    assert mined.of(np.array([7, 3, 9])).tolist() == [1, 5]
    assert mined.of(np.array([4])).tolist() == []
    assert mined.found == 1.5
    assert Mined.none(2).found == 0.0
