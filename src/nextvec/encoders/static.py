"""A static encoder: a text's vector is the sum of a fixed vector for each of its tokens, scaled to unit length.

It reads folders of model2vec (Tulkens and van Dongen 2024) and of
sentence-transformers' ``StaticEmbedding``, and the weights inside the PyPI
package ``wordllama``. It computes no network, so most of its time is that of
the tokenizer.
"""

# Axes: N texts, T tokens, V vocabulary, D width.

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64
from safetensors import SafetensorError
from safetensors.torch import load
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from nextvec.encoders.protocol import Encoded, Kind
from nextvec.encoders.unknown import unknown_share, unknown_token
from nextvec.errors import DataError

STATIC = "static"  # its name, or the part of its name before the folder
PACKAGE = "wordllama"
MODEL2VEC = "embeddings"  # the table in a file of model2vec
TABLES = (MODEL2VEC, "embedding.weight")  # the second: in files of sentence-transformers and of the package
MAX_TOKENS = 512  # that model2vec reads where its configuration states no number
SLICE = 1024  # texts whose tokens are held at once


@dataclass(frozen=True)
class StaticFiles:
    """The files of a static encoder; the configuration is that of model2vec and may be missing."""

    weights: Path
    tokenizer: Path
    config: Path | None = None


@dataclass(frozen=True, eq=False)
class Table:
    """Vectors of tokens.

    Attributes:
        rows: the vectors.
        places: the row of each token, where several tokens share one.
        weights: a factor for each token.
    """

    rows: Float32[Tensor, "R D"]
    places: Int64[Tensor, " V"] | None
    weights: Float32[Tensor, " V"] | None

    def __len__(self) -> int:
        """The number of tokens."""
        return len(self.rows) if self.places is None else len(self.places)

    def sums(self, ids: Int64[Tensor, " T"], starts: Int64[Tensor, " N"]) -> Float32[Tensor, "N D"]:
        """The weighted sum over the tokens of each text; text n begins at ``starts[n]``."""
        rows = ids if self.places is None else self.places[ids]
        weights = None if self.weights is None else self.weights[ids]
        return embedding_bag(rows, self.rows, starts, mode="sum", per_sample_weights=weights)


