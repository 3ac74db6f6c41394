"""Packing of a model for inference: weights rounded to a format, compiled products, no gradients."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import nn

from nextvec.errors import SettingsError
from nextvec.kernels.library import level
from nextvec.kernels.weights import WeightFormat
from nextvec.models.packed_layers import PackedChain, PackedGRU, PackedLinear, PackedLSTM
from nextvec.models.protocol import Recurrent

S = TypeVar("S")
CHAINED = (nn.Linear, nn.LayerNorm, nn.GELU, nn.Dropout)
MIN_ROWS = 32  # of a linear layer that is packed: a smaller one would be padded to a panel of 64 rows, and torch is as fast


@runtime_checkable
class Packable(Protocol):
    """A module of this package that has a packed form of its own."""

    def packed(self, form: WeightFormat) -> nn.Module:
        """The module that computes the same with packed weights.

        Returns ``self`` where there is no such form, for example without
        compiled kernels; then the layers inside it are packed.
        """
        ...


def pack(model: Recurrent[S], weights: WeightFormat) -> Recurrent[S]:
    """A copy of the model for inference: in evaluation mode, without gradients, with packed weights.

    ``nn.Linear``, ``nn.GRU``, ``nn.LSTM`` and learned slots store their weights
    in the given format (:mod:`nextvec.kernels.weights`). All other numbers stay
    float32. With ``float32`` the copy predicts what the model predicts, up to
    rounding. With another format it predicts what the model would predict with
    rounded weights.

    Raises:
        SettingsError: the format does not exist, or the model is not float32 on the CPU.
        DataError: a weight is not finite.
    """
    for key, tensor in model.state_dict().items():
        if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
            raise SettingsError(f"{key} is {tensor.dtype} on {tensor.device}; only models of float32 on cpu can be packed")
    copy = packed_form(deepcopy(model), weights)
    assert isinstance(copy, Recurrent), f"{type(model).__name__}.packed returned no model"
    return copy.eval().requires_grad_(False)


def fastest_format() -> WeightFormat:
    """The weight format with the fastest step on this processor.

    - int8 where the processor has VNNI, which multiplies bytes without
      widening them: a step reads a quarter of the bytes of float32, and up to
      30 million weights fit a cache of 32 MB.
    - bfloat16 with the other compiled kernels: widening bfloat16 costs them one
      shift, and widening int8 costs more than the saved reading.
    - float32 where torch computes: torch would widen every matrix before every
      product.
    """
    formats: dict[str, WeightFormat] = {"avx512": "int8", "torch": "float32"}
    return formats.get(level(), "bfloat16")


def weight_bytes(model: Recurrent[Any]) -> int:
    """Size in bytes of all parameters and buffers of a model, packed or not: what one step reads at most."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


def pack_layers(module: nn.Module, form: WeightFormat) -> None:
    """Replace, in place, every layer inside ``module`` that has a packed form."""
    for child_name, child in module.named_children():
        setattr(module, child_name, packed_form(child, form))


@torch.no_grad()
def packed_form(module: nn.Module, form: WeightFormat) -> nn.Module:
    """The packed form of a module; the module itself, with its layers packed in place, where it has none."""
    if isinstance(module, Packable):
        packed = module.packed(form)
    elif type(module) in LAYERS:
        packed = LAYERS[type(module)](module, form)
    else:
        packed = module
    if packed is module:
        pack_layers(module, form)
    return packed


def _linear(layer: nn.Linear, form: WeightFormat) -> nn.Module:
    return PackedLinear(layer.weight, layer.bias, form) if layer.out_features >= MIN_ROWS else layer


def _sequential(layers: nn.Sequential, form: WeightFormat) -> nn.Module:
    if not all(isinstance(layer, CHAINED) for layer in layers):
        return layers
    return PackedChain([layer for layer in layers if not isinstance(layer, nn.Dropout)], form)


def _layer_norm(layer: nn.LayerNorm, form: WeightFormat) -> nn.Module:
    return PackedChain([layer], form)


def _dropout(layer: nn.Dropout, form: WeightFormat) -> nn.Module:  # noqa: ARG001
    return nn.Identity()


LAYERS: dict[type[nn.Module], Callable[[Any, WeightFormat], nn.Module]] = {
    nn.Linear: _linear,
    nn.GRU: PackedGRU,
    nn.LSTM: PackedLSTM,
    nn.Sequential: _sequential,
    nn.LayerNorm: _layer_norm,
    nn.Dropout: _dropout,
}
