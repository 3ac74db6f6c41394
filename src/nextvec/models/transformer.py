"""A causal transformer (Vaswani et al. 2017, pre-norm) over a sliding window, whose output is a residual on the trunk."""

# Axes: B passages, T positions, D width, H hidden.

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from nextvec.errors import SettingsError
from nextvec.models.layers import feed_forward, silent_linear
from nextvec.models.protocol import Recurrent
from nextvec.models.trunk import Trunk
from nextvec.models.window_attention import Window, WindowAttention


class Block(nn.Module):
    """One pre-norm block: ``h + attention(norm h)``, then ``h + feed_forward(norm h)``."""

    def __init__(self, hidden: int, heads: int, window: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        # No bias: on the keys it shifts all scores of a query equally, and the norm has a bias already.
        self.projections = nn.Linear(hidden, 3 * hidden, bias=False)
        self.attention = WindowAttention(window, heads, dropout=dropout)
        self.output = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = feed_forward(hidden, 4 * hidden, dropout)

    def forward(self, held: Window, h_BTH: Float[Tensor, "B T H"]) -> tuple[Window, Float[Tensor, "B T H"]]:
        """The window after the passage, and the output of the block at every position."""
        held, attended_BTH = self.attention(held, *self.projections(self.norm(h_BTH)).chunk(3, dim=-1))
        h_BTH = h_BTH + self.dropout(self.output(attended_BTH))
        return held, h_BTH + self.feed_forward(h_BTH)


class TransformerState(NamedTuple):
    """Exponential means, and the window of keys and values of every block."""

    means: Float[Tensor, "B K D"]
    windows: tuple[Window, ...]


class Transformer(Recurrent[TransformerState]):
    """y = normalize(trunk + W h), with W zero at the start and h from blocks of window attention.

    Positions are relative, and scores decrease with distance (see :class:`WindowAttention`). So recent vectors weigh most,
    and a model that was trained on short passages can read longer ones. ``window`` bounds the state and the cost of a step.
    Each block sees ``window - 1`` positions further back, so the residual depends on the last ``layers * (window - 1) + 1``
    vectors.

    Args:
        centre: mean of the training rows, [D].
        decay: decay of the exponential mean that the untrained model equals.
        hidden: width of the blocks, a multiple of ``heads``.
        layers: number of blocks.
        dropout: on content, attention weights and both halves of every block.
        heads: of attention.
        window: positions that attention sees, the newest included.
    """

    def __init__(
        self,
        centre: Float[Tensor, " D"],
        decay: float,
        hidden: int = 512,
        layers: int = 4,
        dropout: float = 0.2,
        heads: int = 8,
        window: int = 1024,
    ) -> None:
        super().__init__()
        if hidden % heads:
            raise SettingsError(f"width {hidden} cannot be split into {heads} heads: hidden must be a multiple of heads")
        self.dim = len(centre)
        self.trunk = Trunk(centre, decay)
        self.dropout = nn.Dropout(dropout)
        self.content = nn.Linear(self.dim, hidden)
        blocks = [Block(hidden, heads, window, dropout) for _ in range(layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(hidden)
        self.residual = silent_linear(hidden, self.dim)

    def start(self, batch: int) -> TransformerState:
        width = self.content.out_features
        windows = (block.attention.start(batch, width, width) for block in self._blocks())
        return TransformerState(self.trunk.start(batch), tuple(windows))

    def run(self, state: TransformerState, x_BTD: Float[Tensor, "B T D"]) -> tuple[TransformerState, Float[Tensor, "B T D"]]:
        means, centred_BTD, means_BTKD = self.trunk.read(state.means, x_BTD)
        # Unit rows have entries near 1/sqrt(D); the blocks want them near 1.
        h_BTH = self.content(self.dropout(centred_BTD * self.dim**0.5))
        windows: list[Window] = []
        for block, held in zip(self._blocks(), state.windows, strict=True):
            after, h_BTH = block(held, h_BTH)
            windows.append(after)
        residual_BTD = self.residual(self.norm(h_BTH))
        return TransformerState(means, tuple(windows)), self.trunk.finish(self.trunk.mix(means_BTKD), residual_BTD)

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]
