"""Long short-term memory (Hochreiter and Schmidhuber 1997) whose output is a residual on the trunk."""

# Axes: B passages, T positions, D width, H hidden.

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from nextvec.models.layers import silent_linear
from nextvec.models.protocol import Recurrent
from nextvec.models.trunk import Trunk


class LSTMState(NamedTuple):
    """Exponential means, and what every layer shows (hidden) and keeps (cell)."""

    means: Float[Tensor, "B K D"]
    hidden: Float[Tensor, "layers B H"]
    cell: Float[Tensor, "layers B H"]


class LSTM(Recurrent[LSTMState]):
    """y = normalize(trunk + W h), with W zero at the start.

    At 768 wide with two layers of 512 it has, beside the trunk, the 5,120,768
    parameters of the predecessor's LSTM.
    """

    def __init__(
        self, centre: Float[Tensor, " D"], decay: float, hidden: int = 512, layers: int = 1, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.dim = len(centre)
        self.trunk = Trunk(centre, decay)
        self.dropout = nn.Dropout(dropout)
        self.recurrence = nn.LSTM(self.dim, hidden, layers, batch_first=True)
        self.residual = silent_linear(hidden, self.dim)

    def start(self, batch: int) -> LSTMState:
        nothing = self.trunk.centre.new_zeros(self.recurrence.num_layers, batch, self.recurrence.hidden_size)
        return LSTMState(self.trunk.start(batch), nothing, nothing)

    def run(self, state: LSTMState, x_BTD: Float[Tensor, "B T D"]) -> tuple[LSTMState, Float[Tensor, "B T D"]]:
        means, centred_BTD, means_BTKD = self.trunk.read(state.means, x_BTD)
        carried = (state.hidden.contiguous(), state.cell.contiguous())
        # Unit rows have entries near 1/sqrt(D); the cell wants them near 1.
        h_BTH, (hidden, cell) = self.recurrence(self.dropout(centred_BTD * self.dim**0.5), carried)
        residual_BTD = self.residual(self.dropout(h_BTH))
        return LSTMState(means, hidden, cell), self.trunk.finish(self.trunk.mix(means_BTKD), residual_BTD)
