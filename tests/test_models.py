"""What each model is beyond the laws: where it starts, what it sees, what it keeps, how it is computed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from nextvec.errors import SettingsError
from nextvec.models import LSTM, AttentionMixture, Hierarchical, LinearRecurrence, Recurrent, Transformer
from nextvec.models.baselines import ExponentialMean
from nextvec.models.linear import scan
from nextvec.models.window_attention import WindowAttention

DIM = 12
CHUNK = 7

RESIDUALS: dict[str, Callable[[Tensor], Recurrent[Any]]] = {
    "lstm": lambda centre: LSTM(centre, 0.6, hidden=8),
    "transformer": lambda centre: Transformer(centre, 0.6, hidden=8, layers=2, heads=2, window=6),
    "mixture": lambda centre: AttentionMixture(centre, 0.6, hidden=8, window=6),
    "hierarchical": lambda centre: Hierarchical(centre, 0.6, hidden=8, chunk=CHUNK),
    "linear": lambda centre: LinearRecurrence(centre, 0.6, hidden=8),
}

every_residual = pytest.mark.parametrize("make", RESIDUALS.values(), ids=list(RESIDUALS))


def passage(batch: int, length: int) -> Tensor:
    return normalize(torch.randn(batch, length, DIM), dim=-1)


def shaken(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def beside_trunk(model: Any) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith("trunk."))


# All five


@every_residual
@torch.no_grad()
def test_untrained_it_is_the_centred_exponential_mean(make: Callable[[Tensor], Recurrent[Any]]) -> None:
    torch.manual_seed(0)
    centre, x = 0.1 * torch.randn(DIM), passage(3, 40)
    torch.testing.assert_close(make(centre).eval()(x), ExponentialMean(centre, 0.6)(x), rtol=0, atol=1e-6)


@every_residual
def test_gradient_reaches_every_parameter(make: Callable[[Tensor], Recurrent[Any]]) -> None:
    torch.manual_seed(0)
    model, x = make(torch.zeros(DIM)), passage(2, 3 * CHUNK + 2)
    for _ in range(3):  # the residual starts at zero, so what is below it learns from the second update on
        model.zero_grad()
        (-(model(x)[:, :-1] * x[:, 1:]).sum()).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.01 * parameter.grad if parameter.grad is not None else 0
    untouched = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-9]
    assert untouched == []


@every_residual
def test_it_trains_in_half_precision_products(make: Callable[[Tensor], Recurrent[Any]]) -> None:
    torch.manual_seed(0)
    model, x = make(torch.zeros(DIM)), passage(2, 3 * CHUNK + 2)
    with torch.autocast("cpu", torch.bfloat16):
        state, y = model.run(model.start(2), x[:, :10])
        _, after = model.run(state, x[:, 10:])
        (y.sum() + after.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (LSTM(torch.zeros(768), 0.5, hidden=512, layers=2), 5_120_768),
        (AttentionMixture(torch.zeros(768), 0.5), 1_510_912 + 1),
        (
            Transformer(torch.zeros(DIM), 0.5, hidden=16, layers=3, heads=2),
            3 * (12 * 16**2 + 10 * 16) + 16 * (2 * DIM + 3) + DIM,
        ),
        (Hierarchical(torch.zeros(DIM), 0.5, hidden=8), 3 * 8 * (DIM + 8 + 2) + 3 * 8 * (16 + 2) + 17 * DIM),
        (
            LinearRecurrence(torch.zeros(DIM), 0.5, hidden=16, layers=3),
            3 * (8 * 16**2 + 11 * 16) + 16 * (2 * DIM + 3) + DIM,
        ),
    ],
    ids=["published lstm", "published mixture and its sharpness", "transformer", "hierarchical", "linear"],
)
def test_parameters_beside_the_trunk_are_as_published_or_as_the_formula(model: Recurrent[Any], count: int) -> None:
    assert beside_trunk(model) == count


# Attention over a window


def only_the_newest(model: Any) -> Any:
    """Leave of the trunk the newest vector alone, so that what else is seen is seen by attention."""
    with torch.no_grad():
        model.trunk.weights.zero_()
        model.trunk.weights[1] = 1
        model.trunk.means.logits[1] = -9.2
    return model


@pytest.mark.parametrize(
    ("model", "reach"),
    [
        (lambda: Transformer(torch.zeros(DIM), 0.5, hidden=8, layers=2, heads=2, window=4), 7),
        (lambda: Transformer(torch.zeros(DIM), 0.5, hidden=8, layers=1, heads=2, window=300), 300),
        (lambda: AttentionMixture(torch.zeros(DIM), 0.5, hidden=8, window=4), 4),
    ],
    ids=["transformer, two layers of 4", "transformer, one of 300", "mixture of 4"],
)
@torch.no_grad()
def test_attention_sees_its_window_and_nothing_beyond(model: Callable[[], Recurrent[Any]], reach: int) -> None:
    torch.manual_seed(1)
    attentive = only_the_newest(shaken(model())).double()
    x = passage(2, reach + 20).double()
    for unseen, alike in ((20, True), (21, False)):
        changed = torch.cat([passage(2, unseen).double(), x[:, unseen:]], dim=1)
        assert torch.allclose(attentive(changed)[:, -1], attentive(x)[:, -1], rtol=0, atol=1e-11) == alike


@given(st.integers(1, 700), st.integers(1, 600), st.integers(0, 2**31))
def test_attention_in_blocks_is_attention_by_definition(length: int, size: int, seed: int) -> None:
    torch.manual_seed(seed)
    attention = WindowAttention(size, heads=2).double()
    q, k, v = torch.randn(3, 1, length, 4, dtype=torch.float64)
    _, got = attention(attention.start(1, 4, 4), q, k, v)
    for t in {0, length // 2, length - 1}:
        seen = range(max(0, t + 1 - size), t + 1)
        for n, slope in enumerate((1 / 16, 1 / 256)):
            part = slice(2 * n, 2 * n + 2)
            scores = torch.stack([q[0, t, part] @ k[0, s, part] / 2**0.5 - slope * (t - s) for s in seen])
            expected = scores.softmax(0) @ v[0, list(seen), part]
            torch.testing.assert_close(got[0, t, part], expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_unfilled_places_are_not_attended_to() -> None:
    """Where passages of different lengths share a batch, the shorter one's empty places change nothing."""
    torch.manual_seed(0)
    attention = WindowAttention(10, heads=2)
    q, k, v = torch.randn(3, 1, 6, 4)
    held, _ = attention(attention.start(1, 4, 4), q[:, :3], k[:, :3], v[:, :3])
    padded = type(held)(
        torch.cat([torch.randn(1, 2, 4), held.keys], dim=1),
        torch.cat([torch.randn(1, 2, 4), held.values], dim=1),
        torch.cat([torch.zeros(1, 2, dtype=torch.bool), held.filled], dim=1),
    )
    rest = q[:, 3:], k[:, 3:], v[:, 3:]
    torch.testing.assert_close(attention(padded, *rest)[1], attention(held, *rest)[1])


