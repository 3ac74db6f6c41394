"""The gradient of an update: the same however it is cut into batches, segments and precisions."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from nextvec.bank import Bank
from nextvec.bank.moments import moments
from nextvec.batches import candidates, passages
from nextvec.errors import SettingsError
from nextvec.models import Recurrent
from nextvec.objective import cosine_distance, gradient_norms, info_nce, smooth_misses, squared_distance
from nextvec.runs import TrainSettings
from nextvec.runs.families import Basis, family_names
from nextvec.runs.loading import build
from nextvec.training.begin import basis_of, present
from nextvec.training.gradient import Computed, Gradient, in_segments
from nextvec.windows import Windows, last_windows, rows_of, training_windows
from tests.conftest import walk_bank
from tests.settings import fitting

VALUES: dict[str, Any] = {
    "context": 16, "batch": 64, "hidden": 8, "slots": 8, "working": 6, "pooled": 4, "window": 9, "chunk": 5, "dropout": 0.0,
    "cosine": 0.5, "mse": 0.3,
}  # fmt: skip


def plain(model: str, **changes: Any) -> TrainSettings:
    return fitting(model, **VALUES, **changes)


PLAIN = plain("gru")
EVERYTHING = np.arange(12)


def computed(
    bank: Bank, settings: TrainSettings, windows: Windows, others: Any = ()
) -> tuple[Computed, list[Tensor], Gradient]:
    """One update's gradient on all documents, in float64 where nothing else is asked for."""
    model = build(settings, basis_of(moments(bank, EVERYTHING), None, 0.5, None))
    with torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    device = present(settings.compute.device)
    model.to(device)
    temperature = nn.Parameter(torch.tensor(math.log(settings.objective.temperature), device=device))
    rows = rows_of(bank, EVERYTHING)
    gradient = Gradient(model.train(), temperature, bank, rows, settings)
    done = gradient.compute(0, windows, np.arange(len(windows)), np.array(others, np.int64), rows, measure=True)
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in [*model.parameters(), temperature]]
    return done, gradients, gradient


def windows_of(bank: Bank, context: int = 16, count: int = 22) -> Windows:
    """Passages of unequal length, so that no way of cutting them is even."""
    all_of_them = training_windows(bank, EVERYTHING, context, np.random.default_rng(0))
    return Windows(all_of_them.starts[:count], all_of_them.scored[:count], all_of_them.stops[:count])


def assert_same(a: list[Tensor], b: list[Tensor], tolerance: float = 2e-6) -> None:
    scale = max(float(g.abs().max()) for g in a)
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=tolerance * max(1.0, scale))


@pytest.mark.parametrize("model", ["gru", "memory_gru", "transformer"])
@pytest.mark.parametrize("batch", [1, 4, 7, 21])
def test_gradient_caching_is_one_big_batch(model: Any, batch: int) -> None:
    """22 passages in batches of 7 leave a remainder of one; the contrastive loss joins them all."""
    bank = walk_bank()
    whole, expected, _ = computed(bank, plain(model), windows_of(bank), others=[3, 99])
    cut, found, _ = computed(bank, plain(model).replaced(batch=batch, cached=True), windows_of(bank), others=[3, 99])
    assert cut.loss == pytest.approx(whole.loss, rel=1e-5)
    assert cut.negatives == whole.negatives
    np.testing.assert_array_equal(cut.targets, whole.targets)
    assert_same(expected, found)


def test_scoring_few_predictions_at_a_time_changes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = walk_bank()
    whole, expected, _ = computed(bank, PLAIN, windows_of(bank), others=[3, 99])
    monkeypatch.setattr("nextvec.training.gradient.BLOCK", 29)
    cut, found, _ = computed(bank, PLAIN, windows_of(bank), others=[3, 99])
    assert_same(expected, found)
    for name, norm in whole.gradient_norms.items():
        assert cut.gradient_norms[name] == pytest.approx(norm, rel=1e-4)
        assert cut.terms[name] == pytest.approx(whole.terms[name], rel=1e-4)
    np.testing.assert_array_equal(cut.targets, whole.targets)
    assert cut.negatives == pytest.approx(whole.negatives)


