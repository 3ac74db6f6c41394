"""The weights of the package: they fit the default model, and a run that starts from them predicts with them."""

from pathlib import Path

import pytest
import torch

from nextvec.bank import Bank
from nextvec.bank.moments import moments
from nextvec.errors import RunError
from nextvec.models import Pooled
from nextvec.models.space import InSpace, Space
from nextvec.recipes import recipe
from nextvec.runs import load_model
from nextvec.runs.settings import TrainSettings
from nextvec.runs.shipped import SHIPPED, SHIPPED_FILE, shipped_weights
from nextvec.training import begin, train
from tests.conftest import walk_bank

LARGEST = 1 << 20


@pytest.fixture(scope="module")
def bank() -> Bank:
    return walk_bank()


def test_they_are_small_and_finite() -> None:
    assert len(SHIPPED_FILE.read_bytes()) < LARGEST
    assert all(tensor.isfinite().all() for tensor in shipped_weights().values())


def test_a_run_that_starts_from_them_predicts_with_them_before_its_first_update(bank: Bank, tmp_path: Path) -> None:
    settings = recipe("default", len(bank)).replaced(start=SHIPPED, power=0.5, updates=1, lr=1e-8, pool=100, context=32)
    run = begin(tmp_path / "run", "default", settings, bank)
    for _ in train(run, bank):
        pass
    found = moments(bank, run.split(bank).train)
    model = InSpace(Space.fitted(found.mean, found.covariance, 0.5, found.rows), Pooled(bank.dim, 0.5))
    model.take_over({name: tensor for name, tensor in shipped_weights().items() if name != "log_temperature"})
    x = torch.from_numpy(bank.rows[None, :40].astype("float32"))
    with torch.inference_mode():
        assert torch.allclose(load_model(run)(x), model.eval()(x), atol=1e-4)


def test_another_model_or_other_sizes_refuse_them(bank: Bank, tmp_path: Path) -> None:
    other = TrainSettings.of("gru", start=SHIPPED, pool=100)
    smaller = TrainSettings.of("pooled", space="fitted", start=SHIPPED, pooled=3, pool=100)
    for settings in (other, smaller):
        with pytest.raises(RunError, match="start=shipped"):
            begin(tmp_path / "run", "memory", settings, bank)
