"""Long short-term memory (Hochreiter and Schmidhuber 1997) whose output is a residual on the trunk."""

# Axes: B passages, T positions, D width, H hidden.

from functools import cache
from typing import NamedTuple

import torch
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
        read_BTD = self.dropout(centred_BTD * self.dim**0.5)
        h_BTH, (hidden, cell) = self._wide(read_BTD, carried) if _unsupported(x_BTD) else self.recurrence(read_BTD, carried)
        residual_BTD = self.residual(self.dropout(h_BTH))
        return LSTMState(means, hidden, cell), self.trunk.finish(self.trunk.mix(means_BTKD), residual_BTD)

    def _wide(
        self, read_BTD: Float[Tensor, "B T D"], carried: tuple[Float[Tensor, "layers B H"], Float[Tensor, "layers B H"]]
    ) -> tuple[Float[Tensor, "B T H"], tuple[Float[Tensor, "layers B H"], Float[Tensor, "layers B H"]]]:
        """The recurrence in float32; torch's own bfloat16 loop without oneDNN takes about 17 times as long as this."""
        with torch.autocast("cpu", enabled=False):
            return self.recurrence(read_BTD.float(), (carried[0].float(), carried[1].float()))


def _unsupported(x: Tensor) -> bool:
    """Whether the products are to be in bfloat16 on a processor that has no LSTM of that format."""
    reduced = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return reduced and torch.get_autocast_dtype("cpu") == torch.bfloat16 and not _has_bfloat16()


@cache
def _has_bfloat16() -> bool:
    """Whether oneDNN has a bfloat16 LSTM for this processor, which it says only when one runs (without AVX-512 it raises)."""
    weights = [torch.zeros(4, 1), torch.zeros(4, 1), torch.zeros(4), torch.zeros(4)]
    state = (torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
        try:
            y, *_ = torch.lstm(
                torch.zeros(1, 1, 1), state, [w.requires_grad_() for w in weights], True, 1, 0.0, True, False, True
            )
            y.sum().backward()
        except RuntimeError:
            return False
    return True
