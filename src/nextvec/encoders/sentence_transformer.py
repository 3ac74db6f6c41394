"""Any sentence-transformers model by name, with its own query and passage prompts (an extra)."""

import hashlib
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from nextvec.encoders.protocol import Encoded, Kind
from nextvec.errors import DataError

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
        self.max_tokens = int(self._model.max_seq_length or 512)
        self.fingerprint = f"{name}:{self._digest()}:{self.max_tokens}"

    def encode(self, texts: Sequence[str], kind: Kind = "passage") -> Encoded:
        """Encode ``texts`` under the model's prompt for ``kind``, where it has one."""
        rows = self._model.encode(
            list(texts),
            prompt_name=self._prompt(kind),
            normalize_embeddings=True,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        tokens = self._model.tokenizer(list(texts), truncation=False, padding=False, verbose=False)["input_ids"]
        return Encoded(np.asarray(rows, np.float32), np.array([len(ids) for ids in tokens], np.int32))

    def _prompt(self, kind: Kind) -> str | None:
        prompts: dict[str, str] = self._model.prompts
        return next((name for name in PROMPTS[kind] if prompts.get(name)), None)

    def _digest(self) -> str:
        digest = hashlib.sha256(str(self._model.prompts.get(self._prompt("passage") or "", "")).encode())
        for name, tensor in sorted(self._model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().float().numpy().tobytes())
        return digest.hexdigest()[:16]
