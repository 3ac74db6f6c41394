"""How much of a text a tokenizer replaces by its unknown token."""

# Axes: N texts.

import json
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32
from tokenizers import Tokenizer


def unknown_share(tokenizer: Tokenizer, unknown: str, texts: Sequence[str]) -> Float32[np.ndarray, " N"]:
    """Share of each text's characters, blanks left out, that the token ``unknown`` stands for; 0 for a blank text.

    Characters are counted, not tokens, because one unknown token stands for a whole word: 300 letters of a script that
    the vocabulary lacks are one token.
    """
    number = tokenizer.token_to_id(unknown)
    shares = np.zeros(len(texts), np.float32)
    for n, (text, encoding) in enumerate(zip(texts, tokenizer.encode_batch(list(texts)), strict=True)):
        letters = len("".join(text.split()))
        lost = sum(stop - start for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True) if token == number)
        shares[n] = min(1.0, lost / letters) if letters else 0.0
    return shares


def unknown_token(tokenizer: Tokenizer) -> str | None:
    """The token that stands for what the vocabulary lacks; None if there is none."""
    named = getattr(tokenizer.model, "unk_token", None)
    if named is not None:
        return named if tokenizer.token_to_id(named) is not None else None
    number = json.loads(tokenizer.to_str())["model"].get("unk_id")  # of unigram models
    return None if number is None else tokenizer.id_to_token(number)
