"""Cross-fitted spaces: every training document is read in a space that was fitted without it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nextvec.bank import Bank
from nextvec.bank.moments import moments
from nextvec.models import GRU
from nextvec.models.space import InSpace, Space
from nextvec.runs import TrainSettings
from nextvec.training import Stepped, begin, train
from nextvec.training.folds import Fold, folds
from nextvec.training.gradient import Gradient
from nextvec.windows import rows_of
from tests import oracles
from tests.conftest import walk_bank

SMALL = TrainSettings.of(
    "pooled",
    pooled=4,
    working=8,
    context=20,
    batch=3,
    updates=9,
    evaluate_every=9,
    pool=30,
    space="fitted",
    power=0.5,
    device="cpu",
)
TRAIN = np.array([0, 2, 3, 4, 6, 7, 8, 9, 11])


def folds_of(bank: Bank, count: int, power: float | None = 0.5) -> list[Fold]:
    return folds(SMALL.replaced(folds=count), bank, TRAIN, power)


@pytest.mark.parametrize("count", [1, 2, 4, 9, 64])
def test_every_training_document_is_in_exactly_one_fold(count: int) -> None:
    bank = walk_bank()
    found = folds_of(bank, count)
    held = np.concatenate([fold.order.documents for fold in found])
    assert sorted(held.tolist()) == TRAIN.tolist()
    assert len(found) == min(count, len(TRAIN))
    for fold in found:
        np.testing.assert_array_equal(fold.rows, rows_of(bank, fold.order.documents))
    if count == 2:  # as many rows in each as documents of 30 to 60 rows allow
        assert abs(len(found[0].rows) - len(found[1].rows)) < 60


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("power", [0.0, 0.75])
def test_the_space_of_a_fold_is_fitted_on_all_other_documents(count: int, power: float) -> None:
    bank = walk_bank()
    for fold in folds_of(bank, count, power):
        others = sorted(set(TRAIN.tolist()) - set(fold.order.documents.tolist()))
        mean, matrix = oracles.space(np.concatenate([bank.document(m) for m in others]), power)
        assert fold.space is not None
        np.testing.assert_allclose(fold.space.mean.numpy(), mean, atol=1e-6)
        np.testing.assert_allclose(fold.space.matrix.numpy(), matrix, rtol=1e-4, atol=1e-4)


def test_raw_rows_and_one_fold_have_no_space_of_their_own() -> None:
    bank = walk_bank()
    assert [fold.space for fold in folds_of(bank, 4, None)] == [None]
    assert [fold.space for fold in folds_of(bank, 1)] == [None]


def spaced(bank: Bank) -> InSpace:
    found = moments(bank, TRAIN)
    return InSpace(
        Space.fitted(found.mean, found.covariance, 0.5, found.rows), GRU(torch.zeros(bank.dim), 0.5, hidden=4)
    ).eval()


@torch.no_grad()
def test_inside_the_model_reads_in_the_fold_s_space_and_afterwards_in_its_own() -> None:
    bank = walk_bank()
    model, x = spaced(bank), torch.from_numpy(bank.rows[None, :9].astype(np.float32))
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = model(x)
    for fold in folds_of(bank, 3):
        assert fold.space is not None
        with fold.reading(model):
            assert torch.equal(model(x), InSpace(fold.space, model.model)(x))
            assert torch.equal(model.candidates(x[0]), fold.space(x[0]))
            assert not torch.equal(model(x), before)
        assert all(torch.equal(own[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(model(x), before)


def test_the_model_s_own_space_is_restored_when_the_body_raises() -> None:
    bank = walk_bank()
    model = spaced(bank)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ZeroDivisionError), folds_of(bank, 3)[0].reading(model):
        raise ZeroDivisionError
    assert all(torch.equal(own[name], tensor) for name, tensor in model.state_dict().items())


def test_a_model_of_raw_rows_reads_them_in_every_fold() -> None:
    bank = walk_bank()
    model = GRU(torch.zeros(bank.dim), 0.5, hidden=4)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with folds_of(bank, 1, None)[0].reading(model):
        assert all(torch.equal(own[name], tensor) for name, tensor in model.state_dict().items())


def test_targets_and_negatives_of_an_update_are_of_one_fold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queued and mined rows, too: the space was fitted on every other document, so that their rows are unlike unseen ones."""
    bank = walk_bank(documents=20)
    settings = SMALL.replaced(folds=3, queue=60, hard=2, hard_low=0.0, hard_high=1.0, mine_every=4, negatives=5)
    seen: list[tuple[Any, ...]] = []
    compute = Gradient.compute

    def spied(self: Gradient, update: int, windows: Any, chosen: Any, others: Any, drawn_from: Any, measure: bool) -> Any:
        assert isinstance(self.model, InSpace)
        seen.append((self.model.space.mean.clone(), windows.rows(chosen), others, drawn_from))
        return compute(self, update, windows, chosen, others, drawn_from, measure)

    monkeypatch.setattr(Gradient, "compute", spied)
    run = begin(tmp_path / "run", "test", settings, bank)
    assert sum(isinstance(event, Stepped) for event in train(run, bank)) == 9
    train_documents = run.split(bank).train
    means = {}
    for update, (mean, targets, others, drawn_from) in enumerate(seen):
        inside = np.unique(bank.document_of(drawn_from))
        assert set(targets.tolist()) <= set(drawn_from.tolist())
        assert set(others.tolist()) <= set(drawn_from.tolist())
        if update >= 3:
            assert len(others) > 0  # the queue holds targets of the same fold, and rows were mined for this one
        expected = moments(bank, np.setdiff1d(train_documents, inside)).mean
        np.testing.assert_allclose(mean.numpy(), expected, atol=1e-6)
        means.setdefault(update % 3, []).append(inside.tolist())
    assert all(documents == held[0] for held in means.values() for documents in held)
    assert sorted(m for held in means.values() for m in held[0]) == train_documents.tolist()


def test_hard_negatives_are_mined_for_every_fold(tmp_path: Path) -> None:
    bank = walk_bank(documents=20)
    settings = SMALL.replaced(folds=3, hard=2, hard_low=-1.0, hard_high=1.0, mine_every=9)
    run = begin(tmp_path / "run", "test", settings, bank)
    list(train(run, bank))
    tensors, _ = run.load("checkpoint.safetensors")
    targets = tensors["mined.targets"].numpy()
    for fold in folds(settings, bank, run.split(bank).train, 0.5):
        assert np.isin(targets, fold.rows).any()
