"""Any sentence-transformers model by name, with its own query and passage prompts (an extra)."""

import hashlib
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32
from tokenizers import Tokenizer

from nextvec.encoders.protocol import Encoded, Kind
from nextvec.encoders.unknown import unknown_share, unknown_token
from nextvec.errors import DataError

UNLIMITED = 1_000_000  # tokens; a limit of this number or more counts as no limit
PROMPTS: dict[Kind, tuple[str, ...]] = {"passage": ("passage", "document"), "query": ("query",)}


class SentenceTransformerEncoder:
    """A model that sentence-transformers can load: a name on a hub, or a folder.

    Its fingerprint covers the weights and the passage prompt, so that two
    models never mix in one bank even when they share a name.
    """

    def __init__(self, name: str) -> None:
        try:
            library: Any = importlib.import_module("sentence_transformers")
        except ImportError:
            raise DataError(
                f"encoder {name!r} needs sentence-transformers; run: pip install 'nextvec[sentence-transformers]'"
            ) from None
        try:
            self._model: Any = library.SentenceTransformer(name, device="cpu")
        except (OSError, ValueError) as error:
            raise DataError(f"encoder {name!r} cannot be loaded: {str(error).splitlines()[0]}") from None
        self.name = name
        self.dim = int(self._model.get_sentence_embedding_dimension())
        self._tokenizer, self._special, self.max_tokens = _reads(self._model, name)
        self.fingerprint = f"{name}:{self._digest()}:{_named_limit(self._model)}"

    def encode(self, texts: Sequence[str], kind: Kind = "passage") -> Encoded:
        """Encode ``texts`` under the model's prompt for ``kind``, where it has one."""
        rows = self._model.encode(
            list(texts),
            prompt_name=self._prompt(kind),
            normalize_embeddings=True,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        return Encoded(np.asarray(rows, np.float32), self._count(texts, kind))

    def count_tokens(self, texts: Sequence[str]) -> Int32[np.ndarray, " N"]:
        """Tokens of each passage before truncation, with its prompt and the special tokens."""
        return self._count(texts, "passage")

    def unknown_share(self, texts: Sequence[str]) -> Float32[np.ndarray, " N"] | None:
        """Share of each text's characters, blanks left out, that the vocabulary lacks; None without an unknown token."""
        unknown = _unknown_token(self._model.tokenizer)
        if unknown is None or self._tokenizer.token_to_id(unknown) is None:
            return None
        return unknown_share(self._tokenizer, unknown, texts)

    def _count(self, texts: Sequence[str], kind: Kind) -> Int32[np.ndarray, " N"]:
        prompt = self._model.prompts.get(self._prompt(kind) or "", "")
        encoded = self._tokenizer.encode_batch_fast([f"{prompt}{text}" for text in texts], add_special_tokens=self._special)
        return np.array([len(one.ids) for one in encoded], np.int32)

    def _prompt(self, kind: Kind) -> str | None:
        prompts: dict[str, str] = self._model.prompts
        return next((name for name in PROMPTS[kind] if prompts.get(name)), None)

    def _digest(self) -> str:
        digest = hashlib.sha256(str(self._model.prompts.get(self._prompt("passage") or "", "")).encode())
        for name, tensor in sorted(self._model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().float().numpy().tobytes())
        return digest.hexdigest()[:16]


def _reads(model: Any, name: str) -> tuple[Tokenizer, bool, int | None]:
    """The model's tokenizer without truncation and padding, whether it adds special tokens, and the most tokens read.

    A static model (a table of token vectors) keeps a bare tokenizer, adds no special token, and reads texts of any
    length unless its tokenizer truncates.
    """
    own = model.tokenizer
    static = isinstance(own, Tokenizer)
    fast = own if static else getattr(own, "backend_tokenizer", None)
    if not isinstance(fast, Tokenizer):
        raise DataError(f"encoder {name!r} has no fast tokenizer; its tokens cannot be counted")
    limits = [model.max_seq_length]
    if static:
        limits.append((fast.truncation or {}).get("max_length"))
    elif model.max_seq_length is None:
        limits.append(own.model_max_length)
    known = [int(limit) for limit in limits if limit is not None and limit < UNLIMITED]
    counting = Tokenizer.from_str(fast.to_str())
    counting.no_truncation()
    counting.no_padding()
    return counting, not static, min(known) if known else None


def _unknown_token(tokenizer: Any) -> str | None:
    if isinstance(tokenizer, Tokenizer):
        return unknown_token(tokenizer)
    return tokenizer.unk_token


def _named_limit(model: Any) -> int:
    """The number that ends a fingerprint: the most tokens that are read, or 512 where there is no limit."""
    limit = model.max_seq_length
    return int(limit) if limit and limit < UNLIMITED else 512
