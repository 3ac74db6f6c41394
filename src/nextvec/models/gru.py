"""A gated recurrent unit (Cho et al. 2014) whose output is a residual on the trunk."""

# Axes: B passages, T positions, D width, H hidden.

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from nextvec.models.protocol import Recurrent
from nextvec.models.trunk import Trunk


class GRUState(NamedTuple):
    """Exponential means and the hidden state of every layer."""

    means: Float[Tensor, "B K D"]
    hidden: Float[Tensor, "layers B H"]


class GRU(Recurrent[GRUState]):
    """y = normalize(trunk + W h), with W zero at the start."""

    def __init__(
        self, centre: Float[Tensor, " D"], decay: float, hidden: int = 512, layers: int = 1, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.dim = len(centre)
        self.trunk = Trunk(centre, decay)
        self.dropout = nn.Dropout(dropout)
        self.recurrence = nn.GRU(self.dim, hidden, layers, batch_first=True)
        self.residual = nn.Linear(hidden, self.dim)
        nn.init.zeros_(self.residual.weight)
        nn.init.zeros_(self.residual.bias)

    def start(self, batch: int) -> GRUState:
        cell = self.recurrence
        return GRUState(self.trunk.start(batch), self.trunk.centre.new_zeros(cell.num_layers, batch, cell.hidden_size))

    def run(self, state: GRUState, x_BTD: Float[Tensor, "B T D"]) -> tuple[GRUState, Float[Tensor, "B T D"]]:
        means, centred_BTD, means_BTKD = self.trunk.read(state.means, x_BTD)
        # Unit rows have entries near 1/sqrt(D); the cell wants them near 1.
        h_BTH, hidden = self.recurrence(self.dropout(centred_BTD * self.dim**0.5), state.hidden.contiguous())
        residual_BTD = self.residual(self.dropout(h_BTH))
        return GRUState(means, hidden), self.trunk.finish(self.trunk.mix(means_BTKD), residual_BTD)
