"""Layers that several models are built from."""

from torch import nn


def silent_linear(source: int, target: int) -> nn.Linear:
    """A linear layer that answers zero until it is trained: a residual that starts as nothing."""
    layer = nn.Linear(source, target)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def feed_forward(width: int, inner: int, dropout: float) -> nn.Sequential:
    """The pre-norm feed-forward half of a residual block; the caller adds what it was given."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width), nn.Dropout(dropout))
