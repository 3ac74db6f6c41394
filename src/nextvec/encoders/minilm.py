"""all-MiniLM-L6-v2 in float32 and plain torch: BERT, 6 layers, mean pooling, unit rows (384 wide).

Architecture: Devlin et al. 2019 (BERT) and Wang et al. 2020 (MiniLM),
numerically equal to sentence-transformers' own forward.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int32, Int64
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding, gelu, layer_norm, linear, normalize, scaled_dot_product_attention

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
from nextvec.encoders.workers import processors

# Axes: B texts, T tokens, D width.

BATCH_TOKENS = 2048


class MiniLM:
    """The default encoder: works offline on a machine that has only Python.

    One thread computes a batch, and ``workers`` batches run in parallel. So the
    bits do not depend on the number of workers, and on a busy machine no thread
    spins while it waits for another.
    """

    name = "all-MiniLM-L6-v2"
    fingerprint = f"all-MiniLM-L6-v2:{WEIGHTS_SHA256[:16]}:mean:{MAX_TOKENS}"
    dim = DIM
    max_tokens: int | None = MAX_TOKENS

    def __init__(self, workers: int | None = None) -> None:
        self._weights = minilm_weights()
        self._pieces = minilm_word_pieces()
        self.workers = workers or processors()

    def encode(self, texts: Sequence[str], kind: Kind = "passage") -> Encoded:
        """Encode ``texts``; MiniLM has no prompts, so ``kind`` changes nothing.

        Texts are sorted by length before they are put into batches, so that
        batches have little padding.
        """
        return self.encode_reporting(texts, kind, lambda _: None)

    def encode_reporting(self, texts: Sequence[str], kind: Kind, report: Callable[[float], None]) -> Encoded:
        """:meth:`encode`; ``report`` is called after each batch with the share of the tokens that is done."""
        tokenized = self._pieces.read(texts)
        tokens = tokenized.counts
        rows = np.empty((len(texts), DIM), dtype=np.float32)
        batches = _batches_by_length(tokens)
        done, total = 0, max(1, int(tokens.sum()))

        def run(batch: NDArray[np.int64]) -> int:
            torch.set_num_threads(1)
            rows[batch] = self._forward(*_padded([tokenized.ids[i] for i in batch]))
            return int(tokens[batch].sum())

        if self.workers == 1 or len(batches) == 1:
            before = torch.get_num_threads()
            for batch in batches:
                done += run(batch)
                report(done / total)
            torch.set_num_threads(before)
        else:
            with ThreadPoolExecutor(self.workers) as pool:
                for read in pool.map(run, batches):
                    done += read
                    report(done / total)
        return Encoded(rows, tokens)

    def count_tokens(self, texts: Sequence[str]) -> Int32[np.ndarray, " N"]:
        """Tokens of each text before truncation, including the two tokens that mark its beginning and its end."""
        return self._pieces.count(texts)

    def unknown_share(self, texts: Sequence[str]) -> Float32[np.ndarray, " N"]:
        """Share of each text's characters, blanks left out, that are in no word of the vocabulary."""
        return self._pieces.unknown_share(texts)

    @torch.inference_mode()
    def _forward(self, ids_BT: Int64[Tensor, "B T"], real_BT: Bool[Tensor, "B T"]) -> Float32[np.ndarray, "B D"]:
        w = self._weights
        x_BTD = embedding(ids_BT, w["embeddings.word_embeddings.weight"])
        x_BTD = x_BTD + w["embeddings.position_embeddings.weight"][: ids_BT.shape[1]]
        x_BTD = self._norm(x_BTD + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        seen = real_BT[:, None, None, :]
        for n in range(LAYERS):
            layer = f"encoder.layer.{n}"
            x_BTD = self._norm(x_BTD + self._attention(x_BTD, seen, layer), f"{layer}.attention.output.LayerNorm")
            wide = gelu(self._linear(x_BTD, f"{layer}.intermediate.dense"))
            x_BTD = self._norm(x_BTD + self._linear(wide, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        pooled_BD = (x_BTD * real_BT[..., None]).sum(1)
        return normalize(pooled_BD, dim=-1).numpy()

    def _attention(self, x_BTD: Float[Tensor, "B T D"], seen: Tensor, layer: str) -> Float[Tensor, "B T D"]:
        parts = (self._linear(x_BTD, f"{layer}.attention.self.{part}") for part in ("query", "key", "value"))
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self._linear(mixed.transpose(1, 2).flatten(2), f"{layer}.attention.output.dense")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return layer_norm(x, (DIM,), self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], EPSILON)


def _batches_by_length(tokens: NDArray[np.int32]) -> list[NDArray[np.int64]]:
    """Batches of at most ``BATCH_TOKENS`` tokens with their padding, longest texts first."""
    order = np.argsort(-tokens, kind="stable")
    batches: list[NDArray[np.int64]] = []
    while len(order):
        size = max(1, BATCH_TOKENS // min(int(tokens[order[0]]), MAX_TOKENS))
        batches.append(order[:size])
        order = order[size:]
    return batches


def _padded(texts: list[NDArray[np.int32]]) -> tuple[Int64[Tensor, "B T"], Bool[Tensor, "B T"]]:
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    for row, tokens in zip(ids, texts, strict=True):
        row[: len(tokens)] = torch.from_numpy(tokens)
    lengths = torch.tensor([len(tokens) for tokens in texts])
    return ids, torch.arange(ids.shape[1]) < lengths[:, None]
