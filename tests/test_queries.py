"""Queries: the scores of one and of several, by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from nextvec.models.baselines import CopyLast, PooledLags
from nextvec.models.queries import Products, Queries

shapes = {"count": st.integers(1, 5), "queries": st.integers(2, 6), "seed": st.integers(0, 1000)}


def drawn(count: int, queries: int, sharpness: float, seed: int) -> tuple[Queries, Tensor]:
    torch.manual_seed(seed)
    vectors = torch.randn(count, queries, 7)
    made = Queries(vectors, torch.randn(count, queries).log_softmax(-1), torch.tensor(sharpness))
    return made, normalize(torch.randn(9, 7), dim=-1)


@pytest.mark.parametrize("sharpness", [0.5, 8.0, 60.0])
@given(**shapes)
def test_the_score_is_the_log_of_a_weighted_mean_of_exponentials(sharpness: float, count: int, queries: int, seed: int) -> None:
    made, candidates = drawn(count, queries, sharpness, seed)
    found = made.scores(candidates)
    for n in range(count):
        for c in range(9):
            products = [float(made.vectors[n, q].double() @ candidates[c].double()) for q in range(queries)]
            weights = made.log_weights[n].double().exp().tolist()
            mean = math.fsum(w * math.exp(sharpness * p) for w, p in zip(weights, products, strict=True))
            assert float(found[n, c]) == pytest.approx(math.log(mean) / sharpness, abs=2e-5)


@given(**shapes)
def test_a_small_sharpness_gives_the_mean_and_a_large_one_the_maximum(count: int, queries: int, seed: int) -> None:
    for sharpness, pool in ((1e-3, "mean"), (1e4, "max")):
        made, candidates = drawn(count, queries, sharpness, seed)
        products = torch.einsum("nqe,ce->nqc", made.vectors, candidates)
        expected = torch.einsum("nq,nqc->nc", made.log_weights.exp(), products) if pool == "mean" else products.amax(1)
        torch.testing.assert_close(made.scores(candidates), expected, rtol=0, atol=2e-2 if pool == "mean" else 2e-3)


@given(**shapes)
def test_equal_queries_are_one_query(count: int, queries: int, seed: int) -> None:
    made, candidates = drawn(count, queries, 8.0, seed)
    same = made._replace(vectors=made.vectors[:, :1].expand(-1, queries, -1))
    expected = made.vectors[:, 0] @ candidates.T
    torch.testing.assert_close(same.scores(candidates), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(same.mean(), normalize(made.vectors[:, 0], dim=-1))


def test_one_query_is_its_product_to_the_bit() -> None:
    torch.manual_seed(0)
    y, candidates = torch.randn(5, 7), torch.randn(9, 7)
    model = CopyLast(7)
    assert torch.equal(model.scores(y, candidates), y @ candidates.T)
    assert torch.equal(model.scores(y, candidates), Products().scores(y, candidates))
    assert torch.equal(model.queries(y).log_weights, torch.zeros(5, 1))


def test_an_output_is_its_vectors_and_then_their_log_weights() -> None:
    """Read by place: query q of width E is at q E, its log weight at Q E + q."""
    model = PooledLags(3, 0.5)
    assert (model.num_queries, model.width, model.output_width) == (16, 3, 16 * 4)
    y = torch.arange(2 * 64.0).view(2, 64)
    made = model.queries(y)
    for q in range(16):
        np.testing.assert_array_equal(made.vectors[1, q].numpy(), 64 + np.arange(3 * q, 3 * q + 3))
        assert float(made.log_weights[1, q]) == 64 + 48 + q