@torch.no_grad()
def test_state_is_bounded_by_the_window() -> None:
    model = Transformer(torch.zeros(DIM), 0.5, hidden=8, layers=2, heads=2, window=6).eval()
    state, _ = model.run(model.start(1), passage(1, 50))
    assert [held.keys.shape[1] for held in state.windows] == [5, 5]


def test_a_width_that_heads_cannot_share_is_refused() -> None:
    with pytest.raises(SettingsError, match="width 10 cannot be split into 4 heads"):
        Transformer(torch.zeros(DIM), 0.5, hidden=10, heads=4)


# The linear recurrence


def looped(carried: Tensor, keep: Tensor, add: Tensor) -> Tensor:
    out = []
    for t in range(keep.shape[1]):
        carried = keep[:, t] * carried + add[:, t]
        out.append(carried)
    return torch.stack(out, dim=1)


@given(st.integers(1, 300), st.sampled_from([0.1, 3.0, 100.0, 1e4]), st.integers(0, 2**31))
def test_the_parallel_recurrence_is_the_loop(length: int, saturation: float, seed: int) -> None:
    """In float32 against a loop in float64, from gates near a half to gates that are 0 and 1."""
    torch.manual_seed(seed)
    logits, candidates = saturation * torch.randn(2, length, 5), torch.randn(2, length, 5)
    carried, keep, add = torch.randn(2, 5), torch.sigmoid(-logits), torch.sigmoid(logits) * candidates
    exact = looped(carried.double(), keep.double(), add.double())
    torch.testing.assert_close(scan(carried, keep, add).double(), exact, rtol=0, atol=3e-6)
    parallel = scan(carried.double(), keep.double(), add.double())
    torch.testing.assert_close(parallel, exact, rtol=0, atol=1e-13)


@pytest.mark.parametrize("gate", [0.0, 1e-30, 1 - 2**-24, 1.0])
def test_constant_gates_do_no_harm_over_a_long_passage(gate: float) -> None:
    torch.manual_seed(0)
    keep, add = torch.full((1, 3000, 3), gate, requires_grad=True), (1 - gate) * torch.randn(1, 3000, 3)
    carried = torch.randn(1, 3)
    h = scan(carried, keep, add)
    torch.testing.assert_close(h.double(), looped(carried.double(), keep.double(), add.double()), rtol=0, atol=1e-5)
    h.sum().backward()
    assert keep.grad is not None
    assert torch.isfinite(keep.grad).all()


def test_the_parallel_recurrence_has_the_gradient_of_the_loop() -> None:
    torch.manual_seed(0)
    carried = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    keep = torch.rand(2, 13, 3, dtype=torch.float64, requires_grad=True)
    add = torch.randn(2, 13, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 13, 3, dtype=torch.float64)
    parts = (carried, keep, add)
    parallel = torch.autograd.grad((weight * scan(*parts)).sum(), parts)
    exact = torch.autograd.grad((weight * looped(*parts)).sum(), parts)
    for got, expected in zip(parallel, exact, strict=True):
        torch.testing.assert_close(got, expected)
