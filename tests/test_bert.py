"""The int8 BERT against float64, at every level that this processor runs."""

import ctypes
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, normalize, scaled_dot_product_attention

from nextvec.errors import DataError, SettingsError
from nextvec.kernels import bert, build, library, rounded
from nextvec.kernels.bert import Bert, Layer, Norm, encode_tokens
from nextvec.kernels.rounded import Rotated, pack_rotated, rotate, rounded_product

DIM, WIDE, HEADS, DEPTH, WORDS, POSITIONS, EPSILON = 128, 256, 4, 2, 50, 70, 1e-12
ALL = ("any", *rounded.COMPILED)
COMPILED = [each for each in rounded.COMPILED if library.level() in ALL[ALL.index(each) :]]
seeds = st.integers(0, 2**31)


def use(patch: pytest.MonkeyPatch, level: str) -> None:
    """Compute at one level, whichever this processor would choose."""
    loaded = None if level == "torch" else ctypes.CDLL(str(build.library(level)))
    patch.setattr(rounded, "library", lambda: loaded)
    patch.setattr(rounded, "level", lambda: level)
    forget()


def forget() -> None:
    rounded.loaded.cache_clear()
    bert._loaded.cache_clear()


@pytest.fixture(scope="module", params=[*COMPILED, "torch"])
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        use(patch, request.param)
        yield request.param
    forget()


# Products.


@given(rows=st.integers(1, 3), blocks=st.integers(1, 4), batch=st.integers(1, 15), outlier=st.floats(0, 100), seed=seeds)
def test_a_product_is_that_of_float64_within_its_bound(
    level: str, rows: int, blocks: int, batch: int, outlier: float, seed: int
) -> None:
    """Bound: both factors are rounded to 1/254 of their largest number, after the rotation, which changes no product."""
    torch.manual_seed(seed)
    matrix, bias = torch.randn(64 * rows, 128 * blocks), torch.randn(64 * rows)
    x = torch.randn(batch, 128 * blocks)
    x[:, 5] *= outlier
    error = (rounded_product(x, pack_rotated(matrix, bias)).double() - (x.double() @ matrix.double().T + bias)).abs()
    r, w = rotate(x.double()).abs(), rotate(matrix.double()).abs() / 128
    half_r, half_w = r.amax(1, keepdim=True) / 254, w.amax(1) / 254
    bound = half_r * w.sum(1) + r.sum(1, keepdim=True) * half_w + half_r * half_w * r.shape[1]
    assert (error <= bound * 1.0001 + 1e-5).all()


def test_a_rotation_spreads_an_outlier(level: str) -> None:
    """One large number would leave few codes to the others; with the rotation the mean square error is below a tenth."""
    torch.manual_seed(0)
    x, matrix = torch.randn(20, 128), torch.randn(64, 128)
    x[:, 3] = 200
    exact = x @ matrix.T
    codes = (x / x.abs().amax(1, keepdim=True) * 127).round() * x.abs().amax(1, keepdim=True) / 127
    rotated = (rounded_product(x, pack_rotated(matrix, torch.zeros(64))) - exact).square().mean()
    assert (codes @ matrix.T - exact).square().mean() > 10 * rotated


def test_zero_vectors_have_the_bias_as_product(level: str) -> None:
    torch.manual_seed(0)
    bias = torch.randn(64)
    assert torch.equal(rounded_product(torch.zeros(2, 128), pack_rotated(torch.randn(64, 128), bias)), bias.expand(2, -1))


@pytest.mark.parametrize("shape", [(63, 128), (64, 100), (64, 65_664)])
def test_matrices_of_other_shapes_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="rows must be a multiple of 64"):
        pack_rotated(torch.zeros(shape), torch.zeros(shape[0]))


def test_vectors_that_do_not_fit_are_refused(level: str) -> None:
    w = pack_rotated(torch.ones(64, 128), torch.zeros(64))
    with pytest.raises(DataError, match="width 128"):
        rounded_product(torch.ones(1, 256), w)
    with pytest.raises(SettingsError, match="with a gradient"):
        rounded_product(torch.ones(1, 128, requires_grad=True), w)


# The model.


def plain_weights(seed: int) -> dict[str, Tensor]:
    """Random weights by the names of :class:`Layer`; large enough that attention is far from uniform."""
    made = torch.Generator().manual_seed(seed)

    def random(*shape: int, size: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=made) * size

    weights = {"words": random(WORDS, DIM), "positions": random(POSITIONS, DIM, size=0.5)}
    shapes = {"qkv": (3 * DIM, DIM), "out": (DIM, DIM), "wide": (WIDE, DIM), "back": (DIM, WIDE)}
    for n in range(DEPTH):
        for name, shape in shapes.items():
            weights[f"{n}.{name}"] = random(*shape, size=1.5 * shape[1] ** -0.5)
            weights[f"{n}.{name}.bias"] = random(shape[0], size=0.1)
    for name in ("embedded", *(f"{n}.{norm}" for n in range(DEPTH) for norm in ("attended", "finished"))):
        weights[name] = 1 + random(DIM, size=0.2)
        weights[f"{name}.bias"] = random(DIM, size=0.1)
    return weights


