"""Models for answering: their weights packed, rounded where that is asked for, and without gradients."""

# Axes: B passages, T positions, K width that is read, N rows, D width, H hidden, L layers, M slots, E address width or experts.

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from nextvec.errors import SettingsError
from nextvec.kernels import name, steps
from nextvec.kernels.weights import Cell, Chain, Format, Kind, Matrix, Stage, gru, lstm, packed, product, run_chain
from nextvec.models.experts import Gate, LaneRead, LaneScores, Routing, chosen
from nextvec.models.memory_gru import Slots
from nextvec.models.protocol import Recurrent
from nextvec.models.published import PublishedMemoryGRU
from nextvec.models.trunk import Trunk
from nextvec.models.window_attention import Window, WindowAttention
from nextvec.models.working_memory import WorkingMemory

Weights = Format
S = TypeVar("S")
CHAINED = (nn.Linear, nn.LayerNorm, nn.GELU, nn.Dropout)
FEWEST = 32  # rows of a layer that is packed: fewer would be filled up to a panel of 64, and torch is as fast


def pack(model: Recurrent[S], weights: Weights) -> Recurrent[S]:
    """A copy for answering: in evaluation mode, without gradients, its products as fast as memory gives the weights.

    ``nn.Linear``, ``nn.GRU``, ``nn.LSTM`` and learned slots hold their weights
    in the format asked for (:mod:`nextvec.kernels.weights`); every other
    number stays float32. With ``float32`` it answers as the model does, to
    rounding; with another format, as the model would with rounded weights.

    Raises:
        SettingsError: a format that does not exist, or a model that is not float32 on the processor.
        DataError: weights that are not finite.
    """
    for key, tensor in model.state_dict().items():
        if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
            raise SettingsError(f"{key} is {tensor.dtype} on {tensor.device}; only models of float32 on cpu can be packed")
    if isinstance(model, PublishedMemoryGRU):
        copy: Recurrent[Any] = PackedPublishedMemoryGRU(model, weights)
    else:
        copy = deepcopy(model)
        _pack_children(copy, weights)
    return copy.eval().requires_grad_(False)


def best() -> Weights:
    """The format that steps fastest on this processor.

    int8 where it has VNNI, which multiplies bytes as they are: a quarter of
    what float32 has to read, and up to 30 million weights stay in a cache of
    32 MB. bfloat16 with other compiled kernels, since widening one costs them
    a shift, and widening int8 more than reading it. float32 where torch
    computes: it would widen every matrix before every product.
    """
    formats: dict[str, Weights] = {"avx512": "int8", "torch": "float32"}
    return formats.get(name(), "bfloat16")


def weight_bytes(model: Recurrent[Any]) -> int:
    """Bytes of the weights that a model, packed or not, reads in one step: of all that it holds."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


class PackedLinear(nn.Module):
    """An ``nn.Linear`` of packed weights."""

    def __init__(self, weight_NK: Float[Tensor, "N K"], bias_N: Float[Tensor, " N"] | None, form: Format) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_NK.shape
        self.matrix = _hold(self, "weight", weight_NK, form)
        self.bias = _keep(self, "bias", bias_N)

    def forward(self, x: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape N"]:
        return product(x, self.matrix, self.bias)


class PackedRecurrence(nn.Module):
    """What the packed ``nn.GRU`` and ``nn.LSTM`` share: their layers, and the names of torch's."""

    def __init__(self, source: nn.GRU | nn.LSTM, form: Format) -> None:
        super().__init__()
        if source.bidirectional or not source.batch_first or source.proj_size or not source.bias:
            raise SettingsError(f"{source} cannot be packed: only one direction, batch first, with biases and no projection")
        self.num_layers, self.hidden_size = source.num_layers, source.hidden_size
        self.cells = [self._cell(source, f"l{n}", form) for n in range(source.num_layers)]

    def _cell(self, source: nn.GRU | nn.LSTM, layer: str, form: Format) -> Cell:
        matrices = [_hold(self, part, getattr(source, part), form) for part in (f"weight_ih_{layer}", f"weight_hh_{layer}")]
        biases = [_keep(self, part, getattr(source, part)) for part in (f"bias_ih_{layer}", f"bias_hh_{layer}")]
        return Cell(matrices[0], matrices[1], *(bias for bias in biases if bias is not None))


