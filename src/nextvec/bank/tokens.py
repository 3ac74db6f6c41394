"""Tokens of the chunks of a bank, and the share of chunks that its encoder truncated."""

# Axes: N rows.

import re
from typing import Any, Literal

import numpy as np
from jaxtyping import Int32

from nextvec.bank.bank import Bank
from nextvec.bank.layout import Manifest

# The end of the fingerprints of our own encoders: a digest, the pooling if it is named, and the tokens that are read.
READS = re.compile(r":[0-9a-f]{16}:(?:mean:)?([1-9][0-9]{0,6})$")


def tokens_read(manifest: Manifest) -> int | Literal["any"] | None:
    """The most tokens of a chunk that the bank's encoder reads; None where that is unknown.

    Where the manifest does not hold it, the fingerprint of the encoder may name it.
    """
    if manifest.max_tokens is not None:
        return manifest.max_tokens
    named = READS.search(manifest.encoder_fingerprint)
    return int(named[1]) if named else None


def tokens_counted(bank: Bank) -> Int32[np.ndarray, " N"] | None:
    """Tokens of each chunk before truncation, with the encoder's own; None where the encoder did not count them."""
    tokens = bank.table.tokens
    return tokens if tokens is not None and int(tokens.min()) > 0 else None


def truncated_share(bank: Bank) -> float | None:
    """Share of the chunks that have more tokens than their encoder reads; None where either is unknown."""
    tokens, limit = tokens_counted(bank), tokens_read(bank.manifest)
    if tokens is None or limit is None:
        return None
    return 0.0 if limit == "any" else float((tokens > limit).mean())


def token_facts(bank: Bank) -> dict[str, Any]:
    """Tokens per chunk and what the encoder reads, as ``inspect`` shows them; "unknown" where the encoder does not say.

    None everywhere for a bank of ready vectors.
    """
    names = ("tokens_per_chunk", "tokens_median", "tokens_95_percent", "tokens_most", "encoder_reads_tokens", "truncated_share")
    if not bank.manifest.reads_text:
        return dict.fromkeys(names)
    tokens, limit, share = tokens_counted(bank), tokens_read(bank.manifest), truncated_share(bank)
    counted: list[Any] = ["unknown"] * 4
    if tokens is not None:
        middle, high = np.quantile(tokens, (0.5, 0.95))
        counted = [round(float(np.mean(tokens)), 1), round(float(middle)), round(float(high)), int(tokens.max())]
    read = "unknown" if limit is None else limit
    return dict(zip(names, [*counted, read, "unknown" if share is None else share], strict=True))