@pytest.mark.parametrize("batch", [1, 4, 7])
def test_accumulation_is_one_big_batch_remainder_included(batch: int) -> None:
    """For losses of one target each; the contrastive one needs the cache, and differs without it."""
    bank = walk_bank()
    plain = PLAIN.replaced(alpha=0.0)
    whole, expected, _ = computed(bank, plain, windows_of(bank))
    cut, found, _ = computed(bank, plain.replaced(batch=batch, cached=False), windows_of(bank))
    assert cut.loss == pytest.approx(whole.loss, rel=1e-5)
    assert_same(expected, found)
    _, contrastive, _ = computed(bank, PLAIN, windows_of(bank))
    _, uncached, _ = computed(bank, PLAIN.replaced(batch=batch, cached=False), windows_of(bank))
    with pytest.raises(AssertionError):
        assert_same(contrastive, uncached)


def test_a_batch_of_256_means_255_negatives_only_with_the_cache() -> None:
    """256 documents with one target each, so that no target's own past is among the others."""
    bank = Bank.from_numpy(np.random.default_rng(0).standard_normal((256 * 5, 8)).astype(np.float32), [5] * 256)
    windows = last_windows(bank, np.arange(256), 4, across=False, rng=np.random.default_rng(0))
    settings = PLAIN.replaced(supervision="last", context=4, batch=8)
    cached, _, _ = computed(bank, settings, windows)
    apart, _, _ = computed(bank, settings.replaced(cached=False), windows)
    assert (cached.negatives, apart.negatives) == (255, 7)


