"""BERT with int8 weights and vectors rounded to 8 bits: unit rows of texts, a batch without padding in one call.

Token, position and type embeddings, layers of attention and GELU with layer
norms after them, mean over the tokens, unit length (Devlin et al. 2019;
Reimers and Gurevych 2019). Products with weights are those of
:mod:`~nextvec.kernels.rounded`; everything else is float32.
"""

# Axes: B texts, T tokens of all texts, L tokens of one text, D width, V vocabulary, P positions, F width inside a layer.

import ctypes
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, normalize, scaled_dot_product_attention

from nextvec.errors import DataError
from nextvec.kernels import rounded
from nextvec.kernels.memory import address
from nextvec.kernels.rounded import Rotated, rounded_product
from nextvec.kernels.weights_library import MatrixC, Pointer, check_done

MATRICES = ("qkv", "out", "wide", "back")  # in the order of bert.c


@dataclass(frozen=True, eq=False)
class Norm:
    """Scale and bias of a layer norm."""

    scale: Float32[Tensor, " D"]
    bias: Float32[Tensor, " D"]


@dataclass(frozen=True, eq=False)
class Layer:
    """The weights of one layer.

    Attributes:
        qkv: [3 D, D] queries, keys and values; the queries are scaled by 1 / sqrt(D / heads).
        out: [D, D] of the attention's output.
        wide, back: [F, D] and [D, F] around the GELU.
        attended, finished: after the attention and at the end of the layer.
    """

    qkv: Rotated
    out: Rotated
    wide: Rotated
    back: Rotated
    attended: Norm
    finished: Norm


@dataclass(frozen=True, eq=False)
class Bert:
    """The weights of a model.

    Attributes:
        words: embeddings of the tokens.
        positions: embeddings of the positions, with that of the token type added.
        embedded: the layer norm after the embeddings.
        epsilon: of all layer norms.
    """

    words: Float32[Tensor, "V D"]
    positions: Float32[Tensor, "P D"]
    embedded: Norm
    layers: tuple[Layer, ...]
    heads: int
    epsilon: float

    @cached_property
    def c(self) -> "_BertC":
        """The structure of bert.c; it holds addresses, so it lives no longer than the weights."""
        layers = (_LayerC * len(self.layers))(*(_layer_c(layer) for layer in self.layers))
        return _BertC(
            *(self.words.data_ptr(), self.positions.data_ptr(), layers, _norm_c(self.embedded)),
            *(len(self.layers), self.words.shape[1], self.heads, self.epsilon),
        )


def encode_tokens(bert: Bert, ids: Int32[np.ndarray, " T"], lengths: Int64[np.ndarray, " B"]) -> Float32[np.ndarray, "B D"]:
    """Unit rows of texts, given as their tokens one text after another. The bits of a row do not depend on the other texts.

    Raises:
        DataError: lengths that do not add up or are not from 1 to P, or a token outside the vocabulary.
    """
    longest, size = len(bert.positions), len(bert.words)
    if not len(lengths) or lengths.min() < 1 or lengths.max() > longest or lengths.sum() != len(ids):
        raise DataError(
            f"{len(ids)} tokens in {len(lengths)} texts: each text needs 1 to {longest} tokens, and all must be used"
        )
    if ids.min() < 0 or ids.max() >= size:
        raise DataError(f"token {int(ids.min() if ids.min() < 0 else ids.max())} is not in the vocabulary of {size}")
    compiled = _loaded()
    if compiled is None:
        texts = np.split(ids, np.cumsum(lengths)[:-1])
        return np.stack([_encode_torch(bert, torch.from_numpy(text).long()) for text in texts])
    ids, lengths = np.ascontiguousarray(ids), np.ascontiguousarray(lengths)
    rows = np.empty((len(lengths), bert.words.shape[1]), np.float32)
    check_done(compiled.nextvec_bert_encode(bert.c, address(ids), address(lengths), len(lengths), address(rows)))
    return rows


@torch.inference_mode()
def _encode_torch(bert: Bert, ids_L: Int64[Tensor, " L"]) -> Float32[np.ndarray, " D"]:
    x_LD = _normed(bert, bert.words[ids_L] + bert.positions[: len(ids_L)], bert.embedded)
    for layer in bert.layers:
        q, k, v = rounded_product(x_LD, layer.qkv).unflatten(-1, (3, bert.heads, -1)).permute(1, 2, 0, 3)
        mixed_LD = scaled_dot_product_attention(q, k, v, scale=1.0).transpose(0, 1).flatten(1)
        x_LD = _normed(bert, x_LD + rounded_product(mixed_LD, layer.out), layer.attended)
        wide_LF = gelu(rounded_product(x_LD, layer.wide))
        x_LD = _normed(bert, x_LD + rounded_product(wide_LF, layer.back), layer.finished)
    return normalize(x_LD.sum(0), dim=0).numpy()


def _normed(bert: Bert, x_LD: Float32[Tensor, "L D"], norm: Norm) -> Float32[Tensor, "L D"]:
    return layer_norm(x_LD, x_LD.shape[-1:], norm.scale, norm.bias, bert.epsilon)


class _NormC(ctypes.Structure):
    _fields_ = (("scale", Pointer), ("bias", Pointer))


class _LayerC(ctypes.Structure):
    _fields_ = (
        *((name, MatrixC) for name in MATRICES),
        *((f"{name}_bias", Pointer) for name in MATRICES),
        *((name, _NormC) for name in ("attended", "finished")),
    )


class _BertC(ctypes.Structure):
    _fields_ = (
        *(("words", Pointer), ("positions", Pointer), ("layers", ctypes.POINTER(_LayerC)), ("embedded", _NormC)),
        *((name, ctypes.c_int64) for name in ("depth", "dim", "heads")),
        ("epsilon", ctypes.c_float),
    )


def _norm_c(norm: Norm) -> _NormC:
    return _NormC(norm.scale.data_ptr(), norm.bias.data_ptr())


def _layer_c(layer: Layer) -> _LayerC:
    matrices: list[Rotated] = [getattr(layer, name) for name in MATRICES]
    biases = (matrix.bias.data_ptr() for matrix in matrices)
    return _LayerC(*(matrix.w.c for matrix in matrices), *biases, _norm_c(layer.attended), _norm_c(layer.finished))


@cache
def _loaded() -> ctypes.CDLL | None:
    compiled = rounded.loaded()
    if compiled is not None:
        whole = ctypes.c_int64
        compiled.nextvec_bert_encode.argtypes = [ctypes.POINTER(_BertC), Pointer, Pointer, whole, Pointer]
    return compiled
