"""all-MiniLM-L6-v2 with int8 weights and vectors rounded to 8 bits, a batch in one compiled call.

Its vectors differ from those in float32 (``docs/performance.md`` states the
cosines), so it is an encoder with a name and a fingerprint of its own. It is
fast on a processor with AVX2 or AVX-512; on others torch computes it slowly.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from jaxtyping import Float32, Int32
from numpy.typing import NDArray
from torch import Tensor

from nextvec.encoders.minilm_weights import (
    DIM,
    EPSILON,
    HEADS,
    LAYERS,
    MAX_TOKENS,
    WEIGHTS_SHA256,
    minilm_weights,
    minilm_word_pieces,
)
from nextvec.encoders.protocol import Encoded, Kind
from nextvec.encoders.word_pieces import Tokenized
from nextvec.encoders.workers import processors
from nextvec.kernels.bert import Bert, Layer, Norm, encode_tokens
from nextvec.kernels.rounded import Rotated, pack_rotated

# Axes: N texts, B texts of a batch, D width.

BATCH_TOKENS = 256  # so few that a batch stays in the cache of its core; measured, more are no faster
READ = 256  # texts whose tokens are read at once

Batch = list[NDArray[np.int32]]  # the tokens of consecutive texts


class MiniLMInt8:
    """MiniLM in int8, several times as fast as :class:`~nextvec.encoders.MiniLM`, which stays the default.

    Consecutive texts share a batch without padding. One thread computes a
    batch, ``workers`` batches run in parallel, and a thread of its own reads
    tokens ahead. The bits of a vector depend on its text alone.
    """

    name = "all-MiniLM-L6-v2-int8"
    fingerprint = f"all-MiniLM-L6-v2-int8:{WEIGHTS_SHA256[:16]}:mean:{MAX_TOKENS}"
    dim = DIM
    max_tokens: int | None = MAX_TOKENS

    def __init__(self, workers: int | None = None) -> None:
        self._bert = _packed()
        self._pieces = minilm_word_pieces()
        self.workers = workers or processors()

    def encode(self, texts: Sequence[str], kind: Kind = "passage") -> Encoded:
        """Encode ``texts``; MiniLM has no prompts, so ``kind`` changes nothing."""
        return self.encode_reporting(texts, kind, lambda _: None)

    def encode_reporting(self, texts: Sequence[str], kind: Kind, report: Callable[[float], None]) -> Encoded:
        """:meth:`encode`; ``report`` is called after each batch with the share of the texts that is done."""
        rows, tokens = np.empty((len(texts), DIM), np.float32), np.empty(len(texts), np.int32)

        def batches() -> Iterator[Batch]:
            start = 0
            for part in self._read(texts):
                tokens[start : start + len(part.ids)] = part.counts
                start += len(part.ids)
                yield from _batches(part.ids)

        done = 0
        for found in self._computed(batches()):
            rows[done : done + len(found)] = found
            done += len(found)
            report(done / len(texts))
        return Encoded(rows, tokens)

    def count_tokens(self, texts: Sequence[str]) -> Int32[np.ndarray, " N"]:
        """Tokens of each text before truncation, including the two tokens that mark its beginning and its end."""
        return self._pieces.count(texts)

    def unknown_share(self, texts: Sequence[str]) -> Float32[np.ndarray, " N"]:
        """Share of each text's characters, blanks left out, that are in no word of the vocabulary."""
        return self._pieces.unknown_share(texts)

    def _read(self, texts: Sequence[str]) -> Iterator[Tokenized]:
        parts = [texts[start : start + READ] for start in range(0, len(texts), READ)]
        if len(parts) == 1:
            yield self._pieces.read(parts[0])
            return
        with ThreadPoolExecutor(1) as reader:
            yield from reader.map(self._pieces.read, parts)

    def _computed(self, batches: Iterator[Batch]) -> Iterator[Float32[np.ndarray, "B D"]]:
        if self.workers == 1:
            yield from map(self._rows, batches)
            return
        with ThreadPoolExecutor(self.workers) as pool:
            yield from pool.map(self._rows, batches)

    def _rows(self, batch: Batch) -> Float32[np.ndarray, "B D"]:
        return encode_tokens(self._bert, np.concatenate(batch), np.array([len(ids) for ids in batch], np.int64))


def _batches(texts: Batch) -> Iterator[Batch]:
    """Consecutive texts of at most ``BATCH_TOKENS`` tokens together, at least one."""
    batch: Batch = []
    size = 0
    for ids in texts:
        if batch and size + len(ids) > BATCH_TOKENS:
            yield batch
            batch, size = [], 0
        batch.append(ids)
        size += len(ids)
    if batch:
        yield batch


@cache
def _packed() -> Bert:
    w = minilm_weights()
    norm = _norm(w, "embeddings.LayerNorm")
    positions = w["embeddings.position_embeddings.weight"][:MAX_TOKENS] + w["embeddings.token_type_embeddings.weight"][0]
    layers = tuple(_layer(w, f"encoder.layer.{n}") for n in range(LAYERS))
    return Bert(w["embeddings.word_embeddings.weight"].contiguous(), positions, norm, layers, HEADS, EPSILON)


def _layer(w: dict[str, Tensor], name: str) -> Layer:
    parts = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
    scales = ((DIM // HEADS) ** -0.5, 1, 1)
    qkv, bias = (
        torch.cat([w[f"{part}.{kind}"] * scale for part, scale in zip(parts, scales, strict=True)])
        for kind in ("weight", "bias")
    )
    return Layer(
        pack_rotated(qkv, bias),
        _linear(w, f"{name}.attention.output.dense"),
        _linear(w, f"{name}.intermediate.dense"),
        _linear(w, f"{name}.output.dense"),
        _norm(w, f"{name}.attention.output.LayerNorm"),
        _norm(w, f"{name}.output.LayerNorm"),
    )


def _linear(w: dict[str, Tensor], name: str) -> Rotated:
    return pack_rotated(w[f"{name}.weight"], w[f"{name}.bias"])


def _norm(w: dict[str, Tensor], name: str) -> Norm:
    return Norm(w[f"{name}.weight"].contiguous(), w[f"{name}.bias"].contiguous())