class TrainedMap(Recurrent[Tensor]):
    """Two queries in 5 dimensions, read from the last vector alone; candidates are mapped there by a trained matrix."""

    num_queries = 2

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.read = nn.Linear(dim, 2 * 5 + 2)
        self.map = nn.Parameter(torch.randn(dim, 5))
        self.log_sharpness = nn.Parameter(torch.tensor(0.7))

    @property
    def width(self) -> int:
        return 5

    @property
    def sharpness(self) -> Tensor:
        return self.log_sharpness.exp()

    def candidates(self, rows_CD: Tensor) -> Tensor:
        return torch.nn.functional.normalize(rows_CD @ self.map, dim=-1)

    def start(self, batch: int) -> Tensor:
        return torch.zeros(0)

    def run(self, state: Tensor, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        y_BTW = self.read(x_BTD)
        return state, torch.cat([y_BTW[..., :10], y_BTW[..., 10:].log_softmax(-1)], dim=-1)


def by_autograd(model: TrainedMap, log_temperature: Tensor, bank: Bank, windows: Windows, others: list[int]) -> Tensor:
    """The loss of all targets, its graph whole: no cache, no blocks, nothing mapped apart."""
    read = passages(bank, windows, np.arange(len(windows)))
    scored = read.targets >= 0
    rows = read.targets[scored].numpy()
    classes = bank.distinct.classes
    named = candidates(bank, classes, np.bincount(classes, minlength=len(bank)), rows, np.array(others))
    queries = model.queries(model(read.x)[scored])
    mapped, temperature = model.candidates(named.vectors), log_temperature.exp()
    products = torch.einsum("nqe,ce->nqc", queries.vectors, mapped)
    pooled = (queries.log_weights[..., None] + model.sharpness * products).logsumexp(1) / model.sharpness
    truths = model.candidates(torch.from_numpy(bank.rows[rows]).float())
    return (
        info_nce(pooled, named.truth, named.forbidden, temperature, named.log_q)
        + 0.7 * smooth_misses(pooled, named.truth, named.forbidden, temperature)
        + 0.5 * cosine_distance(queries.mean(), truths)
        + 0.3 * squared_distance(queries.mean(), truths)
    )


@pytest.mark.parametrize("batch", [4, 64])
@pytest.mark.parametrize("block", [29, 512])
def test_a_trained_map_of_candidates_has_the_gradient_of_the_whole(
    batch: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextvec.training.gradient.BLOCK", block)
    bank, everything = walk_bank(), rows_of(walk_bank(), EVERYTHING)
    torch.manual_seed(0)
    model, temperature = TrainedMap(bank.dim), nn.Parameter(torch.tensor(-1.0))
    loss = by_autograd(model, temperature, bank, windows_of(bank), [3, 99])
    parameters = [*model.parameters(), temperature]
    expected = list(torch.autograd.grad(loss, parameters))
    settings = PLAIN.replaced(batch=batch, misses=0.7)
    gradient = Gradient(model, temperature, bank, everything, settings)
    done = gradient.compute(0, windows_of(bank), np.arange(22), np.array([3, 99]), everything, measure=True)
    assert done.loss == pytest.approx(loss.item(), rel=1e-5)
    found = [p.grad for p in parameters if p.grad is not None]
    assert all(g.abs().max() > 1e-4 for g in expected)
    assert_same(expected, found)


@contextmanager
def kept_bytes() -> Iterator[list[int]]:
    """Bytes that autograd keeps for the way back, each storage once."""
    kept: dict[int, int] = {}
    total = [0]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        total[0] = sum(kept.values())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total


@pytest.mark.parametrize("model", family_names())
@pytest.mark.parametrize("segment", [5, 16])
def test_checkpoints_change_no_gradient(model: Any, segment: int) -> None:
    bank = walk_bank()
    _, expected, _ = computed(bank, plain(model), windows_of(bank))
    _, found, _ = computed(bank, plain(model, segment=segment), windows_of(bank))
    assert_same(expected, found, tolerance=1e-5)


def test_checkpoints_keep_less() -> None:
    torch.manual_seed(0)
    model = build(PLAIN.replaced(hidden=32), Basis(torch.zeros(16), 0.5))
    x = torch.randn(2, 512, 16)
    with kept_bytes() as whole:
        model(x).sum().backward()
    with kept_bytes() as cut:
        in_segments(model, x, 32).sum().backward()
    assert 4 * cut[0] < whole[0]


@pytest.mark.parametrize("model", family_names())
def test_bfloat16_points_the_same_way(model: Any) -> None:
    bank = walk_bank()
    exact, expected, _ = computed(bank, plain(model), windows_of(bank))
    coarse, found, _ = computed(bank, plain(model, precision="bfloat16"), windows_of(bank))
    assert coarse.loss == pytest.approx(exact.loss, rel=0.05)
    a, b = (torch.cat([g.flatten() for g in gradients]) for gradients in (expected, found))
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.95
    assert b.dtype == torch.float32


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_an_accelerator_finds_the_same_gradient(device: Any) -> None:
    there = torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()
    if not there:
        pytest.skip(f"this machine has no {device}")
    bank = walk_bank()
    _, expected, _ = computed(bank, plain("memory_gru"), windows_of(bank))
    _, found, _ = computed(bank, plain("memory_gru", device=device), windows_of(bank))
    assert_same(expected, [g.cpu() for g in found], tolerance=1e-4)


def test_a_device_that_is_absent_is_named() -> None:
    absent = "mps" if not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(SettingsError, match=f"device={absent}: this machine has none.*nearest right one is"):
        present(absent)
    assert present("auto") in ("cpu", "cuda", "mps")


def test_dropout_falls_alike_in_both_passes_of_gradient_caching() -> None:
    """Else the gradient belongs to no loss: with the same masks, one step against it lowers the very loss it came from."""
    bank = walk_bank()
    settings = PLAIN.replaced(dropout=0.5, batch=4)
    before, gradients, gradient = computed(bank, settings, windows_of(bank))
    size = 1e-3
    squared = sum(float(g.square().sum()) for g in gradients)
    with torch.no_grad():
        for parameter, g in zip([*gradient.model.parameters(), gradient.log_temperature], gradients, strict=True):
            parameter.sub_(size * g)
    after = gradient.compute(
        0, windows_of(bank), np.arange(22), np.empty(0, np.int64), rows_of(bank, EVERYTHING), measure=False
    )
    assert before.loss - after.loss == pytest.approx(size * squared, rel=0.1)


def test_each_term_has_its_gradient_norm() -> None:
    bank = walk_bank()
    done, _, _ = computed(bank, PLAIN, windows_of(bank))
    assert set(done.terms) == set(done.gradient_norms) == {"nce", "cosine", "mse"}
    assert done.loss == pytest.approx(sum(done.terms.values()), rel=1e-5)


def test_on_unit_vectors_the_squared_distance_is_twice_the_cosine_distance_at_any_width() -> None:
    torch.manual_seed(0)
    for width in (4, 768):
        a, b = (torch.nn.functional.normalize(torch.randn(9, width), dim=-1) for _ in range(2))
        assert float(squared_distance(a, b)) == pytest.approx(2 * float(cosine_distance(a, b)), rel=1e-4)


def test_gradient_norms_are_those_of_autograd_by_hand() -> None:
    predicted = torch.tensor([[3.0, 4.0]], requires_grad=True)
    truth = torch.tensor([[0.0, 0.0]])
    norms = gradient_norms({"mse": 0.5 * squared_distance(predicted, truth)}, predicted)
    assert norms == {"mse": pytest.approx(5.0)}  # d/dp of 0.5 |p|² is p


@given(st.integers(0, 1000))
def test_corrected_for_how_often_they_are_drawn_samples_estimate_the_whole(seed: int) -> None:
    """The sum over drawn classes, each divided by its copies, is on average n / N times the sum over all classes."""
    rng = np.random.default_rng(seed)
    copies = rng.integers(1, 9, 6)
    scores = torch.from_numpy(rng.standard_normal(6)).float()
    expected = scores.exp().sum()
    drawn = np.repeat(np.arange(6), copies)  # every row once: the average over draws
    found = (scores[drawn] - torch.from_numpy(np.log(copies[drawn])).float()).exp().sum()
    torch.testing.assert_close(found, expected)


def test_the_correction_lowers_common_negatives_and_leaves_the_truth() -> None:
    predicted, vectors = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    forbidden, one = torch.zeros(1, 2, dtype=torch.bool), torch.tensor(1.0)
    log_q = torch.tensor([math.log(7.0), math.log(3.0)])
    loss = info_nce(predicted @ vectors.T, torch.tensor([0]), forbidden, one, log_q)
    assert float(loss) == pytest.approx(-math.log(math.e / (math.e + 1 / 3)), rel=1e-5)


def test_copies_are_counted_among_training_rows_only() -> None:
    rows = np.eye(4, dtype=np.float32)[[0, 1, 0, 2, 0, 3]]
    bank = Bank.from_numpy(rows, [2, 2, 2])
    gradient = Gradient(build(PLAIN, Basis(torch.zeros(4), 0.5)), nn.Parameter(torch.tensor(0.0)), bank, np.arange(4), PLAIN)
    assert gradient.copies[bank.distinct.classes].tolist() == [2, 1, 2, 1, 2, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss_on": "delta"}, "these models do: published"),
        ({"precision": "float16", "device": "cpu"}, "the nearest right one is bfloat16"),
        ({"alpha": 0.0, "cosine": 0.0, "mse": 0.0}, "minimise nothing"),
        ({"in_batch": False}, "no target would have a negative"),
        ({"power": 0.5}, "read only with space=fitted"),
        ({"hard_low": 0.9, "hard_high": 0.8}, "must be below hard_high"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        PLAIN.replaced(**change)