def packed(weights: dict[str, Tensor]) -> Bert:
    scale = torch.ones(3 * DIM)
    scale[:DIM] = (DIM / HEADS) ** -0.5

    def matrix(name: str) -> Rotated:
        by = scale if name.endswith("qkv") else torch.ones(len(weights[name]))
        return pack_rotated(weights[name] * by[:, None], weights[f"{name}.bias"] * by)

    def norm(name: str) -> Norm:
        return Norm(weights[name], weights[f"{name}.bias"])

    layers = tuple(
        Layer(
            *(matrix(f"{n}.{name}") for name in ("qkv", "out", "wide", "back")),
            *(norm(f"{n}.{name}") for name in ("attended", "finished")),
        )
        for n in range(DEPTH)
    )
    return Bert(weights["words"], weights["positions"], norm("embedded"), layers, HEADS, EPSILON)


def forward(weights: dict[str, Tensor], ids: Tensor, rounding: bool) -> Tensor:
    """BERT in float64, written for one text; with ``rounding``, both factors of each product are rounded to 8 bits."""

    def product(x: Tensor, name: str) -> Tensor:
        w = weights[name].double()
        if rounding:
            x, w = eight_bits(rotate(x)), eight_bits(rotate(w)) / 128
        return linear(x, w, weights[f"{name}.bias"].double())

    def norm(x: Tensor, name: str) -> Tensor:
        return layer_norm(x, (DIM,), weights[name].double(), weights[f"{name}.bias"].double(), EPSILON)

    x = norm((weights["words"][ids] + weights["positions"][: len(ids)]).double(), "embedded")
    for n in range(DEPTH):
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(0, 1) for part in product(x, f"{n}.qkv").chunk(3, -1))
        x = norm(x + product(scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1), f"{n}.out"), f"{n}.attended")
        x = norm(x + product(gelu(product(x, f"{n}.wide")), f"{n}.back"), f"{n}.finished")
    return normalize(x.mean(0), dim=0)


def eight_bits(x: Tensor) -> Tensor:
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round() * scale


def texts_of(lengths: list[int], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, WORDS, length).astype(np.int32) for length in lengths]


def encoded(model: Bert, texts: list[np.ndarray]) -> np.ndarray:
    return encode_tokens(model, np.concatenate(texts), np.array([len(text) for text in texts]))


def test_rows_are_those_of_float64(level: str) -> None:
    """With the same rounding a quarter of the short texts agree to float32, and all texts agree to 0.05.

    The others have a number that lies between two codes and falls to the other one, which changes what follows. Without
    rounding, the cosine is above 0.99.
    """
    weights, texts = plain_weights(0), texts_of([2] * 15 + [1, 15, 16, 17, 33, 70], 0)
    rows = torch.from_numpy(encoded(packed(weights), texts)).double()
    same = torch.stack([forward(weights, torch.from_numpy(text).long(), rounding=True) for text in texts])
    exact = torch.stack([forward(weights, torch.from_numpy(text).long(), rounding=False) for text in texts])
    error = (rows - same).norm(dim=1)
    assert (rows.norm(dim=1) - 1).abs().max() < 1e-6
    assert error[:15].quantile(0.25) < 1e-5
    assert error.max() < 0.05
    assert (rows * exact).sum(1).min() > 0.99


@given(lengths=st.lists(st.integers(1, POSITIONS), min_size=1, max_size=6), order=st.randoms(), seed=seeds)
def test_the_bits_of_a_row_do_not_depend_on_the_other_texts(level: str, lengths: list[int], order: object, seed: int) -> None:
    model, texts = MODEL, texts_of(lengths, seed)
    together = encoded(model, texts)
    alone = np.concatenate([encoded(model, [text]) for text in texts])
    assert np.array_equal(together, alone)


MODEL = packed(plain_weights(7))


@pytest.mark.skipif(len(COMPILED) < 2, reason="this processor runs one level")
def test_every_compiled_level_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = texts_of([1, 9, 40, 70], 3)
    found: list[np.ndarray] = []
    for each in COMPILED:
        use(monkeypatch, each)
        found.append(encoded(MODEL, texts))
    forget()
    assert np.array_equal(found[0], found[1])


@pytest.mark.parametrize(
    ("ids", "lengths", "reason"),
    [
        ([1, 2], [1], "all must be used"),
        ([1, 2], [2, 0], "1 to 70 tokens"),
        ([1] * 71, [71], "1 to 70 tokens"),
        ([1, 50], [2], "token 50 is not in the vocabulary of 50"),
        ([-1, 3], [2], "token -1 is not"),
        ([], [], "0 texts"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(level: str, ids: list[int], lengths: list[int], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        encode_tokens(MODEL, np.array(ids, np.int32), np.array(lengths, np.int64))
