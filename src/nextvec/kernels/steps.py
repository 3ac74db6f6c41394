"""The operations of a step besides its matrix products: exponential means, their mixture, routing, attention of one query.

In torch they are about forty operations, whose call overhead exceeds their
work. Here they are eight compiled calls. Each replaces code of a model; its
docstring names that code. They need compiled kernels.
"""

# Axes: B passages, T positions, D width, K means, F features, N heads, P places, E keys or lanes, V values.

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from nextvec.kernels.library import library

_Pointer, _Whole = ctypes.c_void_p, ctypes.c_int64
ARGUMENTS = {
    "means": [*4 * [_Pointer], *4 * [_Whole], *2 * [_Pointer]],
    "features": [*2 * [_Pointer], *3 * [_Whole], _Pointer],
    "mix": [*4 * [_Pointer], *3 * [_Whole], _Pointer],
    "finish": [*3 * [_Pointer], *2 * [_Whole], _Pointer],
    "lanes": [*3 * [_Pointer], ctypes.c_float, *4 * [_Whole], *3 * [_Pointer]],
    "choose": [_Pointer, *3 * [_Whole], *2 * [_Pointer]],
    "attend": [*5 * [_Pointer], *5 * [_Whole], _Pointer],
    "recall": [*7 * [_Pointer], *3 * [_Whole], _Pointer],
}


def compiled() -> bool:
    """Whether the functions of this module can be called."""
    return library() is not None


def means(
    x_BTD: Float32[Tensor, "B T D"],
    centre_D: Float32[Tensor, " D"],
    decays_K: Float32[Tensor, " K"],
    carried_BKD: Float32[Tensor, "B K D"],
) -> tuple[Float32[Tensor, "B T D"], Float32[Tensor, "B T K D"]]:
    """The centred passage and its exponential means at every position, as ``ExponentialMeans`` computes them."""
    (batch, length, dim), count = x_BTD.shape, len(decays_K)
    centred_BTD, means_BTKD = torch.empty(batch, length, dim), torch.empty(batch, length, count, dim)
    x_BTD, carried_BKD = x_BTD.contiguous(), carried_BKD.contiguous()
    loaded()["means"](*_at(x_BTD, centre_D, decays_K, carried_BKD), batch, length, count, dim, *_at(centred_BTD, means_BTKD))
    return centred_BTD, means_BTKD


def features(centred_BTD: Float32[Tensor, "B T D"], means_BTKD: Float32[Tensor, "B T K D"]) -> Float32[Tensor, "B T F"]:
    """``Trunk.features``: F is 3 K - 1."""
    batch, length, count, dim = means_BTKD.shape
    out_BTF = torch.empty(batch, length, 3 * count - 1)
    centred_BTD, means_BTKD = centred_BTD.contiguous(), means_BTKD.contiguous()
    loaded()["features"](*_at(centred_BTD, means_BTKD), batch * length, count, dim, *_at(out_BTF))
    return out_BTF


def mix(
    means_BTKD: Float32[Tensor, "B T K D"],
    weights_KD: Float32[Tensor, "K D"],
    gates_BTK: Float32[Tensor, "B T K"] | None,
    bias_D: Float32[Tensor, " D"],
) -> Float32[Tensor, "B T D"]:
    """``Trunk.mix``."""
    batch, length, count, dim = means_BTKD.shape
    out_BTD = torch.empty(batch, length, dim)
    means_BTKD, gates_BTK = means_BTKD.contiguous(), None if gates_BTK is None else gates_BTK.contiguous()
    loaded()["mix"](*_at(means_BTKD, weights_KD, gates_BTK, bias_D), batch * length, count, dim, *_at(out_BTD))
    return out_BTD


def finish(
    mixed_BTD: Float32[Tensor, "B T D"], residual_BTD: Float32[Tensor, "B T D"], scale_D: Float32[Tensor, " D"]
) -> Float32[Tensor, "B T D"]:
    """``Trunk.finish``."""
    batch, length, dim = mixed_BTD.shape
    out_BTD = torch.empty(batch, length, dim)
    mixed_BTD, residual_BTD = mixed_BTD.contiguous(), residual_BTD.contiguous()
    loaded()["finish"](*_at(mixed_BTD, residual_BTD, scale_D), batch * length, dim, *_at(out_BTD))
    return out_BTD


