"""The attention mixture network: one attention head over the context, and a small MLP that corrects the mean.

It is the smallest model of the predecessor: a mean as baseline, one attention head of width 256, and a residual MLP
1536-512-256-768 that reads the attended vector and the last vector; 1,510,912 parameters. Here the mean is the trunk, the
attention is causal over a bounded window, and its sharpness is learned.
"""

# Axes: B passages, T positions, D width, E address width.

from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from nextvec.models.layers import silent_linear
from nextvec.models.protocol import Recurrent
from nextvec.models.trunk import Trunk
from nextvec.models.window_attention import Window, WindowAttention


class AttentionMixtureState(NamedTuple):
    """Exponential means, and the last vectors (centred) beside their keys."""

    means: Float[Tensor, "B K D"]
    window: Window


class AttentionMixture(Recurrent[AttentionMixtureState]):
    """y = normalize(trunk + MLP([attended; last])), with the MLP's last layer zero at the start.

    With vectors of width 768 and the default sizes it has the published 1,510,912 parameters, without its trunk and sharpness.

    Args:
        centre: mean of the training rows, [D].
        decay: decay of the exponential mean that the untrained model equals.
        hidden: width of queries and keys, and of the MLP's last hidden layer.
        layers: hidden layers of the MLP, each half as wide as the one before.
        dropout: on the content and inside the MLP.
        window: vectors that attention sees, the newest included.
    """

    def __init__(
        self,
        centre: Float[Tensor, " D"],
        decay: float,
        hidden: int = 256,
        layers: int = 2,
        dropout: float = 0.2,
        window: int = 256,
    ) -> None:
        super().__init__()
        self.dim = len(centre)
        self.trunk = Trunk(centre, decay)
        self.dropout = nn.Dropout(dropout)
        self.query = nn.Linear(self.dim, hidden)
        self.key = nn.Linear(self.dim, hidden)
        self.log_sharpness = nn.Parameter(torch.tensor(2.5))
        self.attention = WindowAttention(window, fading=False)
        widths = [2 * self.dim, *(hidden << n for n in reversed(range(layers)))]
        hidden_layers = [_layer(*pair, dropout) for pair in pairwise(widths)]
        self.correction = nn.Sequential(*hidden_layers, silent_linear(widths[-1], self.dim))

    def start(self, batch: int) -> AttentionMixtureState:
        return AttentionMixtureState(self.trunk.start(batch), self.attention.start(batch, self.key.out_features, self.dim))

    def run(
        self, state: AttentionMixtureState, x_BTD: Float[Tensor, "B T D"]
    ) -> tuple[AttentionMixtureState, Float[Tensor, "B T D"]]:
        means, centred_BTD, means_BTKD = self.trunk.read(state.means, x_BTD)
        # Unit rows have entries near 1/sqrt(D); the layers want them near 1.
        content_BTD = self.dropout(centred_BTD * self.dim**0.5)
        # The scores are cosines times a learned sharpness; attention divides by sqrt(E), so it is given back.
        sharpness = self.log_sharpness.exp() * self.key.out_features**0.5
        queries_BTE = sharpness * normalize(self.query(content_BTD), dim=-1)
        keys_BTE = normalize(self.key(content_BTD), dim=-1)
        window, attended_BTD = self.attention(state.window, queries_BTE, keys_BTE, content_BTD)
        residual_BTD = self.correction(torch.cat([attended_BTD, content_BTD], dim=-1))
        return AttentionMixtureState(means, window), self.trunk.finish(self.trunk.mix(means_BTKD), residual_BTD)


def _layer(source: int, target: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(source, target), nn.LayerNorm(target), nn.GELU(), nn.Dropout(dropout))
