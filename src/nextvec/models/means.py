"""Exponential means of the context: the strongest thing that needs no training, and where training starts."""

# Axes: B passages, T positions, L positions of one block, K decays, D width, H last vectors.

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

BLOCK = 64


class ExponentialMeans(nn.Module):
    """m_k(t) = d_k m_k(t - 1) + (1 - d_k) x(t), for K learned decays d_k in (0, 1).

    A passage is computed in blocks: inside a block by one triangular matrix,
    between blocks by the carried mean, so a long passage costs T x 64 products
    and no Python step per vector.
    """

    def __init__(self, decays: Sequence[float]) -> None:
        super().__init__()
        clamped = torch.tensor(decays, dtype=torch.float64).clamp(1e-4, 1 - 1e-4)
        self.logits = nn.Parameter(torch.logit(clamped).float())

    @property
    def decays(self) -> Float[Tensor, " K"]:
        return torch.sigmoid(self.logits)

    def forward(
        self, carried_BKD: Float[Tensor, "B K D"], x_BTD: Float[Tensor, "B T D"]
    ) -> tuple[Float[Tensor, "B K D"], Float[Tensor, "B T K D"]]:
        """The means after the passage, and after each of its positions."""
        blocks: list[Tensor] = []
        for x_BLD in x_BTD.split(BLOCK, dim=1):
            inside_KLL, decay_LK = self._kernels(x_BLD.shape[1])
            means_BLKD = torch.einsum("kts,bsd->btkd", inside_KLL, x_BLD) + decay_LK[None, :, :, None] * carried_BKD[:, None]
            carried_BKD = means_BLKD[:, -1]
            blocks.append(means_BLKD)
        return carried_BKD, torch.cat(blocks, dim=1)

    def row_weights(self, count: int) -> Float[Tensor, "K H"]:
        """The weight of each of the last ``count`` vectors in every mean, the newest last."""
        decays_K = self.decays
        age_H = torch.arange(count - 1, -1, -1, device=decays_K.device)
        return (1 - decays_K)[:, None] * decays_K[:, None] ** age_H

    def _kernels(self, length: int) -> tuple[Float[Tensor, "K L L"], Float[Tensor, "L K"]]:
        decays_K = self.decays
        place_L = torch.arange(length, device=decays_K.device)
        lag_LL = place_L[:, None] - place_L[None, :]
        powers_KLL = decays_K[:, None, None] ** lag_LL.clamp(min=0)
        inside_KLL = (1 - decays_K)[:, None, None] * powers_KLL * (lag_LL >= 0)
        return inside_KLL, decays_K[None, :] ** (place_L[:, None] + 1)