class PackedGRU(PackedRecurrence):
    """An ``nn.GRU`` of packed weights."""

    def forward(
        self, x_BTK: Float[Tensor, "B T K"], hidden_LBH: Float[Tensor, "L B H"]
    ) -> tuple[Float[Tensor, "B T H"], Float[Tensor, "L B H"]]:
        return gru(x_BTK, hidden_LBH, self.cells)


class PackedLSTM(PackedRecurrence):
    """An ``nn.LSTM`` of packed weights."""

    def forward(
        self, x_BTK: Float[Tensor, "B T K"], carried: tuple[Float[Tensor, "L B H"], Float[Tensor, "L B H"]]
    ) -> tuple[Float[Tensor, "B T H"], tuple[Float[Tensor, "L B H"], Float[Tensor, "L B H"]]]:
        h_BTH, hidden_LBH, cell_LBH = lstm(x_BTK, *carried, self.cells)
        return h_BTH, (hidden_LBH, cell_LBH)


class PackedChain(nn.Module):
    """Layers one after another, in one call."""

    def __init__(self, chain: Sequence[nn.Module], form: Format) -> None:
        super().__init__()
        self.chain = Chain(tuple(self._stage(n, layer, form) for n, layer in enumerate(chain)))

    def _stage(self, n: int, layer: nn.Module, form: Format) -> Stage:
        if isinstance(layer, nn.Linear):
            return Stage("product", _hold(self, f"weight_{n}", layer.weight, form), bias=_keep(self, f"bias_{n}", layer.bias))
        if isinstance(layer, nn.LayerNorm):
            scale, bias = _keep(self, f"weight_{n}", layer.weight), _keep(self, f"bias_{n}", layer.bias)
            return Stage("layer_norm", None, scale, bias, layer.eps)
        kinds: dict[type[nn.Module], Kind] = {nn.GELU: "gelu", Unit: "unit", nn.Softmax: "softmax"}
        return Stage(kinds[type(layer)])

    def forward(self, x: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape N"]:
        return run_chain(x, self.chain)


class Unit(nn.Module):
    """Brings to unit length."""

    def forward(self, x: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape K"]:
        return normalize(x, dim=-1)


def slots_chain(query: nn.Linear, keys_ME: Float[Tensor, "M E"], values_MD: Float[Tensor, "M D"]) -> list[nn.Module]:
    """softmax(cos(query, keys) length of key) values, over slots whose keys were brought to their lengths before."""
    return [query, Unit(), _linear(keys_ME), nn.Softmax(-1), _linear(values_MD.T)]


def _linear(weight_NK: Float[Tensor, "N K"]) -> nn.Linear:
    layer = nn.Linear(*reversed(weight_NK.shape), bias=False)
    layer.load_state_dict({"weight": weight_NK})
    return layer


class PackedTrunk(Trunk):
    """A trunk in four calls."""

    def __init__(self, source: Trunk) -> None:
        super().__init__(source.centre, 0.5, [0.0] * (source.num_means - 1))
        self.load_state_dict(source.state_dict())
        self.decays = self.means.decays.detach()

    def read(
        self, state: Float[Tensor, "B K D"], x_BTD: Float[Tensor, "B T D"]
    ) -> tuple[Float[Tensor, "B K D"], Float[Tensor, "B T D"], Float[Tensor, "B T K D"]]:
        centred_BTD, means_BTKD = steps.means(x_BTD, self.centre, self.decays, state)
        return means_BTKD[:, -1], centred_BTD, means_BTKD

    def features(self, centred_BTD: Float[Tensor, "B T D"], means_BTKD: Float[Tensor, "B T K D"]) -> Float[Tensor, "B T F"]:
        return steps.features(centred_BTD, means_BTKD)

    def mix(
        self, means_BTKD: Float[Tensor, "B T K D"], gates_BTK: Float[Tensor, "B T K"] | None = None
    ) -> Float[Tensor, "B T D"]:
        return steps.mix(means_BTKD, self.weights, gates_BTK, self.bias)

    def finish(self, mixed_BTD: Float[Tensor, "B T D"], residual_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return steps.finish(mixed_BTD, residual_BTD, self.scale)


class PackedLaneScores(LaneScores):
    """Lane scores in one call."""

    def __init__(self, source: LaneScores) -> None:
        super().__init__(source.anchors.shape[1], source.count, "document")
        self.load_state_dict(source.state_dict())
        self.keep = source.keep

    def forward(self, state: LaneRead, x_BTD: Float[Tensor, "B T D"]) -> tuple[LaneRead, Float[Tensor, "B T E"]]:
        *after, means_BTE = steps.lanes(x_BTD, self.anchors, self.prices, self.keep, *state)
        return LaneRead(*after), means_BTE


class PackedGate(nn.Module):
    """A gate whose choice is one call."""

    def __init__(self, source: Gate) -> None:
        super().__init__()
        self.on, self.top = source.on, source.top
        self.sharpness = _keep(self, "sharpness", source.log_sharpness.exp() if source.on != "state" else None)
        self.state = source.state if source.on != "lane" else None

    def forward(self, h_BTH: Float[Tensor, "B T H"], scores_BTE: Float[Tensor, "B T E"]) -> Routing:
        parts = [] if self.sharpness is None else [self.sharpness * scores_BTE]
        if self.state is not None:
            parts.append(self.state(h_BTH))
        logits_BTE = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        if self.top >= logits_BTE.shape[-1]:
            return chosen(logits_BTE, self.top)
        return Routing(*steps.choose(logits_BTE, self.top))


class PackedWindowAttention(WindowAttention):
    """Window attention of which a step is one call; longer passages go torch's way."""

    def __init__(self, source: WindowAttention) -> None:
        super().__init__(source.size, source.heads)
        self.slopes = source.slopes

    def forward(
        self,
        held: Window,
        queries_BTE: Float[Tensor, "B T E"],
        keys_BTE: Float[Tensor, "B T E"],
        values_BTF: Float[Tensor, "B T F"],
    ) -> tuple[Window, Float[Tensor, "B T F"]]:
        if queries_BTE.shape[1] != 1:
            return super().forward(held, queries_BTE, keys_BTE, values_BTF)
        filled = torch.cat([held.filled, held.filled.new_ones(len(queries_BTE), 1)], dim=1)
        places = Window(torch.cat([held.keys, keys_BTE], dim=1), torch.cat([held.values, values_BTF], dim=1), filled)
        attended_BF = steps.attend(queries_BTE[:, 0], *places, self.slopes)
        kept = slice(max(0, filled.shape[1] + 1 - self.size), None)
        return Window(places.keys[:, kept], places.values[:, kept], filled[:, kept]), attended_BF[:, None]


class PackedWorkingMemory(WorkingMemory):
    """Working memory of which a step's recall is one call; longer passages go torch's way."""

    def __init__(self, source: WorkingMemory) -> None:
        super().__init__(source.size)
        self.load_state_dict(source.state_dict())
        self.recalling = (self.log_sharpness.exp(), self.log_fading.exp(), self.sink.detach())

    def _recall(
        self,
        queries_BQD: Float[Tensor, "B Q D"],
        rows_BPD: Float[Tensor, "B P D"],
        written_BP: Float[Tensor, "B P"],
        filled_BP: Bool[Tensor, "B P"],
    ) -> Float[Tensor, "B Q 2 D"]:
        if queries_BQD.shape[1] != 1:
            return super()._recall(queries_BQD, rows_BPD, written_BP, filled_BP)
        return steps.recall(queries_BQD[:, 0], rows_BPD, written_BP, filled_BP, self.recalling, self.size)[:, None]


class PackedPublishedMemoryGRU(Recurrent[Tensor]):
    """A :class:`PublishedMemoryGRU` whose memory is not written any more.

    What it reads with the constant query is a constant, and its part of the
    first layer's products a bias.
    """

    def __init__(self, model: PublishedMemoryGRU, form: Format) -> None:
        super().__init__()
        self.dim = model.dim
        self.ones = torch.ones(model.dim)
        self.norm = deepcopy(model.norm)
        self.memory = PackedChain(slots_chain(model.query, normalize(model.memory, dim=-1), model.memory), form)
        self.recurrence = PackedGRU(_with_constant(model), form)
        self.fusion, self.output = deepcopy(model.fusion), deepcopy(model.output)
        _pack_children(self, form)

    def start(self, batch: int) -> Tensor:
        return torch.zeros(self.recurrence.num_layers, batch, self.recurrence.hidden_size)

    def run(self, state: Tensor, x_BTD: Float[Tensor, "B T D"]) -> tuple[Tensor, Float[Tensor, "B T D"]]:
        h_BTH, after = self.recurrence(self.norm(x_BTD), state)
        return after, self._predict(x_BTD, h_BTH)

    def last(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        h_BTH, _ = self.recurrence(self.norm(x_BTD), self.start(len(x_BTD)))
        return self._predict(x_BTD[:, -1:], h_BTH[:, -1:])[:, 0]

    def _predict(self, x_BTD: Float[Tensor, "B T D"], h_BTH: Float[Tensor, "B T H"]) -> Float[Tensor, "B T D"]:
        delta_BTD = self.output(self.fusion(torch.cat([h_BTH, self.memory(h_BTH)], dim=-1)))
        if steps.compiled():
            return steps.finish(delta_BTD, x_BTD, self.ones)
        return normalize(x_BTD + normalize(delta_BTD, dim=-1), dim=-1)


@torch.no_grad()
def _with_constant(model: PublishedMemoryGRU) -> nn.GRU:
    """Its GRU, reading the vectors alone: the constant half of its input has become a bias."""
    source, dim = model.recurrence, model.dim
    shares_M = (normalize(model.memory, dim=-1) @ normalize(model.query.bias, dim=-1)).softmax(-1)
    alone = nn.GRU(dim, source.hidden_size, source.num_layers, batch_first=True)
    state = source.state_dict()
    constant_G = state["weight_ih_l0"][:, dim:] @ (shares_M @ model.memory)
    state.update(weight_ih_l0=state["weight_ih_l0"][:, :dim], bias_ih_l0=state["bias_ih_l0"] + constant_G)
    alone.load_state_dict(state)
    return alone


def _pack_children(module: nn.Module, form: Format) -> None:
    for child_name, child in module.named_children():
        replaced = _packed(child, form)
        if replaced is None:
            _pack_children(child, form)
        else:
            setattr(module, child_name, replaced)


@torch.no_grad()
def _packed(module: nn.Module, form: Format) -> nn.Module | None:
    """What takes its place; None where its children are to be packed, or nothing."""
    if isinstance(module, nn.GRU):
        return PackedGRU(module, form)
    if isinstance(module, nn.LSTM):
        return PackedLSTM(module, form)
    if isinstance(module, nn.Linear) and module.out_features >= FEWEST:
        return PackedLinear(module.weight, module.bias, form)
    if isinstance(module, Slots):
        keys_ME = module.log_sharpness.exp() * normalize(module.keys, dim=-1)
        return PackedChain(slots_chain(module.query, keys_ME, module.values), form)
    if isinstance(module, nn.Sequential) and all(isinstance(layer, CHAINED) for layer in module):
        return PackedChain([layer for layer in module if not isinstance(layer, nn.Dropout)], form)
    if isinstance(module, nn.LayerNorm):
        return PackedChain([module], form)
    if isinstance(module, nn.Dropout):
        return nn.Identity()
    if isinstance(module, Trunk) and steps.compiled():
        return PackedTrunk(module)
    if isinstance(module, LaneScores) and steps.compiled():
        return PackedLaneScores(module)
    if isinstance(module, Gate) and steps.compiled():
        return PackedGate(module)
    if isinstance(module, WindowAttention) and steps.compiled():
        return PackedWindowAttention(module)
    if isinstance(module, WorkingMemory) and steps.compiled():
        return PackedWorkingMemory(module)
    return None


def _hold(owner: nn.Module, name: str, weight_NK: Tensor, form: Format) -> Matrix:
    """Pack, and let the module's copies, files and digests know of it."""
    matrix = packed(weight_NK, form)
    owner.register_buffer(name, matrix.codes)
    owner.register_buffer(f"{name}_scales", matrix.scales)
    return matrix


def _keep(owner: nn.Module, name: str, numbers: Tensor | None) -> Tensor | None:
    """The same of what stays float32."""
    kept = None if numbers is None else numbers.detach().clone()
    owner.register_buffer(name, kept)
    return kept