class StaticEncoder:
    """Sums of token vectors, of a folder or of the package ``wordllama``.

    A folder holds ``model.safetensors`` and ``tokenizer.json``. The fingerprint
    covers their bytes and the number of tokens that are read.

    Raises:
        DataError: a file is missing, or does not hold a table with a vector for each token.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        files = _of_package() if folder is None else _of_folder(Path(folder))
        self.name = STATIC if folder is None else f"{STATIC}:{Path(folder).resolve()}"
        try:
            weights, tokenizer = files.weights.read_bytes(), files.tokenizer.read_bytes()
            tensors, self._tokenizer = load(weights), Tokenizer.from_buffer(tokenizer)
        except (OSError, SafetensorError, ValueError) as error:
            raise DataError(f"encoder {self.name!r} cannot be loaded: {str(error).splitlines()[0]}") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._table = _table(tensors, self._tokenizer, files.weights)
        self._unknown = unknown_token(self._tokenizer)
        self.dim = self._table.rows.shape[1]
        self.max_tokens: int | None = _most_tokens(tensors, files)
        digest = hashlib.sha256(weights + tokenizer + str(self.max_tokens).encode()).hexdigest()
        # Where there is no limit, the number at the end is that of sentence-transformers' encoders.
        self.fingerprint = f"{STATIC}:{digest[:16]}:mean:{self.max_tokens or MAX_TOKENS}"

    def encode(self, texts: Sequence[str], kind: Kind = "passage") -> Encoded:
        """Encode ``texts``; ``kind`` changes nothing. The bits of a vector depend on its text alone.

        Raises:
            DataError: a text has no token, or only tokens whose vectors are zero.
        """
        rows, tokens = np.empty((len(texts), self.dim), np.float32), np.empty(len(texts), np.int32)
        for start in range(0, len(texts), SLICE):
            part = slice(start, start + SLICE)
            ids = self._ids(texts[part])
            tokens[part] = [len(each) for each in ids]
            rows[part] = self._rows(ids, texts, start)
        return Encoded(rows, tokens)

    def count_tokens(self, texts: Sequence[str]) -> Int32[np.ndarray, " N"]:
        """Tokens of each text before truncation; there are no special tokens."""
        return np.array([len(ids) for ids in self._ids(texts)], np.int32)

    def unknown_share(self, texts: Sequence[str]) -> Float32[np.ndarray, " N"] | None:
        """Share of each text's characters, blanks left out, that the vocabulary lacks; None without an unknown token."""
        return None if self._unknown is None else unknown_share(self._tokenizer, self._unknown, texts)

    @torch.inference_mode()
    def _rows(self, ids: list[Int64[np.ndarray, " _"]], texts: Sequence[str], first: int) -> Float32[np.ndarray, "N D"]:
        """The vectors of some of the texts, from text ``first`` on."""
        read = [self._known(each[: self.max_tokens]) for each in ids]
        starts = np.cumsum([0, *(len(each) for each in read[:-1])])
        sums = self._table.sums(torch.from_numpy(np.concatenate(read)), torch.from_numpy(starts))
        empty = (sums == 0).all(1)
        if empty.any():
            n = first + int(empty.nonzero()[0])
            raise DataError(f"text {n}, {texts[n][:40]!r}, has no token that {self.name} knows; leave it out")
        return normalize(sums).numpy()

    def _ids(self, texts: Sequence[str]) -> list[Int64[np.ndarray, " _"]]:
        return [np.array(e.ids, np.int64) for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _known(self, ids: Int64[np.ndarray, " T"]) -> Int64[np.ndarray, " _"]:
        """Without the unknown token, as in model2vec; a text of nothing else keeps it, because it needs a vector."""
        if self._unknown is None:
            return ids
        known = ids[ids != self._tokenizer.token_to_id(self._unknown)]
        return known if len(known) else ids


def _of_folder(folder: Path) -> StaticFiles:
    for place in (folder, folder / "0_StaticEmbedding"):
        files = StaticFiles(place / "model.safetensors", place / "tokenizer.json", place / "config.json")
        if files.weights.is_file() and files.tokenizer.is_file():
            return files
    raise DataError(f"{folder} holds no static encoder: it needs the files model.safetensors and tokenizer.json")


def _of_package() -> StaticFiles:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise DataError(
            "the weights of the static encoder are not installed; run: pip install --no-deps wordllama==0.4.0.post1; "
            "or give a folder of model2vec: static:FOLDER"
        )
    place = Path(spec.origin).parent
    name = "l2_supercat"
    return StaticFiles(place / "weights" / f"{name}_256.safetensors", place / "tokenizers" / f"{name}_tokenizer_config.json")


def _table(tensors: dict[str, Tensor], tokenizer: Tokenizer, where: Path) -> Table:
    rows = next((tensors[name] for name in TABLES if name in tensors), None)
    if rows is None or rows.ndim != 2:
        raise DataError(f"{where} has no table of token vectors; it holds {', '.join(sorted(tensors)) or 'nothing'}")
    places, weights = tensors.get("mapping"), tensors.get("weights")
    table = Table(
        rows.float(), None if places is None else places.long(), None if weights is None else weights.float().contiguous()
    )
    most = max(tokenizer.get_vocab().values()) + 1
    if len(table) < most or (weights is not None and len(weights) < most):
        raise DataError(f"{where} has vectors for {len(table)} tokens, and the tokenizer has {most}")
    if places is not None and not (int(places.min()) >= 0 and int(places.max()) < len(rows)):
        raise DataError(f"{where} maps a token to a vector that the table of {len(rows)} lacks")
    if not table.rows.isfinite().all() or (table.weights is not None and not table.weights.isfinite().all()):
        raise DataError(f"{where} holds NaN or infinity")
    return table


def _most_tokens(tensors: dict[str, Tensor], files: StaticFiles) -> int | None:
    """The most tokens of a text that are read, as model2vec configures it; None where there is no limit."""
    if MODEL2VEC not in tensors:
        return None
    config: Any = {}
    if files.config is not None and files.config.is_file():
        try:
            config = json.loads(files.config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{files.config} is not JSON: {error}") from None
        if not isinstance(config, dict):
            raise DataError(f"{files.config} must be an object of JSON")
    limit = config.get("max_length", MAX_TOKENS)
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise DataError(f"{files.config}: max_length is {limit!r}; it must be a whole number from 1, or null")
    return limit