def lanes(
    x_BTD: Float32[Tensor, "B T D"],
    anchors_ED: Float32[Tensor, "E D"],
    prices_E: Float32[Tensor, " E"],
    keep: float,
    sums_BE: Float32[Tensor, "B E"],
    weight_B1: Float32[Tensor, "B 1"],
) -> tuple[Float32[Tensor, "B E"], Float32[Tensor, "B 1"], Float32[Tensor, "B T E"]]:
    """``LaneScores``: the sums and the weight after the passage, and the mean scores at every position."""
    (batch, length, dim), count = x_BTD.shape, len(prices_E)
    means_BTE, x_BTD = torch.empty(batch, length, count), x_BTD.contiguous()
    sums_BE, weight_B1 = sums_BE.clone(memory_format=torch.contiguous_format), weight_B1.clone()
    parts = _at(x_BTD, anchors_ED, prices_E)
    loaded()["lanes"](*parts, keep, batch, length, dim, count, *_at(sums_BE, weight_B1, means_BTE))
    return sums_BE, weight_B1, means_BTE


def choose(logits_BTE: Float32[Tensor, "B T E"], top: int) -> tuple[Float32[Tensor, "B T E"], Float32[Tensor, "B T E"]]:
    """``chosen`` with ``top`` below the number of experts: probabilities and weights."""
    batch, length, count = logits_BTE.shape
    logits_BTE = logits_BTE.contiguous()
    probabilities_BTE, weights_BTE = torch.empty_like(logits_BTE), torch.empty_like(logits_BTE)
    loaded()["choose"](*_at(logits_BTE), batch * length, count, top, *_at(probabilities_BTE, weights_BTE))
    return probabilities_BTE, weights_BTE


def attend(
    query_BE: Float32[Tensor, "B E"],
    keys_BPE: Float32[Tensor, "B P E"],
    values_BPV: Float32[Tensor, "B P V"],
    filled_BP: Bool[Tensor, "B P"],
    slopes_N: Float32[Tensor, " N"],
) -> Float32[Tensor, "B V"]:
    """``WindowAttention`` at the newest position of each passage, which sees all given places; the last place is its own.

    Raises:
        MemoryError: memory for the scores is lacking.
    """
    batch, places, wide = values_BPV.shape
    heads = len(slopes_N)
    out_BV = torch.empty(batch, wide)
    inputs = [part.contiguous() for part in (query_BE, keys_BPE, values_BPV, filled_BP)]
    sizes = (batch, places, heads, query_BE.shape[1] // heads, wide // heads)
    _done(loaded()["attend"](*_at(*inputs, slopes_N), *sizes, *_at(out_BV)))
    return out_BV


def recall(
    query_BD: Float32[Tensor, "B D"],
    rows_BPD: Float32[Tensor, "B P D"],
    written_BP: Float32[Tensor, "B P"],
    filled_BP: Bool[Tensor, "B P"],
    heads: tuple[Float32[Tensor, " 2"], Float32[Tensor, " 2"], Float32[Tensor, " 2"]],
) -> Float32[Tensor, "B 2 D"]:
    """``WorkingMemory`` at the newest place.

    Args:
        rows_BPD: at most one more than the memory has places.
        heads: sharpness, fading and sink.
    """
    batch, places, dim = rows_BPD.shape
    out_BRD = torch.empty(batch, 2, dim)
    inputs = [part.contiguous() for part in (query_BD, rows_BPD, written_BP, filled_BP)]
    loaded()["recall"](*_at(*inputs, *heads), batch, places, dim, *_at(out_BRD))
    return out_BRD


def _at(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _done(done: int) -> None:
    if not done:
        raise MemoryError("no memory for the scores of a step")


@cache
def loaded() -> dict[str, Callable[..., int]]:
    compiled_library = library()
    assert compiled_library is not None, "callers check compiled() first"
    functions = {name: getattr(compiled_library, f"nextvec_steps_{name}") for name in ARGUMENTS}
    for name, function in functions.items():
        function.argtypes = ARGUMENTS[name]
    return functions
