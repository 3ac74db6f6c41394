"""Packed forms of torch's layers: weights rounded to a format and laid out in the order in which a step reads them."""

# Axes: B passages, T positions, K input width, N output width, D width, H hidden, L layers, M slots, E address width.

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from nextvec.errors import SettingsError
from nextvec.kernels.weights import Matrix, WeightFormat, pack_matrix, product
from nextvec.kernels.weights_cells import Cell, gru, lstm
from nextvec.kernels.weights_chain import Chain, Kind, Stage, run_chain


class PackedLinear(nn.Module):
    """An ``nn.Linear`` with packed weights."""

    def __init__(self, weight_NK: Float[Tensor, "N K"], bias_N: Float[Tensor, " N"] | None, form: WeightFormat) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_NK.shape
        self.matrix = hold(self, "weight", weight_NK, form)
        self.bias = keep(self, "bias", bias_N)

    def forward(self, x: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape N"]:
        return product(x, self.matrix, self.bias)


class PackedRecurrence(nn.Module):
    """Base of the packed ``nn.GRU`` and ``nn.LSTM``: it packs every layer and keeps torch's names of weights."""

    def __init__(self, source: nn.GRU | nn.LSTM, form: WeightFormat) -> None:
        super().__init__()
        if source.bidirectional or not source.batch_first or source.proj_size or not source.bias:
            raise SettingsError(f"{source} cannot be packed: only one direction, batch first, with biases and no projection")
        self.num_layers, self.hidden_size = source.num_layers, source.hidden_size
        self.cells = [self._cell(source, f"l{n}", form) for n in range(source.num_layers)]

    def _cell(self, source: nn.GRU | nn.LSTM, layer: str, form: WeightFormat) -> Cell:
        matrices = [hold(self, part, getattr(source, part), form) for part in (f"weight_ih_{layer}", f"weight_hh_{layer}")]
        biases = [keep(self, part, getattr(source, part)) for part in (f"bias_ih_{layer}", f"bias_hh_{layer}")]
        return Cell(matrices[0], matrices[1], *(bias for bias in biases if bias is not None))


class PackedGRU(PackedRecurrence):
    """An ``nn.GRU`` with packed weights."""

    def forward(
        self, x_BTK: Float[Tensor, "B T K"], hidden_LBH: Float[Tensor, "L B H"]
    ) -> tuple[Float[Tensor, "B T H"], Float[Tensor, "L B H"]]:
        return gru(x_BTK, hidden_LBH, self.cells)


class PackedLSTM(PackedRecurrence):
    """An ``nn.LSTM`` with packed weights."""

    def forward(
        self, x_BTK: Float[Tensor, "B T K"], state_LBH: tuple[Float[Tensor, "L B H"], Float[Tensor, "L B H"]]
    ) -> tuple[Float[Tensor, "B T H"], tuple[Float[Tensor, "L B H"], Float[Tensor, "L B H"]]]:
        h_BTH, hidden_LBH, cell_LBH = lstm(x_BTK, *state_LBH, self.cells)
        return h_BTH, (hidden_LBH, cell_LBH)


class PackedChain(nn.Module):
    """A sequence of layers that runs as one compiled call."""

    def __init__(self, chain: Sequence[nn.Module], form: WeightFormat) -> None:
        super().__init__()
        self.chain = Chain(tuple(self._stage(n, layer, form) for n, layer in enumerate(chain)))

    def _stage(self, n: int, layer: nn.Module, form: WeightFormat) -> Stage:
        if isinstance(layer, nn.Linear):
            return Stage("product", hold(self, f"weight_{n}", layer.weight, form), bias=keep(self, f"bias_{n}", layer.bias))
        if isinstance(layer, nn.LayerNorm):
            scale, bias = keep(self, f"weight_{n}", layer.weight), keep(self, f"bias_{n}", layer.bias)
            return Stage("layer_norm", None, scale, bias, layer.eps)
        kinds: dict[type[nn.Module], Kind] = {nn.GELU: "gelu", Unit: "unit", nn.Softmax: "softmax"}
        return Stage(kinds[type(layer)])

    def forward(self, x: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape N"]:
        return run_chain(x, self.chain)


class Unit(nn.Module):
    """Scales every vector to length 1."""

    def forward(self, x: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape K"]:
        return normalize(x, dim=-1)


def slot_layers(query: nn.Linear, keys_ME: Float[Tensor, "M E"], values_MD: Float[Tensor, "M D"]) -> list[nn.Module]:
    """The layers that compute ``softmax(unit(query(x)) @ keys.T) @ values`` over M slots.

    The length of a key is the sharpness of its slot.
    """
    return [query, Unit(), _linear(keys_ME), nn.Softmax(-1), _linear(values_MD.T)]


def _linear(weight_NK: Float[Tensor, "N K"]) -> nn.Linear:
    layer = nn.Linear(*reversed(weight_NK.shape), bias=False)
    layer.load_state_dict({"weight": weight_NK})
    return layer


def hold(owner: nn.Module, name: str, weight_NK: Tensor, form: WeightFormat) -> Matrix:
    """Pack a matrix and register it as a buffer of ``owner``, so that copies, files and digests of ``owner`` include it."""
    matrix = pack_matrix(weight_NK, form)
    owner.register_buffer(name, matrix.codes)
    owner.register_buffer(f"{name}_scales", matrix.scales)
    return matrix


def keep(owner: nn.Module, name: str, numbers: Tensor | None) -> Tensor | None:
    """Register a copy of ``numbers`` as a float32 buffer of ``owner``; None stays None."""
    kept = None if numbers is None else numbers.detach().clone()
    owner.register_buffer(name, kept)
    return kept
